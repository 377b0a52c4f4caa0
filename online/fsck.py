"""Is every accepted event of the journal in the model exactly once?  The digest tells.

The digest is an integer block: the count of learned events and the sum of their keys' hashes
modulo 2^64.  It is pushed with the deltas and never scaled, so it checks the set of events, not
only their number, with any model and merge rule.

Rows that retention has removed can't be counted any more.  What is checked then is the difference
between the newest snapshot and the oldest one that holds the same of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from online.config import Settings
from online.errors import OnlineError, StartRefused
from online.history import LEARNED, Decisions, origin
from online.names import load_model, open_journal, running, snapshots_path
from online.promotion import as_stored
from online.tally import DIGEST, event_hash
from paramserver.errors import (
    ParamServerError,
    SnapshotCorrupt,
    SnapshotFormat,
    SnapshotMissing,
)
from paramserver.errors import StartRefused as Refused
from paramserver.lineage import Lineage, check_start
from paramserver.rewrites import Undone
from paramserver.shortfall import accepted, shortfall
from paramserver.snapshots.format import decode
from paramserver.snapshots.history import SnapshotHistory, ancestors, parse_name
from paramserver.snapshots.places import Snapshots, lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from paramserver.state import SnapshotState
from replay.journal.base import Journal, Partition, Row, Verdict

_PAGE = 1000
_MASK = 2**64 - 1
_ATTEMPTS = 5  # a running service removes rows and snapshots meanwhile

Progress = Callable[[int, int], None]
Digest = tuple[int, int]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """What the newest snapshot holds, and what the journal says that it must hold.

    Attributes
    ----------
    snapshot, base
        The newest good snapshot; the one that it was compared with, if rows were removed.
    learned, expected
        Events in it (beyond ``base``), and those that the journal says.
    digest_equal
        Whether they are the same events; None: no snapshot tells what was removed.
    removed, holes
        Rows that retention removed, and rows that are missing without it.
    not_yet
        Rows after the snapshot: a start learns them.
    failed, undone, frozen, quarantined, waiting
        Events that are in no model: the model raised; rolled back or forgotten; kept back by a
        freeze; set aside, and not released; halves of stored joins.  What was learned again is
        not among them.
    refused, heads
        Damaged snapshots with the reason; head of every lineage by the start of its spec's hash.
    head_missing
        Whether the file of the newest snapshot is not there.
    served
        Whether a service runs on the folder; it writes a file that is missing anew.
    lacks
        Rows that snapshots contain and the journal does not have.
    no_start
        Why a start on what is there would be refused; None: it would not.
    """

    model: str
    snapshot: str | None
    base: str | None
    learned: int
    expected: int
    digest_equal: bool | None
    removed: int
    holes: int
    not_yet: int
    failed: int
    undone: int
    frozen: int
    quarantined: int
    waiting: int
    refused: Mapping[str, str]
    heads: Mapping[str, str | None]
    head_missing: bool = False
    served: bool = False
    lacks: int = 0
    no_start: str | None = None

    @property
    def good(self) -> bool:
        """No event is missing or counted twice, no partition has a hole, and it can start.

        Without a service, a head whose file is missing is as good as the one before it.
        """
        whole = self.digest_equal is not False and self.holes == 0
        return whole and self.no_start is None and not (self.head_missing and self.served)

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "good": self.good}

    def __str__(self) -> str:
        verdict = "good" if self.good else "NOT GOOD"
        if self.digest_equal is None:
            verdict += ", as far as it can be checked"
            told = f"not checkable: {self.removed:,} rows were removed by retention"
        else:
            since = f" since snapshot {self.base}" if self.base else ""
            told = (
                f"{self.learned:,} events{since}; the journal up to its clock: {self.expected:,}; "
                f"digests {'equal' if self.digest_equal else 'DIFFER'}"
            )
        lines = [
            f"{self.model}: {verdict}",
            f"  snapshot {self.snapshot}: {told}",
            f"  {self.not_yet:,} rows after it, {self.holes:,} holes, {self.removed:,} removed",
            f"  not in the model: {self.undone:,} undone, {self.frozen:,} frozen, "
            f"{self.quarantined:,} quarantined, {self.failed:,} failed, "
            f"{self.waiting:,} waiting for their other half",
            *(f"  snapshot {name} is damaged: {why}" for name, why in self.refused.items()),
            *([f"  a start would be refused: {self.no_start}"] if self.no_start else []),
            *(f"  head of lineage {spec}: {head}" for spec, head in self.heads.items()),
        ]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _View:
    """Which rows a snapshot must hold, and the digest of those that it does.

    ``lost``: rows that it holds and the journal has lost, after the first offset, up to the second.
    ``usable``: whether others can be compared with it.
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
        """Its clock."""
        return partition.end if partition.id in self.closed else self.clock.get(partition.id, 0)

    def has(self, partition: Partition, offset: int) -> bool:
        """Whether the row is to be in it, if it was to be learned at all."""
        inside = self.skipped.get(partition.id, 0) < offset <= self.upto(partition)
        return inside and not self.undone.has(partition.id, offset)

    def removed(self, partition: Partition) -> Spans:
        """What it holds of the rows that were removed or lost, as spans (after, up to)."""
        at = min(self.skipped.get(partition.id, 0), partition.trimmed)
        upto = min(self.upto(partition), partition.trimmed)
        after, until = self.lost.get(partition.id, (0, 0))
        return (
            *self._standing(partition, at, upto),
            *self._standing(partition, max(after, upto), min(until, self.upto(partition))),
        )

    def _standing(self, partition: Partition, at: int, upto: int) -> Iterator[tuple[int, int]]:
        """What is not undone of the rows after ``at``, up to ``upto``."""
        for after, until in self.undone.ranges.get(partition.id, ()):
            if at < min(after, upto):
                yield at, min(after, upto)
            at = max(at, until)
        if at < upto:
            yield at, upto


