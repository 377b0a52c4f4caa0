"""Attribution of a mixture's answer to the outputs of its linear experts.

The result is a factor for each expert's output; with it, contributions of features follow from the
experts' weights, without predictions for parts of the row.  An expert's output is a sum over its
features.  The change of its answer, from that for an empty row, is attributed to them in proportion
to their terms; with several classes by the gradient along the straight line between the two outputs
(integrated gradients: Sundararajan, Taly and Yan 2017, *Axiomatic attribution for deep networks*).
Experts count by their weights in the mixture, and one common factor converts probabilities to log
odds.
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
"""Below this change the derivative is used: a ratio of differences would be rounding noise."""

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_ALONG: Final[Floats] = ((_NODES + 1.0) / 2.0)[:, None, None]
_SHARE: Final[Floats] = _WEIGHTS / 2.0


def binary_factors(
    votes: Sequence[float],
    before: Sequence[float],
    after: Sequence[float],
    shares: Sequence[float],
    *,
    up: bool,
) -> tuple[float, float, list[float]]:
    """Return the log odds before and after, and the factor of each expert's log odds.

    The log odds are those of True if ``up``, else of False.  ``before`` and ``after`` are the
    experts' log odds of True, ``shares`` the probabilities for ``after``, ``votes`` the experts'
    weights.
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
    base, output = log_odds(start, 1.0 - start), log_odds(p, 1.0 - p)
    factor = _to_log_odds(output - base, rise, p)
    if not up:
        base, output, factor = -base, -output, -factor
    return base, output, [factor * slope for slope in slopes]


def class_factors(
    votes: Floats, before: Floats, after: Floats, column: int, ends: tuple[float, float]
) -> tuple[float, float, Floats]:
    """Return the log odds of a class before and after, and the factor of each output.

    ``before`` and ``after`` are outputs of shape (experts, classes), ``column`` is the class,
    ``ends`` the predicted probabilities of the class and of all others.
    """
    first, last = softmax(before), softmax(after)
    start, rises = votes @ first, last[:, column] - first[:, column]
    base, output = log_odds(start[column], start.sum() - start[column]), log_odds(*ends)
    step = after - before
    shares = softmax(before + _ALONG * step)
    p = shares[:, :, column]
    slopes: Floats = np.einsum("n,nk,nkc->kc", _SHARE, -p, shares)
    slopes[:, column] += _SHARE @ p
    left = rises - (slopes * step).sum(axis=1)  # error of the quadrature
    size = (step * step).sum(axis=1)
    slopes += np.divide(left, size, out=np.zeros_like(left), where=size > 0.0)[:, None] * step
    factor = _to_log_odds(output - base, float(votes @ rises), ends[0])
    worths: Floats = factor * votes[:, None] * slopes
    return base, output, worths


def log_odds(p: float, rest: float) -> float:
    """Return the log odds of a probability ``p`` against that of the rest."""
    return math.log(max(p, LOG_CLIP)) - math.log(max(rest, LOG_CLIP))


def _to_log_odds(difference: float, rise: float, p: float) -> float:
    """Return the factor that converts a change of probability, ending at p, to log odds."""
    room = max(p * (1.0 - p), LOG_CLIP)
    return difference / rise if abs(rise) > _SMALL * room else 1.0 / room
