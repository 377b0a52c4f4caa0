"""Values of a policy that was not the one served, from the log of the one that was.

A row of the log is a choice: the reward of the chosen action, and for each action the probability
with which it was served and with which the judged policy would have chosen it, and what a model
expected of it when it was asked.  With w = target / logged probability of the chosen action:

====== ================================================== =========================================
ips    mean of w · r                                      Horvitz and Thompson 1952
snips  Σ w · r / Σ w                                      Swaminathan and Joachims 2015
dr     mean of w · (r − q(a)) + Σ_b target(b) · q(b)      Dudík, Langford and Li 2011
====== ================================================== =========================================

The interval covers the running mean of the judged policy's value, (1/t) Σ E[reward had it chosen |
what was known before], at all rows at once with probability 1 − alpha, whatever the weights are.
It is built on the doubly robust pseudo-outcomes of Waudby-Smith, Wu, Ramdas, Karampatziakis and
Mineiro, *Anytime-valid off-policy inference for contextual bandits* (arXiv:2210.10768): q is cut,
q'(b) = min(q(b), K · logged(b) / target(b)), so that no pseudo-outcome is below −K, and

    ξ = (w · (r − q'(a)) + Σ_b target(b) · q'(b)) / (K + 1),   V = Σ (ξ_i − m_{i−1})²,

m_{i−1} the mean before, at most 1 / (K + 1).  Then ξ_i − m_{i−1} ≥ −1, and no bound above is
needed: Σ ξ is at most u(V) above what is covered (sub-exponential with c = 1, Howard et al. 2021,
*Time-uniform, nonparametric, nonasymptotic confidence sequences*, equation 10, as in
:mod:`evaluation.comparison`), each side with half of alpha.  The upper side is the lower one of
1 − r.  A policy that learned from the log that judges it is not covered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from evaluation.comparison import radius
from evaluation.summary import Interval

CUT: Final = 1.0
"""K of the module's formula."""

