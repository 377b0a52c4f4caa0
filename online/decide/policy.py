"""Policies: each makes an explicit distribution over the allowed actions, from which one is drawn.

A policy is an immutable value made from settings.  It has no state: its inputs are the scores, and
what is learned about policies is in the blocks of the model that made the scores.
"""

from __future__ import annotations

import hmac
import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from online.models.choices.action_counts import Counted
from online.models.choices.scores import Scores
from online.models.experts.linear import Floats
from paramserver.core.tables.pages import Floats32

Chosen = slice | npt.NDArray[np.intp]
"""Indices of the allowed actions."""

Kind = Literal["auto", "greedy", "epsilon", "softmax", "squarecb", "confidence", "thompson"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_STEP: Final = 0.5
"""Spacing of the grid in standard deviations of the narrowest action, with at most 128 steps."""

_STEPS_OF: Final = 16
_GRIDS: Final = tuple(
    np.linspace(0.0, 1.0, n + 1, dtype=np.float32) for n in range(_STEPS_OF, 129, _STEPS_OF)
)
_ONE, _HALF, _HALVED = np.float32(1.0), np.float32(0.5), np.float32(-0.5)
_TAIL: Final[Floats32] = (
    np.array([1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530])
    * 0.3989422804014327
).astype(np.float32)
_STEPS: Final[Floats] = np.arange(6.0)
_UNTIL: Final[Floats] = np.arange(7.0)
_SERIES: Final[Floats] = np.array([1.0, 1 / 2, 1 / 6, 0.0, -1 / 30, 0.0, 1 / 42])

WIDTHS: Final = (0.1, 0.3, 1.0)
"""Factors of the standard deviation, one for each candidate policy of ``auto``."""

_WIDTHS: Final[Floats] = np.array(WIDTHS)[:, None]
_NAMES: Final = tuple(f"{width:g}" for width in WIDTHS)

HOPE: Final = 0.75
"""Standard deviations added to each action's mean, in ``auto`` without a context (optimism)."""

HOPED: Final = 0.4
"""Factor of the standard deviation around that mean, which makes the choice random."""

FIRST: Final = 50.0
"""Most pseudo-rewards of an action's prior."""

ETA: Final = 1.0
_UNSURE: Final = 1e-12
_TIE: Final = 1e-9  # expected rewards that differ by less are equal
_DECIMALS: Final = 5  # of probabilities that are compared
_EACH: Chosen = slice(None)
CHANGED: Final = 2.0
"""Standard deviations by which discounted rewards must differ before they alone are used."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How an action is chosen from the expected rewards.

    Attributes:
        kind: Name of the rule, one of :data:`KINDS`.
        epsilon: For ``epsilon``: probability of a uniform choice.
        temperature: For ``softmax``: difference of rewards, as a share of their range, that makes
            an action e times less likely.
        gamma: For ``squarecb``: the greater, the greedier; it is multiplied by the square root of
            the number of rewards.
        width: For ``confidence`` and ``thompson``: factor of the standard deviation.
        floor: Least probability of each allowed action, bounded by 1 / their number.
        budget: Greatest probability of all actions except the best one together; ``floor`` has
            precedence.
    """

    kind: Kind = "auto"
    epsilon: float = 0.05
    temperature: float = 0.05
    gamma: float = 10.0
    width: float = 1.0
    floor: float = 0.0
    budget: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is one of {', '.join(KINDS)}, got {self.kind!r}")
        for name in ("epsilon", "floor", "budget"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is in [0, 1], got {getattr(self, name)!r}")
        for name in ("temperature", "gamma", "width"):
            if not 0.0 < getattr(self, name) < 1e9:
                raise ValueError(f"{name} is in (0, 1e9), got {getattr(self, name)!r}")

    def decide(self, scores: Scores, allowed: Sequence[bool] | None = None) -> Decision:
        """Compute the distribution over the actions, with 0 for those that are not allowed.

        Raises ValueError if none is allowed.
        """
        n, at = len(scores.ids), _EACH
        if allowed is None:
            allowed = [True] * n
        elif not any(allowed):
            raise ValueError("no action is allowed; leave at least one")
        else:
            at = np.flatnonzero(np.array(allowed, bool))
        probabilities, tried = self._found(scores, at)
        probabilities = self._bounded(probabilities, scores.shares[at])
        if at is not _EACH:
            probabilities = _spread(probabilities, at, n)
            tried = {name: _spread(p, at, n) for name, p in tried.items()}
        return Decision(probabilities, tried, allowed)

    def decide_many(
        self, several: Sequence[Scores], allowed: Sequence[Sequence[bool] | None]
    ) -> list[Decision]:
        """Do :meth:`decide` for several choices, within 1e-6; similar ones are batched."""
        groups: dict[object, list[int]] = {}
        for i, (scores, free) in enumerate(zip(several, allowed, strict=True)):
            together = self.kind == "auto" and free is None and scores.context
            key = (len(scores.ids), id(scores.tried)) if together else -i
            groups.setdefault(key, []).append(i)
        decisions: dict[int, Decision] = {}
        for places in groups.values():
            if len(places) == 1:
                decisions[places[0]] = self.decide(several[places[0]], allowed[places[0]])
                continue
            some = [several[i] for i in places]
            shares = np.array([scores.shares for scores in some])
            p, each = by_width(shares, np.array([widths(scores) for scores in some]), some[0].tried)
            if self.budget < 1.0:
                p = np.array([self._bounded(*one) for one in zip(p, shares, strict=True)])
            else:
                p = self._bounded(p, shares)
            for n, i in enumerate(places):
                tried = dict(zip(_NAMES, each[n], strict=True))
                decisions[i] = Decision(p[n], tried, [True] * len(shares[n]))
        return [decisions[i] for i in range(len(several))]

    def _bounded(self, probabilities: Floats, shares: Floats) -> Floats:
        return bounded(probabilities, shares, self.floor, self.budget)

    def _found(self, scores: Scores, at: Chosen) -> tuple[Floats, dict[str, Floats]]:
        """Return the distribution over these actions, before floor and budget."""
        means = scores.shares[at]
        n = len(means)
        if self.kind == "auto":
            return auto(scores, at)
        if self.kind == "greedy":
            return greedy(means), {}
        if self.kind == "epsilon":
            return (1.0 - self.epsilon) * greedy(means) + self.epsilon / n, {}
        if self.kind == "softmax":
            return softmax(means, self.temperature), {}
        if self.kind == "squarecb":
            total = float(scores.arms.n.sum())
            return squarecb(means, self.gamma * math.sqrt(1.0 + n * total)), {}
        spread = self.width * widths(scores)[at]
        if self.kind == "confidence":
            return greedy(logit(means) + spread), {}
        return thompson(logit(means), spread), {}


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """A distribution over the actions, and those of the candidate policies by name."""

    probabilities: Floats
    tried: Mapping[str, Floats] = field(default_factory=dict)
    allowed: Sequence[bool] = ()

    def notes(self, scores: Scores, chosen: int) -> bytes | None:
        """Return the notes that come back to the model with the chosen action's reward."""
        each = {name: float(p[chosen]) for name, p in self.tried.items()}
        return scores.notes(chosen, float(self.probabilities[chosen]), self.allowed, each)


def uniform(key: bytes, nonce: bytes, slot: int = 0) -> float:
    """Return a number in [0, 1), unpredictable without the key: HMAC(key, nonce, slot)."""
    mac = _keyed(key).copy()
    mac.update(nonce + b"\0" + slot.to_bytes(4, "big"))
    return (int.from_bytes(mac.digest()[:8], "big") >> 11) * 2.0**-53


@lru_cache(maxsize=64)
def _keyed(key: bytes) -> hmac.HMAC:
    """Return an HMAC to be copied: setting the key is most of the work."""
    return hmac.new(key, digestmod="sha256")


def draw(probabilities: Floats, u: float) -> int:
    """Return the index of the action for ``u`` in [0, 1); never one with probability 0."""
    edges = [*accumulate(probabilities.tolist())]
    # an action with probability 0 has the same edge as the one before it
    return min(bisect_right(edges, u * edges[-1]), bisect_left(edges, edges[-1]))


def auto(scores: Scores, at: Chosen) -> tuple[Floats, dict[str, Floats]]:
    """Thompson sampling; with a context it mixes several widths by their estimated gains.

    Without a context the posterior of each action is exact: of all its rewards, or of the
    discounted ones if these differ.  Its mean is raised by HOPE and its width reduced to HOPED
    standard deviations, so that a rarely tried action depends less on chance.
    """
    arms = scores.arms
    if not scores.context and not np.isfinite(scores.variances).any():
        mean, spread = beliefs(arms.n[at], arms.total[at], arms.prior)
        late, late_spread = beliefs(arms.late_n[at], arms.late_total[at], arms.prior)
        changed = np.abs(late - mean) > CHANGED * late_spread
        mean, spread = np.where(changed, late, mean), np.where(changed, late_spread, spread)
        return thompson(mean + HOPE * spread, HOPED * spread), {}
    mixture, each = by_width(scores.shares[at], widths(scores)[at], scores.tried)
    return mixture, dict(zip(_NAMES, each, strict=True))


def by_width(shares: Floats, spread: Floats, tried: Mapping[str, float]) -> tuple[Floats, Floats]:
    """Return Thompson sampling mixed over the widths by their gains, and for each width.

    The last dimension of arrays is that of actions; dimensions before it are choices.
    """
    each = thompson(logit(shares)[..., None, :], _WIDTHS * spread[..., None, :])
    gains = [tried.get(name, 0.0) for name in _NAMES]
    rate, most = ETA / math.sqrt(1.0 + tried.get("", 0.0)), max(gains)
    weights = np.array([math.exp(rate * (gain - most)) for gain in gains])
    mixture: Floats = weights @ each
    mixture /= weights.sum()
    return mixture, each


def greedy(means: Floats) -> Floats:
    """Return the distribution on the best action, uniform over ties."""
    best = means >= np.maximum.reduce(means, axis=-1, keepdims=True)
    shares: Floats = best / np.add.reduce(best, axis=-1, keepdims=True)
    return shares


def softmax(means: Floats, temperature: float) -> Floats:
    """Return probabilities proportional to exp(mean / temperature)."""
    powers = np.exp((means - means.max()) / temperature)
    shares: Floats = powers / powers.sum()
    return shares


def squarecb(means: Floats, gamma: float) -> Floats:
    """Return inverse gap weighting (Foster and Rakhlin 2020, algorithm 1)."""
    best = int(means.argmax())
    shares: Floats = 1.0 / (len(means) + gamma * (means[best] - means))
    shares[best] = 0.0
    shares[best] = 1.0 - shares.sum()
    return shares


def logit(shares: Floats) -> Floats:
    """Return the log odds of rewards scaled to [0, 1]."""
    clipped = np.minimum(np.maximum(shares, 1e-6), 1.0 - 1e-6)
    odds: Floats = clipped / (1.0 - clipped)
    np.log(odds, out=odds)
    return odds


def beliefs(n: Floats, total: Floats, prior: float) -> tuple[Floats, Floats]:
    """Return mean and standard deviation of the log odds of each action's mean reward.

    The distribution is the Beta posterior after ``n`` rewards with sum ``total``.  The prior has
    the mean over all actions, and one pseudo-reward or one missing reward, whichever is rarer.
    """
    both = _beta(n, total, prior)
    means: Floats = digamma(both)
    return means[0] - means[1], np.sqrt(np.add.reduce(trigamma(both)))


def _beta(n: Floats, total: Floats, prior: float) -> Floats:
    """Return both parameters of each action's Beta posterior: shape (2, actions)."""
    mean = float(np.add.reduce((total + prior) / (n + 1.0))) / len(n)
    mean = min(max(mean, 1.0 / FIRST), 1.0 - 1.0 / FIRST)
    first = 1.0 / min(mean, 1.0 - mean)
    both: Floats = np.array((total, np.maximum(n - total, 0.0)))
    both[0] += first * mean
    both[1] += first * (1.0 - mean)
    return both


def digamma(x: Floats) -> Floats:
    """Return the digamma function (Abramowitz and Stegun, 6.3.5 and 6.3.18)."""
    before = (1.0 / (x[..., None] + _STEPS)).sum(axis=-1)
    x = x + len(_STEPS)
    y = 1.0 / (x * x)
    result: Floats = np.log(x) - before - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y / 252))
    return result


