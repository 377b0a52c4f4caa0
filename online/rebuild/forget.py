"""Forgetting a source: the journal learned again without its rows, beside a service that answers.

1. What the source has taught is found, and the newest snapshot from before that (:func:`base_of`).
2. From there the journal is learned again in commit order, by one learner, without the source's
   rows and without those that are undone or have failed (:class:`Rebuild`).
3. The state is published aside.  A control row of the parameter server then lets it take the
   place of what is served, in one step; what has come meanwhile is learned on top.

The same starts from a snapshot that an operator names.  Randomness is the model's own: a model that
draws none is equal, bit for bit, to one that learned the same rows in this order in one process.
Rehearsal is left out.  Pure over a journal and snapshots: no clock, no HTTP, no Ray.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from evaluation.metrics import Task
from online.errors import StartRefused
from online.learning.merged import Failed
from online.learning.ordered import OrderedLearner
from online.models.base import Model
from online.rebuild.verdicts_again import Review
from online.rows.history import Decisions, origin
from paramserver import bases, rewrites, wire
from paramserver.blocks import COUNT, Block
from paramserver.filters.sources import SOURCES_MAX
from paramserver.rewrites import HALVED, Spans, note_of, packed
from paramserver.server import Server
from paramserver.shortfall import Acceptance
from paramserver.snapshots.history import SnapshotHistory
from paramserver.state import Contained, SnapshotState
from replay.journal.base import Journal, Partition, Row, Verdict

_PAGE_ROWS: Final = 1_000
_PARTS: Final = 2**62  # values come in one piece

Progress = Callable[[int, int], None]
"""Is told how many rows of how many have been looked at."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Whose rows are to be forgotten, and taken from when on (POSIX seconds; None: all)."""

    source: str
    since: float | None = None

    def meant(self, row: Row) -> bool:
        """Whether the row is one of them."""
        return row.source == self.source and (self.since is None or row.at >= self.since)


NOBODY: Final = Wanted("", math.inf)


@dataclass(slots=True)
class Influence:
    """The rows by which a source has taught a model.

    They are listed by partition, in order, with the time since when the journal has all of them.

    Attributes
    ----------
    rows
        Offsets of its rows that are in the model or about to be.
    reach
        From here on (POSIX seconds) rows of partitions that were trimmed are all there; None:
        nothing was removed.
    loss
        What the journal has lost, that the model has learned; None: nothing.
    """

    rows: dict[int, list[int]] = field(default_factory=dict)
    reach: float | None = None
    loss: Acceptance | None = None

    @property
    def n(self) -> int:
        """How many rows they are."""
        return sum(map(len, self.rows.values()))


def influence(
    journal: Journal,
    model: str,
    decisions: Decisions,
    wanted: Wanted,
    dedupe_from: float,
    progress: Progress | None = None,
) -> Influence:
    """Look at every row of the journal.

    Parameters
    ----------
    dedupe_from
        Retention removes nothing that was taken since (POSIX seconds).
    """
    found, first = Influence(loss=decisions.loss), dict[int, float]()
    for row in _rows(journal, model, progress):
        first.setdefault(row.partition, row.at)
        began = row.offset > decisions.without.get(row.partition, 0)
        if began and wanted.meant(row) and decisions.learned(row):
            found.rows.setdefault(row.partition, []).append(row.offset)
    removed = [p for p in journal.partitions(model) if p.trimmed]
    if removed:
        found.reach = max(first.get(p.id, dedupe_from) for p in removed)
    return found


def _rows(journal: Journal, model: str, progress: Progress | None) -> Iterator[Row]:
    total = sum(p.end - p.trimmed for p in journal.partitions(model))
    after = done = 0
    while True:
        page = journal.follow(model, after, _PAGE_ROWS)
        yield from page.rows
        after, done = page.upto, done + len(page.rows)
        if progress is not None:
            progress(done, max(total, done))
        if len(page.rows) < _PAGE_ROWS:
            return


@dataclass(frozen=True, slots=True)
class Base:
    """Where learning again begins: a snapshot's name (None: nothing), and what that contains."""

    name: str | None
    contained: Contained


