"""Control rows that change what a model holds or learns: rollback, forget, relearn, freeze, bans.

The row comes first and is what makes the decision durable: whoever starts a server from a snapshot
before it applies it.  Payloads are JSON.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from paramserver.core.blocks import Blocks
from paramserver.core.standing_decisions import newest
from paramserver.core.state import SnapshotState
from paramserver.store import ControlInfo

ROLLBACK: Final = "rollback"
FREEZE: Final = "freeze"
UNFREEZE: Final = "unfreeze"
PROMOTE: Final = "promote"
BACKFILL: Final = "backfill"
BEGUN: Final = "fresh"
FORGET: Final = "forget"
RELEARN: Final = "relearn"
SOURCE: Final = "source"
REWRITES: Final = frozenset({ROLLBACK, FORGET, RELEARN})
"""Kinds of rows after which the values are others, and that take rows out."""
DECISIONS: Final = REWRITES | {FREEZE, UNFREEZE}

SPANS_MAX: Final = 100_000
"""Runs of rows that one forget may take out: its control row holds them all, a few bytes each."""

HALVED: Final = "halved"
"""Block of a model whose learning rate was halved: how often.  Models that can't ignore it."""

Digest: TypeAlias = tuple[int, int]
"""How many events, and the sum of their hashes modulo 2^64."""

Spans: TypeAlias = tuple[tuple[int, int], ...]
Ranges: TypeAlias = dict[int, Spans]
"""By partition: rows after the first offset, up to the second; in order, apart from each other."""


class Rollback(msgspec.Struct, frozen=True):
    """Back to a snapshot's values; the clock stays where it was, unless it is learned again.

    Attributes:
        spec: Hash of the spec of the lineage that was rolled back.
        snapshot, control: Name of the snapshot, and the control position that it contains.
        clock, closed: Clock and closed partitions of the new state: the larger of the server's and
            the snapshot's.
        undone: Rows that the rollback took out, by partition: after the first offset, up to the
            second.
        position: Of rows learned in commit order: the larger of the two, as the clock.
        again, halved: The rows since are learned again, with a rate that was halved so often; the
            clock is the snapshot's.
    """

    spec: str
    snapshot: str
    control: int
    clock: dict[int, int]
    closed: list[int]
    undone: dict[int, tuple[int, int]]
    position: int = 0
    again: bool = False
    halved: int = 0

    def taken(self) -> Ranges:
        """Rows that are taken out."""
        return {p: (span,) for p, span in self.undone.items()}


class Forget(msgspec.Struct, frozen=True):
    """On with a state that was built aside, without the rows of a source.

    Attributes:
        spec: Hash of the spec of the lineage whose state it is.
        source, since: Whose rows, and taken from when on (POSIX seconds; None: all of them).
        base: The snapshot that the state was built from; None: from nothing.
        snapshot, control: Name of the state that was built, and the control position that it
            contains.
        clock, closed, position: What it has learned or passed over: all else is learned on top.
        undone: Rows that are taken out, as of :func:`packed`.
        at: When it was decided (POSIX seconds); 0: an older version wrote it.
        digests: Count and sum of the events in the state with these rows, and without; None: not
            told.
    """

    spec: str
    source: str
    since: float | None
    base: str | None
    snapshot: str
    control: int
    clock: dict[int, int]
    closed: list[int]
    undone: dict[int, list[int]]
    position: int = 0
    at: float = 0.0
    digests: tuple[Digest, Digest] | None = None

    def taken(self) -> Ranges:
        """Rows that are taken out."""
        return {p: unpacked(flat) for p, flat in self.undone.items()}


class Relearn(msgspec.Struct, frozen=True):
    """On with a state that recent rows alone have taught, after a drift.

    Attributes:
        spec, snapshot, control, clock, closed, position: As of :class:`Forget`.
        undone: Rows that are older than what has taught it, and those that it could not learn.
        since: When the first row was taken that it may have learned (POSIX seconds).
        evidence: How it and what it takes the place of have answered the same rows.
    """

    spec: str
    snapshot: str
    control: int
    clock: dict[int, int]
    closed: list[int]
    undone: dict[int, list[int]]
    since: float
    evidence: dict[str, float] = {}
    position: int = 0

    def taken(self) -> Ranges:
        """Rows that are taken out."""
        return {p: unpacked(flat) for p, flat in self.undone.items()}


Note: TypeAlias = Rollback | Forget | Relearn
"""What the control row of a rewrite holds."""


class Source(msgspec.Struct, frozen=True):
    """From here on the rows of a source are quarantined (``banned``), or no longer."""

    source: str
    banned: bool


class Freeze(msgspec.Struct, frozen=True):
    """From here on rows are written as ``frozen``: none of them at or below this clock."""

    clock: dict[int, int]
    closed: list[int]


class Begun(msgspec.Struct, frozen=True):
    """A lineage that begins anew: of this spec, without the rows at or below this clock.

    ``base``: the snapshot of the backfill whose values it begins with; None: with none.
    """

    spec: str
    clock: dict[int, int]
    base: str | None = None