EFFECTIVE_MIN: Final = 100.0
SHARE_MIN: Final = 0.01
WEIGHT_OFF: Final = 5.0
"""Standard errors by which the mean weight may miss 1."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """The judged policy's value after ``n`` rows, in the unit of the reward.

    Attributes:
        ips, snips, dr: See the module; None before the first row, and snips without any weight.
        interval: Covers at this and all other numbers of rows.
        effective: Rows that the weights are worth: (Σ w)² / Σ w².
        warnings: Why it is not to be relied on; empty if nothing speaks against it.
    """

    n: int
    ips: float | None
    snips: float | None
    dr: float | None
    interval: Interval | None
    effective: float
    warnings: tuple[str, ...]


class OffPolicy:
    """Counters of one judged policy, which add up.

    Parameters:
        alpha: Probability that the interval ever misses, in (0, 1).
        low, high: Least and greatest reward.
    """

    def __init__(self, alpha: float = 0.05, low: float = 0.0, high: float = 1.0) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is in (0, 1), got {alpha!r}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low is below high and both are finite, got {low!r} and {high!r}")
        self._alpha, self._low, self._range = alpha, low, high - low
        names = ("n", "w", "ww", "wr", "dr", "low", "low_squares", "high", "high_squares", "lost")
        self.counters: dict[str, float] = dict.fromkeys(names, 0.0)

    def add(
        self,
        reward: float,
        chosen: int,
        logged: Sequence[float],
        target: Sequence[float],
        expected: Sequence[float] | None = None,
    ) -> dict[str, float]:
        """Count a row of the log; returns what it adds to the counters.

        ``expected`` are rewards in their own unit, known before this one; None: nothing is known.
        Raises ValueError for a reward out of its range, or probabilities that are none.
        """
        r = (reward - self._low) / self._range
        if not 0.0 <= r <= 1.0:
            bounds = f"[{self._low!r}, {self._low + self._range!r}]"
            raise ValueError(f"reward is in {bounds}, got {reward!r}")
        if not (len(logged) == len(target) and 0 <= chosen < len(logged)):
            raise ValueError("logged and target have a probability for each action")
        if not 0.0 < logged[chosen] <= 1.0 or not all(0.0 <= p <= 1.0 for p in (*logged, *target)):
            raise ValueError(
                f"probabilities are in [0, 1], and the chosen one's is above 0: {logged}"
            )
        w = target[chosen] / logged[chosen]
        q = [0.0] * len(logged)
        if expected is not None:
            q = [min(max((x - self._low) / self._range, 0.0), 1.0) for x in expected]
        more = {"n": 1.0, "w": w, "ww": w * w, "wr": w * r}
        more["dr"] = w * (r - q[chosen]) + _mean(target, q)
        more["lost"] = sum(t for t, p in zip(target, logged, strict=True) if p <= 0.0)
        upper = q if expected is None else [1.0 - x for x in q]
        for side, y, of in (("low", r, q), ("high", 1.0 - r, upper)):
            cut = [
                x if t <= 0.0 else min(x, CUT * p / t)
                for x, t, p in zip(of, target, logged, strict=True)
            ]
            xi = (w * (y - cut[chosen]) + _mean(target, cut)) / (CUT + 1.0)
            n = self.counters["n"]
            before = min(self.counters[side] / n if n else 0.0, 1.0 / (CUT + 1.0))
            more[side], more[f"{side}_squares"] = xi, (xi - before) ** 2
        self.merge(more)
        return more

    def merge(self, counters: Mapping[str, float]) -> None:
        """Add the counters of other rows, judged with the same range."""
        for name in self.counters:
            self.counters[name] += counters.get(name, 0.0)

    def now(self) -> Estimated:
        """Return what can be said of the judged policy now."""
        c = self.counters
        n = int(c["n"])
        if not n:
            return Estimated(0, None, None, None, None, 0.0, ("no row was judged",))
        sides = [
            (CUT + 1.0) * (c[side] - radius(c[f"{side}_squares"], self._alpha, scale=1.0)) / n
            for side in ("low", "high")
        ]
        least, most = max(sides[0], 0.0), min(1.0 - sides[1], 1.0)
        effective = c["w"] ** 2 / c["ww"] if c["ww"] > 0.0 else 0.0
        return Estimated(
            n,
            self._own(c["wr"] / n),
            self._own(c["wr"] / c["w"]) if c["w"] > 0.0 else None,
            self._own(c["dr"] / n),
            Interval(self._own(min(least, 1.0)), self._own(max(most, 0.0))),
            effective,
            self._warnings(effective),
        )

    def _own(self, share: float) -> float:
        return self._low + self._range * share

    def _warnings(self, effective: float) -> tuple[str, ...]:
        c = self.counters
        n, found = c["n"], []
        if effective < EFFECTIVE_MIN:
            found.append(
                f"the weights are worth {effective:.0f} rows; {EFFECTIVE_MIN:.0f} are needed: "
                "log more rows, or judge a policy nearer to the one served"
            )
        if c["lost"] > SHARE_MIN * n:
            found.append(
                f"{c['lost'] / n:.1%} of its choices are never served: give the served policy a "
                "floor, for nothing is known of them"
            )
        if effective < EFFECTIVE_MIN:  # how far the mean weight may be off is not known yet
            return tuple(found)
        mean = c["w"] / n
        error = math.sqrt(max(c["ww"] / n - mean * mean, 0.0) / n)
        if abs(mean + c["lost"] / n - 1.0) > WEIGHT_OFF * error + 1e-6:
            found.append(
                f"the weights have a mean of {mean:.3f}, not 1: the logged probabilities are not "
                "those that were drawn from"
            )
        return tuple(found)


def _mean(target: Sequence[float], expected: Sequence[float]) -> float:
    return sum(t * x for t, x in zip(target, expected, strict=True))