class Bases:
    """The snapshots that learning again may begin with.

    One will do if all rows behind it are in the journal, if it has what tables have taught since,
    and if of those in it the same ones are undone as now: else it holds rows that were taken out
    since, or lacks some that are back.

    Parameters
    ----------
    partitions
        All of the model's.
    """

    def __init__(
        self, journal: Journal, model: str, decisions: Decisions, partitions: Sequence[Partition]
    ) -> None:
        self._partitions, self._now = partitions, decisions.undone
        self._loss = decisions.loss
        self._controls = journal.controls(model, 0)
        self._spec = decisions.spec
        self._taught = bases.backfills(self._controls, self._spec)
        self._nothing = Base(None, Contained(dict(decisions.without), frozenset()))

    def why_not(self, base: Base) -> str | None:
        """Why it will not do; None: it will."""
        clock = self.clock(base.contained)
        gone = sum(max(p.trimmed - clock[p.id], 0) for p in self._partitions)
        if gone:
            return f"{gone:,} rows behind it were removed by retention"
        if self._loss is not None and base.contained.control < self._loss.note.control:
            return f"{self._loss.note.events:,} events behind it are lost from the journal"
        if (lacks := self._lacks(base)) is not None:
            return f"it lacks what {lacks} has taught: a backfill came after it"
        then = rewrites.undone(c for c in self._controls if c.seq <= base.contained.control)
        if then.upto(clock) != self._now.upto(clock):
            return "other rows of it are undone by now: a rollback or a forget came after it"
        return None

    def _lacks(self, base: Base) -> str | None:
        """A table that is in the model and not in it; None: there is none."""
        before = [c for c in self._controls if c.seq <= base.contained.control]
        has = {based.seq for based in bases.backfills(before, self._spec)}
        for based in reversed(self._taught):
            if based.note.snapshot == base.name:  # a base is from before its own row
                return None
            if based.seq not in has:
                return ", ".join(file.name for file in based.note.files)
        return None

    def clock(self, contained: Contained) -> dict[int, int]:
        """Last offset that it contains of every partition."""
        clock, closed = contained.clock, contained.closed
        return {p.id: p.end if p.id in closed else clock.get(p.id, 0) for p in self._partitions}

    def before(
        self, history: SnapshotHistory, head: str | None, begun: int, found: Influence
    ) -> Base:
        """The newest one from before the first influence.  StartRefused if there is none.

        ``begun``: the epoch in which the lineage last began anew.
        """
        line = [] if head is None else history.line(head)
        kept = [Base(name, c) for name, version, c in line if version[0] >= begun]
        for base in [*kept, self._nothing]:
            clock = self.clock(base.contained)
            clean = all(rows[0] > clock.get(p, 0) for p, rows in found.rows.items() if rows)
            if clean and self.why_not(base) is None:
                return base
        raise StartRefused(
            "no snapshot from before the first of these rows can be used, and the journal has "
            "no longer got all rows from the start",
            "Give --since with a later time, or roll back and leave out what comes after: "
            "online rollback --to SNAPSHOT --without-source SOURCE",
        )

    def named(self, history: SnapshotHistory, head: str | None, name: str) -> Base:
        """The one of this name.  Raises StartRefused."""
        line = [] if head is None else history.line(head)
        found = [Base(known, c) for known, _, c in line if known == name]
        if not found:
            raise StartRefused(
                f"{name!r} is no snapshot that the model's present state descends from",
                "`online snapshot list` names those that are kept",
            )
        if (why := self.why_not(found[0])) is not None:
            raise StartRefused(f"{name!r} can't be begun with: {why}", "Name another snapshot")
        return found[0]


def check_reach(found: Influence, wanted: Wanted) -> None:
    """StartRefused if rows of the source may have been removed by retention."""
    if found.reach is not None and (wanted.since is None or wanted.since < found.reach):
        raise StartRefused(
            "the journal has no longer got its oldest rows, which may have been of "
            f"{wanted.source!r}, too: it reaches back to {found.reach:.0f} (POSIX seconds)",
            f"Forget what it has sent since then: --since {found.reach:.0f}",
        )
    if found.loss is not None and (wanted.since is None or wanted.since < found.loss.note.at):
        note = found.loss.note
        raise StartRefused(
            f"the journal has lost {note.events:,} events that the model has learned, which may "
            f"have been of {wanted.source!r}, too (accepted at {note.at:.0f}, POSIX seconds)",
            f"Forget what it has sent since then: --since {math.ceil(note.at)}",
        )


@dataclass(frozen=True, slots=True)
class Built:
    """The state without the rows, and which rows were taken out: those of the source that it has
    passed over, and ``unlearned`` ones, which the model could not learn without them."""

    state: SnapshotState
    undone: dict[int, list[int]]
    learned: int
    unlearned: int
    review: Review | None = None


