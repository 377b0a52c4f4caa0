"""Generalised likelihood ratio of one change in a stream of shares, over bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from evaluation.drift.alarm import Change, change, share, within

ROWS_MIN: Final = 16
"""Least rows on each side of a split."""
SCALE: Final = 100.0
"""Effective rows of a split at which the threshold is the one that was set."""
EASIER_MAX: Final = 3.0
"""Most nats that a split of more rows is let off."""


class Glr:
    """Two-sided likelihood ratio test for one change of a Bernoulli mean, at every split.

    After each block the rows since the last change are split at every block's border into an older
    part of ``n0`` rows with mean ``p0`` and a newer one of ``n1`` rows with mean ``p1``; ``p`` is
    the mean of all.  The statistic is the largest ``n0 kl(p0, p) + n1 kl(p1, p)``, kl being the
    Kullback-Leibler divergence of two Bernoulli laws (Lai & Xing 2010; Besson et al. 2022,
    *Efficient change-point detection for tackling piecewise-stationary bandits*).  For other
    shares than 0 and 1 it is conservative, as no variable in [0, 1] spreads more.

    Deviations: the threshold does not grow with the length of the stream, which bounds the rate of
    false alarms instead of their probability.  It falls with the logarithm of the split's effective
    rows ``m = n0 n1 / n``: of splits twice as long there are half as many independent ones in a
    stream, so each length has its share of the false alarms, and slow changes are found sooner (as
    Dümbgen & Spokoiny 2001 calibrate scales).  Blocks double in size with their age, as ADWIN's
    buckets do (Bifet & Gavaldà 2007), so memory and time of a test grow with the logarithm of the
    number of rows.

    Parameters:
        threshold: Of the statistic at ``SCALE`` effective rows, in nats, from 4 on.  One more makes
            false alarms about three times as rare and a detection about 1 / kl rows later.
        block: Rows of the smallest block, and between two tests; ≥ 1.
        width: Most blocks of one size; ≥ 1.  More give finer splits and slower tests.
        rows_max: Rows that are remembered at most; the oldest block is left out beyond.
    """

    def __init__(
        self,
        *,
        threshold: float = 10.75,
        block: int = 8,
        width: int = 4,
        rows_max: int = 1 << 20,
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
        """Take one share in [0, 1]; the change, if this row shows one."""
        self._open_sum += share(x)
        self._open_n += 1
        if self._open_n < self._block:
            return None
        self._close()
        at = self._split()
        return None if at is None else self._cut(at)

    def update_all(self, xs: Sequence[float]) -> list[tuple[int, Change]]:
        """Take shares one after the other, none of which is looked at: places and changes."""
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
        """The open block becomes the newest one; of too many of a size the oldest two merge."""
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
        """First block of the newer part at the most likely split, if one is above its threshold."""
        n, total = self._n, self._sum
        p = min(max(total / n, 0.0), 1.0)
        # kl(q, p) <= (q - p)^2 / (p (1 - p)): below this the statistic can't reach any threshold.
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
            found = n1 * _kl(sum1 / n1, p) + n0 * _kl((total - sum1) / n0, p)
            easier = min(math.log(n0 * n1 / n / SCALE), EASIER_MAX)
            alarm = alarm or found > self._threshold - easier
            if found > best:
                best, at = found, i
        return at if alarm else None

    def _cut(self, at: int) -> Change:
        """Forget what is older than the change."""
        n0, sum0 = sum(self._ns[:at]), sum(self._sums[:at])
        del self._ns[:at], self._sums[:at]
        self._n, self._sum = sum(self._ns), sum(self._sums)
        return change(sum0, n0, self._sum, self._n)


def _kl(q: float, p: float) -> float:
    """Return the KL divergence of Bernoulli(q) from Bernoulli(p), 0 < p < 1, in nats."""
    found = 0.0
    if q > 0.0:
        found += q * math.log(q / p)
    if q < 1.0:
        found += (1.0 - q) * math.log((1.0 - q) / (1.0 - p))
    return found
