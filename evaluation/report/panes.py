"""Windows over a stream of unknown length: at most ``PANES_MAX`` of them, all equally long.

When one more would begin, neighbours are added together and each holds twice as many rows.
Everything in a pane is a sum, so the panes of a million rows are those of ten thousand.
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
"""Most panes; after a doubling there are half as many."""


class Pane:
    """Sums over consecutive rows.

    Attributes:
        counters: Those of :mod:`evaluation.metrics`.
        answered, labelled, positive: Rows with an answer, with a label, and answered with the
            positive label.
        score_n, score_sum, sure_sum: Rows with a score, its sum, and that of the answers'
            probabilities.
        features: For each feature: known values and their sum (numbers), or rows and those of the
            top category.
        steps: Each comparison with a baseline as it stood at the end of the pane.
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
        """Widen the span of times; NaN says nothing."""
        self.first_time = _least(self.first_time, first)
        self.last_time = -_least(-self.last_time, -last)

    def add(self, other: Pane) -> None:
        """Take the pane that follows into this one."""
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
    """The panes of a stream; rows are given in order."""

    def __init__(self) -> None:
        self.size = PANE_ROWS
        self.all: list[Pane] = []

    def room(self, row: int) -> tuple[Pane, int]:
        """The pane of the next row (``row`` counts from 1) and how many more rows it takes."""
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
    """A new pane of several that follow each other; of none an empty one."""
    total = Pane(panes[0].first_row if panes else 1)
    for pane in panes:
        total.add(pane)
    return total