class Unfreeze(msgspec.Struct, frozen=True):
    """Rows are learned again from here on."""


class Promote(msgspec.Struct, frozen=True):
    """Another lineage of the model serves from here on, with what it has learned.

    Attributes:
        before, after: Hashes of the specs of the lineage that served and of the one that does.
        was, now: What their models are made of, as the service's settings say it.
        why: ``operator``, ``auto``, ``settings`` (the settings file was followed) or ``failed``
            (the replicas did not start with it).
        evidence: How the two stood when it was decided.
        epoch: The newest of the lineage that served: answers of what is promoted have newer ones.
    """

    before: str
    after: str
    was: dict[str, Any]
    now: dict[str, Any]
    why: str = "operator"
    evidence: dict[str, Any] = {}
    epoch: int = 0


def promoted(controls: Iterable[ControlInfo]) -> tuple[int, Promote] | None:
    """The newest promotion with the number of its row; None: there is none."""
    return newest(controls, PROMOTE, Promote)


def undoing(controls: Iterable[ControlInfo], spec: str, after: int) -> int:
    """Number of the newest row after ``after`` by which another lineage of the model undid rows.

    A model that has learned these rows can't serve any more as it is.  0: there is none.
    """
    found = 0
    for control in controls:
        if control.kind in REWRITES and control.seq > after:
            note = note_of(control)
            again = isinstance(note, Rollback) and note.again
            if note.spec != spec and not again:
                found = control.seq
    return found


def learn_again(now: SnapshotState, name: str, target: SnapshotState) -> Rollback:
    """The decision to go back to ``target`` and learn what came after it once more, more slowly.

    ``target`` has every rewrite that ``now`` has, so nothing is undone and nothing comes back.
    """
    gone = target.closed | now.closed  # what is closed is in every snapshot that is kept
    clock = {p: c for p, c in sorted(target.clock.items()) if p not in gone}
    halved = halvings(now.values) + 1
    return Rollback(
        now.spec, name, target.control, clock, sorted(gone), {}, target.position, True, halved
    )


def halvings(values: Blocks) -> int:
    """How often the learning rate of these values was halved."""
    return int(values[HALVED].data["n"]) if HALVED in values else 0


def roll_back(
    now: SnapshotState, name: str, target: SnapshotState, ends: Mapping[int, int]
) -> Rollback:
    """The decision to take ``now`` back to the values of ``target``, which has that name.

    The clock never goes back, or the rows would be learned again.  It is not always the present
    one: a server that started from an older snapshot may be rolled back to a newer one.

    Parameters:
        ends: Last offsets of the partitions: what a closed one contains.
    """
    closed = now.closed | target.closed
    partitions = now.clock.keys() | target.clock.keys()
    clock = {
        p: max(now.clock.get(p, 0), target.clock.get(p, 0)) for p in sorted(partitions - closed)
    }
    undone = {}
    for p in sorted((now.clock.keys() | now.closed) - target.closed):
        after = target.clock.get(p, 0)
        upto = ends[p] if p in now.closed else now.clock[p]
        if upto > after:
            undone[p] = (after, upto)
    position = max(now.position, target.position)
    return Rollback(now.spec, name, target.control, clock, sorted(closed), undone, position)


def brings_back(
    target: SnapshotState, ends: Mapping[int, int], controls: Iterable[ControlInfo]
) -> str | None:
    """The source, forgotten since, whose events are in the snapshot; None: there is none.

    Parameters:
        ends: Last offsets of the partitions: what a closed one contains.
        controls: Those after the snapshot.
    """
    clock = {**target.clock, **{p: ends[p] for p in target.closed}}
    for control in controls:
        if control.kind == FORGET:
            note = msgspec.json.decode(control.payload, type=Forget)
            if Undone(note.taken()).upto(clock):
                return note.source
    return None


def frozen_by(controls: Iterable[ControlInfo]) -> int:
    """Number of the control row by which a model is frozen after all of these; 0: it learns."""
    seq = 0
    for control in controls:
        if control.kind == FREEZE:
            seq = seq or control.seq
        elif control.kind == UNFREEZE:
            seq = 0
    return seq


def newest_rewrite(controls: Iterable[ControlInfo]) -> int:
    """Number of the model's newest rewrite, whatever its spec; 0: there is none."""
    return max((c.seq for c in controls if c.kind in REWRITES), default=0)


def banned(controls: Iterable[ControlInfo]) -> dict[str, int]:
    """Sources that are banned after all of these, and by which control row."""
    found: dict[str, int] = {}
    for control in controls:
        if control.kind == SOURCE:
            note = msgspec.json.decode(control.payload, type=Source)
            found.pop(note.source, None)
            if note.banned:
                found[note.source] = control.seq
    return found


def decided_about(controls: Iterable[ControlInfo], source: str) -> int:
    """Number of the newest control row by which a source was banned or let in again; 0: none."""
    return max(
        (
            control.seq
            for control in controls
            if control.kind == SOURCE
            and msgspec.json.decode(control.payload, type=Source).source == source
        ),
        default=0,
    )


