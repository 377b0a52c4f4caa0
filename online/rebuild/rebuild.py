"""Rebuilds a model's state from a base state and the journal's rows, aside, with one learner.

Forgetting, a backfill beside a running service and relearning recent rows build their states here.
Randomness is the model's own: a model that draws no random numbers is equal, bit for bit, to one
that learned the same rows in this order in one process.  Rehearsal is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from evaluation.metrics import Task
from online.errors import StartRefused
from online.learning.base import Failed
from online.learning.counters import View, digest_of, event_hash
from online.learning.ordered import OrderedLearner
from online.models.base import Model, Noting
from online.models.choices.scores import unanswered
from online.models.loading.from_settings import merge_rule
from online.rebuild.verdicts_again import Review
from online.rows.finals import late_key
from online.rows.history import LEARNED, Decisions, origin
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.sure.views import views_of
from paramserver.core import rewrites, wire
from paramserver.core.admission import TableBounds
from paramserver.core.blocks import COUNT, Block
from paramserver.core.rewrites import HALVED, Digest, Spans, note_of, packed
from paramserver.core.server import IN_ORDER, Server
from paramserver.core.state import SnapshotState
from paramserver.filters.sources import SOURCES_MAX
from replay import codec
from replay.codec import is_erased
from replay.example import Example, label_text
from replay.journal.base import Journal, Row, Verdict

if TYPE_CHECKING:
    from online.models.loaded import Loaded

_PAGE_ROWS: Final = 1_000
_MASK: Final = 2**64 - 1
_PARTS: Final = 2**62  # values are transferred in one part

Progress = Callable[[int, int], None]
"""Progress callback: number of rows processed, and number of all rows."""


@dataclass(frozen=True, slots=True)
class ForgetScope:
    """The rows to forget: a source's, received since a time (POSIX seconds; None: all)."""

    source: str
    since: float | None = None

    def meant(self, row: Row) -> bool:
        """Whether the row is one of the rows to forget."""
        return row.source == self.source and (self.since is None or row.at >= self.since)


NOBODY: Final = ForgetScope("", math.inf)


@dataclass(frozen=True, slots=True)
class Method:
    """How the rows of a lineage are learned.

    Attributes:
        build: Makes an untrained model.
        ordered: Whether the lineage is learned in commit order; its states then have a position.
        rows_max: Most rows that are kept in memory, to learn them again if the model raises.
        sources_max: Most sources of which statistics are kept.
        views: Makes the further aggregates over the rows.
        table_rows_max: Most rows of a table; None: unbounded.
    """

    build: Callable[[], Model]
    task: Task
    ordered: bool = False
    rows_max: int = 4096
    sources_max: int = SOURCES_MAX
    views: Callable[[], Sequence[View]] = list
    table_rows_max: int | None = None


