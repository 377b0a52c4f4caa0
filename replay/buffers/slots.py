"""Items in numbered slots, found by class and by source; every step in O(1)."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Hashable, Iterable
from random import Random

import msgspec

from replay.buffers.item import Item
from replay.errors import StateInvalid


class Group:
    """The slots of one key.

    Attributes:
        members: Slots whose items have the key, in no order that means anything.
        rank: Place among the groups by size, 0 for a largest one.
        seen: How many items with the key were offered since one of them has been kept, ≥ 1, as the
            policy counts them.
        full: A mark of the policy's own (class-balancing: has been a largest class).
    """

    __slots__ = ("full", "key", "members", "rank", "seen")

    def __init__(self, key: Hashable, rank: int) -> None:
        self.key = key
        self.members = array("I")
        self.rank = rank
        self.seen = 1
        self.full = False


GroupState = tuple[list[int], int, bool]
"""``members``, ``seen`` and ``full`` of a group."""


class Groups:
    """Slots by key, and the keys by how many slots they have.

    Sizes change by one, so a key changes places with the first or the last of its size: the order
    by size is kept in O(1).
    """

    def __init__(self) -> None:
        self.by_key: dict[Hashable, Group] = {}
        self.ranked: list[Group] = []  # INVARIANT: sizes never grow along it
        self._reach = [0]  # [s]: how many groups have at least s members, for s >= 1
        self._place = array("I")  # [slot]: where it stands among its group's members

    def add(self, key: Hashable, slot: int) -> None:
        """Count ``slot`` (one of those known, or the next one) among the members of ``key``."""
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
        """Take ``slot`` out; a key without members is forgotten, with what was seen of it."""
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
        """The last slot's item, which has ``key``, is in ``slot`` now (or was dropped there)."""
        place = self._place.pop()
        if slot < len(self._place):
            self.by_key[key].members[place] = slot
            self._place[slot] = place

    def _swap(self, group: Group, rank: int) -> None:
        other = self.ranked[rank]
        self.ranked[group.rank], other.rank = other, group.rank
        self.ranked[rank], group.rank = group, rank

    def state(self) -> list[GroupState]:
        """Return the state of the groups by rank."""
        return [(g.members.tolist(), g.seen, g.full) for g in self.ranked]

    @classmethod
    def restored(cls, keys: list[Hashable], state: list[GroupState]) -> Groups:
        """Groups from what :meth:`state` gave; ``keys`` has each slot's key."""
        groups = cls()
        groups._place = array("I", bytes(groups._place.itemsize * len(keys)))
        free = set(range(len(keys)))
        largest = len(keys)
        for members, seen, full in state:
            if not 0 < len(members) <= largest or not free.issuperset(members) or seen < 1:
                raise StateInvalid("a group's slots are not its own, or too many or too few")
            free.difference_update(members)
            largest = len(members)
            group = Group(keys[members[0]], len(groups.ranked))
            if group.key in groups.by_key or any(keys[m] != group.key for m in members):
                raise StateInvalid("a group has other items than those with its key")
            group.members, group.seen, group.full = array("I", members), seen, full
            groups.ranked.append(group)
            groups.by_key[group.key] = group
            for place, slot in enumerate(members):
                groups._place[slot] = place
        if free:
            raise StateInvalid("a slot is in no group")
        groups._reach = _reach([len(g.members) for g in groups.ranked])
        return groups


def _reach(sizes: list[int]) -> list[int]:
    """How many of ``sizes``, which never grow, are at least 1, 2, …; 0 in front."""
    reach = [0] * (max(sizes, default=0) + 1)
    for size in sizes:
        reach[size] += 1
    for size in range(len(reach) - 2, 0, -1):
        reach[size] += reach[size + 1]
    reach[0] = 0
    return reach


class SlotsState(msgspec.Struct, frozen=True, array_like=True):
    """Everything in a :class:`Slots`."""

    items: list[Item]
    classes: list[GroupState]
    sources: list[GroupState]


class Slots:
    """Items in slots 0 … n − 1, with their classes and sources."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.classes = Groups()
        self.sources = Groups()

    def __len__(self) -> int:
        return len(self.items)

    def append(self, item: Item) -> None:
        """Keep ``item`` in the next slot."""
        slot = len(self.items)
        self.items.append(item)
        self.classes.add(item.label, slot)
        self.sources.add(item.source, slot)

    def replace(self, slot: int, item: Item) -> Item:
        """Keep ``item`` in ``slot``; the item that was there."""
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
        """Empty ``slot``; the item of the last slot, whose number is returned, moves there."""
        item, last = self.items[slot], self.items.pop()
        self.classes.drop(item.label, slot)
        self.sources.drop(item.source, slot)
        if slot < len(self.items):
            self.items[slot] = last
        self.classes.renumber_last(last.label, slot)
        self.sources.renumber_last(last.source, slot)
        return len(self.items)

    def sample(self, k: int, rng: Random) -> list[Item]:
        """``k`` different slots' items, each set equally likely; all if there are fewer."""
        return rng.sample(self.items, min(k, len(self.items)))

    def sample_balanced(self, k: int, rng: Random) -> list[Item]:
        """``k`` different slots' items, as many of each class as there are; all if fewer.

        What a rare class can't give is shared by the others.  O(k).
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

    def state(self) -> SlotsState:
        """The items and where they stand."""
        return SlotsState(self.items, self.classes.state(), self.sources.state())

    @classmethod
    def restored(cls, state: SlotsState) -> Slots:
        """Slots from what :meth:`state` gave; StateInvalid if its parts contradict each other."""
        slots = cls()
        slots.items = state.items
        slots.classes = Groups.restored([item.label for item in state.items], state.classes)
        slots.sources = Groups.restored([item.source for item in state.items], state.sources)
        return slots


def rescale(classes: Groups, lost: Iterable[Hashable]) -> None:
    """Judge the classes of items that were purged by what is left of them.

    ``lost`` has the class of each.  What was seen of a class is cut in the proportion in which
    its items went, so that a later item has the chance that it had before.  A class that was
    marked as full through what is gone now may grow again.
    """
    for key, n in Counter(lost).items():
        group = classes.by_key.get(key)
        if group is not None:
            group.seen = scaled(group.seen, len(group.members), n)
            group.full = False


def scaled(seen: int, kept: int, lost: int) -> int:
    """``seen`` without the share of what was lost; never below ``kept``."""
    return max(kept, seen * kept // (kept + lost))
