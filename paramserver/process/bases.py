"""Control rows of backfills: which tables a lineage has learned, and in which base snapshot.

:mod:`paramserver.process.backfill` writes them.
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
    """A file that was learned: name, size in bytes, SHA-256, and rows including refused ones."""

    name: str
    size: int
    sha256: str
    rows: int


class Backfill(msgspec.Struct, frozen=True):
    """The record that tables were learned whose rows are not in the journal.

    Attributes:
        spec: Hash of the spec of the lineage that has learned them.
        snapshot, control: Name of the base snapshot with the values, which is pinned, and the
            control position that it contains.
        clock, closed, position: Rows of the journal that the base contains as well.
        files: The files in the order in which they were learned.
        learned, quarantined, known: Numbers of rows learned, refused, and skipped because the
            journal has their events.
        label: Name of the label column.
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
        """Return no rows: a backfill excludes none."""
        return {}


@dataclass(frozen=True, slots=True)
class Lesson:
    """Files and counts for a backfill's control row; fields as in :class:`Backfill`."""

    files: Sequence[Taught]
    learned: int
    quarantined: int
    known: int
    label: str


class Based(NamedTuple):
    """A backfill contained in a lineage's values: number and payload of its control row."""

    seq: int
    note: Backfill


def backfills(controls: Iterable[ControlInfo], spec: str) -> tuple[Based, ...]:
    """Return the backfills contained in a lineage's values, oldest first; the last is its base.

    A rollback to a snapshot before a backfill removes that backfill, and a relearn removes all.  A
    lineage that started afresh has the backfills that it started with; it cannot be rolled back to
    a snapshot before that.
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
            if back.spec == spec:  # a base snapshot is older than its control row
                own = (had for _, had in after if had and had[-1].note.snapshot == back.snapshot)
                known = next(had for seq, had in reversed(after) if seq <= back.control)
                after.append((control.seq, next(own, known)))
        elif control.kind == RELEARN:
            if note_of(control).spec == spec:
                after.append((control.seq, ()))
        elif (begun := begun_by(control, spec)) is not None:
            names = [based.note.snapshot for based in now]
            names_before = now[: names.index(begun.base) + 1] if begun.base in names else ()
            after = [(0, names_before)]
    return after[-1][1]


def backfill_of(control: ControlInfo) -> Backfill:
    """Return the payload of a backfill's control row."""
    return msgspec.json.decode(control.payload, type=Backfill)


def begun_by(control: ControlInfo, spec: str) -> Begun | None:
    """Return the row's payload if a lineage of this spec starts afresh by it, else None."""
    if control.kind != BEGUN:
        return None
    note = msgspec.json.decode(control.payload, type=Begun)
    return note if note.spec == spec else None


def publish_pinned(history: SnapshotHistory, name: str, state: SnapshotState) -> None:
    """Publish and pin a base snapshot.  After PublishFailed nothing is left of it."""
    try:
        history.publish(name, state)
        history.pin(name, True)
    except OSError as error:
        withdraw_pinned(history, name)
        raise PublishFailed(name, str(error)) from error


def withdraw_pinned(history: SnapshotHistory, name: str) -> None:
    """Remove a base snapshot that no control row names."""
    with contextlib.suppress(OSError, SnapshotMissing):
        history.pin(name, False)
    with contextlib.suppress(OSError):
        history.withdraw(name)
