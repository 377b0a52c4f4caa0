"""Test, then learn: a stream is predicted row by row, and its labels come when they come.

The order is that of Gama et al. 2013, with late labels as in Grzenda et al. 2020 (*Delayed
labelling evaluation for data streams*): a row is asked at its moment, its label is known
``delay`` after that, and before each question everything that is known by then is learned, in the
order in which it came.  What was answered is scored when its label comes, and belongs to the place
in the stream where the row was asked.  Beside every score stand the majority and the no-change
rule, which know the labels that the learner knew: those that had come when the row was asked.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from evaluation.errors import LearnerFailed, StreamUnusable
from evaluation.learner import Answer, verbs
from evaluation.metrics import Majority, Task, add, details, increments
from evaluation.summary import Summary, summary
from evaluation.windows import WINDOWS_MAX, Windows
from replay.example import Features, Label, label_text

SLICES_MAX: Final = 100
"""Values of a slice; rows of further ones are counted together, as ``(others)``."""
WAITING_MAX: Final = 1_000_000
"""Rows whose labels are awaited."""
OTHERS: Final = "(others)"
MISSING: Final = "(missing)"

Slices = Mapping[str, Callable[[Features], object]]
Delay = int | float | timedelta | str | Callable[[Features, Label], Any]
Moment = str | Callable[[Features], Any]
Each = Callable[[int, Answer, Label], None]


@dataclass(frozen=True, slots=True)
class Window:
    """Rows asked at places from ``start`` to below ``end``."""

    start: float
    end: float
    summary: Summary


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows of which the slice ``name`` has this value."""

    name: str
    value: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Judged:
    """The result that a run, or a table of answers and labels, came to.

    Attributes
    ----------
    rows
        Rows asked.
    late
        Rows whose labels came after the last question; they are in the scores.
    never
        Rows whose labels never come; they are in no score.
    total, windows, slices
        Of all rows, by place, and by the values of each slice.
    lacking
        Why it is not enough to judge by; empty if it is.
    """

    rows: int
    late: int
    never: int
    total: Summary
    windows: tuple[Window, ...]
    slices: tuple[Slice, ...]
    lacking: tuple[str, ...]


