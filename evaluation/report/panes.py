"""At most ``PANES_MAX`` windows (panes) of equal length over a stream of unknown length.

When a further one would begin, neighbours are added, and each then has twice as many rows.  A pane
only holds sums, so memory does not depend on the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from evaluation.comparison import Compared
from evaluation.metrics import add

PANE_ROWS: Final = 64
"""Rows of a pane before the first doubling."""

PANES_MAX: Final = 96
"""Greatest number of panes; after a doubling there are half as many."""


class Pane:
    """Sums over consecutive rows.

    Attributes:
        counters: Counters of :mod:`evaluation.metrics`.
        answered, labelled, positive: Numbers of rows with a prediction, with a label, and with the
            positive label as prediction.
        score_n, score_sum, sure_sum: Number of rows with a score, sum of the scores, and sum of the
            probabilities of the predicted labels.
        features: For each feature, the number and sum of known values (numbers), or the numbers of
            rows and of rows with the most frequent category.
        steps: Results of the comparisons with the baselines at the end of the pane.
    """

    __slots__ = (
        "answered", "counters", "features", "first_row", "first_time", "labelled",
        "last_time", "positive", "rows", "score_n", "score_sum", "steps", "sure_sum",
        "version",
    )  # fmt: skip

    def __init__(self, first_row: int) -> None:
        self.first_row = first_row
        self.rows = self.answered = self.labelled = self.positive = self.score_n = 0
        self.first_time = self.last_time = math.nan
        self.score_sum = self.sure_sum = 0.0
        self.counters: dict[str, float] = {}
        self.features: dict[str, tuple[float, float]] = {}
        self.version: str | None = None
        self.steps: dict[str, Compared] = {}

    def feature(self, name: str, n: float, total: float) -> None:
        """Add to a feature's sums."""
        n0, total0 = self.features.get(name, (0.0, 0.0))
        self.features[name] = (n0 + n, total0 + total)

    def times(self, first: float, last: float) -> None:
        """Extend the range of times; NaN is ignored."""
        self.first_time = _least(self.first_time, first)
        self.last_time = -_least(-self.last_time, -last)

    def add(self, other: Pane) -> None:
        """Add the pane that follows to this one."""
        self.rows += other.rows
        self.answered += other.answered
        self.labelled += other.labelled
        self.positive += other.positive
        self.score_n += other.score_n
        self.score_sum += other.score_sum
        self.sure_sum += other.sure_sum
        self.times(other.first_time, other.last_time)
        add(self.counters, other.counters)
        for name, (n, total) in other.features.items():
            self.feature(name, n, total)
        self.steps.update(other.steps)
        self.version = other.version if other.version is not None else self.version


def _least(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return b if math.isnan(a) else a
    return min(a, b)


class Panes:
    """The panes of a stream whose rows are added in order."""

    def __init__(self) -> None:
        self.size = PANE_ROWS
        self.all: list[Pane] = []

    def room(self, row: int) -> tuple[Pane, int]:
        """Return the pane of the next row (``row`` counts from 1), and its number of free rows."""
        if not self.all or self.all[-1].rows >= self.size:
            if len(self.all) >= PANES_MAX:
                self._double()
            if not self.all or self.all[-1].rows >= self.size:
                self.all.append(Pane(row))
        pane = self.all[-1]
        return pane, self.size - pane.rows

    def _double(self) -> None:
        merged = []
        for first in range(0, len(self.all), 2):
            pane = self.all[first]
            if first + 1 < len(self.all):
                pane.add(self.all[first + 1])
            merged.append(pane)
        self.all = merged
        self.size *= 2


def together(panes: Sequence[Pane]) -> Pane:
    """Return a new pane with the sums of several consecutive ones, or an empty pane."""
    total = Pane(panes[0].first_row if panes else 1)
    for pane in panes:
        total.add(pane)
    return total
