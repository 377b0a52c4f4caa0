"""Backfills in the control rows: which tables a lineage has learned, and the base that has them.

See :mod:`paramserver.process.backfill` for how one is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from paramserver.core.rewrites import (
    BACKFILL,
    BEGUN,
    RELEARN,
    ROLLBACK,
    Begun,
    Ranges,
    Rollback,
    note_of,
)
from paramserver.core.state import SnapshotState
from paramserver.errors import PublishFailed, SnapshotMissing
from paramserver.snapshots.history import SnapshotHistory
from paramserver.store import ControlInfo


class Taught(msgspec.Struct, frozen=True):
    """A file that was learned: its name, size in bytes, SHA-256, and rows, bad ones included."""

    name: str
    size: int
    sha256: str
    rows: int


class Backfill(msgspec.Struct, frozen=True):
    """Tables were learned, in order, whose rows are not in the journal: a snapshot has the values.

    Attributes:
        spec: Hash of the spec of the lineage that has learned them.
        snapshot, control: Name of the base snapshot, which is pinned, and the control position that
            it contains.
        clock, closed, position: Rows of the journal that the base contains, too.
        files: In the order in which they were learned.
        learned, quarantined, known: Rows learned, refused, and left out because the journal has
            their events.
        label: The column of the labels.
    """

    spec: str
    snapshot: str
    control: int
    clock: dict[int, int]
    closed: list[int]
    position: int
    files: list[Taught]
    learned: int
    quarantined: int
    known: int
    label: str

    def taken(self) -> Ranges:
        """No rows are taken out."""
        return {}


@dataclass(frozen=True, slots=True)
class Lesson:
    """A lesson holds what a backfill's control row is to say; fields as of :class:`Backfill`."""

    files: Sequence[Taught]
    learned: int
    quarantined: int
    known: int
    label: str


class Based(NamedTuple):
    """A backfill that is in a lineage's values: number of its control row, and what it says."""

    seq: int
    note: Backfill


def backfills(controls: Iterable[ControlInfo], spec: str) -> tuple[Based, ...]:
    """The backfills that are in a lineage's values, oldest first; the last one is its base.

    A rollback to a snapshot from before a backfill has taken it out, and a relearn whatever tables
    have taught.  A lineage that was begun
    anew has those that it was begun with, and nothing from before that can be gone back to.
    """
    after: list[tuple[int, tuple[Based, ...]]] = [(0, ())]
    for control in controls:
        now = after[-1][1]
        if control.kind == BACKFILL:
            note = backfill_of(control)
            if note.spec == spec:
                after.append((control.seq, (*now, Based(control.seq, note))))
        elif control.kind == ROLLBACK:
            back = msgspec.json.decode(control.payload, type=Rollback)
            if back.spec == spec:  # a base was made before its own row
                own = (had for _, had in after if had and had[-1].note.snapshot == back.snapshot)
                known = next(had for seq, had in reversed(after) if seq <= back.control)
                after.append((control.seq, next(own, known)))
        elif control.kind == RELEARN:
            if note_of(control).spec == spec:
                after.append((control.seq, ()))
        elif (begun := begun_by(control, spec)) is not None:
            names = [based.note.snapshot for based in now]
            kept = now[: names.index(begun.base) + 1] if begun.base in names else ()
            after = [(0, kept)]
    return after[-1][1]


def backfill_of(control: ControlInfo) -> Backfill:
    """Return what a backfill's control row holds."""
    return msgspec.json.decode(control.payload, type=Backfill)


def begun_by(control: ControlInfo, spec: str) -> Begun | None:
    """Return what the row says if a lineage of this spec begins anew by it, else None."""
    if control.kind != BEGUN:
        return None
    note = msgspec.json.decode(control.payload, type=Begun)
    return note if note.spec == spec else None


def publish_pinned(history: SnapshotHistory, name: str, state: SnapshotState) -> None:
    """Publish a base; PublishFailed: nothing is there."""
    try:
        history.publish(name, state)
        history.pin(name, True)
    except OSError as error:
        withdraw_pinned(history, name)
        raise PublishFailed(name, str(error)) from error


def withdraw_pinned(history: SnapshotHistory, name: str) -> None:
    """Remove a base that nothing names."""
    with contextlib.suppress(OSError, SnapshotMissing):
        history.pin(name, False)
    with contextlib.suppress(OSError):
        history.withdraw(name)