class Scores:
    """Counters of scored rows, in bounded memory; of several replicas they :meth:`merge`.

    Parameters
    ----------
    window
        Width of the windows, in the unit of places (rows, if places are row numbers).
    slices
        By name, what to slice by: a function of the features.  A row without is ``(missing)``.
    """

    def __init__(
        self,
        task: Task,
        *,
        window: float = 1_000,
        windows_max: int = WINDOWS_MAX,
        slices: Slices | None = None,
    ) -> None:
        self.task = task
        self.total: dict[str, float] = {}
        self.windows = Windows(window, windows_max)
        self.slices: dict[str, dict[str, dict[str, float]]] = {name: {} for name in slices or {}}
        self._slice_by = dict(slices or {})

    def add(
        self,
        place: float,
        features: Features,
        label: Label,
        answer: Answer,
        *,
        no_change: Label | None,
        majority: Label | None,
    ) -> None:
        """Score an answer by its label; the baselines are those of the time of the answer."""
        shares = answer.probabilities
        texts = None if shares is None else {label_text(k): p for k, p in shares.items()}
        what: dict[str, Any] = {"label": label, "predicted": answer.label, "probabilities": texts}
        more = increments(self.task, **what, no_change=no_change, majority=majority, asked=True)
        more.update(details(self.task, **what))
        if not answer.usable:
            more["unusable"] = 1
        add(self.total, more)
        self.windows.add(place, more)
        for name, by in self._slice_by.items():
            values = self.slices[name]
            value = by(features)
            text = MISSING if value is None else str(value)
            if text not in values and len(values) >= SLICES_MAX:
                text = OTHERS
            add(values.setdefault(text, {}), more)

    def merge(self, other: Scores) -> None:
        """Add another replica's counters: task, first width and names of slices are the same."""
        add(self.total, other.total)
        self.windows.merge(other.windows)
        for name, theirs in other.slices.items():
            values = self.slices[name]
            for text, counters in theirs.items():
                at = text if text in values or len(values) < SLICES_MAX else OTHERS
                add(values.setdefault(at, {}), counters)

    def judged(self, *, rows: int, late: int = 0, never: int = 0) -> Judged:
        """The metrics of everything that was added; ``rows`` were asked."""
        total = summary(self.task, self.total)
        lacking = list(total.lacking)
        if rows and late == rows - never and late:
            lacking.append("all labels came after the last question: nothing was learned before")
        return Judged(
            rows,
            late,
            never,
            total,
            tuple(
                Window(s.start, s.end, summary(self.task, s.counters)) for s in self.windows.spans()
            ),
            tuple(
                Slice(name, value, summary(self.task, counters))
                for name, values in self.slices.items()
                for value, counters in sorted(values.items())
            ),
            tuple(lacking),
        )


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
) -> Judged:
    """Run a learner over a stream, each row asked before its label is learned.

    Parameters
    ----------
    learner
        See :mod:`evaluation.learner`; a river model, say.
    rows
        Features and label; a label None never comes.  Those of a binary task are True and False
        (or 1 and 0).
    delay
        How long after its moment a row's label is known: a number (of rows, if there is no
        ``moment``), a ``timedelta``, the name of a feature that holds it, or a function of
        features and label; None from these two means never.  With 0 and with 1 row a label is
        known to the next question.
    moment
        A row's time: a feature's name, or a function of the features; the row's number if left
        out.  It never goes back.
    window
        Rows in a window of the series.
    waiting_max
        Most rows whose labels are awaited at a time.
    each
        Called with a row's number, answer and label when its label comes.

    Raises
    ------
    StreamUnusable
        A label that is none, a moment that goes back, too many labels awaited; with the row.
    LearnerFailed
        The learner raises; with the row and what it raised.
    """
    line = _Line(delay, moment, waiting_max)
    run = _Run(learner, task, line, Scores(task, window=window, slices=slices), each)
    n = 0
    for place, (features, label) in enumerate(rows):
        run.row(place, features, label)
        n += 1
    late = len(line)
    for row in line.until(None):
        run.arrive(row)
    return run.scores.judged(rows=n, late=late, never=run.never)


