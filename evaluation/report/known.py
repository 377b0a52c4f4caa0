"""Labels that were known when a row was answered are all that the baselines may use."""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import Final

from evaluation.metrics import Majority, Task
from replay.example import Label

WAITING_MAX: Final = 100_000
"""Labels whose time has not come; the earliest ones are let in when there are more."""


class Known:
    """Rows are asked and given in turn.

    A label with a time is known from then on.  One without is known ``delay`` rows later (0 and 1:
    by the next row; river's ``delay``).
    """

    def __init__(self, task: Task, delay: int) -> None:
        self._regression = task == "regression"
        self._majority = Majority()
        self._sum = self._n = 0.0
        self._delay = max(delay, 1)
        self._row = 0
        self._pending: deque[Label | None] = deque()
        self._waiting: list[tuple[float, int, Label]] = []
        self._newest_row = -1
        self._newest: Label | None = None

    def at(self, time: float) -> Label | None:
        """The newest label known at the next row, which was answered at ``time`` (NaN: unknown)."""
        while self._waiting and (self._waiting[0][0] <= time or len(self._waiting) > WAITING_MAX):
            _, row, label = heapq.heappop(self._waiting)
            self._let_in(row, label)
        return self._newest

    def most(self) -> Label | None:
        """The most frequent label that is known, or the mean of the targets."""
        if self._regression:
            return self._sum / self._n if self._n else None
        return self._majority.label()

    def add(self, label: Label | None, label_time: float) -> None:
        """The row's label, None if it never came, and when (NaN: unknown)."""
        if label is not None and not math.isnan(label_time):
            heapq.heappush(self._waiting, (label_time, self._row, label))
            label = None
        self._pending.append(label)
        self._row += 1
        if len(self._pending) >= self._delay:
            label = self._pending.popleft()
            if label is not None:
                self._let_in(self._row - self._delay, label)

    def _let_in(self, row: int, label: Label) -> None:
        if self._regression:
            self._sum += float(label)
            self._n += 1
        else:
            self._majority.add(label)
        if row > self._newest_row:
            self._newest_row, self._newest = row, label
