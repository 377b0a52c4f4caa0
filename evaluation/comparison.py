"""Compares two models on the same rows by a confidence sequence, valid at any number of rows.

A confidence interval for one fixed number of rows misses at some earlier number much more often:
testing after every row and stopping at the first difference finds one between equal models in half
of all cases.  A confidence sequence covers at *all* numbers of rows at once with its probability,
so it may be inspected, and acted on, at any time.

It covers the running mean of the conditional expectations of the differences,
(1/t) Σ E[d_i | the past before d_i], where d_i is the score of A on a row minus that of B.  So no
stationarity is assumed: under drift this is the average advantage so far, not a constant (Choe and
Ramdas, *Comparing sequential forecasters*, arXiv:2110.00115, theorem 2).  The bound is the
empirical Bernstein bound with polynomial stitching (Howard et al. 2021, *Time-uniform,
nonparametric, nonasymptotic confidence sequences*, equation 10), for differences within c / 2::

    |mean of d − covered mean| ≤ u(V) / t,   V = Σ (d_i − m_{i−1})²,
    u(v) = √(k1² v l + (k2 c l)²) + k2 c l,     l(v) = 1.4 ln ln(2v) + ln(3.1055 / (a ln(2)^1.4)),
    k1 = (2^¼ + 2^−¼) / √2,  k2 = (√2 + 1) / 2,  v ≥ 1,  a = alpha / 2 for each side,

where m_{i−1} is the mean of the differences before.  The number of rows, their sum and V are
counters that add up over replicas: each replica centres on the mean that it knows before the row,
from its own or merged rows, which is all that the theorem requires.

Rows with delayed labels are compared in the order in which the labels come.  The expectations are
then conditional on the labels that came before, not on those known at the time of the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from evaluation.summary import ROWS_MIN, Interval

Better = Literal["a", "b"]

_ETA: Final = 2.0
_S: Final = 1.4
_ZETA: Final = 3.1055  # Riemann zeta function at _S
_K1: Final = (_ETA**0.25 + _ETA**-0.25) / math.sqrt(2.0)
_K2: Final = (math.sqrt(_ETA) + 1.0) / 2.0
_LOG_ETA: Final = math.log(_ETA)


@dataclass(frozen=True, slots=True)
class Compared:
    """The result of comparing A with B on ``n`` rows.

    Attributes:
        mean: Mean of score A − score B; None before the first row.
        interval: Covers at this and all other numbers of rows with probability 1 − alpha; clipped
            to possible values.
        better: The model that is better on average so far; None: undecided.
        lacking: Reasons why the data do not suffice; empty if they do.
    """

    n: int
    mean: float | None
    interval: Interval | None
    better: Better | None
    lacking: tuple[str, ...]


class Comparison:
    """Differences of two models' scores on the same rows.

    Parameters:
        alpha: Probability that the interval ever misses, in (0, 1).
        bound: Differences are in [−bound, bound]; 1 for 0/1 scores and for Brier scores of binary
            tasks.  Unbounded losses have to be clipped first.
    """

    def __init__(self, alpha: float = 0.05, bound: float = 1.0) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is in (0, 1), got {alpha!r}")
        if not (bound > 0 and math.isfinite(bound)):
            raise ValueError(f"bound is above 0 and finite, got {bound!r}")
        self._alpha, self._bound = alpha, bound
        self.counters: dict[str, float] = {"pairs": 0, "sum": 0.0, "squares": 0.0}

    def add(self, a: float, b: float) -> dict[str, float]:
        """Add the two scores of a row (higher is better); return the increments of the counters.

        Raises ValueError if they differ by more than the bound, or are NaN.
        """
        d = (a - b) / self._bound
        if not -1.0 <= d <= 1.0:
            raise ValueError(f"scores {a!r} and {b!r} differ by more than {self._bound}")
        n = self.counters["pairs"]
        gap = d - self.counters["sum"] / n if n else d
        more = {"pairs": 1, "sum": d, "squares": gap * gap}
        self.merge(more)
        return more

    def merge(self, counters: Mapping[str, float]) -> None:
        """Add the counters of other rows, compared with the same bound."""
        for name in self.counters:
            self.counters[name] += counters.get(name, 0)

    def now(self) -> Compared:
        """Return the present result of the comparison."""
        n = int(self.counters["pairs"])
        if not n:
            return Compared(0, None, None, None, ("no row was compared",))
        mean = self.counters["sum"] / n
        reach = radius(self.counters["squares"], self._alpha) / n
        low, high = max(mean - reach, -1.0), min(mean + reach, 1.0)
        better: Better | None = "a" if low > 0 else "b" if high < 0 else None
        lacking = (f"{n} rows, a comparison needs {ROWS_MIN}",) if n < ROWS_MIN else ()
        scale = self._bound
        return Compared(n, mean * scale, Interval(low * scale, high * scale), better, lacking)


def radius(squares: float, alpha: float, scale: float = 2.0) -> float:
    """Return u(V) of the module's formula, with alpha / 2 for each side.

    Parameters:
        scale: c in the formula, 2 for differences in [−1, 1].
    """
    v = max(squares, 1.0)
    level = _S * math.log(math.log(_ETA * v)) + math.log(_ZETA / (alpha / 2.0 * _LOG_ETA**_S))
    linear = _K2 * scale * level
    return math.sqrt(_K1 * _K1 * v * level + linear * linear) + linear
