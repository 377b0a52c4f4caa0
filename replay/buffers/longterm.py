"""This module holds what the policies that keep a sample of the whole stream have in common."""

from __future__ import annotations

from abc import abstractmethod
from random import Random

import msgspec

from replay.buffers.base import (
    NONE,
    Buffer,
    checked_capacity,
    items_of_share,
    rng_of,
    rng_state,
    unpacked,
)
from replay.buffers.item import Item
from replay.buffers.slots import Group, Slots, SlotsState, rescale, scaled
from replay.errors import StateInvalid


class _Body(msgspec.Struct, array_like=True):
    seen: int
    rng: list[int]
    slots: SlotsState


_decoder = msgspec.msgpack.Decoder(_Body)


class LongTerm(Buffer):
    """Fills up, then lets ``_displace`` decide; a source at its cap competes with itself only.

    Parameters:
        capacity: Most items.
        seed: Of the generator that decides which items are kept.
        source_share_max: Most of the capacity that one source may have, in (0, 1]; at least one
            item.  m colluding sources hold at most m times that.  1: no cap.
        class_share_min: See the policies; 0 where there is none.
    """

    def __init__(
        self, capacity: int, seed: int, source_share_max: float, class_share_min: float
    ) -> None:
        cap = items_of_share("source_share_max", source_share_max, checked_capacity(capacity))
        super().__init__(
            {
                "capacity": capacity,
                "source_share_max": source_share_max,
                "class_share_min": class_share_min,
            }
        )
        self._capacity = capacity
        # A source that is alone must be able to fill the buffer by the rule for all.
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
        """Decide about ``item``, of the class ``group`` (None: nothing kept), with no room left.

        ``item`` is counted in ``_seen`` and in ``group.seen``.
        """

    def _displace_own(self, item: Item, source: Group) -> Item:
        """Algorithm R among the source's own items.

        What a source sends beyond its cap is not counted as seen: otherwise a flood would close
        the buffer to everybody else.
        """
        drawn = self._rng.randrange(source.seen)
        if drawn >= len(source.members):
            return item
        old = self._slots.replace(source.members[drawn], item)
        group = self._slots.classes.by_key[item.label]
        group.seen = max(group.seen, len(group.members))
        return old

    def purge(self, source: str) -> int:
        """Remove every item of the source; how many there were.

        What was seen is cut in proportion, so that a later item has the chance it had before.
        The free room is filled by the next items, which are over-represented until the stream
        has gone on for as long again.  Random pairing (Gemulla, Lehner and Haas, VLDB 2006) would
        keep the sample even, but leaves the room empty for as long as the source had been
        sending.  A rebuild from the journal gives an even sample.
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

    def _body(self) -> _Body:
        return _Body(self._seen, rng_state(self._rng), self._slots.state())

    def _restore(self, body: msgspec.Raw) -> None:
        kept = unpacked(_decoder, body)
        slots, rng = Slots.restored(kept.slots), rng_of(kept.rng)
        if not len(slots) <= min(kept.seen, self._capacity):
            raise StateInvalid(f"{len(slots)} items of {kept.seen} seen, {self._capacity} fit")
        self._slots, self._rng, self._seen = slots, rng, kept.seen
