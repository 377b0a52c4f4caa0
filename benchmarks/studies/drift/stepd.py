"""The STEPD drift detector: compares the error rate of the newest rows with all earlier ones."""

from __future__ import annotations

from collections import deque
from statistics import NormalDist

from evaluation.drift.alarm import Change, change, share, within


class Stepd:
    """Nishida & Yamauchi 2007, *Detecting concept drift using statistical testing*.

    The last ``window`` rows are compared with all rows since the last alarm before them, by the
    two-sided test of equal proportions with continuity correction (their eq. 1):
    ``z = (|p0 - p1| - m/2) / sqrt(p (1 - p) m)`` with ``m = 1/n0 + 1/n1``.  It restarts after an
    alarm.  There is one test per row without correction for multiple tests, so false alarms are
    frequent.

    Deviations: the paper's setting of 30 rows and 0.003 gives ten alarms in 1,000 rows (KDD'26
    benchmark, arXiv:2606.07789), so the defaults are those that the benchmark tuned for
    Electricity; a fall of the errors is reported as well, with its direction.

    Parameters:
        window: Number of newest rows, ≥ 8; the first test needs as many older ones.
        alpha: Significance level, up to 0.5.
    """

    def __init__(self, *, window: int = 100, alpha: float = 0.001) -> None:
        within("window", window, 8, 1_000_000)
        within("alpha", alpha, 1e-12, 0.5)
        self._window = window
        self._z = NormalDist().inv_cdf(1.0 - alpha / 2.0)
        self._begin()

    def _begin(self) -> None:
        self._recent: deque[float] = deque()
        self._recent_sum = 0.0
        self._n, self._sum = 0, 0.0  # of the older rows

    def update(self, x: float) -> Change | None:
        """Add one number in [0, 1]; return the change if this row reveals one."""
        x = share(x)
        recent, n1 = self._recent, self._window
        recent.append(x)
        self._recent_sum += x
        if len(recent) <= n1:
            return None
        oldest = recent.popleft()
        self._recent_sum -= oldest
        self._sum += oldest
        self._n += 1
        if self._n < n1:
            return None
        n0, sum0, sum1 = self._n, self._sum, self._recent_sum
        p, m = (sum0 + sum1) / (n0 + n1), 1.0 / n0 + 1.0 / n1
        gap = abs(sum0 / n0 - sum1 / n1) - m / 2.0
        if gap <= 0.0 or gap * gap <= self._z * self._z * p * (1.0 - p) * m:
            return None
        self._begin()
        return change(sum0, n0, sum1, n1)
