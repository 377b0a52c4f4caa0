"""Two models on the same rows: which one is better, looked at whenever one likes.

An interval that is right at one fixed number of rows is wrong somewhere on the way much more
often: who looks at every row and stops at the first difference finds one between equal models in
half of all cases.  A confidence sequence covers at *all* rows at once with its probability, so it
may be looked at, and acted on, at any time.

What is covered is the running mean of the differences' expectations, each given the past:
(1/t) Σ E[d_i | what was known before d_i], d_i the score of A on a row minus that of B.  So no
stationarity is assumed: under drift it is the average advantage so far, not a constant (Choe and
Ramdas, *Comparing sequential forecasters*, arXiv:2110.00115, theorem 2).  The bound is the
empirical Bernstein one with polynomial stitching (Howard et al. 2021, *Time-uniform,
nonparametric, nonasymptotic confidence sequences*, equation 10), for differences within c / 2::

    |mean of d − what is covered| ≤ u(V) / t,   V = Σ (d_i − m_{i−1})²,
    u(v) = √(k1² v l + (k2 c l)²) + k2 c l,     l(v) = 1.4 ln ln(2v) + ln(3.1055 / (a ln(2)^1.4)),
    k1 = (2^¼ + 2^−¼) / √2,  k2 = (√2 + 1) / 2,  v ≥ 1,  a = half of alpha: one for each side,

m_{i−1} the mean of the differences before.  Rows, their sum and V are counters that add up: a
replica centres on the mean that it knows before the row, its own or with others' rows that were
merged, and the theorem asks no more.

Rows whose labels come late are compared in the order in which the labels come; what is covered is
then given the labels that came before, not those known when the row was asked.
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
_ZETA: Final = 3.1055  # of _S
_K1: Final = (_ETA**0.25 + _ETA**-0.25) / math.sqrt(2.0)
_K2: Final = (math.sqrt(_ETA) + 1.0) / 2.0
_LOG_ETA: Final = math.log(_ETA)


@dataclass(frozen=True, slots=True)
class Compared:
    """A − B after ``n`` rows.

    Attributes:
        mean: Mean difference of the scores; None before the first row.
        interval: Covers at this and all other numbers of rows with probability 1 − alpha; cut to
            what is possible.
        better: The one that is better on the average so far; None: not decided.
        lacking: Why it is not enough to judge by; empty if it is.
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
        bound: Differences are in [−bound, bound]; 1 for right and wrong and for Brier scores of
            binary tasks.  A loss without a bound has to be cut first.
    """

    def __init__(self, alpha: float = 0.05, bound: float = 1.0) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is in (0, 1), got {alpha!r}")
        if not (bound > 0 and math.isfinite(bound)):
            raise ValueError(f"bound is above 0 and finite, got {bound!r}")
        self._alpha, self._bound = alpha, bound
        self.counters: dict[str, float] = {"pairs": 0, "sum": 0.0, "squares": 0.0}

    def add(self, a: float, b: float) -> dict[str, float]:
        """The scores of a row, more is better; returns what they add to the counters.

        Raises ValueError if they differ by more than the bound, or are no numbers.
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
        """Return what can be said of the two models now."""
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
    """u(V) of the module's formula, with alpha / 2 a side.

    ``scale``: c, which is 2 for differences in [−1, 1].
    """
    v = max(squares, 1.0)
    level = _S * math.log(math.log(_ETA * v)) + math.log(_ZETA / (alpha / 2.0 * _LOG_ETA**_S))
    linear = _K2 * scale * level
    return math.sqrt(_K1 * _K1 * v * level + linear * linear) + linear
