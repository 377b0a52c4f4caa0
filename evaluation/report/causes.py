"""Decomposes a change of accuracy into the effect of changed inputs and a remaining effect."""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.report.rows import Column, Floats
from evaluation.report.tally import Part
from evaluation.report.values import Causes

GROUPS: Final = 10
GROUP_N_MIN: Final = 20
"""Least number of scored rows of either period in a group."""

COMPARED_MIN: Final = 0.5
"""Least share of the newest rows that must be in comparable groups."""

_CLIP: Final = 5.0
_RIDGE: Final = 1.0
_CATEGORIES: Final = 10


def split(then: Part, now: Part) -> Causes | str:
    """Return the two parts of (accuracy now − accuracy then), or why they cannot be computed.

    Each row gets a score by ridge regression of "is a new row" on its features (fitted on every
    other row, applied to the rest).  Rows with similar scores form a group, so that within a group
    old and new rows are similar.  The change is decomposed over the groups by Kitagawa 1955:
    differences of shares at the mean accuracy, and differences of accuracies at the mean share.
    """
    then, now = _judged(then), _judged(now)
    if min(len(then), len(now)) < GROUPS * GROUP_N_MIN:
        return f"{GROUPS * GROUP_N_MIN} judged rows at either end are needed"
    x = _matrix(then, now)
    if not x.shape[1]:
        return "no feature varies"
    is_now = np.concatenate((np.zeros(len(then)), np.ones(len(now))))
    score = _scores(x, is_now)
    cuts = np.quantile(score, np.arange(1, GROUPS) / GROUPS)
    group = np.searchsorted(cuts, score, side="right")
    right = np.concatenate((then.right, now.right))
    n, hits = np.zeros((2, GROUPS)), np.zeros((2, GROUPS))
    for side in (0, 1):
        here = is_now == side
        n[side] = np.bincount(group[here], minlength=GROUPS)
        hits[side] = np.bincount(group[here], weights=right[here], minlength=GROUPS)
    use = (n >= GROUP_N_MIN).all(axis=0)
    compared = float(n[1, use].sum() / n[1].sum())
    if compared < COMPARED_MIN:
        return f"then and now hardly overlap: {100 * compared:.0f} % of the newest rows have a like"
    share, accuracy = n[:, use] / n[:, use].sum(axis=1, keepdims=True), hits[:, use] / n[:, use]
    covariate = float(((share[1] - share[0]) * accuracy.mean(axis=0)).sum())
    rest = float(((accuracy[1] - accuracy[0]) * share.mean(axis=0)).sum())
    before, after = (float((share[i] * accuracy[i]).sum()) for i in (0, 1))
    return Causes(
        then=before, now=after, change=after - before, covariate=covariate, rest=rest,
        groups=int(use.sum()), compared=compared,
    )  # fmt: skip


def _judged(part: Part) -> Part:
    use = ~np.isnan(part.right)
    features: dict[str, Column] = {}
    for name, values in part.features.items():
        if isinstance(values, np.ndarray):
            features[name] = values[use]
        else:
            features[name] = [v for v, ok in zip(values, use, strict=True) if ok]
    return Part(part.first_row, part.score[use], part.right[use], features)


def _matrix(then: Part, now: Part) -> Floats:
    """Return a matrix (rows, columns): standardised numbers, their squares, common categories."""
    columns: list[Floats] = []
    for name in then.features:
        a, b = then.features[name], now.features[name]
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            z = _standard(np.concatenate((a, b)))
            columns += [z, z * z]
        else:
            texts = [*a, *b]
            for text, _ in Counter(texts).most_common(_CATEGORIES):
                columns.append(np.array([t == text for t in texts], dtype=np.float64))
    varying = [c - c.mean() for c in columns if c.std() > 1e-9]
    return np.stack(varying, axis=1) if varying else np.zeros((len(then) + len(now), 0))


def _standard(values: Floats) -> Floats:
    known = values[np.isfinite(values)]
    if not len(known) or known.std() == 0:
        return np.zeros(len(values))
    z: Floats = np.clip((values - np.median(known)) / known.std(), -_CLIP, _CLIP)
    return np.nan_to_num(z)


def _scores(x: Floats, y: Floats) -> Floats:
    """Return each row's score by the regression fitted on the rows of the other parity."""
    out = np.zeros(len(x))
    parity: NDArray[np.int64] = np.arange(len(x)) % 2
    for side in (0, 1):
        fit, use = parity != side, parity == side
        centre = y[fit].mean()
        gram = x[fit].T @ x[fit] + _RIDGE * np.eye(x.shape[1])
        out[use] = x[use] @ np.linalg.solve(gram, x[fit].T @ (y[fit] - centre))
    return out