class _Moved(OnlineError):
    """The service removed meanwhile what was looked at."""


def check(settings: Settings, model: str, progress: Progress | None = None) -> Findings:
    """Compare the newest snapshot of the model's lineage with the journal up to its clock.

    Raises StartRefused if the journal can't be opened, is of other models than the settings name,
    or is changed too fast by the service.
    """
    path = settings.state_dir / "journal.db"
    if settings.journal == "sqlite" and not path.exists():  # opening it would make one
        raise StartRefused(f"there is no journal {path}", "Name its folder with --state-dir")
    chosen = next(m for m in as_stored(settings).models if m.name == model)
    spec = load_model(chosen, settings, b"\0" * 32).spec_hash  # which no key changes
    snapshots = open_snapshots(lineage_place(snapshots_path(settings), model, spec))
    served = _served(settings)
    with contextlib.closing(open_journal(settings)) as journal:
        _check_known(journal.lineages(model), model, spec)
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(_Moved):
                return compare(journal, snapshots, model, spec, progress, served=served)
    message = f"model {model}: rows and snapshots were removed while they were checked"
    raise StartRefused(message, "Run it again when less is going on")


def _served(settings: Settings) -> bool:
    """Whether a service runs on the folder, on this machine."""
    try:
        running(settings)
    except StartRefused:
        return False
    return True


def _check_known(lineages: Sequence[str], model: str, spec: str) -> None:
    """Nothing is good of a model that the journal does not know."""
    if not lineages:
        message = f"the journal has nothing of a model {model!r}"
        raise StartRefused(message, "Name its settings file with --config")
    if spec not in lineages:
        raise StartRefused(
            f"model {model}: its code or settings are not those that any of its events in the "
            "journal was learned with",
            "Name the settings file that it is served with: --config",
        )


