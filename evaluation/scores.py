"""Scores of predictions: metrics beside majority and no-change baselines, in total and by window.

The baselines know the same labels as the model: those that had come at the time of the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from evaluation.errors import StreamUnusable
from evaluation.learner import Answer, by_shares, by_value
from evaluation.metrics import Majority, Task, add, details, increments
from evaluation.summary import Summary, summary
from evaluation.windows import WINDOWS_MAX, Windows
from replay.example import Features, Label, label_text

SLICES_MAX: Final = 100
"""Greatest number of values of a slice; rows with further values are counted as ``(others)``."""
OTHERS: Final = "(others)"
MISSING: Final = "(missing)"

Slices = Mapping[str, Callable[[Features], object]]


@dataclass(frozen=True, slots=True)
class Window:
    """The scores of rows at places from ``start`` to below ``end``."""

    start: float
    end: float
    summary: Summary


@dataclass(frozen=True, slots=True)
class Slice:
    """The scores of rows for which the slice function ``name`` gives this value."""

    name: str
    value: str
    summary: Summary


@dataclass(frozen=True, slots=True)
class Judged:
    """The result of an evaluation.

    Attributes:
        rows: Number of rows predicted.
        late: Rows whose labels came after the last prediction; they count in the scores.
        never: Rows whose labels never come; they count in no score.
        total, windows, slices: Scores of all rows, by window, and by the values of each slice.
        lacking: Reasons why the data do not suffice; empty if they do.
    """

    rows: int
    late: int
    never: int
    total: Summary
    windows: tuple[Window, ...]
    slices: tuple[Slice, ...]
    lacking: tuple[str, ...]


class Scores:
    """Counters of scored rows in bounded memory; :meth:`merge` adds those of other replicas.

    Parameters:
        window: Width of the windows, in the unit of places (rows, if places are row numbers).
        slices: Functions of the features by name; a value of None counts as ``(missing)``.
        positive: The label of a binary task that counts as True in :meth:`take`; None: True or 1.
    """

    def __init__(
        self,
        task: Task,
        *,
        window: float = 1_000,
        windows_max: int = WINDOWS_MAX,
        slices: Slices | None = None,
        positive: object = None,
    ) -> None:
        self.task, self._positive = task, positive
        self._taken, self._known = 0, Known()
        self.total: dict[str, float] = {}
        self.windows = Windows(window, windows_max)
        self.slices: dict[str, dict[str, dict[str, float]]] = {name: {} for name in slices or {}}
        self._slice_by = dict(slices or {})

    @classmethod
    def of(
        cls,
        task: Task,
        answers: Iterable[Any],
        labels: Iterable[Any],
        *,
        window: float = 1_000,
        positive: object = None,
    ) -> Judged:
        """Score predictions with their labels, both in the order of the predictions.

        They may be lists, arrays or columns; see :meth:`take` for the form of a prediction.  Raises
        StreamUnusable, with the row, also if their numbers differ.
        """
        scores = cls(task, window=window, positive=positive)
        end = object()
        for answer, label in zip_longest(answers, labels, fillvalue=end):
            if answer is end or label is end:
                what = "an answer without a label" if label is end else "a label without an answer"
                raise StreamUnusable(f"row {scores._taken}", what, "Give as many of each")
            scores.take(answer, label)
        return scores.judged()

    def take(self, answer: Any, label: Any, features: Features | None = None) -> None:
        """Score a prediction with its label; the baselines know all labels taken before.

        Parameters:
            answer: A label; in regression a number; in a binary task a probability of the positive
                label, as a float; or a mapping of labels to probabilities.  None: no prediction.
            label: The true label.
            features: Features for the slices.

        Raises StreamUnusable, with the row, for an invalid label or prediction.
        """
        place = self._taken
        truth = canonical(self.task, place, self._own(label))
        known = self._known
        self.add(
            place, features or {}, truth, self._answer(place, answer),
            no_change=known.newest, majority=known.most(self.task),
        )  # fmt: skip
        known.add(self.task, place, truth)
        self._taken += 1

    def _own(self, label: Any) -> Any:
        label = label.item() if hasattr(label, "item") else label
        return label if self._positive is None else label == self._positive

    def _answer(self, place: int, answer: Any) -> Answer:
        answer = answer.item() if hasattr(answer, "item") else answer
        if isinstance(answer, Mapping):
            return by_shares(self.task, {self._own(k): float(p) for k, p in answer.items()})
        if self.task == "binary" and isinstance(answer, float):
            return by_shares(self.task, {False: 1.0 - answer, True: answer})
        try:
            own = answer if self.task == "regression" or answer is None else self._own(answer)
            return by_value(self.task, own)
        except (TypeError, ValueError):
            problem = f"its answer is {answer!r:.80}"
            raise StreamUnusable(
                f"row {place}", problem, f"Give one of a {self.task} task"
            ) from None

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
        """Score an answer with its label and the baselines' predictions at the same time."""
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
        """Add another replica's counters; task, initial width and slice names must be equal."""
        add(self.total, other.total)
        self._taken += other._taken
        self.windows.merge(other.windows)
        for name, theirs in other.slices.items():
            values = self.slices[name]
            for text, counters in theirs.items():
                at = text if text in values or len(values) < SLICES_MAX else OTHERS
                add(values.setdefault(at, {}), counters)

    def judged(self, *, rows: int | None = None, late: int = 0, never: int = 0) -> Judged:
        """Return the metrics of all rows; ``rows``: number predicted (None: those taken)."""
        rows = self._taken if rows is None else rows
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


class Known:
    """The state of the baselines: newest label, and majority or mean of the labels so far."""

    def __init__(self) -> None:
        self.newest: Label | None = None
        self._place = -1
        self._majority = Majority()
        self._sum = self._n = 0.0

    def add(self, task: Task, place: int, label: Label) -> None:
        if place > self._place:  # a delayed label of an older row is not the newest
            self._place, self.newest = place, label
        if task == "regression":
            self._sum += float(label)
            self._n += 1
        else:
            self._majority.add(label)

    def most(self, task: Task) -> Label | None:
        """Return the most frequent label, or the mean in regression."""
        if task == "regression":
            return self._sum / self._n if self._n else None
        return self._majority.label()


def canonical(task: Task, place: int, label: Any) -> Label:
    """Return the label in its task's form; raise StreamUnusable if it is invalid."""
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
