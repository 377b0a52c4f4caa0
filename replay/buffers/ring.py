"""A ring buffer of the most recent items."""

from __future__ import annotations

from collections import OrderedDict, deque

from replay.buffers.base import NONE, Buffer, checked_capacity, items_of_share
from replay.buffers.item import Item
from replay.buffers.slots import Slots


class Ring(Buffer):
    """A buffer that takes every item and drops the oldest, or at the cap the source's oldest.

    Parameters:
        capacity: Greatest number of items.
        source_share_max: Greatest share of the capacity for one source, in (0, 1], but at least one
            item.  1: no cap.

    Examples:
    >>> from replay.buffers.item import Item
    >>> ring = Ring(capacity=3)
    >>> for i in range(5):
    ...     left = ring.insert(Item(b"%d" % i, {"x": i}, label=True))
    >>> left.features["x"], sorted(item.features["x"] for item in ring)
    (1, [2, 3, 4])
    """

    def __init__(self, capacity: int, *, source_share_max: float = 1.0) -> None:
        cap = items_of_share("source_share_max", source_share_max, checked_capacity(capacity))
        self._capacity = capacity
        self._source_max = max(cap, 1)
        self._slots = Slots()
        self._count = 0
        self._slot_of: OrderedDict[int, int] = OrderedDict()  # by count, oldest first
        self._counts: list[int] = []  # by slot
        self._by_source: dict[str, deque[int]] = {}  # counts, oldest first

    @property
    def parts(self) -> tuple[Slots, Slots]:
        return NONE, self._slots

    @property
    def capacity(self) -> int:
        return self._capacity

    def insert(self, item: Item) -> Item | None:
        own = self._by_source.get(item.source)
        if own is not None and len(own) >= self._source_max:
            slot = self._slot_of.pop(own[0])
        elif len(self._slots) >= self._capacity:
            _, slot = self._slot_of.popitem(last=False)
        else:
            slot = len(self._slots)
            self._slots.append(item)
            self._counts.append(0)
            self._enter(item.source, slot)
            return None
        old = self._slots.replace(slot, item)
        self._leave(old.source)
        self._enter(item.source, slot)
        return old

    def _enter(self, source: str, slot: int) -> None:
        self._count += 1
        self._slot_of[self._count] = slot
        self._counts[slot] = self._count
        own = self._by_source.get(source)
        if own is None:
            own = self._by_source[source] = deque()
        own.append(self._count)

    def _leave(self, source: str) -> None:
        """Remove the source's oldest count: the item that leaves is always its source's oldest."""
        own = self._by_source[source]
        own.popleft()
        if not own:
            del self._by_source[source]

    def purge(self, source: str) -> int:
        lost = self._by_source.pop(source, ())
        for count in lost:
            slot = self._slot_of.pop(count)
            last = self._slots.remove(slot)
            moved = self._counts.pop()
            if slot != last:
                self._counts[slot] = moved
                self._slot_of[moved] = slot
        return len(lost)
