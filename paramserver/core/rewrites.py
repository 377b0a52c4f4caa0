"""Control rows that change a model's state or what it learns: rollback, forget, freeze, ban, ….

The row is written first and makes the decision durable: a server that starts from an older snapshot
applies the rows after it.  Payloads are JSON.
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
"""Kinds of control rows that replace the values and may exclude rows from the model."""
DECISIONS: Final = REWRITES | {FREEZE, UNFREEZE}

SPANS_MAX: Final = 100_000
"""Greatest number of row ranges that one forget may exclude; its control row holds them all."""

HALVED: Final = "halved"
"""Block that counts how often the learning rate was halved; other models ignore it."""

Digest: TypeAlias = tuple[int, int]
"""Number of events, and the sum of their hashes modulo 2^64."""

Spans: TypeAlias = tuple[tuple[int, int], ...]
Ranges: TypeAlias = dict[int, Spans]
"""Partition → ranges of offsets, each exclusive of its start; sorted, disjoint, not adjacent."""


class Rollback(msgspec.Struct, frozen=True):
    """A return to the values of a snapshot; the clock does not go back unless ``again`` is set.

    Attributes:
        spec: Hash of the spec of the lineage that was rolled back.
        snapshot, control: Name of the snapshot, and the control position that it contains.
        clock, closed: Clock and closed partitions of the new state: the larger of the server's and
            the snapshot's.
        undone: Rows that the rollback excludes, by partition: after the first offset, up to and
            including the second.
        position: Commit position of the new state, if rows are learned in commit order: the larger
            of the two.
        again: The rows since the snapshot are learned again, and the clock is the snapshot's.
        halved: How often the learning rate is halved for that.
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
    """A switch to a state that was built separately, without the rows of a source.

    Attributes:
        spec: Hash of the spec of the lineage whose state it is.
        source: The source whose rows are left out.
        since: Only rows received since then are left out (POSIX seconds); None: all of them.
        base: The snapshot that the state was built from; None: built from an empty model.
        snapshot, control: Name of the snapshot of the new state, and the control position that it
            contains.
        clock, closed, position: Rows that the new state has learned or skipped; replicas learn all
            later rows on top.
        undone: Excluded rows, encoded by :func:`packed`.
        at: Time of the decision (POSIX seconds); 0 if an older release wrote the row.
        digests: Count and hash sum of the events in the state with these rows, and without them;
            None: not recorded.
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
    """A switch to a state that learned recent rows only, after a drift.

    Attributes:
        spec, snapshot, control, clock, closed, position: As in :class:`Forget`.
        undone: Excluded rows: those before the rows learned, and those that could not be learned.
        since: Time at which the first row that may have been learned was received (POSIX seconds).
        evidence: Scores of the new and the previous state on the same rows.
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
"""Payload of the control row of a rewrite."""


class Source(msgspec.Struct, frozen=True):
    """From here on new rows of a source are quarantined (``banned``), or no longer."""

    source: str
    banned: bool


class Freeze(msgspec.Struct, frozen=True):
    """From here on new rows are written as ``frozen``; none of them is at or below this clock."""

    clock: dict[int, int]
    closed: list[int]


class Begun(msgspec.Struct, frozen=True):
    """A lineage of this spec starts afresh, without the rows at or below this clock.

    Attributes:
        base: Snapshot of the backfill whose values it starts with; None: an empty model.
    """

    spec: str
    clock: dict[int, int]
    base: str | None = None


class Unfreeze(msgspec.Struct, frozen=True):
    """From here on new rows are learned again."""


class Promote(msgspec.Struct, frozen=True):
    """From here on another lineage of the model serves, with the state that it has learned.

    Attributes:
        before, after: Hashes of the specs of the lineage that served and of the one that now does.
        was, now: The settings of their models.
        why: ``operator``, ``auto``, ``settings`` (the settings file was changed) or ``failed``
            (replicas did not start with the promoted model).
        evidence: Scores of the two at the time of the decision.
        epoch: Newest epoch of the lineage that served; the promoted one continues above it.
    """

    before: str
    after: str
    was: dict[str, Any]
    now: dict[str, Any]
    why: str = "operator"
    evidence: dict[str, Any] = {}
    epoch: int = 0


def promoted(controls: Iterable[ControlInfo]) -> tuple[int, Promote] | None:
    """Return the sequence number and content of the newest promotion, or None."""
    return newest(controls, PROMOTE, Promote)


def undoing(controls: Iterable[ControlInfo], spec: str, after: int) -> int:
    """Return the number of the newest row after ``after`` by which another lineage undid rows.

    A model that has learned those rows cannot serve as it is.  0: there is no such row.
    """
    newest_seq = 0
    for control in controls:
        if control.kind in REWRITES and control.seq > after:
            note = note_of(control)
            again = isinstance(note, Rollback) and note.again
            if note.spec != spec and not again:
                newest_seq = control.seq
    return newest_seq


def learn_again(now: SnapshotState, name: str, target: SnapshotState) -> Rollback:
    """Return the decision to go back to ``target`` and learn later rows again at half the rate.

    ``target`` contains every rewrite that ``now`` contains, so no rows are undone or restored.
    """
    gone = target.closed | now.closed  # every kept snapshot contains closed partitions
    clock = {p: c for p, c in sorted(target.clock.items()) if p not in gone}
    halved = halvings(now.values) + 1
    return Rollback(
        now.spec, name, target.control, clock, sorted(gone), {}, target.position, True, halved
    )


def halvings(values: Blocks) -> int:
    """Return how often the learning rate was halved for these values."""
    return int(values[HALVED].data["n"]) if HALVED in values else 0


