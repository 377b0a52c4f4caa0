"""A canary: the model's loss on trusted rows (the root set), watched for a rise.

Labels of feedback can be wrong, and under attack they are; those of the root set are not.  The loss
on it is measured repeatedly while rows are learned.  A one-sided cumulative sum (CUSUM: Page,
"Continuous inspection schemes", Biometrika 1954) of its standardised excess over the usual loss
raises the alarm.  The loss of a model that learns well only falls; that of a model trained on wrong
labels rises over many measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from evaluation.drift.alarm import Alarm
from online.models.base import Model
from replay.example import Features, Label

ROWS_MAX: Final = 20
"""Most rows in a measurement.  Two are predicted for each learned row, which bounds its delay."""

_AT_A_TIME: Final = 2

WARM: Final = 20
"""Measurements before an alarm is possible."""

_SLACK: Final = 1.0  # standard deviations above the mean that are not added to the sum
_RINGS: Final = 10.0  # threshold of the sum
_GIVES_UP: Final = 3.0  # times that without an alarm: slow drift away from the root set
_TIMES: Final = 1.75  # least ratio to the usual loss, since the root set gets older
_FOLLOWS: Final = 0.1  # weight of a new measurement in the usual loss
_DEVIATION_MIN: Final = 0.02
_LOSS_MAX: Final = 10.0


class Canary:
    """Watches one model's loss on a root set.

    Parameters:
        rows: The root set; of more than :data:`ROWS_MAX` rows every n-th is used.
        model: Returns the model that serves now.
    """

    def __init__(self, rows: Sequence[tuple[Features, Label]], model: Callable[[], Model]) -> None:
        step = -(-len(rows) // ROWS_MAX)
        self._rows = list(rows)[::step]
        self._model = model
        self._next = self._looks = 0
        self._total = 0.0  # sum of the measurement in progress
        self.loss: float | None = None
        self._mean = self._square = 0.0
        self._before: tuple[int, float, float] | None = None  # looks, mean, square at last alarm
        self._sum = 0.0
        self._since = 0  # row at which the sum last was 0

    def learned(self, row: int, at: float) -> Alarm | None:
        """Continue the measurement after the ``row``-th learned row, at POSIX time ``at``."""
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
        if self._sum == 0.0:  # the usual loss is updated only while there is no excess
            self._since = row
            self._follow(loss)
        if self._sum < _RINGS:
            return None
        rings, before = loss >= _TIMES * self._mean, self._mean
        if not rings and self._sum < _GIVES_UP * _RINGS:
            return None
        if rings:
            self._before = self._looks, self._mean, self._square
        self._sum, self._looks = 0.0, 0  # start over with a new usual loss
        if not rings:
            return None
        return Alarm(
            row=row, at=at, signal="error", name="", detector="canary", direction="up",
            since=self._since, before=before, after=loss, n_before=WARM, n_after=row - self._since,
        )  # fmt: skip

    def rewritten(self) -> None:
        """Restore the usual loss from before the last alarm, after the model was rewritten.

        Otherwise an attack that goes on would become the usual loss and raise no more alarms.
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
            loss = math.log1p(abs(float(answer.label) - float(label)))
            return loss if loss < _LOSS_MAX else _LOSS_MAX  # NaN too
        share = answer.probabilities.get(label, 0.0)
        return min(-math.log(share), _LOSS_MAX) if share > 0.0 else _LOSS_MAX  # NaN too