def trigamma(x: Floats) -> Floats:
    """Return the trigamma function (Abramowitz and Stegun, 6.4.6 and 6.4.12)."""
    each = 1.0 / np.add.outer(_UNTIL, x)
    powers = np.empty((len(_SERIES), *x.shape))
    powers[:] = each[-1]
    np.multiply.accumulate(powers, out=powers)
    each *= each
    result: Floats = np.add.reduce(each[:-1])
    result += (_SERIES @ powers.reshape(len(_SERIES), -1)).reshape(x.shape)
    return result


def widths(scores: Scores) -> Floats:
    """Return the standard deviation of each action's expected reward, in logits."""
    variances = np.maximum(scores.variances, _UNSURE)  # 0 if the model has no uncertainty
    np.divide(1.0, variances, out=variances)
    variances += _precisions(scores.arms)
    np.sqrt(variances, out=variances)
    np.divide(1.0, variances, out=variances)
    return variances


@lru_cache(maxsize=64)
def _precisions(arms: Counted) -> Floats:
    """Return 1 / variance of the log odds of each action's mean reward; cached, read only."""
    precisions: Floats = 1.0 / np.add.reduce(trigamma(_beta(arms.n, arms.total, arms.prior)))
    return precisions


def thompson(means: Floats, widths: Floats) -> Floats:
    """Return each action's probability of being the best, for independent normal rewards.

    The integral over the best value is a sum over a grid, without random numbers.  ``widths`` may
    have several rows, for each of which a distribution is returned.
    """
    widths = np.maximum(widths, 1e-9)
    reach = 5.0 * widths
    ends = np.array((means - reach, means + reach))
    low, high = np.maximum.reduce(ends, axis=-1, keepdims=True)
    high -= low
    scaled = np.array((high / widths, (low - means) / widths), np.float32)[..., None]
    steps = float(np.maximum.reduce(scaled[0], axis=None)) / _STEP
    grid = _GRIDS[min(int(steps / _STEPS_OF), len(_GRIDS) - 1)] if steps < 1e9 else _GRIDS[-1]
    # in place and in float32, because the grid is large
    z = scaled[0] * grid
    z += scaled[1]
    bell = z * z
    bell *= _HALVED
    np.exp(bell, out=bell)
    below = _normal(z, bell)  # above 0, since z is at least -5
    bell /= below
    best = np.multiply.reduce(below, axis=-2)
    shares: Floats = (bell @ best[..., None])[..., 0] / widths
    total = np.add.reduce(shares, axis=-1, keepdims=True)
    if np.minimum.reduce(total, axis=None) > 0.0:
        shares /= total
        return shares
    return np.where(total > 0.0, shares / np.where(total > 0.0, total, 1.0), greedy(means))


