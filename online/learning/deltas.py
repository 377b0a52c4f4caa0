"""This module has a replica's side of the server: values pulled, partitions, deltas to push."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from paramserver.core import blocks as algebra
from paramserver.core.blocks import Blocks, Touched
from paramserver.core.wire import Curved, Push, SyncReply, Version
from replay.example import Example
from replay.journal.base import Row
from replay.memory import Lesson

_CHANGES_MAX: Final = 256
"""Merges of which is kept what they touched: some seconds in which a peer may fetch the values."""


@dataclass(slots=True)
class Track:
    """A partition that this replica learns: the next offset, and its end if it was adopted.

    ``held`` means: adopted, and learned from the clock of the next pull on.
    """

    next: int
    end: int | None
    held: bool = False


Tracks: TypeAlias = dict[int, Track]

Place: TypeAlias = tuple[int, int]
"""Partition and offset of a row."""

CLOSED: Final = 2**62
"""Clock of a closed partition: whatever its end, all of its rows are in."""


def open_ones(clock: Mapping[int, int]) -> dict[int, int]:
    """The clock without closed partitions."""
    return {partition: last for partition, last in clock.items() if last < CLOSED}


def ends(tracks: Tracks, own: int, last: int) -> list[tuple[Track, int]]:
    """Tracks with their last offsets, of those whose end is known.

    ``last``: of the partition ``own``, which goes on.  Whoever writes one that is followed knows
    its end, and nobody here does.
    """
    pairs = [(track, last if p == own else track.end) for p, track in tracks.items()]
    return [(track, end) for track, end in pairs if end is not None]


def restart(tracks: Tracks, clock: Mapping[int, int]) -> int:
    """Go on right after the clock; how many rows will be learned again."""
    again = 0
    for partition, track in tracks.items():
        first = clock.get(partition, 0) + 1
        again += max(track.next - first, 0)
        track.next = first
    return again


def finish(
    tracks: Tracks,
    clock: Mapping[int, int],
    durable: Mapping[int, int],
    closed: Collection[int],
    *,
    from_peer: bool = False,
) -> None:
    """Start the tracks that are held, and drop those whose rows every copy has.

    ``from_peer``: the clock is another replica's, which tells the partitions that one has asked
    the server for and no others.  A track that it does not tell of stays held until the server
    answers: the values may have any of its rows.
    """
    for partition, track in list(tracks.items()):
        if track.held and (partition in clock or not from_peer):
            track.next, track.held = clock.get(partition, 0) + 1, False
        have = min(clock.get(partition, 0), durable.get(partition, 0))
        if partition in closed or (track.end is not None and have >= track.end):
            del tracks[partition]


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta says what rows ``first … last`` of a partition did; ``n`` of them were learned.

    No server takes it before it has what its rows take back.  ``behind``: what the first one does;
    it may have to wait.  ``within``: by partition, the last that the others do; when they were
    learned the server had those.
    """

    partition: int
    first: int
    last: int
    n: int
    base: Version
    blocks: Blocks
    size_bytes: int
    curved: Curved = field(default_factory=dict)
    behind: Place | None = None
    within: Mapping[int, int] = field(default_factory=dict)

    @property
    def after(self) -> list[Place]:
        """Return all that a server has to have before it."""
        return [*self.within.items(), *([] if self.behind is None else [self.behind])]

    def push(self, spec: str, version: Version) -> Push:
        """The same for a server of this version's epoch."""
        base = self.base if self.base[0] == version[0] else version
        bounds = (self.partition, self.first, self.last)
        blocks = algebra.to_wire(self.blocks)
        return Push(version[0], spec, *bounds, self.n, base, blocks, self.curved)


@dataclass(slots=True)
class Opened:
    """The delta that still grows: its bounds, and the rows that were learned."""

    partition: int
    first: int
    last: int
    base: Version
    rows: list[tuple[Row, Example, Lesson]] = field(default_factory=list)
    behind: Place | None = None
    within: dict[int, int] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """How many rows were learned."""
        return len(self.rows)


def stays(delta: Delta | Opened, tracks: Tracks) -> bool:
    """Whether a frozen model keeps it: no row was learned, so that the version stands.

    An adopted partition is pushed to its end all the same, or it would keep its adopter from
    adopting others.
    """
    track = tracks.get(delta.partition)
    return delta.n == 0 and (track is None or track.end is None)