def roll_back(
    now: SnapshotState, name: str, target: SnapshotState, ends: Mapping[int, int]
) -> Rollback:
    """Return the decision to replace the values of ``now`` by those of ``target``.

    The clock never goes back, or rows would be learned again.  It may go forward: a server that
    started from an older snapshot may be rolled back to a newer one.

    Parameters:
        name: Name of the snapshot ``target``.
        ends: Last offsets of the partitions, up to which the closed ones are contained.
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
    """Return a source that was forgotten since the snapshot and has events in it, or None.

    Parameters:
        ends: Last offsets of the partitions, up to which the closed ones are contained.
        controls: Control rows after the snapshot.
    """
    clock = {**target.clock, **{p: ends[p] for p in target.closed}}
    for control in controls:
        if control.kind == FORGET:
            note = msgspec.json.decode(control.payload, type=Forget)
            if Undone(note.taken()).upto(clock):
                return note.source
    return None


def frozen_by(controls: Iterable[ControlInfo]) -> int:
    """Return the number of the row that froze the model, after all rows; 0: it is not frozen."""
    seq = 0
    for control in controls:
        if control.kind == FREEZE:
            seq = seq or control.seq
        elif control.kind == UNFREEZE:
            seq = 0
    return seq


def newest_rewrite(controls: Iterable[ControlInfo]) -> int:
    """Return the number of the model's newest rewrite of any spec; 0: there is none."""
    return max((c.seq for c in controls if c.kind in REWRITES), default=0)


def banned(controls: Iterable[ControlInfo]) -> dict[str, int]:
    """Return the banned sources after all of these rows, each with the number of its row."""
    sources: dict[str, int] = {}
    for control in controls:
        if control.kind == SOURCE:
            note = msgspec.json.decode(control.payload, type=Source)
            sources.pop(note.source, None)
            if note.banned:
                sources[note.source] = control.seq
    return sources


def decided_about(controls: Iterable[ControlInfo], source: str) -> int:
    """Return the number of the newest row that banned or readmitted the source; 0: none."""
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
    """Return the banned sources after one more row about a source."""
    note = msgspec.json.decode(control.payload, type=Source)
    rest = frozenset(before) - {note.source}
    return rest | {note.source} if note.banned else rest


def packed(spans: Spans) -> list[int]:
    """Encode spans as gap, length, gap, length …, for a control row."""
    flat, at = list[int](), 0
    for after, upto in spans:
        flat += (after - at, upto - after)
        at = upto
    return flat


def unpacked(flat: Sequence[int]) -> Spans:
    """Decode the spans that :func:`packed` encoded."""
    spans, at = list[tuple[int, int]](), 0
    for gap, length in zip(flat[::2], flat[1::2], strict=True):
        spans.append((at + gap, at + gap + length))
        at += gap + length
    return tuple(spans)


@dataclass(frozen=True)
class Undone:
    """Rows that rewrites have excluded from the model."""

    ranges: Ranges = field(default_factory=dict)

    def has(self, partition: int, offset: int) -> bool:
        """Return whether the row is excluded."""
        ranges = self.ranges.get(partition)
        if ranges is None:
            return False
        i = bisect_left(ranges, offset, key=lambda span: span[1])
        return i < len(ranges) and ranges[i][0] < offset

    @property
    def count(self) -> int:
        """The number of excluded rows, whatever their verdicts."""
        return sum(upto - after for spans in self.ranges.values() for after, upto in spans)

    def upto(self, clock: Mapping[int, int]) -> Ranges:
        """Return the excluded rows at or below a clock."""
        ranges = {}
        for partition, spans in self.ranges.items():
            end = clock.get(partition, 0)
            cut = tuple((after, min(upto, end)) for after, upto in spans if after < end)
            if cut:
                ranges[partition] = cut
        return ranges


def undone(controls: Iterable[ControlInfo]) -> Undone:
    """Return the rows that are excluded after these control rows, which are all of a model's.

    After a rollback, the rows excluded are those that were excluded at its snapshot, and those
    learned after it.  So rows that an earlier rewrite excluded return with a rollback to a
    snapshot before that rewrite.  A forget or relearn adds its rows to those excluded before.
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
    """The fields that control rows of rewrites and backfills have in common."""

    spec: str
    snapshot: str


class Needed(NamedTuple):
    """The newest rewrite or backfill of a lineage: its control row, and the snapshot it names.

    Earlier ones do not matter, because each of them replaces the whole state.
    """

    seq: int
    snapshot: str


def rolled_back_to(controls: Iterable[ControlInfo], spec: str) -> str | None:
    """Return the snapshot whose values the lineage's newest rewrite restored, or None.

    None if that rewrite is no rollback, or a rollback that learns the later rows again.
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
    """Return the newest rewrite or backfill, whose snapshot an older start must load, or None."""
    newest = None
    for control in controls:
        if control.kind in (*REWRITES, BACKFILL):
            note = msgspec.json.decode(control.payload, type=_Naming)
            if note.spec == spec:
                newest = Needed(control.seq, note.snapshot)
    return newest


_NOTES: Final[dict[str, type[Note]]] = {ROLLBACK: Rollback, FORGET: Forget, RELEARN: Relearn}


def note_of(control: ControlInfo) -> Note:
    """Return the payload of a rewrite's control row."""
    return msgspec.json.decode(control.payload, type=_NOTES[control.kind])


def kind_of(note: Note) -> str:
    """Return the kind of the control row for this payload."""
    return next(kind for kind, known in _NOTES.items() if isinstance(note, known))


def held(newest: Needed | None, kept: Collection[int]) -> set[str]:
    """Return the snapshot that retention must keep because a start may still need it.

    Parameters:
        kept: Control positions of the snapshots that a server may start from.
    """
    if newest is None or newest.seq <= min(kept, default=0):
        return set()
    return {newest.snapshot}
