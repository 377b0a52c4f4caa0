"""This module asks if a rise is more than what a stream's error did by itself so far.

Errors of real streams come in runs: hard hours, days, seasons.  A test that takes rows for
independent of each other finds one change after the other there, and each of them is real, and
over soon.  So a rise is held against stretches of the same length before it: how far their means
lie apart, beyond what chance makes of independent rows, and how high the highest was.  Where rows
are independent nothing is asked beyond the test.

Nor is a rise one of the model if the stream became harder for everybody: what the no-change rule
gets wrong is counted in the same stretches, and the model may get worse by as much as that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.drift.alarm import Change

STRETCH: Final = 32
"""Rows of the shortest stretches; the others are twice as long as the ones before."""
SCALES: Final = 6
KEPT: Final = 64
"""Newest stretches of each length that are remembered."""
FEW: Final = 4
"""Stretches before a change without which everything is a rise: nothing is known of the past."""
ENOUGH: Final = 8
"""Stretches of a length; with fewer, shorter ones are asked."""
DEVIATIONS: Final = 3.6
"""How far above the mean of its past a rise is, at least, in deviations of stretches."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Means over the rows up to ``end``: the error, and what the no-change rule got wrong."""

    end: int
    error: float
    rule: float


class Past:
    """Means of stretches of 32 to 1,024 rows, the newest 64 of each length."""

    def __init__(self) -> None:
        self.rows = 0
        self._n = 0
        self._error = self._rule = 0.0  # of the open stretch
        self._kept: list[deque[_Stretch]] = [deque(maxlen=KEPT) for _ in range(SCALES)]
        self._odd: list[_Stretch | None] = [None] * SCALES

    def add(self, error: float, rule: float | None = None) -> None:
        """Take one row's error and that of the no-change rule, both in [0, 1]; None: unknown."""
        self.rows += 1
        self._n += 1
        self._error += error
        self._rule += 0.5 if rule is None else rule
        if self._n < STRETCH:
            return
        stretch = _Stretch(self.rows, self._error / STRETCH, self._rule / STRETCH)
        self._n, self._error, self._rule = 0, 0.0, 0.0
        for scale, kept in enumerate(self._kept):
            kept.append(stretch)
            odd, self._odd[scale] = self._odd[scale], None
            if odd is None:
                self._odd[scale] = stretch
                return
            mean = (odd.error + stretch.error) / 2.0, (odd.rule + stretch.rule) / 2.0
            stretch = _Stretch(stretch.end, *mean)

    def add_all(self, errors: Sequence[float], rules: Sequence[float | None]) -> None:
        """Take rows one after the other, as :meth:`add` does."""
        start = 0
        while start < len(errors):
            stop = min(start + STRETCH - 1 - self._n, len(errors))  # it does not end the stretch
            for error in errors[start:stop]:
                self._error += error
            for rule in rules[start:stop]:
                self._rule += 0.5 if rule is None else rule
            self._n += stop - start
            self.rows += stop - start
            if stop < len(errors):
                self.add(errors[stop], rules[stop])
            start = stop + 1

    def surpassed(self, rise: Change) -> bool:
        """Whether the error rose further than the stream's own past explains.

        ``rise`` is a change that ends with the newest row.
        """
        begun = self.rows - rise.n_after
        size, before = self._like(rise.n_after, begun)
        if len(before) < FEW:
            return True
        n = len(before)
        mean = sum(s.error for s in before) / n
        spread = sum((s.error - mean) ** 2 for s in before) / (n - 1)
        p = max(mean, 1.0 / (size * n + 2.0))
        chance = p * (1.0 - p)
        # What of the spread is more than chance makes of it, less what that is uncertain by.
        beyond = spread / (chance / size) / (1.0 + math.sqrt(2.0 / (n - 1)))
        variance = chance / rise.n_after
        if beyond > 1.0:
            variance = chance * beyond / size * max(size / rise.n_after, 1.0)
        usual = mean * self._harder(before, begun)
        highest = max(s.error for s in before)
        return rise.after >= max(usual + DEVIATIONS * math.sqrt(variance), highest)

    def _like(self, rows: int, begun: int) -> tuple[int, list[_Stretch]]:
        """Length of the stretches nearest to so many rows, and those that ended before."""
        scale = min(max(int(math.log2(max(rows, 1) / STRETCH)), 0), SCALES - 1)
        while True:
            found = _learned([s for s in self._kept[scale] if s.end <= begun], STRETCH << scale)
            if len(found) >= ENOUGH or scale == 0:
                return STRETCH << scale, found
            scale -= 1

    def _harder(self, before: list[_Stretch], begun: int) -> float:
        """How much more the no-change rule gets wrong since then; 1 if not more."""
        after = [s for s in self._kept[0] if s.end - STRETCH // 2 > begun]
        total = sum(s.rule * STRETCH for s in after) + self._rule
        n = STRETCH * len(after) + self._n
        usual = sum(s.rule for s in before) / len(before)
        if n < 1 or usual <= 0.0:
            return 1.0
        return max(total / n / usual, 1.0)


def _learned(before: list[_Stretch], size: int) -> list[_Stretch]:
    """Stretches without the stream's first ones, if these are higher than all of the later half.

    A model learns there: how far it has come says nothing of how far one that has learned swings.
    """
    if len(before) < 2 * ENOUGH or before[0].end > size:
        return before
    highest = max(s.error for s in before[len(before) // 2 :])
    return before[next(i for i, s in enumerate(before) if s.error <= highest) :]
