"""Prequential (test-then-train) evaluation on a stream, with delayed labels.

The order is that of Gama et al. 2013, with delayed labels as in Grzenda et al. 2020 (*Delayed
labelling evaluation for data streams*): a row is predicted at its time, its label is known
``delay`` later, and before each prediction all labels known by then are learned, in the order in
which they came.  A prediction is scored when its label comes, and its score counts at the row's
place in the stream.  Every score stands beside those of the majority and no-change baselines, which
know the same labels as the learner at the time of the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from evaluation.errors import LearnerFailed
from evaluation.late import Asked, Delay, LabelQueue, Moment, seconds
from evaluation.learner import Answer, verbs
from evaluation.metrics import Task
from evaluation.scores import Judged, Known, Scores, Slices, canonical
from replay.example import Features, Label

if TYPE_CHECKING:
    from evaluation.drift.watch import Watch

WAITING_MAX: Final = 1_000_000
"""Greatest number of rows that may wait for their labels."""

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
    """Evaluate a learner on a stream, predicting each row before its label is learned.

    Parameters:
        learner: For example a river model, see :mod:`evaluation.learner`.
        rows: Pairs of features and label.  A label None never comes.  Labels of a binary task are
            True and False (or 1 and 0).
        delay: Time after which a row's label is known: a number (of rows, if there is no
            ``moment``), a ``timedelta``, the name of a feature that holds it, or a function of
            features and label.  A feature or function may give None (the label never comes) or a
            date and time at which the label comes.  With a delay of 0 or 1 rows, a label is known
            at the next prediction.
        moment: Time of a row: a feature's name, or a function of the features; by default the row's
            number.  It must not decrease.  If a column named here or as ``delay`` holds dates,
            times or text (ISO 8601), the learner does not get it as a feature.
        window: Number of rows in a window of the series.
        slices: Functions of the features by name, by whose values scores are also computed.
        waiting_max: Greatest number of rows that may wait for their labels.
        each: Called with a row's number, answer and label when its label comes.
        watch: Drift monitor that receives each prediction and, with its label, the error, as in the
            service.  For regression its settings must say so.

    Raises:
        StreamUnusable: An invalid label, a decreasing time, or too many waiting labels; with the
            row.
        LearnerFailed: The learner raised an exception; with the row.
    """
    queue = LabelQueue(delay, moment, waiting_max)
    run = _Run(learner, task, queue, Scores(task, window=window, slices=slices), each, watch)
    n = 0
    for place, (features, label) in enumerate(rows):
        run.row(place, features, label)
        n += 1
    late = len(queue)
    for when, row in queue.until(None):
        run.arrive(when, row)
    return run.scores.judged(rows=n, late=late, never=run.never)


class _Run:
    """The state of one evaluation."""

    def __init__(
        self,
        learner: Any,
        task: Task,
        queue: LabelQueue,
        scores: Scores,
        each: Each | None,
        watch: Watch | None,
    ) -> None:
        self._ask, self._learn = verbs(learner, task)
        self._task, self._queue, self._each, self._watch = task, queue, each, watch
        self._known = Known()
        self.scores = scores
        self.never = 0

    def row(self, place: int, features: Features, given: Label | None) -> None:
        """Learn the labels known by now, then predict the row."""
        now = self._queue.moment(place, features)
        for when, row in self._queue.until(now):
            self.arrive(when, row)
        shown = self._queue.without_times(features)
        try:
            answer, notes = self._ask(shown)
        except Exception as error:  # the learner is external code
            raise LearnerFailed(place, "answer", _text(error)) from error
        if self._watch is not None:
            self._watch.served(shown, _score(self._task, answer), at=seconds(now))
        label = None if given is None else canonical(self._task, place, given)
        known = self._known
        asked = None
        if label is not None:
            newest, most = known.newest, known.most(self._task)
            asked = Asked(place, features, shown, label, answer, notes, newest, most)
        if asked is None or not self._queue.put(now, asked):
            self.never += 1
            return
        for when, row in self._queue.until(now):  # the row's own label, if the delay is 0
            self.arrive(when, row)

    def arrive(self, when: Any, row: Asked) -> None:
        """Score a prediction with its label, then learn the row."""
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
        predicted = row.answer.label
        if self._task == "regression":
            if predicted is not None:
                watch.judged(abs(float(predicted) - float(row.label)), at=at)
            return
        rule = None if row.no_change is None else float(row.no_change != row.label)
        watch.judged(float(predicted != row.label), rule=rule, at=at)


def _score(task: Task, answer: Answer) -> float | None:
    """Return the probability of True in a binary task, else of the predicted label, or None."""
    shares = answer.probabilities
    if not shares or answer.label is None:
        return None
    share = shares.get(True, 0.0) if task == "binary" else shares[answer.label]
    return min(max(float(share), 0.0), 1.0)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