class Rebuild:
    """Learns the journal again, as one learner, without what is to be forgotten.

    Parameters
    ----------
    build, task, spec, rows_max
        As of :class:`online.learning.ordered.OrderedLearner`.
    base
        The state to begin with.
    ordered
        Whether the lineage is learned in commit order: its states then tell their position.
    sources_max
        Sources that are kept account of.
    review
        Makes, of what learns the rows, what judges them again; None: nothing does.
    learner
        What learns; None: a new one.
    """

    _page_rows = _PAGE_ROWS

    def __init__(
        self,
        journal: Journal,
        decisions: Decisions,
        wanted: Wanted,
        base: SnapshotState,
        build: Callable[[], Model],
        *,
        task: Task,
        rows_max: int,
        ordered: bool,
        sources_max: int = SOURCES_MAX,
        review: Callable[[OrderedLearner], Review | None] | None = None,
        learner: OrderedLearner | None = None,
    ) -> None:
        self._journal, self._model, self._ordered = journal, base.model, ordered
        self._decisions, self._wanted = decisions, wanted
        self._server = Server.restored(_slowed(base, decisions), "ordered", 1, part_keys=_PARTS)
        self._learner = learner or OrderedLearner(
            build, task=task, spec=base.spec, rows_max=rows_max
        )
        self._learner.evidence.sources_max = sources_max
        self._learner.on_reply(self._reply())
        self._learner.undone = decisions.undone
        self.review = None if review is None else review(self._learner)
        ends = {p.id: p.end for p in journal.partitions(base.model)}
        self._at = {**base.clock, **{p: ends[p] for p in base.closed}}
        self._out: dict[int, list[int]] = {}
        self._after = base.position
        self.learned = self.unlearned = 0

    def _reply(self) -> wire.SyncReply:
        request = wire.SyncRequest(
            wire.FORMAT, "forget", 0, [], self._learner.since, True, [], role="ordered"
        )
        return wire.decode_reply(wire.encode(self._server.reply(request, [], [], 0.0)))

    def run(self, progress: Progress | None = None) -> None:
        """Learn to the end of the journal; called again, what has come since."""
        partitions = self._journal.partitions(self._model)
        total = sum(max(p.end - self._at.get(p.id, 0), 0) for p in partitions)
        done = 0
        while True:
            page = self._journal.follow(self._model, self._after, self._page_rows)
            self._look()
            self._read(page.rows)
            for row in page.rows:
                if row.offset > self._at.get(row.partition, 0):
                    self._take(row)
                    done += 1
            self._after = page.upto
            self._learner.pass_to(page.upto)
            if progress is not None:
                progress(done, max(total, done))
            if len(page.rows) < self._page_rows:
                return

    def _read(self, rows: Sequence[Row]) -> None:
        """Look at the rows that come next; the base class does nothing with them."""

    def _look(self) -> None:
        """Which rows have failed since; StartRefused if a decision has rewritten the values."""
        known = len(self._decisions.taken)
        self._decisions.read(self._journal, self._model)
        if len(self._decisions.taken) != known:
            raise StartRefused("the model was rolled back, or forgot, meanwhile", "Run it again")

    def _take(self, row: Row) -> None:
        if row.offset != self._at.get(row.partition, 0) + 1:
            raise StartRefused(
                f"rows before {row.offset} of partition {row.partition} were removed meanwhile",
                "Run it again",
            )
        self._at[row.partition] = row.offset
        counts = self._decisions.learned(row)
        if counts and self._wanted.meant(row):
            self._leave_out(row)
            row = msgspec.structs.replace(row, verdict=Verdict.FROZEN)  # nor its evidence
        elif self.review is not None and (counts or self._set_aside(row)):
            self.review.look(row)
        failed = self._learn(row)
        if failed is not None and counts:
            self._leave_out(row)  # it could be learned only with what is gone
            self.unlearned += 1
        self.learned += counts and failed is None and row.verdict is not Verdict.FROZEN

    def _set_aside(self, row: Row) -> bool:
        """Whether a filter keeps the row back, and nobody has decided about it."""
        undecided = self._decisions.choice(origin(row)) is None
        return row.verdict is Verdict.QUARANTINED and undecided

    def _learn(self, row: Row) -> Failed | None:
        return self._learner.learn(row, self._decisions.failure(row))

    def _leave_out(self, row: Row) -> None:
        self._out.setdefault(row.partition, []).append(row.offset)

    def built(self, version: wire.Version, rewrite: int, created_at: float) -> Built:
        """Return what was learned, as a state that is to be published aside.

        ``version`` and ``rewrite`` are those of the state that it is to take the place of.
        """
        server = self._server
        server.take(self._learner.state(), self._journal.partition)
        state = replace(
            server.state(created_at, None, {}),
            version=version,
            clock={p: end for p, end in self._at.items() if p not in server.closed},
            control=self._decisions.seq,
            rewrite=rewrite,
            position=self._after if self._ordered else 0,
        )
        undone = {p: packed(runs(offsets)) for p, offsets in sorted(self._out.items())}
        return Built(state, undone, self.learned, self.unlearned, self.review)


def runs(offsets: Sequence[int]) -> Spans:
    """Offsets in order as spans: after the first number, up to the second."""
    spans: list[tuple[int, int]] = []
    for offset in offsets:
        if spans and spans[-1][1] == offset - 1:
            spans[-1] = (spans[-1][0], offset)
        else:
            spans.append((offset - 1, offset))
    return tuple(spans)


def _slowed(base: SnapshotState, decisions: Decisions) -> SnapshotState:
    """The base with the learning rate of now, if that was halved since."""
    halved = 0
    for control in decisions.rewrites:
        if control.seq > base.control and control.kind == rewrites.ROLLBACK:
            note = note_of(control)
            if isinstance(note, rewrites.Rollback) and note.spec == base.spec and note.again:
                halved = note.halved
    if not halved:
        return base
    return replace(base, values={**base.values, HALVED: Block(COUNT, {"n": halved})})


def nothing(model: str, spec: str, spec_text: str, clock: Mapping[int, int]) -> SnapshotState:
    """The state of a lineage that begins after this clock."""
    return SnapshotState(model, spec, spec_text, (1, 0), {}, dict(clock))
