"""A buffer of two compartments: a long-term sample, and the most recent items.

On real drift (Elec2, gas sensors) drawing from both was better than from either one: the sample of
the whole stream preserves old concepts, the ring follows new ones.  The proportions of a draw are
decided by :class:`replay.retrieval.RecentShare`, not by the buffer.
"""

from __future__ import annotations

from replay.buffers.base import Buffer
from replay.buffers.item import Item
from replay.buffers.longterm import LongTerm
from replay.buffers.ring import Ring
from replay.buffers.slots import Slots


class TwoCompartments(Buffer):
    """A ring that takes every item, and a long-term buffer that is offered what leaves the ring.

    So no item is stored twice, the long-term buffer samples exactly the items older than the ring,
    and items of a source that is soon quarantined are purged before they get there.  Each
    compartment has its own settings and source cap.

    Parameters:
        long: A :class:`~replay.buffers.reservoir.Reservoir` or
            :class:`~replay.buffers.balanced.ClassBalanced` for exclusive use; about 80 % of the
            total capacity is a good size.
        recent: The ring, for exclusive use.

    Examples:
    >>> from random import Random
    >>> from replay.buffers.item import Item
    >>> from replay.buffers.reservoir import Reservoir
    >>> from replay.retrieval import RecentShare
    >>> buffer = TwoCompartments(Reservoir(80, seed=1), Ring(20))
    >>> for i in range(10_000):
    ...     left = buffer.insert(Item(b"%d" % i, {"x": i}, label=i % 2 == 0))
    >>> drawn = buffer.sample(40, Random(2), RecentShare(0.25))
    >>> len(buffer), sum(item.features["x"] >= 9_980 for item in drawn)
    (100, 10)
    """

    def __init__(self, long: LongTerm, recent: Ring) -> None:
        self._long = long
        self._recent = recent

    @property
    def parts(self) -> tuple[Slots, Slots]:
        return self._long.parts[0], self._recent.parts[1]

    @property
    def capacity(self) -> int:
        return self._long.capacity + self._recent.capacity

    def insert(self, item: Item) -> Item | None:
        aged = self._recent.insert(item)
        return None if aged is None else self._long.insert(aged)

    def purge(self, source: str) -> int:
        return self._long.purge(source) + self._recent.purge(source)
