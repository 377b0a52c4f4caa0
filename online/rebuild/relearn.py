"""Relearns recent rows of the journal: trains a fresh model of the same spec, aside, and judges it.

1. After a drift the journal's newest rows are read: those since the drift, up to a bound.
2. An untrained model learns them in commit order.  On the newer half it predicts each row before it
   learns it, as of the time when the serving model predicted it; that prediction is stored in the
   row (:class:`online.challenger.comparison.Challenger`).
3. Only if it is better, its state is published aside, and a control row of the parameter server
   makes it replace the served state (as :mod:`online.rebuild.forget` does).

The control row undoes all rows older than the window; they stay in the journal.  Statistics of
sources are not part of the drift and are carried over.  Depends only on a journal and snapshots: no
clock, no Ray.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from online.challenger.comparison import Challenger, Standing
from online.errors import StartRefused
from online.learning.base import Failed
from online.learning.counters import METRICS
from online.rebuild.rebuild import NOBODY, Built, Method, Rebuild, runs
from online.rows.history import Decisions
from online.rows.in_order import rows_after
from paramserver.core.blocks import Block
from paramserver.core.rewrites import packed
from paramserver.core.state import SnapshotState
from paramserver.core.wire import Version
from paramserver.errors import ParamServerError, RelearnRefused
from paramserver.filters.sources import of_sources
from paramserver.snapshots.history import SnapshotHistory
from replay import codec
from replay.example import Example
from replay.journal.base import Journal, Row

JUDGED_MIN: Final = 100
"""Least number of rows that both models have predicted; with fewer nothing is decided."""
DEVIATIONS: Final = 2.0
"""Standard errors of the mean difference by which the fresh model must be better."""

_RIVAL: Final = "relearn"
_PREFIX: Final = f"versus/{_RIVAL}/"


@dataclass(frozen=True, slots=True)
class Window:
    """The rows to learn: those with a ``seq`` above ``after``.

    Attributes:
        clock: By partition: the last offset before the window.
        half: ``seq`` of the middle row: rows above it are used for the judgement.
        since: When the first row was received (POSIX seconds).
        rows: Number of rows when the window was made.
    """

    after: int
    clock: Mapping[int, int]
    half: int
    since: float
    rows: int

    def judges(self, seq: int) -> bool:
        """Whether the row belongs to the newer half."""
        return seq > self.half


def window_of(
    journal: Journal, model: str, decisions: Decisions, since: float, rows_max: int
) -> Window:
    """Window of the newest rows that were received since a time (POSIX seconds).

    It has at most ``rows_max`` rows.  Raises StartRefused if there are none.
    """
    low, high = 0, journal.follow(model, 2**62, 1).upto
    while low < high:  # binary search for the last row before the time
        middle = (low + high) // 2
        rows = journal.follow(model, middle, 1).rows
        if rows and rows[0].at < since:
            low = rows[0].seq
        else:
            high = middle
    partitions = journal.partitions(model)
    window = deque[tuple[int, int, int, float]](maxlen=rows_max)
    window.extend((r.seq, r.partition, r.offset, r.at) for r in rows_after(journal, model, low))
    if not window:
        raise StartRefused("the journal has no rows since the drift", "Wait for new rows")
    if decisions.loss is not None and window[0][3] <= decisions.loss.note.at:
        n = decisions.loss.note.events
        raise StartRefused(
            f"the journal has lost {n:,} events since the first of these rows",
            "More rows may come: a window without the loss will do",
        )
    clock = {p.id: p.end for p in partitions}
    for _, partition, offset, _ in window:
        clock[partition] = min(clock.get(partition, offset - 1), offset - 1)
    trimmed = {p.id: p.trimmed for p in partitions}
    for p in clock:
        clock[p] = max(clock[p], trimmed.get(p, 0), decisions.without.get(p, 0))
    half = window[(len(window) - 1) // 2][0]
    return Window(window[0][0] - 1, clock, half, window[0][3], len(window))


@dataclass(frozen=True, slots=True)
class Judgement:
    """Accuracies of both models on the same rows; in regression, mean absolute errors.

    Attributes:
        held_back: Why the fresh model must not serve; None: it is better.
    """

    rows: int
    present: float | None
    fresh: float | None
    held_back: str | None

    @property
    def evidence(self) -> dict[str, float]:
        """Return the evidence in the form of the control row."""
        return {"rows": self.rows, "present": self.present or 0.0, "fresh": self.fresh or 0.0}


class _Fresh(Challenger):
    """The fresh model; ``known_upto``: offsets by partition up to which sources are known."""

    def __init__(self, method: Method, spec: str, known_upto: Mapping[int, int]) -> None:
        super().__init__(
            method.build, task=method.task, spec=spec, rows_max=method.rows_max, rival=_RIVAL
        )
        self._known_upto = known_upto

    def _note_evidence(self, row: Row) -> None:
        if row.offset > self._known_upto.get(row.partition, 0):
            super()._note_evidence(row)

    def judgement(self) -> Judgement:
        """Return the present judgement of both models."""
        now: Standing = self.standing(rows_min=JUDGED_MIN)
        squares = self._seen("squares")
        n, mean, task = now.rows, now.difference or 0.0, self._task
        both = f"{now.challenger or 0.0:.4g} to {now.champion or 0.0:.4g} on {n:,} rows"
        held: str | None = None
        if n < JUDGED_MIN:
            held = f"{n:,} rows had an answer to compare with, {JUDGED_MIN} are needed"
        elif mean * n <= DEVIATIONS * math.sqrt(squares):
            held = f"it is not better: {both}"
        elif why := replace(now, verdict="better").held_back(task):
            held = f"it is not better, {why}: {both}"
        return Judgement(n, now.champion, now.challenger, held)


class Relearning(Rebuild):
    """Trains a fresh model on the rows of a window and on later ones.

    Parameters:
        window: See :func:`window_of`.
        head: The newest snapshot, for its statistics of sources; None: there is no snapshot.
        method: How the lineage learns.
    """

    def __init__(
        self,
        journal: Journal,
        decisions: Decisions,
        window: Window,
        head: SnapshotState | None,
        method: Method,
        *,
        model: str,
        spec_text: str,
    ) -> None:
        self._window = window
        partitions = journal.partitions(model)
        self._own = {p.id for p in partitions if p.spec == decisions.spec}
        known, sources = dict[int, int](), dict[str, Block]()
        if head is not None:
            closed = {p.id: p.end for p in partitions if p.id in head.closed}
            known, sources = {**head.clock, **closed}, of_sources(head.values)
        base = SnapshotState(model, decisions.spec, spec_text, (1, 0), sources, dict(window.clock))
        self._fresh = _Fresh(method, decisions.spec, known)
        super().__init__(journal, decisions, NOBODY, base, method, learner=self._fresh)
        self._after, self._page_rows = window.after, max(window.rows, self._page_rows)
        self._asks: list[tuple[float, int, Example]] = []

    def _lacks(self, partition: int, offset: int, key: bytes) -> bool:
        """Whether the row is left out, or older than the window."""
        older = offset <= self._window.clock.get(partition, 0)
        return older or super()._lacks(partition, offset, key)

    def _read(self, rows: Sequence[Row]) -> None:
        """Queue the rows of the newer half by the time at which they were predicted."""
        for row in rows:
            if not self._window.judges(row.seq) or row.partition not in self._own:
                continue
            example = codec.decode(row.payload)
            if example.score and example.scored:
                asked_at = row.at if example.predicted_at is None else example.predicted_at
                heapq.heappush(self._asks, (min(asked_at, row.at), row.seq, example))

    def _learn(self, row: Row) -> Failed | None:
        while self._asks and self._asks[0][0] <= row.at:
            _, seq, example = heapq.heappop(self._asks)
            self._fresh.ask(seq, example, compare=True)
        return super()._learn(row)

    def judgement(self) -> Judgement:
        """Return the present judgement of both models."""
        return self._fresh.judgement()

    def built(self, version: Version, rewrite: int, created_at: float) -> Built:
        """Return the state without the counters of the comparison; older rows are undone."""
        made, undone = super().built(version, rewrite, created_at), dict[int, list[int]]()
        values = dict(made.state.values)
        if METRICS in values:
            counters = {k: x for k, x in values[METRICS].data.items() if not k.startswith(_PREFIX)}
            values[METRICS] = Block(values[METRICS].kind, counters)
        for p, upto in sorted(self._at.items()):
            before = min(self._window.clock.get(p, 0), upto)
            spans = (((0, before),) if before else ()) + runs(self._out.get(p, ()))
            if spans:
                undone[p] = packed(spans)
        return replace(made, state=replace(made.state, values=values), undone=undone)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of relearning: the server's answer, or why nothing was changed."""

    judged: Judgement
    answer: Mapping[str, Any] | None = None
    left: str | None = None

    def __str__(self) -> str:
        now = self.judged
        if self.answer is None:
            return f"its error had risen; taught again by recent rows, {self.left}"
        return (
            f"its error had risen: it goes on as recent rows alone have taught it, "
            f"{now.fresh or 0.0:.4g} to {now.present or 0.0:.4g} on {now.rows:,} rows; "
            f"{self.answer['undone']:,} older rows undone (online rollback --undone)"
        )


