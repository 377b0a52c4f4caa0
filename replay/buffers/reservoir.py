"""A uniform sample of everything offered so far.

Algorithm R (Waterman; in Vitter, "Random Sampling with a Reservoir", ACM TOMS 11, 1985): with M
slots, the n-th item takes slot j, drawn from 0 … n − 1, if j < M.  Every item of the stream is then
in the buffer with probability M / n.  Deviations: a cap for each source and a minimum for each
class, both switched off by default; without them nothing else is drawn or decided.
"""

from __future__ import annotations

from replay.buffers.base import items_of_share
from replay.buffers.item import Item
from replay.buffers.longterm import LongTerm
from replay.buffers.slots import Group


class Reservoir(LongTerm):
    """Every item offered is kept with the same probability.

    A class with a share p of the stream is absent with probability about (1 − p)^M: rare classes
    need a minimum, or :class:`~replay.buffers.balanced.ClassBalanced`.

    Parameters:
        capacity, seed, source_share_max: See :class:`~replay.buffers.longterm.LongTerm`.
        class_share_min: Share of the capacity, in [0, 1], up to which all that was offered of a
            class is kept, and below which other classes can't push it; with C classes at most
            capacity // C items, so it shrinks as classes come.  A class that has fewer items than
            that leaves the room to the others.  The source cap comes first, and a purge takes what
            it must.  0: no minimum.

    Examples:
    >>> from replay.buffers.item import Item
    >>> buffer = Reservoir(capacity=100, seed=1)
    >>> for i in range(10_000):
    ...     left = buffer.insert(Item(b"%d" % i, {"x": i}, label=i % 2 == 0))
    >>> len(buffer), sum(item.features["x"] < 5_000 for item in buffer)
    (100, 50)
    """

    def __init__(
        self,
        capacity: int,
        seed: int,
        *,
        source_share_max: float = 1.0,
        class_share_min: float = 0.0,
    ) -> None:
        super().__init__(capacity, seed, source_share_max, class_share_min)
        self._class_min = items_of_share("class_share_min", class_share_min, capacity)

    def _displace(self, item: Item, group: Group | None) -> Item:
        drawn = self._rng.randrange(self._seen)
        if self._class_min:
            return self._displace_protected(item, group, drawn)
        if drawn < self._capacity:
            return self._slots.replace(drawn, item)
        return item

    def _displace_protected(self, item: Item, group: Group | None, drawn: int) -> Item:
        """Algorithm R between classes above the minimum, and within a class that is at it."""
        slots = self._slots
        least = min(
            self._class_min, self._capacity // (len(slots.classes.ranked) + (group is None))
        )
        size = 0 if group is None else len(group.members)
        if size < least:
            return slots.replace(self._other(self._rng.randrange(self._capacity), least), item)
        if drawn < self._capacity:
            taken = slots.classes.by_key[slots.items[drawn].label]
            if taken is group or len(taken.members) > least:
                return slots.replace(drawn, item)
            if len(slots.classes.ranked[0].members) > least:
                return slots.replace(self._other(drawn, least), item)
        # A class that its minimum holds up has more than M / n of its items, and would hardly be
        # renewed with that chance: what is missing to size / group.seen it takes from itself.
        if group is not None and size == least and drawn * group.seen < size * self._seen:
            return slots.replace(self._rng.choice(group.members), item)
        return item

    def _other(self, slot: int, least: int) -> int:
        """``slot`` if its class can spare it, else one of a largest class."""
        classes = self._slots.classes
        if len(classes.by_key[self._slots.items[slot].label].members) > least:
            return slot
        largest = classes.ranked[0].members
        assert len(largest) > least  # it is full, and one class or more has less than its part
        return self._rng.choice(largest)