def banned_after(before: Iterable[str], control: ControlInfo) -> frozenset[str]:
    """Sources that are banned after one more row about a source."""
    note = msgspec.json.decode(control.payload, type=Source)
    rest = frozenset(before) - {note.source}
    return rest | {note.source} if note.banned else rest


def packed(spans: Spans) -> list[int]:
    """Spans as gap, length, gap, length …: what a control row holds of them."""
    flat, at = list[int](), 0
    for after, upto in spans:
        flat += (after - at, upto - after)
        at = upto
    return flat


def unpacked(flat: Sequence[int]) -> Spans:
    """The spans of :func:`packed`."""
    spans, at = list[tuple[int, int]](), 0
    for gap, length in zip(flat[::2], flat[1::2], strict=True):
        spans.append((at + gap, at + gap + length))
        at += gap + length
    return tuple(spans)


@dataclass(frozen=True)
class Undone:
    """Rows that are in no model any more, because a rewrite took them out."""

    ranges: Ranges = field(default_factory=dict)

    def has(self, partition: int, offset: int) -> bool:
        """Whether the row is one of them."""
        ranges = self.ranges.get(partition)
        if ranges is None:
            return False
        i = bisect_left(ranges, offset, key=lambda span: span[1])
        return i < len(ranges) and ranges[i][0] < offset

    @property
    def count(self) -> int:
        """How many rows they are, whatever their verdicts."""
        return sum(upto - after for spans in self.ranges.values() for after, upto in spans)

    def upto(self, clock: Mapping[int, int]) -> Ranges:
        """Those of them at or below a clock."""
        found = {}
        for partition, spans in self.ranges.items():
            end = clock.get(partition, 0)
            cut = tuple((after, min(upto, end)) for after, upto in spans if after < end)
            if cut:
                found[partition] = cut
        return found


def undone(controls: Iterable[ControlInfo]) -> Undone:
    """Return what is undone after these control rows, which are all of a model, in order.

    A rollback's values miss what its snapshot missed, and what was learned after it.  So a row
    that was taken out before is back if a rollback goes to a snapshot from before that.
    What a forget or a relearn leaves out is added to what was undone.
    """
    after: list[tuple[int, Undone]] = [(0, Undone())]
    for control in controls:
        if control.kind in REWRITES:
            note = note_of(control)
            base = after[-1][1]
            if isinstance(note, Rollback):
                base = next(known for seq, known in reversed(after) if seq <= note.control)
            after.append((control.seq, Undone(_joined(base.ranges, note.taken()))))
    return after[-1][1]


def _joined(ranges: Ranges, more: Ranges) -> Ranges:
    out = dict(ranges)
    for partition, spans in more.items():
        joined: list[tuple[int, int]] = []
        for after, upto in sorted([*ranges.get(partition, ()), *spans]):
            if joined and after <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(upto, joined[-1][1]))
            else:
                joined.append((after, upto))
        out[partition] = tuple(joined)
    return out


class _Naming(msgspec.Struct, frozen=True):
    """The fields that the rows of rewrites and backfills have in common."""

    spec: str
    snapshot: str


class Needed(NamedTuple):
    """The newest rewrite or backfill of a lineage: its control row, and the snapshot it names.

    It alone decides: what is left of the state before it is nothing that an earlier one made.
    """

    seq: int
    snapshot: str


def rolled_back_to(controls: Iterable[ControlInfo], spec: str) -> str | None:
    """Where the lineage's newest rewrite has rolled it back to; None: it was no rollback.

    Nor is one that learns again what came since: that state is not the snapshot's.
    """
    newest = None
    for control in controls:
        if control.kind in (*REWRITES, BACKFILL):
            naming = msgspec.json.decode(control.payload, type=_Naming)
            newest = control if naming.spec == spec else newest
    if newest is None or newest.kind != ROLLBACK:
        return None
    note = msgspec.json.decode(newest.payload, type=Rollback)
    return None if note.again else note.snapshot


def needed(controls: Iterable[ControlInfo], spec: str) -> Needed | None:
    """Return what a start from before the lineage's newest rewrite must load; None: no rewrite."""
    newest = None
    for control in controls:
        if control.kind in (*REWRITES, BACKFILL):
            note = msgspec.json.decode(control.payload, type=_Naming)
            if note.spec == spec:
                newest = Needed(control.seq, note.snapshot)
    return newest


_NOTES: Final[dict[str, type[Note]]] = {ROLLBACK: Rollback, FORGET: Forget, RELEARN: Relearn}


def note_of(control: ControlInfo) -> Note:
    """Return what a rewrite's control row holds."""
    return msgspec.json.decode(control.payload, type=_NOTES[control.kind])


def kind_of(note: Note) -> str:
    """The kind of the control row that holds it."""
    return next(kind for kind, known in _NOTES.items() if isinstance(note, known))


def held(newest: Needed | None, kept: Collection[int]) -> set[str]:
    """The snapshot that retention must not remove, as long as a start may need it.

    Parameters:
        kept: Control positions of the snapshots that a server may start from.
    """
    if newest is None or newest.seq <= min(kept, default=0):
        return set()
    return {newest.snapshot}
