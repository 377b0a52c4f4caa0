"""The interface for removing payloads from a journal permanently; their rows and keys stay.

It takes two phases.  First the payloads in the store's tables are replaced.  Then the store's files
are *settled*: the old bytes are still in free space, in the write-ahead log or in the append-only
file, until those are rewritten.  Both phases run in small steps that block other callers for no
longer than an append, and both can be restarted after a crash at any point.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from replay.journal.base import Stored


class Erasing(Protocol):
    """The erasing operations of one journal.  Damaged entries raise JournalDamaged and stay."""

    def rows(self, partition: int, offsets: Sequence[int], payload: bytes) -> int:
        """Replace the payload of rows and clear their event ids; return how many were changed.

        Their other columns stay.  Trimmed rows are skipped.
        """

    def halves(self, model: str) -> Iterator[tuple[bytes, Stored]]:
        """Yield the model's halves with their keys; concurrent changes may be missed."""

    def replace_half(self, model: str, key: bytes, over: Stored, by: Stored | None) -> bool:
        """Replace the half ``over`` by ``by`` (None: remove it); False if it has changed."""

    def texts(self, model: str, kind: str, keys: Collection[str], payload: bytes) -> int:
        """Replace the payload of control rows by kind and key; return how many were changed."""

    def settle(self) -> Iterator[int]:
        """Rewrite the store's files until no replaced bytes are left in them.

        Each step yields the number of steps or pages left (0: unknown); the caller pauses between
        steps.  Raises JournalUnavailable if it cannot be done now.
        """
