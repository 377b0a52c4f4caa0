"""The mixed answer of linear experts is shared out: what a unit of each one's output is worth.

So what each feature has added is found without asking about parts of the row.  A linear expert adds
its features up, and the change of its answer, from that to no feature at all, is theirs in
proportion; of several classes by the gradient along the straight line between the two
(Sundararajan, Taly and Yan 2017, *Axiomatic attribution for deep networks*).  The mixture adds up
its experts by their votes, and one factor for all of it brings probabilities to log odds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from evaluation.metrics import LOG_CLIP
from online.models.experts.exponential_weights import logistic, mixed, softmax
from online.models.experts.linear import Floats

_SMALL: Final = 1e-6
"""Changes below this are told by the slope where they end: their ratio would be of rounding."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_ALONG: Final[Floats] = ((_NODES + 1.0) / 2.0)[:, None, None]
_SHARE: Final[Floats] = _WEIGHTS / 2.0


def worth_of_two(
    votes: Sequence[float],
    before: Sequence[float],
    after: Sequence[float],
    shares: Sequence[float],
    *,
    up: bool,
) -> tuple[float, float, list[float]]:
    """Return log odds before and after, and what a unit of each expert's log odds adds to them.

    Of True if ``up``, else of False.  ``before`` and ``after`` are the experts' log odds of True,
    ``shares`` the probabilities that the latter are.
    """
    start = rise = 0.0
    slopes: list[float] = []
    for vote, first, last, share in zip(votes, before, after, shares, strict=True):
        begun = logistic(first)
        start += vote * begun
        step, far = vote * (share - begun), last - first
        rise += step
        near = -_SMALL < far < _SMALL
        slopes.append(vote * share * (1.0 - share) if near else step / far)
    p = mixed(votes, shares)
    base, output = _log_odds(start, 1.0 - start), _log_odds(p, 1.0 - p)
    factor = _to_log_odds(output - base, rise, p)
    if not up:
        base, output, factor = -base, -output, -factor
    return base, output, [factor * slope for slope in slopes]


def worth_of_classes(
    votes: Floats, before: Floats, after: Floats, column: int, ends: tuple[float, float]
) -> tuple[float, float, Floats]:
    """Return log odds of a class before and after, and what a unit of each output adds to them.

    ``before`` and ``after`` are outputs of shape (experts, classes), ``ends`` the answered
    probabilities of the class and of all others.
    """
    first, last = softmax(before), softmax(after)
    start, rises = votes @ first, last[:, column] - first[:, column]
    base, output = _log_odds(start[column], start.sum() - start[column]), _log_odds(*ends)
    step = after - before
    shares = softmax(before + _ALONG * step)
    p = shares[:, :, column]
    slopes: Floats = np.einsum("n,nk,nkc->kc", _SHARE, -p, shares)
    slopes[:, column] += _SHARE @ p
    left = rises - (slopes * step).sum(axis=1)  # so much the nodes miss of the integral
    size = (step * step).sum(axis=1)
    slopes += np.divide(left, size, out=np.zeros_like(left), where=size > 0.0)[:, None] * step
    factor = _to_log_odds(output - base, float(votes @ rises), ends[0])
    worths: Floats = factor * votes[:, None] * slopes
    return base, output, worths


def _log_odds(p: float, rest: float) -> float:
    return math.log(max(p, LOG_CLIP)) - math.log(max(rest, LOG_CLIP))


def _to_log_odds(difference: float, rise: float, p: float) -> float:
    """Return the factor that makes log odds of a rise of the probability, which ends at p."""
    room = max(p * (1.0 - p), LOG_CLIP)
    return difference / rise if abs(rise) > _SMALL * room else 1.0 / room
