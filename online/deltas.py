"""What a replica owes to the server: the partitions it learns, and what their rows have done."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from paramserver.blocks import Blocks
from paramserver.wire import Version
from replay.example import Example
from replay.journal.base import Row


@dataclass(slots=True)
class Track:
    """A partition that this replica learns: the next offset, and its end if it was adopted.

    ``held`` means: adopted, and learned from the clock of the next pull on.
    """

    next: int
    end: int | None
    held: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """What rows ``first … last`` of a partition did; ``n`` of them were learned."""

    partition: int
    first: int
    last: int
    n: int
    base: Version
    blocks: Blocks
    size_bytes: int


@dataclass(slots=True)
class Opened:
    """The delta that still grows: its bounds, and the rows that were learned."""

    partition: int
    first: int
    last: int
    base: Version
    rows: list[tuple[Row, Example]] = field(default_factory=list)


class Deltas:
    """Cut deltas in the order of their cuts, kept until a published snapshot has them.

    Parameters
    ----------
    retain_bytes
        Beyond it the oldest are dropped: the journal has their rows.
    """

    def __init__(self, retain_bytes: int) -> None:
        self._retain_bytes = retain_bytes
        self._kept: list[Delta] = []

    def add(self, delta: Delta) -> None:
        """Keep the delta just cut."""
        self._kept.append(delta)

    def pending(self, clock: Mapping[int, int]) -> list[Delta]:
        """Deltas that values of this clock do not contain, oldest first."""
        return [d for d in self._kept if d.last > clock.get(d.partition, 0)]

    def ends(self, partition: int) -> set[int]:
        """Where deltas of the partition end."""
        return {d.last for d in self._kept if d.partition == partition}

    def drop(self, partitions: Collection[int]) -> None:
        """Forget the deltas of these partitions."""
        self._kept = [d for d in self._kept if d.partition not in partitions]

    def settle(
        self, tracks: Collection[int], clock: Mapping[int, int], durable: Mapping[int, int]
    ) -> None:
        """Forget what server and snapshot have, what is nobody's, and the oldest if too many."""
        kept = []
        for d in self._kept:
            have = min(clock.get(d.partition, 0), durable.get(d.partition, 0))
            if d.partition in tracks and d.last > have:
                kept.append(d)
        size = sum(d.size_bytes for d in kept)
        while kept and size > self._retain_bytes:
            size -= kept.pop(0).size_bytes
        self._kept = kept

    def unbroken(
        self, partition: int, next_offset: int, clock: Mapping[int, int], opened: Opened | None
    ) -> bool:
        """Whether pending and open deltas are one chain from clock + 1 to ``next_offset`` - 1."""
        need = clock.get(partition, 0) + 1
        for d in self.pending(clock):
            if d.partition == partition:
                if d.first != need:
                    return False
                need = d.last + 1
        if opened and opened.partition == partition:
            if opened.first != need:
                return False
            need = opened.last + 1
        return need == next_offset
