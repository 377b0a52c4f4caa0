"""The interface of a buffer.

A buffer is derived from the journal: inserting the same items in the same order into a buffer with
the same settings and seed gives the same buffer, bit for bit.  It is rebuilt that way.
``tests/conformance`` runs :func:`buffer_checks.check_buffer` against every policy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain
from random import Random

from replay.buffers.item import Item
from replay.buffers.slots import Slots
from replay.errors import SettingInvalid
from replay.retrieval import Retrieval, uniform

CAPACITY_MAX = 10_000_000
"""Greatest number of items in one compartment; about 1 GB with nine features each."""

NONE = Slots()
"""Stands for a compartment that a policy does not have; always empty."""


class Buffer(ABC):
    """A bounded buffer of items.

    Insert takes O(1), sample O(k) and purge O(items of the source), at any length of the stream.
    Not thread-safe.
    """

    @property
    @abstractmethod
    def parts(self) -> tuple[Slots, Slots]:
        """The long-term and the recent compartment, for reading only."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The greatest number of items in the buffer."""

    @abstractmethod
    def insert(self, item: Item) -> Item | None:
        """Offer ``item``; return the item that is not in the buffer as a result.

        That is ``item`` itself if it was not taken, the item that it replaced, or None if there was
        a free slot.  A purge frees slots, which the next items fill.
        """

    @abstractmethod
    def purge(self, source: str) -> int:
        """Remove every item of the source; return how many."""

    def sample(self, k: int, rng: Random, retrieval: Retrieval = uniform) -> list[Item]:
        """Return ``k`` distinct items drawn by ``retrieval``, or all items if there are fewer.

        Changes nothing but the caller's ``rng``.
        """
        return retrieval(*self.parts, k, rng)

    def __len__(self) -> int:
        long, recent = self.parts
        return len(long) + len(recent)

    def __iter__(self) -> Iterator[Item]:
        """Iterate over all items in arbitrary order."""
        long, recent = self.parts
        return chain(long.items, recent.items)


def checked_capacity(capacity: int) -> int:
    """Return ``capacity``; raise SettingInvalid unless it is in 1 … ``CAPACITY_MAX``."""
    if not 1 <= capacity <= CAPACITY_MAX:
        raise SettingInvalid("capacity", str(capacity), f"give 1 to {CAPACITY_MAX} items")
    return capacity


def items_of_share(setting: str, share: float, capacity: int) -> int:
    """Return ``share · capacity`` rounded down; raise SettingInvalid outside of [0, 1]."""
    if not 0 <= share <= 1:
        raise SettingInvalid(setting, repr(share), "give a share of the capacity from 0 to 1")
    return int(share * capacity + 1e-9)  # .29 * 100 is 28.999…