class Deltas:
    """Cut deltas in the order of their cuts, kept until a published snapshot has them.

    Between two snapshots there are thousands, and each exchange asks: whatever it asks for is found
    from the newest ones on.  Of one partition each ends behind the one before it.

    Parameters:
        retain_bytes: Beyond it the oldest are dropped: the journal has their rows.
    """

    def __init__(self, retain_bytes: int) -> None:
        self._retain_bytes = retain_bytes
        self._keep([])

    def _keep(self, kept: list[Delta]) -> None:
        """Have these, and nothing is known of what server and snapshot have of them."""
        self._kept = kept
        self._ends = {(d.partition, d.last) for d in kept}
        self._partitions = {d.partition for d in kept}
        self._size = sum(d.size_bytes for d in kept)
        self._had: dict[int, int] | None = None  # what they had when it was looked at last

    def add(self, delta: Delta) -> None:
        """Keep the delta just cut."""
        self._kept.append(delta)
        self._ends.add((delta.partition, delta.last))
        self._partitions.add(delta.partition)
        self._size += delta.size_bytes
        if self._had is not None and delta.last <= self._had.get(delta.partition, delta.last):
            self._had = None

    def pending(self, clock: Mapping[int, int]) -> list[Delta]:
        """Deltas that values of this clock do not contain, oldest first."""
        out: list[Delta] = []
        contained: set[int] = set()
        for d in reversed(self._kept):
            if d.last > clock.get(d.partition, 0):
                out.append(d)
                continue
            contained.add(d.partition)
            if len(contained) == len(self._partitions):
                break
        out.reverse()
        return out

    def due(self, clock: Mapping[int, int], tracks: Tracks, *, frozen: bool) -> list[Delta]:
        """Those to be pushed, in order.  A frozen model keeps what no learned row comes after."""
        pending = self.pending(clock)
        if not frozen:
            return pending
        last = {d.partition: i for i, d in enumerate(pending) if not stays(d, tracks)}
        return [d for i, d in enumerate(pending) if i <= last.get(d.partition, -1)]

    def explain(
        self, before: Mapping[int, int], clock: Mapping[int, int], tracks: Collection[int]
    ) -> bool:
        """Whether own deltas alone have moved the clock from ``before`` to ``clock``."""
        moved = [(p, last) for p, last in clock.items() if last != before.get(p, 0)]
        lost = [p for p in tracks if clock.get(p, 0) < before.get(p, 0)]
        return self._ends.issuperset(moved) and not lost

    def drop(self, partitions: Collection[int]) -> None:
        """Forget the deltas of these partitions."""
        if not self._partitions.isdisjoint(partitions):
            self._keep([d for d in self._kept if d.partition not in partitions])

    def settle(
        self, tracks: Collection[int], clock: Mapping[int, int], durable: Mapping[int, int]
    ) -> None:
        """Forget what server and snapshot have, what is nobody's, and the oldest if too many."""
        have = {p: min(clock.get(p, 0), durable.get(p, 0)) for p in self._partitions if p in tracks}
        if have != self._had or len(have) < len(self._partitions):
            self._keep(
                [d for d in self._kept if d.partition in have and d.last > have[d.partition]]
            )
            self._had = {p: have[p] for p in self._partitions}
        if self._size > self._retain_bytes:
            size, n = self._size, 0
            while n < len(self._kept) and size > self._retain_bytes:
                size -= self._kept[n].size_bytes
                n += 1
            self._keep(self._kept[n:])

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


class Pulled:
    """The server's values at one version."""

    def __init__(self) -> None:
        self.blocks: Blocks = {}
        self._from: Version = (0, 0)  # what was touched after it is known
        self._changes: deque[tuple[Version, Touched]] = deque()

    def note(self, version: Version, touched: Touched, *, whole: bool) -> None:
        """These are the values of that version now; what the last step to it has touched."""
        if whole:
            self._from = version
            self._changes.clear()
            return
        self._changes.append((version, touched))
        if len(self._changes) > _CHANGES_MAX:
            self._from, _ = self._changes.popleft()

    def changes_since(self, since: Version | None) -> Touched | None:
        """Return what was touched after that version; None if it is not known."""
        if since is None or since < self._from:
            return None
        touched: Touched = {}
        for version, more in self._changes:
            if version > since:
                algebra.add_touched(touched, more)
        return touched

    def take(self, reply: SyncReply, contained: Iterable[Delta]) -> Touched:
        """Take the reply's values; returns what it has changed of those before.

        ``contained``: own deltas that the reply's clock has gained, for one without values.
        """
        if reply.kind == "none":
            for delta in contained:
                algebra.merge(self.blocks, delta.blocks, 1.0)
            return {}
        incoming = algebra.from_wire(reply.blocks)
        if reply.kind == "all":
            self.blocks = incoming
            return {}
        return self.put(incoming)

    def put(self, incoming: Blocks) -> Touched:
        """Take these values; returns what they are of."""
        return algebra.put(self.blocks, incoming)

    def give_up(self, n: int) -> Blocks:
        """Take out at most ``n`` keys of a block; nothing if there are none left."""
        for name, block in self.blocks.items():
            if isinstance(block.data, dict) and (size := min(n, len(block.data))):
                taken = dict(block.data.popitem() for _ in range(size))
                return {name: algebra.Block(block.kind, taken)}
        return {}

    def with_deltas(self, pending: Iterable[Delta], touched: Touched | None = None) -> Blocks:
        """Values with own deltas on top, of what was touched (None: all), sharing nothing."""
        part = self.blocks if touched is None else algebra.select(self.blocks, touched)
        out = algebra.copy(part)
        for delta in pending:
            own = delta.blocks if touched is None else algebra.select(delta.blocks, touched)
            algebra.merge(out, own, 1.0)
        return out


def touched_by(deltas: Iterable[Delta]) -> Touched:
    """Return which blocks and keys the deltas have changed."""
    touched: Touched = {}
    for delta in deltas:
        for name, block in delta.blocks.items():
            algebra.add_touched(touched, {name: algebra.keys_of(block)})
    return touched


def moved(before: Mapping[int, int], clock: Mapping[int, int], own: Collection[int]) -> bool:
    """Whether the clocks differ in a partition that is not among one's ``own``."""
    return any(clock.get(p, 0) != before.get(p, 0) for p in {*before, *clock}.difference(own))
