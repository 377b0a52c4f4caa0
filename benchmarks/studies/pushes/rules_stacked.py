"""Rules over one vector of each pusher: x is [n, d], of which at most f rows are hostile.

Sums and distances are in float64: with an offset of 1,000 and deviations of .01, squared distances
by ‖a‖² + ‖b‖² − 2ab in float32 come out negative.  Distances here are of differences.  Definitions
are those of byzfl 0.0.11, which are those of the papers named.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refusals import Refusal

Vectors = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float64]


class RuleRefused(Refusal):
    """Vectors or a setting that a rule for untrusted pushes can't work with."""

    what: str
    problem: str
    remedy: str
    text = "{what}: {problem}; {remedy}"


def checked(x: npt.ArrayLike, f: int, *, factor: int = 2) -> Vectors:
    """``x`` as float64; RuleRefused unless it is finite, [n, d] and n > ``factor`` · f."""
    try:
        rows = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RuleRefused("vectors", "not numbers of one shape", "give an array [n, d]") from error
    if rows.ndim != 2 or rows.shape[0] == 0:
        raise RuleRefused("vectors", f"shape {rows.shape}", "give an array [n, d] with n >= 1")
    if not np.isfinite(rows).all():
        row = int(np.argwhere(~np.isfinite(rows))[0][0])
        raise RuleRefused("vectors", f"row {row} is not finite", "leave it out")
    if f < 0 or rows.shape[0] <= factor * f:
        problem = f"f = {f} hostile of n = {rows.shape[0]}"
        raise RuleRefused("f", problem, f"the rule needs n > {factor} f")
    return rows


def median(x: npt.ArrayLike) -> Vector:
    """Return the median of each number.  Yin et al. 2018."""
    return np.asarray(np.median(checked(x, 0), axis=0))


def trimmed_mean(x: npt.ArrayLike, f: int) -> Vector:
    """Return the mean of each number without the f largest and f smallest.  Yin et al. 2018."""
    rows = np.sort(checked(x, f), axis=0)
    return np.asarray(rows[f : len(rows) - f].mean(axis=0))


def geometric_median(x: npt.ArrayLike, *, nu: float = 0.1, steps: int = 3) -> Vector:
    """Smoothed Weiszfeld from zero, distances at least ``nu`` (RFA; Pillutla et al. 2022)."""
    rows = checked(x, 0)
    z = np.zeros(rows.shape[1])
    for _ in range(steps):
        weights = 1.0 / np.maximum(np.linalg.norm(rows - z, axis=1), nu)
        z = weights @ rows / weights.sum()
    return z


def centred_clipping(
    x: npt.ArrayLike, *, start: npt.ArrayLike | None = None, tau: float, steps: int = 1
) -> Vector:
    """v ← v + mean of (xᵢ − v) · min(1, τ / ‖xᵢ − v‖).  Karimireddy et al. 2021.

    ``start`` is zero, or the last momentum.  A τ beyond all distances makes it the mean: the
    default of byzfl, 100, is so for most gradients.
    """
    rows = checked(x, 0)
    v = np.zeros(rows.shape[1]) if start is None else np.asarray(start, dtype=np.float64)
    for _ in range(steps):
        away = rows - v
        length = np.linalg.norm(away, axis=1)
        factor = tau / np.maximum(length, tau)
        v = v + (away * factor[:, None]).mean(axis=0)
    return v


def squared_distances(rows: Vectors) -> npt.NDArray[np.float64]:
    """[n, n], of differences: exact zeros on the diagonal, never negative."""
    n = len(rows)
    out = np.zeros((n, n))
    for i in range(n - 1):
        away = rows[i + 1 :] - rows[i]
        out[i, i + 1 :] = out[i + 1 :, i] = np.einsum("nd,nd->n", away, away)
    return out


def krum_scores(x: npt.ArrayLike, f: int) -> npt.NDArray[np.float64]:
    """Mean squared distance to the n − f − 1 nearest others (byzfl; in the paper n − f − 2)."""
    rows = checked(x, f)
    near = np.sort(squared_distances(rows), axis=1)[:, 1 : len(rows) - f]
    return np.asarray(near.mean(axis=1)) if near.shape[1] else np.zeros(len(rows))


def krum(x: npt.ArrayLike, f: int) -> Vector:
    """The row with the least score; of equals the first.  Blanchard et al. 2017."""
    return np.asarray(checked(x, f)[int(np.argmin(krum_scores(x, f)))])


def multi_krum(x: npt.ArrayLike, f: int) -> Vector:
    """Mean of the n − f rows with the least scores.  Blanchard et al. 2017."""
    rows = checked(x, f)
    best = np.argsort(krum_scores(x, f), kind="stable")[: len(rows) - f]
    return np.asarray(rows[best].mean(axis=0))


def nearest_mixed(x: npt.ArrayLike, f: int) -> Vectors:
    """NNM: each row becomes the mean of its n − f nearest, itself among them.  Allouah et al. 2023.

    Of rows equally far the first ones count.
    """
    rows = checked(x, f)
    near = np.argsort(squared_distances(rows), axis=1, kind="stable")[:, : len(rows) - f]
    return np.asarray(rows[near].mean(axis=1))


def clipped(x: npt.ArrayLike, longest: float) -> Vectors:
    """Rows scaled down to ``longest``."""
    rows = checked(x, 0)
    length = np.linalg.norm(rows, axis=1)
    factor = longest / np.maximum(length, longest) if longest > 0.0 else np.zeros(len(rows))
    return np.asarray(rows * factor[:, None])


def adaptively_clipped(x: npt.ArrayLike, f: int) -> Vectors:
    """ARC: the ⌊2 (f/n) (n − f)⌋ longest rows scaled down to the next one.  Allouah et al. 2024."""
    rows = checked(x, f)
    n = len(rows)
    many = int((2 * f / n) * (n - f))
    length = np.sort(np.linalg.norm(rows, axis=1))
    return clipped(rows, float(length[n - many - 1]))
