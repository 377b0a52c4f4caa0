"""Each class has as many items in the buffer as in the stream, up to an equal part of the buffer.

Class-balancing reservoir sampling (CBRS): Chrysakis and Moens, "Online Continual Learning from
Imbalanced Data", ICML 2020, algorithm 1.  An item of a class that is not full takes the slot of a
random item of a largest class.  A class is full from the moment at which it is a largest one, with
no room left; it keeps a uniform sample of itself (an item is taken with probability m / n, with m
of its n items kept).  Rare classes are kept whole; room that they don't need goes to the others.

Deviations: of several largest classes they take turns instead of being drawn; n is counted while
something of the class is kept, so that the counters are bounded; a purge makes its classes judged
anew; the cap for each source.
"""

from __future__ import annotations

from replay.buffers.item import Item
from replay.buffers.longterm import LongTerm
from replay.buffers.slots import Group


class ClassBalanced(LongTerm):
    """Rare classes whole, frequent ones as uniform samples of the same size.

    For labels of few classes.  With more classes than slots (regression) it is a memory of recent
    items.

    Parameters:
        capacity, seed, source_share_max: See :class:`~replay.buffers.longterm.LongTerm`.

    Examples:
    >>> from replay.buffers.item import Item
    >>> buffer = ClassBalanced(capacity=100, seed=1)
    >>> for i in range(10_000):
    ...     left = buffer.insert(Item(b"%d" % i, {"x": i}, label=i % 250 == 0))
    >>> len(buffer), sum(item.label for item in buffer)
    (100, 40)
    """

    def __init__(self, capacity: int, seed: int, *, source_share_max: float = 1.0) -> None:
        super().__init__(capacity, seed, source_share_max, class_share_min=0.0)

    def _displace(self, item: Item, group: Group | None) -> Item:
        slots, rng = self._slots, self._rng
        largest = slots.classes.ranked[0]
        if group is None or not (group.full or len(group.members) == len(largest.members)):
            # Marked here and below, not as it gets to be a largest one: until one of both
            # happens its size stays the largest.
            largest.full = True
            return slots.replace(rng.choice(largest.members), item)
        group.full = True
        drawn = rng.randrange(group.seen)
        if drawn < len(group.members):
            return slots.replace(group.members[drawn], item)
        return item
