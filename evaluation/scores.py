"""Scores of answers by their labels: metrics beside the majority and the no-change rule, by place.

The rules know what the model knew: the labels that had come when a row was asked.
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
"""Values of a slice; rows of further ones are counted together, as ``(others)``."""
OTHERS: Final = "(others)"
MISSING: Final = "(missing)"

Slices = Mapping[str, Callable[[Features], object]]


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

    Attributes:
        rows: Rows asked.
        late: Rows whose labels came after the last question; they are in the scores.
        never: Rows whose labels never come; they are in no score.
        total, windows, slices: Of all rows, by place, and by the values of each slice.
        lacking: Why it is not enough to judge by; empty if it is.
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

    Parameters:
        window: Width of the windows, in the unit of places (rows, if places are row numbers).
        slices: By name, what to slice by: a function of the features.  A row without is
            ``(missing)``.
        positive: The label of a binary task that counts as True in :meth:`take`; None: True, or 1.
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
        """Judge answers by their labels, which are in the order in which they were asked.

        Lists, arrays or columns; see :meth:`take` for what an answer may be.  Raises
        StreamUnusable, with the row, also if there are more of the ones than of the others.
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
        """Score a plain answer by its label; both rules know the labels that were taken before.

        Parameters:
            answer: A label; in regression a number; in a binary task a probability of the positive
                label, which is a float; or probabilities by label.  None: the model did not know.
            label: The true one.
            features: For slices.

        Raises StreamUnusable, with the row, for a label or an answer that is none.
        """
        place = self._taken
        said = canonical(self.task, place, self._own(label))
        known = self._known
        self.add(
            place, features or {}, said, self._answer(place, answer),
            no_change=known.newest, majority=known.most(self.task),
        )  # fmt: skip
        known.add(self.task, place, said)
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
        self._taken += other._taken
        self.windows.merge(other.windows)
        for name, theirs in other.slices.items():
            values = self.slices[name]
            for text, counters in theirs.items():
                at = text if text in values or len(values) < SLICES_MAX else OTHERS
                add(values.setdefault(at, {}), counters)

    def judged(self, *, rows: int | None = None, late: int = 0, never: int = 0) -> Judged:
        """The metrics of everything that was added; ``rows`` were asked (None: those taken)."""
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


def canonical(task: Task, place: int, label: Any) -> Label:
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
