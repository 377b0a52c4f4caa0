"""Determines for `online fsck` which of the journal's rows a snapshot contains.

Rows that retention has removed or that the journal has lost can't be counted any more; but two
snapshots that contain the same of them can be compared with each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from online.errors import OnlineError
from online.learning.counters import digest_of, event_hash
from online.rows.history import LEARNED, Decisions, origin
from paramserver.core.rewrites import Undone
from paramserver.core.state import SnapshotState
from paramserver.process.shortfall import accepted
from paramserver.snapshots.format import Manifest
from replay.journal.base import Journal, Partition, Row, Verdict

_PAGE: Final = 1000
_MASK: Final = 2**64 - 1

Digest = tuple[int, int]
Spans = tuple[tuple[int, int], ...]


class Moved(OnlineError):
    """The service has removed rows or snapshots while they were examined."""


@dataclass(frozen=True, slots=True)
class Holding:
    """The rows that a snapshot must contain, and the digest of those that it does contain.

    Attributes:
        lost: By partition, a span (after, up to) of rows that it contains and the journal has lost.
        usable: Whether others can be compared with it.
    """

    name: str | None
    digest: Digest = (0, 0)
    clock: Mapping[int, int] = field(default_factory=dict)
    closed: frozenset[int] = frozenset()
    undone: Undone = field(default_factory=Undone)
    skipped: Mapping[int, int] = field(default_factory=dict)
    lost: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    usable: bool = True

    def upto(self, partition: Partition) -> int:
        """Return the snapshot's clock for the partition; for a closed one that is its end."""
        return partition.end if partition.id in self.closed else self.clock.get(partition.id, 0)

    def has(self, partition: Partition, offset: int) -> bool:
        """Whether the snapshot must contain the row, provided that it was to be learned at all."""
        inside = self.skipped.get(partition.id, 0) < offset <= self.upto(partition)
        return inside and not self.undone.has(partition.id, offset)

    def removed(self, partition: Partition) -> Spans:
        """Return spans (after, up to) of removed or lost rows that the snapshot contains."""
        at = min(self.skipped.get(partition.id, 0), partition.trimmed)
        upto = min(self.upto(partition), partition.trimmed)
        after, until = self.lost.get(partition.id, (0, 0))
        return (
            *self._standing(partition, at, upto),
            *self._standing(partition, max(after, upto), min(until, self.upto(partition))),
        )

    def _standing(self, partition: Partition, at: int, upto: int) -> Iterator[tuple[int, int]]:
        """Yield spans of the rows after ``at`` up to ``upto`` that are not undone."""
        for after, until in self.undone.ranges.get(partition.id, ()):
            if at < min(after, upto):
                yield at, min(after, upto)
            at = max(at, until)
        if at < upto:
            yield at, upto


def holding_of(journal: Journal, name: str | None, state: SnapshotState) -> Holding:
    """Return the holding of a snapshot with this name and state."""
    decisions = Decisions(state.spec)
    decisions.read(journal, state.model, state.control)
    loss = accepted(journal.controls(state.model, 0), state.spec)
    lost, usable = dict[int, tuple[int, int]](), True
    if loss is not None:
        for p, (after, upto) in loss.note.rows.items():
            held = state.clock.get(p, upto if p in state.closed else 0)
            if state.version < loss.note.version:  # possibly of another line: can't be decided
                usable = usable and held <= after
            elif (contained := min(upto, loss.note.clock.get(p, upto), held)) > after:
                lost[p] = after, contained
    return Holding(
        name,
        digest_of(state.values),
        dict(state.clock),
        state.closed,
        decisions.undone,
        _skipped(journal, state.model, state.spec, state.version[0]),
        lost,
        usable,
    )


def holding_before(
    journal: Journal, name: str, decisions: Decisions, manifest: Manifest
) -> Holding:
    """Return the holding of a snapshot from its manifest alone, without the digest."""
    clock, closed = dict(manifest.clock), manifest.closed_partitions()
    skipped = _skipped(journal, manifest.model, manifest.spec, manifest.version[0])
    return Holding(name, (0, 0), clock, closed, decisions.undone, skipped)


def difference(journal: Journal, state: SnapshotState) -> Digest:
    """Difference between a snapshot's digest and that of the journal's rows."""
    view, decisions = holding_of(journal, None, state), Decisions(state.spec)
    decisions.read(journal, state.model, state.control)
    counts = Counts(decisions, view, Holding(None))
    for partition in journal.partitions(state.model):
        for page, _ in pages(journal, partition):
            for row in page:
                counts.add(partition, row)
    return minus(view.digest, counts.digest)


