"""A replica's state of the server exchange: pulled values, partition pointers, unsent deltas."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, TypeAlias

from paramserver.core import blocks as algebra
from paramserver.core.array_maps import ArrayMap, as_dict
from paramserver.core.blocks import Block, Blocks, Touched
from paramserver.core.tables.layered import on_top_of
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import Curved, Push, SyncReply, Version
from replay.example import Example
from replay.journal.base import Row
from replay.memory import Lesson

_CHANGES_MAX: Final = 256
"""Number of merges whose touched keys are kept: a few seconds, in which a peer may pull."""


@dataclass(slots=True)
class Track:
    """The pointer of a partition that this replica learns.

    Attributes:
        next: The next offset to learn.
        end: Its last offset if it was sealed and adopted; None: it is open.
        held: It was adopted, and is learned only from the clock of the next pull on.
    """

    next: int
    end: int | None
    held: bool = False


Tracks: TypeAlias = dict[int, Track]

Place: TypeAlias = tuple[int, int]
"""Partition and offset of a row."""

CLOSED: Final = 2**62
"""Clock value of a closed partition: all of its rows are included, whatever its end."""


def open_ones(clock: Mapping[int, int]) -> dict[int, int]:
    """Return the clock without closed partitions."""
    return {partition: last for partition, last in clock.items() if last < CLOSED}


def ends(tracks: Tracks, own: int, last: int) -> list[tuple[Track, int]]:
    """Return the tracks whose end is known, each with its last offset.

    ``last``: last offset of the partition ``own``, which is open.  The end of a partition that is
    followed is known to its writer only.
    """
    pairs = [(track, last if p == own else track.end) for p, track in tracks.items()]
    return [(track, end) for track, end in pairs if end is not None]


def restart(tracks: Tracks, clock: Mapping[int, int]) -> int:
    """Continue right after the clock; return how many rows will be learned again."""
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
    """Start the held tracks, and drop those whose rows both server and snapshot have.

    ``from_peer``: the clock is another replica's, and contains only the partitions that that one
    requests.  A track that it does not contain stays held until the server answers, because the
    values may include any of its rows.
    """
    for partition, track in list(tracks.items()):
        if track.held and (partition in clock or not from_peer):
            track.next, track.held = clock.get(partition, 0) + 1, False
        have = min(clock.get(partition, 0), durable.get(partition, 0))
        if partition in closed or (track.end is not None and have >= track.end):
            del tracks[partition]


@dataclass(frozen=True, slots=True)
class Delta:
    """The changes by rows ``first … last`` of a partition, ``n`` of which were learned.

    The server must have the rows that these take back (correct) before it applies the delta.
    ``behind``: the row that the first one takes back, for which the delta may have to wait.
    ``within``: by partition, the last row that the others take back; the server had those when they
    were learned.
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
        """Return the rows that the server must have before this delta."""
        return [*self.within.items(), *([] if self.behind is None else [self.behind])]

    def push(self, spec: str, version: Version) -> Push:
        """Make the push of this delta to a server of this version's epoch."""
        base = self.base if self.base[0] == version[0] else version
        bounds = (self.partition, self.first, self.last)
        blocks = algebra.to_wire(self.blocks)
        return Push(version[0], spec, *bounds, self.n, base, blocks, self.curved)


