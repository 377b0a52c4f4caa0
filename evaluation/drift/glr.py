"""A generalised likelihood ratio test for a change of the mean, with bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from evaluation.drift.alarm import Change, change, share, within

ROWS_MIN: Final = 16
"""Least number of rows on each side of a split."""
SCALE: Final = 100.0
"""Effective rows of a split for which the threshold is the one in the settings."""
EASIER_MAX: Final = 3.0
"""Greatest reduction of the threshold for longer splits, in nats."""


class Glr:
    """Two-sided likelihood ratio test for one change of a Bernoulli mean, at every split.

    After each block, the rows since the last change are split at every border between blocks into
    an older part of ``n0`` rows with mean ``p0`` and a newer one of ``n1`` rows with mean ``p1``;
    ``p`` is the mean of all.  The statistic is the maximum of ``n0 kl(p0, p) + n1 kl(p1, p)``,
    where kl is the Kullback-Leibler divergence of Bernoulli distributions (Lai & Xing 2010; Besson
    et al. 2022, *Efficient change-point detection for tackling piecewise-stationary bandits*).  For
    values other than 0 and 1 it is conservative, because no variable in [0, 1] with the same mean
    has a larger variance.

    Deviations: the threshold does not grow with the length of the stream, so it bounds the rate of
    false alarms instead of their probability.  It falls with the logarithm of the split's effective
    rows ``m = n0 n1 / n``: a stream has half as many independent splits of twice the length, so
    each length gets an equal share of the false alarms, and slow changes are found earlier (as
    Dümbgen & Spokoiny 2001 calibrate scales).  Blocks double in size with age, as ADWIN's buckets
    do (Bifet & Gavaldà 2007), so memory and time of a test grow with the logarithm of the number of
    rows.

    Parameters:
        threshold: Threshold of the statistic at ``SCALE`` effective rows, in nats, ≥ 4.  Raising it
            by 1 makes false alarms about three times as rare and delays detection by about 1 / kl
            rows.
        block: Rows of the smallest block, and between two tests; ≥ 1.
        width: Greatest number of blocks of one size; ≥ 1.  More give finer splits, slower tests.
        rows_max: Greatest number of rows that are remembered; then the oldest block is dropped.
    """

    def __init__(
        self, *, threshold: float = 10.75, block: int = 8, width: int = 4, rows_max: int = 1 << 20
    ) -> None:
        within("threshold", threshold, EASIER_MAX + 1.0, 1_000.0)
        within("block", block, 1, 1_000)
        within("width", width, 1, 1_000)
        within("rows_max", rows_max, 1_000, 1e12)
        self._threshold, self._block = threshold, block
        self._width, self._rows_max = width, rows_max
        self._ns: list[int] = []  # the oldest block first
        self._sums: list[float] = []
        self._n, self._sum = 0, 0.0  # of the whole blocks
        self._open_n, self._open_sum = 0, 0.0

    def update(self, x: float) -> Change | None:
        """Add one number in [0, 1]; return the change if this row reveals one."""
        self._open_sum += share(x)
        self._open_n += 1
        if self._open_n < self._block:
            return None
        self._close()
        at = self._split()
        return None if at is None else self._cut(at)

    def update_all(self, xs: Sequence[float]) -> list[tuple[int, Change]]:
        """Add numbers in [0, 1] without checking them; return index and change of each finding."""
        changes, start = [], 0
        while start < len(xs):
            some = xs[start : start + self._block - self._open_n]
            start += len(some)
            for x in some:
                self._open_sum += x
            self._open_n += len(some)
            if self._open_n == self._block:
                self._close()
                if (at := self._split()) is not None:
                    changes.append((start - 1, self._cut(at)))
        return changes

    def _close(self) -> None:
        """Close the open block; if there are too many of one size, merge the two oldest."""
        ns, sums = self._ns, self._sums
        ns.append(self._open_n)
        sums.append(self._open_sum)
        self._n += self._open_n
        self._sum += self._open_sum
        self._open_n, self._open_sum = 0, 0.0
        last, size = len(ns) - 1, self._block
        while True:
            first = last
            while first >= 0 and ns[first] == size:
                first -= 1
            if last - first <= self._width:
                break
            ns[first + 1] += ns.pop(first + 2)
            sums[first + 1] += sums.pop(first + 2)
            last, size = first + 1, size * 2
        if self._n > self._rows_max and len(ns) > 1:
            self._n -= ns.pop(0)
            self._sum -= sums.pop(0)

    def _split(self) -> int | None:
        """Return the first newer block at the best split if one exceeds its threshold, or None."""
        n, total = self._n, self._sum
        p = min(max(total / n, 0.0), 1.0)
        # kl(q, p) <= (q - p)^2 / (p (1 - p)), so a gap below this cannot reach any threshold.
        least = (self._threshold - EASIER_MAX) * p * (1.0 - p) * n
        best, at, alarm = 0.0, None, False
        n1, sum1 = 0, 0.0
        ns, sums = self._ns, self._sums
        for i in range(len(ns) - 1, 0, -1):
            n1 += ns[i]
            sum1 += sums[i]
            n0 = n - n1
            if n0 < ROWS_MIN:
                break
            gap = sum1 / n1 - (total - sum1) / n0
            if n1 < ROWS_MIN or gap * gap * n0 * n1 < least or gap == 0.0:
                continue
            statistic = n1 * _kl(sum1 / n1, p) + n0 * _kl((total - sum1) / n0, p)
            easier = min(math.log(n0 * n1 / n / SCALE), EASIER_MAX)
            alarm = alarm or statistic > self._threshold - easier
            if statistic > best:
                best, at = statistic, i
        return at if alarm else None

    def _cut(self, at: int) -> Change:
        """Drop the blocks before the change, and return the change."""
        n0, sum0 = sum(self._ns[:at]), sum(self._sums[:at])
        del self._ns[:at], self._sums[:at]
        self._n, self._sum = sum(self._ns), sum(self._sums)
        return change(sum0, n0, self._sum, self._n)


def _kl(q: float, p: float) -> float:
    """Return the KL divergence of Bernoulli(q) from Bernoulli(p), 0 < p < 1, in nats."""
    total = 0.0
    if q > 0.0:
        total += q * math.log(q / p)
    if q < 1.0:
        total += (1.0 - q) * math.log((1.0 - q) / (1.0 - p))
    return total
