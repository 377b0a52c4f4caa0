"""Test, then learn: a stream is predicted row by row, and its labels come when they come.

The order is that of Gama et al. 2013, with late labels as in Grzenda et al. 2020 (*Delayed
labelling evaluation for data streams*): a row is asked at its moment, its label is known
``delay`` after that, and before each question everything that is known by then is learned, in the
order in which it came.  What was answered is scored when its label comes, and belongs to the place
in the stream where the row was asked.  Beside every score stand the majority and the no-change
rule, which know the labels that the learner knew: those that had come when the row was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from evaluation.errors import LearnerFailed
from evaluation.late import Asked, Delay, Line, Moment, seconds
from evaluation.learner import Answer, verbs
from evaluation.metrics import Task
from evaluation.scores import Judged, Known, Scores, Slices, canonical
from replay.example import Features, Label

if TYPE_CHECKING:
    from evaluation.drift.watch import Watch

WAITING_MAX: Final = 1_000_000
"""Rows whose labels are awaited."""

Each = Callable[[int, Answer, Label], None]


def prequential(
    learner: Any,
    rows: Iterable[tuple[Features, Label | None]],
    task: Task,
    *,
    delay: Delay = 0,
    moment: Moment | None = None,
    window: float = 1_000,
    slices: Slices | None = None,
    waiting_max: int = WAITING_MAX,
    each: Each | None = None,
    watch: Watch | None = None,
) -> Judged:
    """Run a learner over a stream, each row asked before its label is learned.

    Parameters:
        learner: See :mod:`evaluation.learner`; a river model, say.
        rows: Features and label; a label None never comes.  Those of a binary task are True and
            False (or 1 and 0).
        delay: How long after its moment a row's label is known: a number (of rows, if there is no
            ``moment``), a ``timedelta``, the name of a feature that holds it, or a function of
            features and label; None from these two means never.  A date and time is when the label
            comes.  With 0 and with 1 row a label is known to the next question.
        moment: A row's time: a feature's name, or a function of the features; the row's number if
            left out.  It never goes back.  A date, a date and time, or the text of one (ISO 8601)
            is no feature: the learner does not get a column that is named here or as ``delay`` and
            holds one.
        window: Rows in a window of the series.
        waiting_max: Most rows whose labels are awaited at a time.
        each: Called with a row's number, answer and label when its label comes.
        watch: Is told of each question and, when its label comes, of the error, as the service
            tells its own: its alarms and state say whether the stream has changed.  In regression
            its settings say so.

    Raises:
        StreamUnusable: A label that is none, a moment that goes back, too many labels awaited; with
            the row.
        LearnerFailed: The learner raises; with the row and what it raised.
    """
    line = Line(delay, moment, waiting_max)
    run = _Run(learner, task, line, Scores(task, window=window, slices=slices), each, watch)
    n = 0
    for place, (features, label) in enumerate(rows):
        run.row(place, features, label)
        n += 1
    late = len(line)
    for when, row in line.until(None):
        run.arrive(when, row)
    return run.scores.judged(rows=n, late=late, never=run.never)


class _Run:
    """A learner on its way through a stream."""

    def __init__(
        self,
        learner: Any,
        task: Task,
        line: Line,
        scores: Scores,
        each: Each | None,
        watch: Watch | None,
    ) -> None:
        self._ask, self._learn = verbs(learner, task)
        self._task, self._line, self._each, self._watch = task, line, each, watch
        self._known = Known()
        self.scores = scores
        self.never = 0

    def row(self, place: int, features: Features, given: Label | None) -> None:
        """Learn what is known by now, and ask the row."""
        now = self._line.moment(place, features)
        for when, row in self._line.until(now):
            self.arrive(when, row)
        shown = self._line.without_times(features)
        try:
            answer, notes = self._ask(shown)
        except Exception as error:  # it is a stranger's code
            raise LearnerFailed(place, "answer", _text(error)) from error
        if self._watch is not None:
            self._watch.served(shown, _score(self._task, answer), at=seconds(now))
        label = None if given is None else canonical(self._task, place, given)
        known = self._known
        asked = None
        if label is not None:
            newest, most = known.newest, known.most(self._task)
            asked = Asked(place, features, shown, label, answer, notes, newest, most)
        if asked is None or not self._line.put(now, asked):
            self.never += 1
            return
        for when, row in self._line.until(now):  # its own label, if that comes at once
            self.arrive(when, row)

    def arrive(self, when: Any, row: Asked) -> None:
        """A label has come: score the answer, then learn the row."""
        self.scores.add(
            row.place, row.features, row.label, row.answer,
            no_change=row.no_change, majority=row.majority,
        )  # fmt: skip
        self._known.add(self._task, row.place, row.label)
        try:
            self._learn(row.shown, row.label, row.notes)
        except Exception as error:
            raise LearnerFailed(row.place, "learn", _text(error)) from error
        if self._watch is not None:
            self._tell(self._watch, seconds(when), row)
        if self._each is not None:
            self._each(row.place, row.answer, row.label)

    def _tell(self, watch: Watch, at: float | None, row: Asked) -> None:
        said = row.answer.label
        if self._task == "regression":
            if said is not None:
                watch.judged(abs(float(said) - float(row.label)), at=at)
            return
        rule = None if row.no_change is None else float(row.no_change != row.label)
        watch.judged(float(said != row.label), rule=rule, at=at)


def _score(task: Task, answer: Answer) -> float | None:
    """The probability of True in a binary task, else of what was answered; None without one."""
    shares = answer.probabilities
    if not shares or answer.label is None:
        return None
    share = shares.get(True, 0.0) if task == "binary" else shares[answer.label]
    return min(max(float(share), 0.0), 1.0)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