def method_of(model: ModelSettings, loaded: Loaded, settings: Settings) -> Method:
    """The method for a model of the settings."""
    ordered = merge_rule(model, loaded.model) in IN_ORDER
    return Method(
        loaded.build, model.task, ordered,
        sources_max=settings.limits.sources_max, views=partial(views_of, model),
        table_rows_max=None if ordered else settings.limits.table_rows_max,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Built:
    """The rebuilt state, and the rows that it does not contain.

    Attributes:
        undone: Offsets by partition, as packed spans: forgotten rows, and unlearned ones.
        learned: Number of rows that were learned.
        unlearned: Number of rows that the model could not learn without the forgotten ones.
        review: New verdicts on the other rows, if they were reviewed.
    """

    state: SnapshotState
    undone: dict[int, list[int]]
    learned: int
    unlearned: int
    review: Review | None = None


class Rebuild:
    """Relearns the journal with one learner, without the rows to forget.

    Parameters:
        base: The state to begin with.
        method: How the lineage learns.
        review: Makes the reviewer of verdicts for a learner; None: verdicts are not reviewed.
        learner: The learner; None: a new one.
    """

    _page_rows = _PAGE_ROWS

    def __init__(
        self,
        journal: Journal,
        decisions: Decisions,
        wanted: ForgetScope,
        base: SnapshotState,
        method: Method,
        *,
        review: Callable[[OrderedLearner], Review | None] | None = None,
        learner: OrderedLearner | None = None,
    ) -> None:
        self._journal, self._model, self._ordered = journal, base.model, method.ordered
        self._decisions, self._wanted = decisions, wanted
        self._server = Server.restored(_slowed(base, decisions), "ordered", 1, part_keys=_PARTS)
        self._learner = learner or OrderedLearner(
            method.build, task=method.task, spec=base.spec, rows_max=method.rows_max
        )
        self._learner.evidence.sources_max = method.sources_max
        self._learner.tally.views = method.views()
        if method.table_rows_max is not None:
            self._server.bound(TableBounds(method.table_rows_max))
            self._learner.tables_keeper = self._server.keeper
        self._learner.on_reply(self._reply())
        self._learner.undone = decisions.undone
        self._learner.untaught = self._lacks
        self.review = None if review is None else review(self._learner)
        ends = {p.id: p.end for p in journal.partitions(base.model)}
        self._at = {**base.clock, **{p: ends[p] for p in base.closed}}
        self._out: dict[int, list[int]] = {}
        self._left_out: set[tuple[int, int]] = set()
        self._late: set[bytes] = set()  # keys of late labels of rows that are left out
        self._tainted = False  # a forgotten row may have influenced recorded predictions from here
        self._standing = digest_of(base.values)
        self._after = base.position
        self.learned = self.unlearned = 0

    def _reply(self) -> wire.SyncReply:
        request = wire.SyncRequest(
            wire.FORMAT, "forget", 0, [], self._learner.since, True, [], role="ordered"
        )
        return wire.decode_reply(wire.encode(self._server.reply(request, [], [], 0.0)))

    def run(self, progress: Progress | None = None) -> None:
        """Learn to the end of the journal; a further call learns the rows that came since."""
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
        """Hook for subclasses, called with the rows that come next."""

    def _look(self) -> None:
        """Read failures of rows; raise StartRefused if a decision has rewritten the model."""
        known = len(self._decisions.taken)
        self._decisions.read(self._journal, self._model)
        self._learner.tally.others = self._decisions.others
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
        self._tainted = self._tainted or self._decisions.forgotten(row)
        if counts:
            count, total = self._standing
            self._standing = count + 1, total + event_hash(row.key) & _MASK
        if counts and (self._wanted.meant(row) or row.key in self._late):
            self._leave_out(row)
            row = msgspec.structs.replace(row, verdict=Verdict.FROZEN)  # drops its evidence, too
        elif self.review is not None and (counts or self._set_aside(row)):
            self.review.look(row)
        failed = self._learn(row)
        if failed is not None and counts:
            self._leave_out(row)  # it can be learned only together with a forgotten row
            self.unlearned += 1
        self.learned += counts and failed is None and row.verdict is not Verdict.FROZEN

    def _set_aside(self, row: Row) -> bool:
        """Whether the row is quarantined and no operator has decided about it."""
        undecided = self._decisions.choice(origin(row)) is None
        return row.verdict is Verdict.QUARANTINED and undecided and not is_erased(row.payload)

    def _learn(self, row: Row) -> Failed | None:
        example = None
        if self._tainted and row.verdict in LEARNED and not is_erased(row.payload):
            example = asked_again(codec.decode(row.payload), self._learner.serving)
        return self._learner.learn(row, self._decisions.failure(row), example)

    def _lacks(self, partition: int, offset: int, key: bytes) -> bool:
        """Whether the row was not learned here, so a final label has nothing to correct."""
        out = (partition, offset) in self._left_out
        return out or self._decisions.lacks(partition, offset, key)

    def _leave_out(self, row: Row) -> None:
        self._tainted = True
        self._left_out.add((row.partition, row.offset))
        self._late.add(late_key(row.key))
        self._out.setdefault(row.partition, []).append(row.offset)

    @property
    def digests(self) -> tuple[Digest, Digest]:
        """Digests (count, sum of hashes) of the events so far: per journal, and per model.

        The first counts all events that stood, the second those that were learned here.
        """
        return self._standing, self._learner.tally.digest

    def built(self, version: wire.Version, rewrite: int, created_at: float) -> Built:
        """Return the rebuilt state, to be published aside.

        ``version`` and ``rewrite`` are those of the state that it replaces.
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


def asked_again(example: Example, model: Model) -> Example:
    """The example with notes of what the model predicts now, instead of what was recorded.

    The recorded prediction came from a model that had learned forgotten rows, and its experts would
    be judged by that.  For a label that came at once the notes are those of a prediction without
    these rows; for a late label they are newer.  A choice keeps its propensity, because the action
    was drawn with it.
    """
    if example.notes is None or not isinstance(model, Noting):
        return example
    if example.choice is not None:
        return msgspec.structs.replace(example, notes=unanswered(example.notes))
    answer, score = model.predict(example.features), example.score
    notes = answer.notes
    if score is not None and answer.probabilities is not None:
        order = [label_text(label) for label in answer.probabilities]  # the notes use this order
        if len(order) == len(score) and all(label in score for label in order):
            score = {label: score[label] for label in order}
        else:
            notes = None
    return msgspec.structs.replace(example, notes=notes, score=score)


def runs(offsets: Sequence[int]) -> Spans:
    """Convert sorted offsets to spans (after, up to): exclusive start, inclusive end."""
    spans: list[tuple[int, int]] = []
    for offset in offsets:
        if spans and spans[-1][1] == offset - 1:
            spans[-1] = (spans[-1][0], offset)
        else:
            spans.append((offset - 1, offset))
    return tuple(spans)


def _slowed(base: SnapshotState, decisions: Decisions) -> SnapshotState:
    """The base with the present learning rate, if a rollback has halved it since."""
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
    """The empty state of a lineage that begins after this clock."""
    return SnapshotState(model, spec, spec_text, (1, 0), {}, dict(clock))