def compare(
    journal: Journal,
    snapshots: Snapshots,
    model: str,
    spec: str,
    progress: Progress | None = None,
    *,
    served: bool = False,
) -> Findings:
    """As :func:`check`, of one lineage.  Reads every row and every snapshot, changes nothing.

    ``served``: whether a service runs on them.
    """
    head = journal.head(model, spec).snapshot
    views, refused = _views(journal, snapshots, model, spec)
    if head_missing := head is not None and head not in {*views, *refused}:
        if journal.head(model, spec).snapshot != head:
            raise _Moved
        refused[str(head)] = "it is the head, and its file is missing"
    lacks, no_start = _start(journal, snapshots, model, spec)
    if no_start is not None and journal.head(model, spec).snapshot != head:
        raise _Moved
    partitions = journal.partitions(model)  # after the snapshots: the ends can't be before them
    now = next((views[name] for name in _line(head, views)), _View(None))
    base = _base(
        now, (_View(None), *_of_loss(journal, model, spec, partitions), *views.values()), partitions
    )
    decisions = Decisions(spec)
    decisions.read(journal, model)
    counts = _Counts(decisions, now, base or _View(None))
    rows = sum(p.end - p.trimmed for p in partitions)
    done = holes = 0
    for partition in partitions:
        for page, missing in _pages(journal, partition):
            holes += missing
            done += len(page) + missing
            for row in page:
                counts.add(partition, row)
            if progress is not None:
                progress(done, rows)
    learned = _minus(now.digest, (base or _View(None)).digest)
    removed = sum(p.trimmed for p in partitions)
    return Findings(
        model=model,
        snapshot=now.name,
        base=None if base is None else base.name,
        learned=learned[0],
        expected=counts.digest[0],
        digest_equal=None if base is None else counts.digest == learned,
        removed=removed,
        holes=holes,
        not_yet=sum(max(p.end - max(now.upto(p), p.trimmed), 0) for p in partitions),
        failed=len(decisions.failed),
        undone=len(counts.undone - counts.standing),
        frozen=len(counts.frozen - counts.standing),
        quarantined=len(counts.quarantined - counts.standing),
        waiting=journal.usage(model).halves,
        refused=refused,
        heads={s[:16]: journal.head(model, s).snapshot for s in journal.lineages(model)},
        head_missing=head_missing,
        served=served,
        lacks=lacks,
        no_start=no_start,
    )


def _start(journal: Journal, snapshots: Snapshots, model: str, spec: str) -> tuple[int, str | None]:
    """Rows that snapshots have and the journal lacks; why a start would be refused, or None."""
    history = SnapshotHistory(snapshots, Retention())
    lacks = shortfall(journal, history, model, spec).events
    try:
        check_start(journal, history, Lineage(model, spec, "", "sum"))
    except Refused as error:
        return lacks, str(error)
    except (OSError, ParamServerError) as error:  # a disk that may do better: the start asks again
        return lacks, f"{type(error).__name__}: {error}"
    return lacks, None


def _line(head: str | None, names: Mapping[str, _View]) -> list[str]:
    """Good snapshots of the head's line, newest first."""
    return [] if head is None else [name for name in ancestors(head, names) if name in names]


def _views(
    journal: Journal, snapshots: Snapshots, model: str, spec: str
) -> tuple[dict[str, _View], dict[str, str]]:
    """Every good snapshot, oldest first, and why the others are none."""
    views, refused = {}, {}
    names = [name for name in snapshots.names() if parse_name(name) is not None]
    for name in sorted(names, key=lambda n: (parse_name(n), n)):
        try:
            state = decode(snapshots.load(name))
        except SnapshotMissing:
            continue  # retention removed it just now
        except (SnapshotCorrupt, SnapshotFormat) as error:
            refused[name] = str(error)
            continue
        if (state.model, state.spec) == (model, spec):
            views[name] = _view(journal, name, state)
        else:
            refused[name] = f"it is of model {state.model!r}, spec {state.spec[:12]}"
    return views, refused


def _view(journal: Journal, name: str | None, state: SnapshotState) -> _View:
    decisions = Decisions(state.spec)
    decisions.read(journal, state.model, state.control)
    loss = accepted(journal.controls(state.model, 0), state.spec)
    lost, usable = dict[int, tuple[int, int]](), True
    if loss is not None:
        for p, (after, upto) in loss.note.rows.items():
            held = state.clock.get(p, upto if p in state.closed else 0)
            if state.version < loss.note.version:  # of another line, it may be: not to be told
                usable = usable and held <= after
            elif (contained := min(loss.note.clock.get(p, upto), held)) > after:
                lost[p] = after, contained
    return _View(
        name,
        digest_of(state),
        dict(state.clock),
        state.closed,
        decisions.undone,
        _skipped(journal, state.model, state.spec, state.version[0]),
        lost,
        usable,
    )


