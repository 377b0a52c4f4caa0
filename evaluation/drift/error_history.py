"""Decides whether a rise of the error exceeds the error's usual fluctuations in the stream.

The errors of real streams are correlated: there are difficult hours, days and seasons.  A test that
assumes independent rows finds one change after another there, each of them real but soon over.  So
a rise is compared with earlier stretches of the same length: with the variance of their means
beyond that of independent rows, and with the highest mean.  If rows are independent, this adds no
requirement to the test.

A rise is also not attributed to the model if the stream has become harder for any predictor: the
errors of the no-change baseline are recorded in the same stretches, and the model's error may rise
in proportion to them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.drift.alarm import Change

STRETCH: Final = 32
"""Rows of the shortest stretches; each further length is twice the one before."""
SCALES: Final = 6
KEPT: Final = 64
"""Number of stretches of each length that are remembered, the newest ones."""
FEW: Final = 4
"""With fewer stretches before a change, every rise is accepted, because the past is unknown."""
ENOUGH: Final = 8
"""With fewer stretches of a length, shorter ones are used."""
DEVIATIONS: Final = 3.6
"""Least height of a rise above the past mean, in standard deviations of stretches."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Means over the rows up to ``end``: the model's error, and the no-change baseline's."""

    end: int
    error: float
    rule: float


class ErrorHistory:
    """Mean errors over stretches of 32 to 1,024 rows, the newest 64 of each length."""

    def __init__(self) -> None:
        self.rows = 0
        self._n = 0
        self._error = self._rule = 0.0  # of the open stretch
        self._kept: list[deque[_Stretch]] = [deque(maxlen=KEPT) for _ in range(SCALES)]
        self._odd: list[_Stretch | None] = [None] * SCALES

    def add(self, error: float, rule: float | None = None) -> None:
        """Add one row's error and the no-change baseline's, in [0, 1]; None: unknown."""
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
        """Add several rows, with the same result as :meth:`add` for each."""
        start = 0
        while start < len(errors):
            stop = min(start + STRETCH - 1 - self._n, len(errors))  # without ending a stretch
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
        """Return whether a rise up to the newest row exceeds the stream's usual fluctuations."""
        begun = self.rows - rise.n_after
        size, before = self._like(rise.n_after, begun)
        if len(before) < FEW:
            return True
        n = len(before)
        mean = sum(s.error for s in before) / n
        spread = sum((s.error - mean) ** 2 for s in before) / (n - 1)
        p = max(mean, 1.0 / (size * n + 2.0))
        chance = p * (1.0 - p)
        # Ratio of the variance to that of independent rows, reduced by its standard error.
        beyond = spread / (chance / size) / (1.0 + math.sqrt(2.0 / (n - 1)))
        variance = chance / rise.n_after
        if beyond > 1.0:
            variance = chance * beyond / size * max(size / rise.n_after, 1.0)
        usual = mean * self._harder(before, begun)
        highest = max(s.error for s in before)
        return rise.after >= max(usual + DEVIATIONS * math.sqrt(variance), highest)

    def _like(self, rows: int, begun: int) -> tuple[int, list[_Stretch]]:
        """Return the stretch length closest to ``rows``, and its stretches before ``begun``."""
        scale = min(max(int(math.log2(max(rows, 1) / STRETCH)), 0), SCALES - 1)
        while True:
            similar = _learned([s for s in self._kept[scale] if s.end <= begun], STRETCH << scale)
            if len(similar) >= ENOUGH or scale == 0:
                return STRETCH << scale, similar
            scale -= 1

    def _harder(self, before: list[_Stretch], begun: int) -> float:
        """Return the ratio of the no-change baseline's errors since ``begun``, at least 1."""
        after = [s for s in self._kept[0] if s.end - STRETCH // 2 > begun]
        total = sum(s.rule * STRETCH for s in after) + self._rule
        n = STRETCH * len(after) + self._n
        usual = sum(s.rule for s in before) / len(before)
        if n < 1 or usual <= 0.0:
            return 1.0
        return max(total / n / usual, 1.0)


def _learned(before: list[_Stretch], size: int) -> list[_Stretch]:
    """Drop the stream's first stretches if they are higher than all of the later half.

    The model was still learning then, so they say nothing about later fluctuations.
    """
    if len(before) < 2 * ENOUGH or before[0].end > size:
        return before
    highest = max(s.error for s in before[len(before) // 2 :])
    return before[next(i for i, s in enumerate(before) if s.error <= highest) :]