def _skipped(journal: Journal, model: str, spec: str, epoch: int) -> dict[int, int]:
    """Offsets up to which partitions were skipped when the lineage was begun afresh."""
    skipped: dict[int, int] = {}
    for control in journal.controls(model, 0):
        if control.kind == "fresh":
            note = json.loads(control.payload)
            if note["spec"] == spec and int(control.key.split(":")[2]) <= epoch:
                skipped = {int(p): offset for p, offset in note["clock"].items()}
    return skipped


def of_loss(
    journal: Journal, model: str, spec: str, partitions: Sequence[Partition]
) -> list[Holding]:
    """Return holdings for an accepted loss, to be compared with like snapshots.

    The first contains only what the journal had lost by then, the second is the snapshot from which
    the lineage continued.
    """
    loss = accepted(journal.controls(model, 0), spec)
    if loss is None:
        return []
    note = loss.note
    decisions = Decisions(spec)
    decisions.read(journal, model, loss.seq)
    name = f"of the loss accepted by control row {loss.seq}"
    view = Holding(
        name,
        note.digest,
        note.clock,
        frozenset(note.closed),
        decisions.undone,
        _skipped(journal, model, spec, note.version[0]),
        note.rows,
    )
    then = {p.id: p.trimmed for p in partitions} == {
        **{p.id: 0 for p in partitions},
        **note.trimmed,
    }
    return [_Rest(**{**_fields(view), "digest": note.difference, "usable": then}), view]


class _Rest(Holding):
    """The rows that a model had and the journal lacked when the loss was accepted."""

    __slots__ = ()

    def has(self, partition: Partition, offset: int) -> bool:
        """Return False: it contains none of the journal's rows."""
        return False


def _fields(view: Holding) -> dict[str, Any]:
    return {f.name: getattr(view, f.name) for f in fields(view)}


def base_of(
    now: Holding, views: Sequence[Holding], partitions: Sequence[Partition]
) -> Holding | None:
    """Return the oldest holding with which the snapshot can be compared; None without one.

    If no row of the snapshot was removed, that is the empty holding.
    """
    for view in views:
        if view.name == now.name is not None:
            break  # the snapshot itself: comparing it would check nothing
        same = all(view.removed(p) == now.removed(p) for p in partitions)
        if view.usable and same:
            return view
    return None


def pages(journal: Journal, partition: Partition) -> Iterator[tuple[Sequence[Row], int]]:
    """Yield the rows of a partition by pages, with the number of missing rows of each page."""
    first = partition.trimmed + 1
    while first <= partition.end:
        n = min(_PAGE, partition.end - first + 1)
        rows = journal.read(partition.id, first, n)
        if len(rows) != n:
            stored = journal.partition(partition.id)
            if stored is None or stored.trimmed > partition.trimmed:
                raise Moved
        yield rows, n - len(rows)
        first += n


def minus(a: Digest, b: Digest) -> Digest:
    return a[0] - b[0], (a[1] - b[1]) & _MASK


class Counts:
    """Digest of the rows that one holding has beyond another; sets of events in no model."""

    def __init__(self, decisions: Decisions, now: Holding, base: Holding) -> None:
        self._decisions, self._now, self._base = decisions, now, base
        self.digest: Digest = (0, 0)
        self.undone: set[bytes] = set()
        self.frozen: set[bytes] = set()
        self.quarantined: set[bytes] = set()
        self.standing: set[bytes] = set()
        self.lost = 0

    def add(self, partition: Partition, row: Row) -> None:
        """Count one row of the journal."""
        if row.verdict is Verdict.LOST:
            self.lost += 1
            return
        event = origin(row).key
        if row.verdict is Verdict.FROZEN:
            self.frozen.add(event)
        if row.verdict is Verdict.QUARANTINED:
            self.quarantined.add(event)
        if row.verdict not in LEARNED or row.key.hex() in self._decisions.failed:
            return
        if not self._decisions.stands(row):
            self.undone.add(event)
        elif event != row.key or self._decisions.was_undone(row):
            self.standing.add(event)
        sign = self._now.has(partition, row.offset) - self._base.has(partition, row.offset)
        count, total = self.digest
        self.digest = count + sign, (total + sign * event_hash(row.key)) & _MASK