def digest_of(state: SnapshotState) -> Digest:
    """The digest in a snapshot's values."""
    data = state.values[DIGEST].data if DIGEST in state.values else {"count": 0, "sum": 0}
    return data["count"], data["sum"]


def difference(journal: Journal, state: SnapshotState) -> Digest:
    """By how much the digest of a snapshot is more than what the journal's rows say of it."""
    view, decisions = _view(journal, None, state), Decisions(state.spec)
    decisions.read(journal, state.model, state.control)
    counts = _Counts(decisions, view, _View(None))
    for partition in journal.partitions(state.model):
        for page, _ in _pages(journal, partition):
            for row in page:
                counts.add(partition, row)
    return _minus(view.digest, counts.digest)


def _skipped(journal: Journal, model: str, spec: str, epoch: int) -> dict[int, int]:
    """Offsets up to which partitions were left out when the lineage was begun afresh."""
    skipped: dict[int, int] = {}
    for control in journal.controls(model, 0):
        if control.kind == "fresh":
            note = json.loads(control.payload)
            if note["spec"] == spec and int(control.key.split(":")[2]) <= epoch:
                skipped = {int(p): offset for p, offset in note["clock"].items()}
    return skipped


def _of_loss(
    journal: Journal, model: str, spec: str, partitions: Sequence[Partition]
) -> list[_View]:
    """What a loss that was accepted is remembered as: to be compared with, as snapshots are.

    The first has nothing but what the journal had lost by then, the second is the snapshot that
    the lineage went on from.
    """
    loss = accepted(journal.controls(model, 0), spec)
    if loss is None:
        return []
    note = loss.note
    decisions = Decisions(spec)
    decisions.read(journal, model, loss.seq)
    name = f"of the loss accepted by control row {loss.seq}"
    view = _View(
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


class _Rest(_View):
    """What a model had and the journal had not, when that was accepted."""

    __slots__ = ()

    def has(self, partition: Partition, offset: int) -> bool:
        """None of the rows that are there."""
        return False


def _fields(view: _View) -> dict[str, Any]:
    return {f.name: getattr(view, f.name) for f in fields(view)}


def _base(now: _View, views: Sequence[_View], partitions: Sequence[Partition]) -> _View | None:
    """What to compare with: nothing if no row of it was removed, else the oldest that will do."""
    for view in views:
        if view.name == now.name is not None:
            break  # itself: that would check nothing
        same = all(view.removed(p) == now.removed(p) for p in partitions)
        if view.usable and same:
            return view
    return None


def _pages(journal: Journal, partition: Partition) -> Iterator[tuple[Sequence[Row], int]]:
    """Rows of a partition that should be there, and how many are missing after each page."""
    first = partition.trimmed + 1
    while first <= partition.end:
        n = min(_PAGE, partition.end - first + 1)
        rows = journal.read(partition.id, first, n)
        if len(rows) != n:
            found = journal.partition(partition.id)
            if found is None or found.trimmed > partition.trimmed:
                raise _Moved
        yield rows, n - len(rows)
        first += n


def _minus(a: Digest, b: Digest) -> Digest:
    return a[0] - b[0], (a[1] - b[1]) & _MASK


class _Counts:
    """Digest of the rows that one view has beyond another; events that are in no model now."""

    def __init__(self, decisions: Decisions, now: _View, base: _View) -> None:
        self._decisions, self._now, self._base = decisions, now, base
        self.digest: Digest = (0, 0)
        self.undone: set[bytes] = set()
        self.frozen: set[bytes] = set()
        self.quarantined: set[bytes] = set()
        self.standing: set[bytes] = set()

    def add(self, partition: Partition, row: Row) -> None:
        """One row of the journal."""
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
