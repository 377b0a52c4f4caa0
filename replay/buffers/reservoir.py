"""Reservoir sampling: a uniform sample of all items offered so far.

Algorithm R (Waterman; in Vitter, "Random Sampling with a Reservoir", ACM TOMS 11, 1985): with M
slots, the n-th item takes slot j, drawn from 0 … n − 1, if j < M.  Then every item of the stream is
in the buffer with probability M / n.  Deviations: a cap for each source and a minimum for each
class, both off by default; without them the algorithm is unchanged.
"""

from __future__ import annotations

from replay.buffers.base import items_of_share
from replay.buffers.item import Item
from replay.buffers.longterm import LongTerm
from replay.buffers.slots import Group


class Reservoir(LongTerm):
    """A buffer in which every item offered is kept with the same probability.

    A class with a share p of the stream is absent with probability about (1 − p)^M, so rare classes
    need a minimum, or :class:`~replay.buffers.balanced.ClassBalanced`.

    Parameters:
        capacity, seed, source_share_max: See :class:`~replay.buffers.longterm.LongTerm`.
        class_share_min: Guaranteed share of the capacity for each class, in [0, 1]: up to it all
            items of the class are kept, and other classes do not displace them.  With C classes it
            is at most capacity // C items.  Slots that a class does not need are used by others.
            The source cap takes precedence, and a purge removes items regardless.  0: no minimum.

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
        super().__init__(capacity, seed, source_share_max=source_share_max)
        self._class_min = items_of_share("class_share_min", class_share_min, capacity)

    def _displace(self, item: Item, group: Group | None) -> Item:
        drawn = self._rng.randrange(self._seen)
        if self._class_min:
            return self._displace_protected(item, group, drawn)
        if drawn < self._capacity:
            return self._slots.replace(drawn, item)
        return item

    def _displace_protected(self, item: Item, group: Group | None, drawn: int) -> Item:
        """Apply algorithm R between classes above the minimum, and within a class at it."""
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
        # A class at its minimum keeps more than M / n of its items, so with that chance it would
        # hardly be renewed: replace its own items with probability size / group.seen in total.
        if group is not None and size == least and drawn * group.seen < size * self._seen:
            return slots.replace(self._rng.choice(group.members), item)
        return item

    def _other(self, slot: int, least: int) -> int:
        """Return ``slot`` if its class is above the minimum, else a slot of a largest class."""
        classes = self._slots.classes
        if len(classes.by_key[self._slots.items[slot].label].members) > least:
            return slot
        largest = classes.ranked[0].members
        assert len(largest) > least  # the buffer is full, and some class is below its minimum
        return self._rng.choice(largest)
