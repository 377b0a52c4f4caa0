"""A canary: how wrong the model is about rows that an operator vouches for.

What is said of feedback can be wrong, and of an attack it is: the loss on a root set is not.  It is
taken now and then as rows are learned, and summed up where it is above what is usual (a one-sided
cumulative sum: Page, "Continuous inspection schemes", Biometrika 1954), in deviations of what it
was before.  A model that learns well only falls; one that is taught lies rises for many looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from evaluation.drift.alarm import Alarm
from online.models.base import Model
from replay.example import Features, Label

ROWS_MAX: Final = 20
"""Rows of a look, asked two at a time as rows are learned: no learned row waits for many."""

_AT_A_TIME: Final = 2

WARM: Final = 20
"""Looks before it can ring."""

_SLACK: Final = 1.0  # deviations above the mean that do not count
_RINGS: Final = 10.0
_GIVES_UP: Final = 3.0  # times that: the world moves away from the root set, slowly
_TIMES: Final = (
    1.75  # what the loss is of what it was, at least: the root set is of yesterday's world
)
_FOLLOWS: Final = 0.1
_DEVIATION_MIN: Final = 0.02
_LOSS_MAX: Final = 10.0


class Canary:
    """Watches one model's loss on a root set.

    Parameters:
        rows: Of the root set; every n-th of more than :data:`ROWS_MAX` is taken.
        model: Gives the model that answers now.
    """

    def __init__(self, rows: Sequence[tuple[Features, Label]], model: Callable[[], Model]) -> None:
        step = -(-len(rows) // ROWS_MAX)
        self._rows = list(rows)[::step]
        self._model = model
        self._next = self._looks = 0
        self._total = 0.0  # of the look at hand
        self.loss: float | None = None
        self._mean = self._square = 0.0
        self._before: tuple[int, float, float] | None = None  # looks, mean, square: as it last rang
        self._sum = 0.0
        self._since = 0  # row at which the sum last was 0

    def learned(self, row: int, at: float) -> Alarm | None:
        """A row was learned, the ``row``-th that is watched, at POSIX time ``at``."""
        for features, label in self._rows[self._next : self._next + _AT_A_TIME]:
            self._total += self._loss(features, label)
        self._next += _AT_A_TIME
        if self._next < len(self._rows):
            return None
        loss = self.loss = self._total / len(self._rows)
        self._next, self._total = 0, 0.0
        self._looks += 1
        deviation = max(math.sqrt(max(self._square - self._mean**2, 0.0)), _DEVIATION_MIN)
        if self._looks > WARM:
            self._before = None
            self._sum = max(self._sum + (loss - self._mean) / deviation - _SLACK, 0.0)
        if self._sum == 0.0:  # what is usual is learned while nothing speaks against it
            self._since = row
            self._follow(loss)
        if self._sum < _RINGS:
            return None
        rings, before = loss >= _TIMES * self._mean, self._mean
        if not rings and self._sum < _GIVES_UP * _RINGS:
            return None
        if rings:
            self._before = self._looks, self._mean, self._square
        self._sum, self._looks = 0.0, 0  # what is usual is learned anew
        if not rings:
            return None
        return Alarm(
            row=row, at=at, signal="error", name="", detector="canary", direction="up",
            since=self._since, before=before, after=loss, n_before=WARM, n_after=row - self._since,
        )  # fmt: skip

    def rewritten(self) -> None:
        """The values were: those of before the last alarm answer, and its loss is usual again.

        Else lies that go on would be learned as what is usual, and ring no more.
        """
        self._next, self._total, self._sum = 0, 0.0, 0.0
        if self._before is not None:
            self._looks, self._mean, self._square = self._before
            self._before = None

    def _follow(self, loss: float) -> None:
        share = max(_FOLLOWS, 1.0 / self._looks)
        self._mean += share * (loss - self._mean)
        self._square += share * (loss * loss - self._square)

    def _loss(self, features: Features, label: Label) -> float:
        answer = self._model().predict(features)
        if answer.probabilities is None:
            if answer.label is None:
                return _LOSS_MAX
            return min(math.log1p(abs(float(answer.label) - float(label))), _LOSS_MAX)
        share = answer.probabilities.get(label, 0.0)
        return min(-math.log(share), _LOSS_MAX) if share > 0.0 else _LOSS_MAX  # NaN too
