"""The common part of the policies that keep a sample of the whole stream."""

from __future__ import annotations

from abc import abstractmethod
from random import Random

from replay.buffers.base import NONE, Buffer, checked_capacity, items_of_share
from replay.buffers.item import Item
from replay.buffers.slots import Group, Slots, rescale, scaled


class LongTerm(Buffer):
    """Fills up, then ``_displace`` decides; a source at its cap competes with itself only.

    Parameters:
        capacity: Greatest number of items.
        seed: Seed of the generator that decides which items are kept.
        source_share_max: Greatest share of the capacity for one source, in (0, 1], but at least one
            item.  m colluding sources get at most m times that.  1: no cap.
    """

    def __init__(self, capacity: int, seed: int, *, source_share_max: float = 1.0) -> None:
        cap = items_of_share("source_share_max", source_share_max, checked_capacity(capacity))
        self._capacity = capacity
        # Without a cap, a single source must be able to fill the buffer by the common rule.
        self._source_max = max(cap, 1) if cap < capacity else capacity + 1
        self._rng = Random(seed)
        self._seen = 0  # items that competed for any slot
        self._slots = Slots()

    @property
    def parts(self) -> tuple[Slots, Slots]:
        return self._slots, NONE

    @property
    def capacity(self) -> int:
        return self._capacity

    def insert(self, item: Item) -> Item | None:
        slots = self._slots
        source = slots.sources.by_key.get(item.source)
        if source is not None:
            source.seen += 1
            if len(source.members) >= self._source_max:
                return self._displace_own(item, source)
        self._seen += 1
        group = slots.classes.by_key.get(item.label)
        if group is not None:
            group.seen += 1
        if len(slots.items) < self._capacity:
            slots.append(item)
            return None
        return self._displace(item, group)

    @abstractmethod
    def _displace(self, item: Item, group: Group | None) -> Item:
        """Decide on ``item`` with no free slot; return the item that is not kept.

        ``group`` is its class, or None if the buffer has no item of it.  ``item`` is already
        counted in ``_seen`` and ``group.seen``.
        """

    def _displace_own(self, item: Item, source: Group) -> Item:
        """Decide by algorithm R among the source's own items.

        Items that a source sends beyond its cap are not counted as seen; otherwise a flood would
        lower the chances of all other sources.
        """
        drawn = self._rng.randrange(source.seen)
        if drawn >= len(source.members):
            return item
        old = self._slots.replace(source.members[drawn], item)
        group = self._slots.classes.by_key[item.label]
        group.seen = max(group.seen, len(group.members))
        return old

    def purge(self, source: str) -> int:
        """Remove every item of the source; return how many.

        The number of items seen is reduced in proportion, so that later items have the same chance
        as before.  The free slots are filled by the next items, which are over-represented until
        the stream has doubled in length.  Random pairing (Gemulla, Lehner and Haas, VLDB 2006)
        would keep the sample uniform, but leaves the slots empty for as long as the source had been
        sending.  A rebuild from the journal gives a uniform sample.
        """
        slots = self._slots
        group = slots.sources.by_key.get(source)
        if group is None:
            return 0
        members, lost = group.members, []
        while members:
            lost.append(slots.items[members[-1]].label)
            slots.remove(members[-1])
        self._seen = scaled(self._seen, len(slots), len(lost))
        rescale(slots.classes, lost)
        return len(lost)
