"""Control rows that change what a model holds or learns: rollback, freeze, unfreeze.

The row comes first and is what makes the decision durable: whoever starts a server from a snapshot
before it applies it.  Payloads are JSON.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from paramserver.blocks import Blocks
from paramserver.state import SnapshotState
from paramserver.store import ControlInfo

ROLLBACK: Final = "rollback"
FREEZE: Final = "freeze"
UNFREEZE: Final = "unfreeze"
PROMOTE: Final = "promote"
DECISIONS: Final = frozenset({ROLLBACK, FREEZE, UNFREEZE})

HALVED: Final = "halved"
"""Block of a model whose learning rate was halved: how often.  Models that can't ignore it."""

Ranges: TypeAlias = dict[int, tuple[tuple[int, int], ...]]
"""By partition: rows after the first offset, up to the second; in order, apart from each other."""


class Rollback(msgspec.Struct, frozen=True):
    """Back to a snapshot's values; the clock stays where it was, unless it is learned again.

    Attributes
    ----------
    spec
        Hash of the spec of the lineage that was rolled back.
    snapshot, control
        Name of the snapshot, and the control position that it contains.
    clock, closed
        Clock and closed partitions of the new state: the larger of the server's and the
        snapshot's.
    undone
        Rows that the rollback took out, by partition: after the first offset, up to the second.
    position
        Of rows learned in commit order: the larger of the two, as the clock.
    again, halved
        The rows since are learned again, with a rate that was halved so often; the clock is the
        snapshot's.
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


class Freeze(msgspec.Struct, frozen=True):
    """From here on rows are written as ``frozen``: none of them at or below this clock."""

    clock: dict[int, int]
    closed: list[int]


class Begun(msgspec.Struct, frozen=True):
    """A lineage that begins anew: of this spec, without the rows at or below this clock."""

    spec: str
    clock: dict[int, int]


class Unfreeze(msgspec.Struct, frozen=True):
    """Rows are learned again from here on."""


class Promote(msgspec.Struct, frozen=True):
    """Another lineage of the model serves from here on, with what it has learned.

    Attributes
    ----------
    before, after
        Hashes of the specs of the lineage that served and of the one that does.
    was, now
        What their models are made of, as the service's settings say it.
    why
        ``operator``, ``auto``, ``settings`` (the settings file was followed) or ``failed`` (the
        replicas did not start with it).
    evidence
        How the two stood when it was decided.
    """

    before: str
    after: str
    was: dict[str, Any]
    now: dict[str, Any]
    why: str = "operator"
    evidence: dict[str, Any] = {}


def promoted(controls: Iterable[ControlInfo]) -> tuple[int, Promote] | None:
    """The newest promotion with the number of its row; None: there is none."""
    newest = None
    for control in controls:
        if control.kind == PROMOTE:
            newest = control.seq, msgspec.json.decode(control.payload, type=Promote)
    return newest


def undoing(controls: Iterable[ControlInfo], spec: str, after: int) -> int:
    """Number of the newest row after ``after`` by which another lineage of the model undid rows.

    A model that has learned these rows can't serve any more as it is.  0: there is none.
    """
    found = 0
    for control in controls:
        if control.kind == ROLLBACK and control.seq > after:
            note = msgspec.json.decode(control.payload, type=Rollback)
            if note.spec != spec and not note.again:
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

    Parameters
    ----------
    ends
        Last offsets of the partitions: what a closed one contains.
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


def frozen_by(controls: Iterable[ControlInfo]) -> int:
    """Number of the control row by which a model is frozen after all of these; 0: it learns."""
    seq = 0
    for control in controls:
        if control.kind == FREEZE:
            seq = seq or control.seq
        elif control.kind == UNFREEZE:
            seq = 0
    return seq


def newest_rollback(controls: Iterable[ControlInfo]) -> int:
    """Number of the model's newest rollback, whatever its spec; 0: there is none."""
    return max((c.seq for c in controls if c.kind == ROLLBACK), default=0)


@dataclass(frozen=True)
class Undone:
    """Rows that are in no model any more, because a rollback took them out."""

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


def undone(controls: Iterable[ControlInfo]) -> Undone:
    """What is undone after these control rows: all of a model, in order.

    A rollback's values miss what its snapshot missed, and what was learned after it.  So a row
    that an earlier rollback took out is back if a later one goes to a snapshot from before that.
    """
    after: list[tuple[int, Undone]] = [(0, Undone())]
    for control in controls:
        if control.kind == ROLLBACK:
            note = msgspec.json.decode(control.payload, type=Rollback)
            base = next(known for seq, known in reversed(after) if seq <= note.control)
            after.append((control.seq, Undone(_joined(base.ranges, note.undone))))
    return after[-1][1]


def _joined(ranges: Ranges, more: Mapping[int, tuple[int, int]]) -> Ranges:
    out = dict(ranges)
    for partition, span in more.items():
        joined: list[tuple[int, int]] = []
        for after, upto in sorted([*ranges.get(partition, ()), span]):
            if joined and after <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(upto, joined[-1][1]))
            else:
                joined.append((after, upto))
        out[partition] = tuple(joined)
    return out


class Needed(NamedTuple):
    """The newest rollback of a lineage: number of its control row, and the snapshot it names.

    It alone decides: what is left of the state before it is nothing that an earlier one made.
    """

    seq: int
    snapshot: str


def needed(controls: Iterable[ControlInfo], spec: str) -> Needed | None:
    """What a start from before the lineage's newest rollback has to load; None: no rollback."""
    newest = None
    for control in controls:
        if control.kind == ROLLBACK:
            note = msgspec.json.decode(control.payload, type=Rollback)
            if note.spec == spec:
                newest = Needed(control.seq, note.snapshot)
    return newest


def held(newest: Needed | None, kept: Collection[int]) -> set[str]:
    """The snapshot that retention must not remove, as long as a start may need it.

    Parameters
    ----------
    kept
        Control positions of the snapshots that a server may start from.
    """
    if newest is None or newest.seq <= min(kept, default=0):
        return set()
    return {newest.snapshot}
