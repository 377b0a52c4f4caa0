"""A class-balanced buffer: each class has all of its items, up to an equal share of the buffer.

Class-balancing reservoir sampling (CBRS): Chrysakis and Moens, "Online Continual Learning from
Imbalanced Data", ICML 2020, algorithm 1.  An item of a class that is not full replaces a random
item of a largest class.  A class becomes full when the buffer has no free slot and the class is a
largest one.  From then on it keeps a uniform sample of its items (a new item is taken with
probability m / n, where m of its n items are in the buffer).  Rare classes are kept whole, and
other classes use the space that those do not need.

Deviations: if there are several largest classes, they take turns instead of being drawn; n is
counted only while the buffer has an item of the class, so that the counters are bounded; after a
purge its classes are no longer marked as full; and there is a cap for each source.
"""

from __future__ import annotations

from replay.buffers.item import Item
from replay.buffers.longterm import LongTerm
from replay.buffers.slots import Group


class ClassBalanced(LongTerm):
    """A buffer with all items of rare classes and equally large samples of frequent ones.

    It is for labels of few classes.  With more classes than slots (as in regression) it holds
    recent items.

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

    def _displace(self, item: Item, group: Group | None) -> Item:
        slots, rng = self._slots, self._rng
        largest = slots.classes.ranked[0]
        if group is None or not (group.full or len(group.members) == len(largest.members)):
            # Classes are marked as full here and below, not when they become a largest one:
            # until then their size stays the largest.
            largest.full = True
            return slots.replace(rng.choice(largest.members), item)
        group.full = True
        drawn = rng.randrange(group.seen)
        if drawn < len(group.members):
            return slots.replace(group.members[drawn], item)
        return item