class _Run:
    """A learner on its way through a stream."""

    def __init__(
        self, learner: Any, task: Task, line: _Line, scores: Scores, each: Each | None
    ) -> None:
        self._ask, self._learn = verbs(learner, task)
        self._task, self._line, self._each = task, line, each
        self._known = _Known()
        self.scores = scores
        self.never = 0

    def row(self, place: int, features: Features, given: Label | None) -> None:
        """Learn what is known by now, and ask the row."""
        now = self._line.moment(place, features)
        for row in self._line.until(now):
            self.arrive(row)
        try:
            answer, notes = self._ask(features)
        except Exception as error:  # it is a stranger's code
            raise LearnerFailed(place, "answer", _text(error)) from error
        label = None if given is None else _canonical(self._task, place, given)
        known = self._known
        if label is None or not self._line.put(
            now,
            _Row(place, features, label, answer, notes, known.newest, known.most(self._task)),
        ):
            self.never += 1
            return
        for row in self._line.until(now):  # its own label, if that comes at once
            self.arrive(row)

    def arrive(self, row: _Row) -> None:
        """A label has come: score the answer, then learn the row."""
        self.scores.add(
            row.place, row.features, row.label, row.answer,
            no_change=row.no_change, majority=row.majority,
        )  # fmt: skip
        self._known.add(self._task, row.place, row.label)
        try:
            self._learn(row.features, row.label, row.notes)
        except Exception as error:
            raise LearnerFailed(row.place, "learn", _text(error)) from error
        if self._each is not None:
            self._each(row.place, row.answer, row.label)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def _canonical(task: Task, place: int, label: Any) -> Label:
    """The label as its task has it."""
    if task == "regression":
        number = isinstance(label, (int, float)) and not isinstance(label, bool)
        if number and math.isfinite(label):
            return float(label)
    elif task == "binary":
        if label in (0, 1):
            return bool(label)
    elif isinstance(label, (bool, int, str)) or (isinstance(label, float) and label == label):
        return label
    wanted = {
        "regression": "a finite number",
        "binary": "True or False",
        "multiclass": "a text, a whole number or a truth value",
    }[task]
    raise StreamUnusable(
        f"row {place}", f"its label is {label!r:.80}", f"A {task} label is {wanted}"
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """A row that was asked: what was answered, and what the baselines would have said."""

    place: int
    features: Features
    label: Label
    answer: Answer
    notes: object
    no_change: Label | None
    majority: Label | None


class _Known:
    """The baselines' knowledge: what the labels that have come tell."""

    def __init__(self) -> None:
        self.newest: Label | None = None
        self._place = -1
        self._majority = Majority()
        self._sum = self._n = 0.0

    def add(self, task: Task, place: int, label: Label) -> None:
        if place > self._place:  # a late label of an old row is no news
            self._place, self.newest = place, label
        if task == "regression":
            self._sum += float(label)
            self._n += 1
        else:
            self._majority.add(label)

    def most(self, task: Task) -> Label | None:
        """The most frequent label, or the mean."""
        if task == "regression":
            return self._sum / self._n if self._n else None
        return self._majority.label()


class _Line:
    """Rows whose labels are awaited, by the time when they come."""

    def __init__(self, delay: Delay, moment: Moment | None, waiting_max: int) -> None:
        self._delay = _delay(delay)
        self._moment = moment
        self._max = waiting_max
        self._last: Any = None
        self._heap: list[tuple[Any, int, _Row]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def moment(self, place: int, features: Features) -> Any:
        """The row's time.  Raises StreamUnusable if it is before that of the row before."""
        if self._moment is None:
            return place
        now: Any
        if callable(self._moment):
            now = self._moment(features)
        else:
            now = features.get(self._moment)
        try:
            good = self._last is None or bool(now >= self._last)
            good = good and now is not None and now == now
        except TypeError:
            good = False
        if not good:
            raise StreamUnusable(
                f"row {place}",
                f"its moment is {now!r:.80}, after {self._last!r:.80}",
                "Sort the rows by their moments, or give delays in rows",
            )
        self._last = now
        return now

    def put(self, now: Any, row: _Row) -> bool:
        """Await the row's label; False if it never comes."""
        wait = self._delay(row.features, row.label)
        if wait is None:
            return False
        try:
            when = now + wait
            good = bool(when >= now)
        except TypeError:
            good = False
        if not good:
            raise StreamUnusable(
                f"row {row.place}",
                f"its label comes {wait!r:.80} after {now!r:.80}",
                "A delay is at least 0, in the unit of moments, and None if no label comes",
            )
        if len(self._heap) >= self._max:
            raise StreamUnusable(
                f"row {row.place}",
                f"{self._max} labels are awaited, and another one",
                "Shorten the delay, or raise waiting_max",
            )
        heapq.heappush(self._heap, (when, row.place, row))
        return True

    def until(self, now: Any) -> Iterable[_Row]:
        """Take out the rows whose labels are known at ``now``; None: all, in their order."""
        heap = self._heap
        while heap and (now is None or heap[0][0] <= now):
            yield heapq.heappop(heap)[2]


def _delay(delay: Delay) -> Callable[[Features, Label], Any]:
    if callable(delay):
        return delay
    if isinstance(delay, str):
        name = delay
        return lambda x, y: x.get(name)
    return lambda x, y: delay
