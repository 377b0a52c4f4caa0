"""Items in numbered slots, indexed by class and by source; every operation takes O(1)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable
from random import Random

from replay.buffers.item import Item


class Group:
    """The slots of the items with one key (a class or a source).

    Attributes:
        members: Slots whose items have the key, in arbitrary order.
        rank: Position among the groups by size; 0 for a largest one.
        seen: Number of items with the key offered while the buffer had one, ≥ 1, as counted by the
            policy.
        full: A flag of the policy (class balancing: the class has been a largest one).
    """

    __slots__ = ("full", "key", "members", "rank", "seen")

    def __init__(self, key: Hashable, rank: int) -> None:
        self.key = key
        self.members = array("I")
        self.rank = rank
        self.seen = 1
        self.full = False


class Groups:
    """Slots grouped by key, and the groups sorted by size.

    Sizes change by one, so a group is swapped with the first or last one of its size, and the order
    is maintained in O(1).
    """

    def __init__(self) -> None:
        self.by_key: dict[Hashable, Group] = {}
        self.ranked: list[Group] = []  # INVARIANT: in order of decreasing size
        self._reach = [0]  # [s]: number of groups with at least s members, for s >= 1
        self._place = array("I")  # [slot]: its position in its group's members

    def add(self, key: Hashable, slot: int) -> None:
        """Add ``slot`` (an existing one, or the next one) to the group of ``key``."""
        group = self.by_key.get(key)
        if group is None:
            group = self.by_key[key] = Group(key, len(self.ranked))
            self.ranked.append(group)
        members = group.members
        if slot == len(self._place):
            self._place.append(len(members))
        else:
            self._place[slot] = len(members)
        members.append(slot)
        size, reach = len(members), self._reach
        if size == len(reach):
            reach.append(0)
        self._swap(group, reach[size])
        reach[size] += 1

    def drop(self, key: Hashable, slot: int) -> None:
        """Remove ``slot`` from its group; an empty group is removed with its counter."""
        group = self.by_key[key]
        members, reach = group.members, self._reach
        size = len(members)
        last = members.pop()
        if last != slot:
            place = self._place[slot]
            members[place] = last
            self._place[last] = place
        reach[size] -= 1
        self._swap(group, reach[size])
        if not members:
            del self.by_key[key]
            self.ranked.pop()

    def renumber_last(self, key: Hashable, slot: int) -> None:
        """Note that the last slot's item, which has ``key``, was moved to ``slot``.

        If ``slot`` is the last slot itself, only the bookkeeping for it is removed.
        """
        place = self._place.pop()
        if slot < len(self._place):
            self.by_key[key].members[place] = slot
            self._place[slot] = place

    def _swap(self, group: Group, rank: int) -> None:
        other = self.ranked[rank]
        self.ranked[group.rank], other.rank = other, group.rank
        self.ranked[rank], group.rank = group, rank


class Slots:
    """Items in slots 0 … n − 1, with their classes and sources."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.classes = Groups()
        self.sources = Groups()

    def __len__(self) -> int:
        return len(self.items)

    def append(self, item: Item) -> None:
        """Store ``item`` in the next slot."""
        slot = len(self.items)
        self.items.append(item)
        self.classes.add(item.label, slot)
        self.sources.add(item.source, slot)

    def replace(self, slot: int, item: Item) -> Item:
        """Store ``item`` in ``slot``; return the item that was there."""
        old = self.items[slot]
        self.items[slot] = item
        if old.label != item.label:
            self.classes.drop(old.label, slot)
            self.classes.add(item.label, slot)
        if old.source != item.source:
            self.sources.drop(old.source, slot)
            self.sources.add(item.source, slot)
        return old

    def remove(self, slot: int) -> int:
        """Remove the item of ``slot`` and move the last slot's item there; return its old slot."""
        item, last = self.items[slot], self.items.pop()
        self.classes.drop(item.label, slot)
        self.sources.drop(item.source, slot)
        if slot < len(self.items):
            self.items[slot] = last
        self.classes.renumber_last(last.label, slot)
        self.sources.renumber_last(last.source, slot)
        return len(self.items)

    def sample(self, k: int, rng: Random) -> list[Item]:
        """Return ``k`` items of distinct slots, all sets equally likely; all if fewer."""
        return rng.sample(self.items, min(k, len(self.items)))

    def sample_balanced(self, k: int, rng: Random) -> list[Item]:
        """Return ``k`` items of distinct slots, equally many of each class; all if fewer.

        If a class has too few items, the others share the rest.  O(k).
        """
        ranked, items = self.classes.ranked, self.items
        if k < len(ranked):
            return [items[rng.choice(g.members)] for g in rng.sample(ranked, k)]
        drawn: list[Item] = []
        for left in range(len(ranked), 0, -1):  # the smallest class first
            members = ranked[left - 1].members
            share, rest = divmod(k - len(drawn), left)
            n = min(share + (rng.randrange(left) < rest), len(members))
            drawn += [items[slot] for slot in rng.sample(members, n)]
        return drawn


def rescale(classes: Groups, lost: Iterable[Hashable]) -> None:
    """Adjust the counters of classes after a purge.

    The number of items seen of a class is reduced in proportion to its items that were removed, so
    that later items have the same chance as before.  A class marked as full may grow again.

    Parameters:
        lost: The class of each item that was removed.
    """
    for key, n in Counter(lost).items():
        group = classes.by_key.get(key)
        if group is not None:
            group.seen = scaled(group.seen, len(group.members), n)
            group.full = False


def scaled(seen: int, kept: int, lost: int) -> int:
    """Return ``seen`` reduced by the share of lost items, but at least ``kept``."""
    return max(kept, seen * kept // (kept + lost))
