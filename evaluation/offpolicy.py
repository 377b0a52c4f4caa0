"""Off-policy evaluation: estimates the value of one policy from the log of another.

A row of the log is a choice: the reward of the chosen action, and for each action its probability
under the served (logged) and the evaluated (target) policy, and a model's expected reward q at the
time of the choice.  With w = target / logged probability of the chosen action:

====== ================================================== =========================================
ips    mean of w · r                                      Horvitz and Thompson 1952
snips  Σ w · r / Σ w                                      Swaminathan and Joachims 2015
dr     mean of w · (r − q(a)) + Σ_b target(b) · q(b)      Dudík, Langford and Li 2011
====== ================================================== =========================================

The interval covers the running mean of the target policy's value, (1/t) Σ E[its reward | the past],
at all rows at once with probability 1 − alpha, whatever the weights are.  It is based on the doubly
robust pseudo-outcomes of Waudby-Smith, Wu, Ramdas, Karampatziakis and Mineiro, *Anytime-valid
off-policy inference for contextual bandits* (arXiv:2210.10768).  q is clipped,
q'(b) = min(q(b), K · logged(b) / target(b)), so that no pseudo-outcome is below −K, and

    ξ = (w · (r − q'(a)) + Σ_b target(b) · q'(b)) / (K + 1),   V = Σ (ξ_i − m_{i−1})²,

where m_{i−1} is the mean before, at most 1 / (K + 1).  Then ξ_i − m_{i−1} ≥ −1, and no upper bound
is needed: Σ ξ exceeds the covered sum by at most u(V) (sub-exponential with c = 1, Howard et al.
2021, *Time-uniform, nonparametric, nonasymptotic confidence sequences*, equation 10, as in
:mod:`evaluation.comparison`), with half of alpha for each side.  The upper limit is the lower one
for 1 − r.  The guarantee does not hold for a policy that learned from the same log.
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
"""Number of standard errors by which the mean weight may differ from 1."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """The estimated value of the target policy after ``n`` rows, in the unit of the reward.

    Attributes:
        ips, snips, dr: The estimates, see the module; None before the first row, and snips if all
            weights are 0.
        interval: Covers at this and all other numbers of rows.
        effective: Effective sample size of the weights, (Σ w)² / Σ w².
        warnings: Reasons not to rely on the estimates; empty if there are none.
    """

    n: int
    ips: float | None
    snips: float | None
    dr: float | None
    interval: Interval | None
    effective: float
    warnings: tuple[str, ...]


class OffPolicy:
    """Additive counters for one target policy.

    Parameters:
        alpha: Probability that the interval ever misses, in (0, 1).
        low, high: Least and greatest reward.
        exploring: How the log would have more of the target policy's actions, for a warning.
    """

    def __init__(
        self,
        alpha: float = 0.05,
        low: float = 0.0,
        high: float = 1.0,
        exploring: str = "give the served policy a floor",
    ) -> None:
        if not 0 < alpha < 1:
            raise ValueError(f"alpha is in (0, 1), got {alpha!r}")
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"low is below high and both are finite, got {low!r} and {high!r}")
        self._alpha, self._low, self._range = alpha, low, high - low
        self._exploring = exploring
        names = (
            "n", "w", "ww", "spread", "wr", "dr", "low", "low_squares", "high", "high_squares",
            "lost",
        )  # fmt: skip
        self.counters: dict[str, float] = dict.fromkeys(names, 0.0)

    def add(
        self,
        reward: float,
        chosen: int,
        logged: Sequence[float],
        target: Sequence[float],
        expected: Sequence[float] | None = None,
    ) -> dict[str, float]:
        """Add a row of the log; return the increments of the counters.

        Parameters:
            reward: Reward of the chosen action.
            chosen: Index of the chosen action.
            logged, target: Probability of each action under the served and the target policy.
            expected: Expected reward of each action, known before this reward; None: unknown.

        Raises ValueError for a reward out of range, or invalid probabilities.
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
        both = [*zip(target, logged, strict=True)]
        more["lost"] = sum(t for t, p in both if p <= 0.0)
        more["spread"] = sum(t * t / p for t, p in both if p > 0.0) - (1.0 - more["lost"]) ** 2
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
        """Add the counters of other rows with the same range of rewards."""
        for name in self.counters:
            self.counters[name] += counters.get(name, 0.0)

    def now(self) -> Estimated:
        """Return the present estimates for the target policy."""
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
        n, warnings = c["n"], []
        if effective < EFFECTIVE_MIN:
            warnings.append(
                f"the weights are worth {effective:.0f} rows; {EFFECTIVE_MIN:.0f} are needed: "
                "log more rows, or judge a policy nearer to the one served"
            )
        if c["lost"] > SHARE_MIN * n:
            warnings.append(
                f"{c['lost'] / n:.1%} of its choices are never served, so nothing is known of "
                f"them: {self._exploring}"
            )
        if effective < EFFECTIVE_MIN:  # too few rows to test the mean weight
            return tuple(warnings)
        mean = c["w"] / n
        error = math.sqrt(max(c["spread"], 0.0)) / n  # not the sample's: it may lack rare actions
        if abs(mean + c["lost"] / n - 1.0) > WEIGHT_OFF * error + 1e-6:
            warnings.append(
                f"the weights have a mean of {mean:.3f}, not 1: the logged probabilities are not "
                "those that were drawn from"
            )
        return tuple(warnings)


def _mean(target: Sequence[float], expected: Sequence[float]) -> float:
    return sum(t * x for t, x in zip(target, expected, strict=True))
