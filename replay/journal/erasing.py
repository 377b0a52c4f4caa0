"""This module says how payloads are removed from a journal for good; their rows and keys stay.

Removing has two parts.  First other payloads take the place of those in the store's tables.  Then
the store's files are *settled*: what was written before still lies in free space, in the
write-ahead log or in the append-only file, until that is rewritten.  Both go on in small steps,
each of which keeps other callers waiting for no longer than an append does, and both may be begun
again after an end at any instant.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from replay.journal.base import Stored


class Erasing(Protocol):
    """The erasing steps of one journal.  What is damaged raises JournalDamaged, and stays."""

    def rows(self, partition: int, offsets: Sequence[int], payload: bytes) -> int:
        """Give rows of a partition this payload and no event id; how many had another one.

        Everything else of them stays.  Rows that were trimmed are left out.
        """

    def halves(self, model: str) -> Iterator[tuple[bytes, Stored]]:
        """The model's halves with their keys; those that come or go meanwhile may be missing."""

    def replace_half(self, model: str, key: bytes, over: Stored, by: Stored | None) -> bool:
        """Put ``by`` (None: nothing) in the place of a half; False if ``over`` stands no longer."""

    def texts(self, model: str, kind: str, keys: Collection[str], payload: bytes) -> int:
        """Give control rows of a kind and these keys this payload; how many had another one."""

    def settle(self) -> Iterator[int]:
        """Rewrite the store's files until nothing is left in them of what was replaced.

        Each step yields how many are left, 0 if that is not known; pause between two of them.
        Raises JournalUnavailable if it can't be done now.
        """