@dataclass(slots=True)
class OpenDelta:
    """The delta that is still growing: its bounds, and the rows learned into it."""

    partition: int
    first: int
    last: int
    base: Version
    rows: list[tuple[Row, Example, Lesson]] = field(default_factory=list)
    behind: Place | None = None
    within: dict[int, int] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of learned rows."""
        return len(self.rows)


def stays(delta: Delta | OpenDelta, tracks: Tracks) -> bool:
    """Whether a frozen model keeps the delta, which has no learned row, to keep its version.

    A delta of an adopted partition is pushed all the same: its adopter is done with the partition
    only when the server has its end.
    """
    track = tracks.get(delta.partition)
    return delta.n == 0 and (track is None or track.end is None)


class Deltas:
    """Cut deltas in order, kept until a published snapshot includes them.

    There are thousands between two snapshots, and each exchange searches them; so searches start
    with the newest.  Within a partition the deltas are in offset order.

    Parameters:
        retain_bytes: Beyond it the oldest are dropped; their rows can be read from the journal.
    """

    def __init__(self, retain_bytes: int) -> None:
        self._retain_bytes = retain_bytes
        self._keep([])

    def _keep(self, kept: list[Delta]) -> None:
        """Replace the deltas, and reset the known progress of server and snapshot."""
        self._kept = kept
        self._ends = {(d.partition, d.last) for d in kept}
        self._partitions = {d.partition for d in kept}
        self._size = sum(d.size_bytes for d in kept)
        self._had: dict[int, int] | None = None  # progress at the last :meth:`settle`

    def add(self, delta: Delta) -> None:
        """Append a delta that was just cut."""
        self._kept.append(delta)
        self._ends.add((delta.partition, delta.last))
        self._partitions.add(delta.partition)
        self._size += delta.size_bytes
        if self._had is not None and delta.last <= self._had.get(delta.partition, delta.last):
            self._had = None

    def pending(self, clock: Mapping[int, int]) -> list[Delta]:
        """Deltas that values with this clock do not contain, oldest first."""
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
        """Deltas to push, in order; a frozen model keeps trailing ones without learned rows."""
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
        """Drop the deltas of these partitions."""
        if not self._partitions.isdisjoint(partitions):
            self._keep([d for d in self._kept if d.partition not in partitions])

    def settle(
        self, tracks: Collection[int], clock: Mapping[int, int], durable: Mapping[int, int]
    ) -> None:
        """Drop deltas that are durable, or of no track, and the oldest beyond the bound."""
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
        self, partition: int, next_offset: int, clock: Mapping[int, int], opened: OpenDelta | None
    ) -> bool:
        """Whether pending and open deltas form one chain from clock + 1 to ``next_offset`` - 1."""
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
        self._from: Version = (0, 0)  # changes after this version are known
        self._changes: deque[tuple[Version, Touched]] = deque()
        self._given = 0  # names of the block that is being given up

    def note(self, version: Version, touched: Touched, *, whole: bool) -> None:
        """Record the values' new version, and what the last step to it has touched."""
        if whole:
            self._from = version
            self._changes.clear()
            return
        self._changes.append((version, touched))
        if len(self._changes) > _CHANGES_MAX:
            self._from, _ = self._changes.popleft()

    def changes_since(self, since: Version | None) -> Touched | None:
        """Return what has changed after that version; None if it is not known."""
        if since is None or since < self._from:
            return None
        touched: Touched = {}
        for version, more in self._changes:
            if version > since:
                algebra.add_touched(touched, more)
        return touched

    def take(self, reply: SyncReply, contained: Iterable[Delta]) -> Touched:
        """Take the reply's values; return what changed.

        ``contained``: own deltas newly included in the reply's clock, merged if it has no values.
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
        """Set these values; return their blocks and keys."""
        return algebra.put(self.blocks, incoming)

    def rest_on(self, tables: Mapping[str, Rows]) -> Iterator[None]:
        """Read these tables, by block; the steps drop own rows that equal theirs."""
        steps = []
        for name, below in tables.items():
            if (block := self.blocks.get(name)) is not None:
                block.data, one = on_top_of(below, block.data)
                steps.append(one)
        return chain.from_iterable(steps)

    def give_up(self, n: int) -> Blocks:
        """Remove and return at most ``n`` keys of a block; empty if there are none left."""
        for name, block in [*self.blocks.items()]:
            if isinstance(block.data, dict) and (size := min(n, len(block.data))):
                taken = dict(block.data.popitem() for _ in range(size))
                return {name: Block(block.kind, taken)}
            if isinstance(block.data, ArrayMap):
                taken = block.data.part(self._given, self._given + n)
                self._given += len(taken)
                if taken:
                    return {name: Block(block.kind, taken)}
                del self.blocks[name]
                self._given = 0
        return {}

    def with_deltas(self, pending: Iterable[Delta], touched: Touched | None = None) -> Blocks:
        """Copy the ``touched`` values (None: all, in dicts), with own deltas on top.

        Weights are in dicts, too, whichever are asked for.
        """
        part = self.blocks if touched is None else algebra.select(self.blocks, touched)
        out = algebra.copy(part)
        for block in out.values():
            if touched is None or block.kind == algebra.ADDITIVE:
                block.data = as_dict(block.data)
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