Swap = Callable[[str, float, dict[int, list[int]], dict[str, float]], Mapping[str, Any]]
"""Calls :meth:`paramserver.process.swapping.Swapping.relearn` of the parameter server."""


def relearn(
    work: Relearning, window: Window, history: SnapshotHistory, swap: Swap, name: str,
    rewrite: int, now_s: float,
) -> Outcome:  # fmt: skip
    """Train and judge a fresh model, and replace the served state if it is better.

    Parameters:
        name: Name of the new state, unique to this call.
        rewrite: The newest rewrite that the caller knows; after another one the state is refused.
        now_s: POSIX seconds.

    Raises:
        StartRefused: The model was rewritten meanwhile.
        OSError: The state could not be published.
        Exception: What the swap raises.
    """
    work.run()
    judged = work.judgement()
    if judged.held_back is not None:
        return Outcome(judged, left=judged.held_back)
    work.run()  # rows that came meanwhile; replicas learn the later ones
    made = work.built((1, 0), rewrite, now_s)
    history.publish(name, made.state)
    try:
        return Outcome(judged, swap(name, window.since, made.undone, judged.evidence))
    except ParamServerError as error:
        if error.definite:  # no control row refers to it
            history.withdraw(name)
        if isinstance(error, RelearnRefused):
            return Outcome(judged, left=error.reason)
        raise