def _normal(z: Floats32, bell: Floats32) -> Floats32:
    """Return the normal distribution function within 1e-7 (Abramowitz and Stegun, 26.2.17).

    ``bell`` is exp(-z²/2).
    """
    t = np.abs(z)
    t *= np.float32(0.2316419)
    t += _ONE
    np.divide(_ONE, t, out=t)
    tail: Floats32 = _TAIL[0] * t
    for factor in _TAIL[1:]:
        tail += factor
        tail *= t
    tail *= bell
    np.subtract(_HALF, tail, out=tail)
    np.copysign(tail, z, out=tail)
    tail += _HALF
    return tail


def bounded(probabilities: Floats, means: Floats, floor: float, budget: float) -> Floats:
    """Limit all actions but the best one to ``budget`` together, and raise each to the floor.

    Without a budget, arrays may have a row for each of several choices.
    """
    n, shares = probabilities.shape[-1], probabilities
    if budget >= 1.0 and floor <= 0.0:
        whole: Floats = shares / np.add.reduce(shares, axis=-1, keepdims=True)
        return whole
    if budget < 1.0:
        # among ties, the most probable one; both within rounding, so that it is the same for a
        # choice alone and for one that was computed with others
        ties = means >= means.max() - _TIE
        best = int(np.where(ties, np.round(shares, _DECIMALS), -1.0).argmax())
        if (rest := 1.0 - shares[best]) > budget:
            shares = shares * (budget / rest)
            shares[best] = 1.0 - budget
    least = min(floor, 1.0 / n)
    above = np.maximum(shares - least, 0.0)
    total = np.add.reduce(above, axis=-1, keepdims=True)
    if np.minimum.reduce(total, axis=None) <= 0.0:  # nothing is left above the floors
        above, total = np.where(total > 0.0, above, 1.0), np.where(total > 0.0, total, n)
    above *= (1.0 - n * least) / total
    above += least
    above /= np.add.reduce(above, axis=-1, keepdims=True)
    floored: Floats = above
    return floored


def _spread(values: Floats, at: Chosen, n: int) -> Floats:
    out = np.zeros(n)
    out[at] = values
    return out
