"""A domain classifier: can reference and current rows be told apart by all features together?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from replay.example import Features

ROWS_MIN: Final = 100
"""Least number of rows on each side."""
ROWS_MAX: Final = 2_000
"""Greatest number of rows on each side; of more rows, so many are drawn."""
COLUMNS_MAX: Final = 256
CATEGORIES_MAX: Final = 20
FOLDS: Final = 5
_CLIP: Final = 5.0  # standard deviations
_RIDGE: Final = 1.0


@dataclass(frozen=True, slots=True)
class Domain:
    """The result of classifying rows as reference or current.

    Attributes:
        auc: Out-of-fold area under the ROC curve: 0.5 is chance, 1 perfect.  None without data.
        low, high: 2.5 and 97.5 % quantiles of the AUC with permuted labels.
        p: Permutation p-value.  It is too small for contiguous spans, because consecutive rows are
            correlated; so consider the AUC first.
        drivers: Features by which the rows differ, each with its weight relative to the largest,
            largest first.
    """

    state: Literal["alike", "different", "not enough data"]
    why: str
    auc: float | None
    low: float | None
    high: float | None
    p: float | None
    n_reference: int
    n: int
    drivers: tuple[tuple[str, float], ...]


def tell_apart(
    reference: Sequence[Features],
    current: Sequence[Features],
    *,
    seed: int = 0,
    permutations: int = 200,
) -> Domain:
    """Classify rows as belonging to the reference or to the current ones.

    It is ridge regression on the two labels (the two-class linear discriminant, Hastie et al. 2009,
    section 4.2) with standardised features and their squares.  So it notices changes of mean and
    variance, but not changes of correlations only.  As the solution is linear in the labels, all
    permutations are solved together with the data.

    Parameters:
        reference, current: Rows; absent names, None and NaN are missing values.
        seed: Seed for drawing rows, folds and permutations.
        permutations: Number of permutations, ≥ 1.
    """
    rng = np.random.default_rng(seed)
    then, now = _drawn(reference, rng), _drawn(current, rng)
    n0, n1 = len(then), len(now)
    if min(n0, n1) < ROWS_MIN:
        why = f"{min(n0, n1)} rows; {ROWS_MIN} of each are needed"
        return Domain("not enough data", why, None, None, None, None, n0, n1, ())
    x, names = _columns([*then, *now])
    if not names:
        why = "no feature varies"
        return Domain("not enough data", why, None, None, None, None, n0, n1, ())
    labels = np.zeros((n0 + n1, permutations + 1))
    labels[n0:, 0] = 1.0
    for i in range(1, permutations + 1):
        labels[:, i] = rng.permutation(labels[:, 0])
    aucs = _out_of_fold(x, labels, rng)
    true, permuted = float(aucs[0]), aucs[1:]
    low, high = np.quantile(permuted, [0.025, 0.975])
    p = (1 + int((permuted >= true).sum())) / (permutations + 1)
    state: Literal["alike", "different"] = "different" if true > high else "alike"
    return Domain(
        state, "", true, float(low), float(high), p, n0, n1, _drivers(x, labels[:, 0], names)
    )


def _drawn(rows: Sequence[Features], rng: np.random.Generator) -> list[Features]:
    """Draw rows at random; at regular intervals, periodic data would look like a change."""
    if len(rows) <= ROWS_MAX:
        return list(rows)
    return [rows[i] for i in sorted(rng.choice(len(rows), ROWS_MAX, replace=False))]


def _columns(rows: list[Features]) -> tuple[np.ndarray, list[str]]:
    """Return a matrix (rows, columns), and the feature of each column."""
    columns: list[np.ndarray] = []
    of: list[str] = []
    for name in sorted({name for row in rows for name in row}):
        values = [row.get(name) for row in rows]
        present = np.array([v is not None and v == v for v in values])
        if not present.all():
            columns.append(present.astype(np.float64))
            of.append(name)
        if any(isinstance(v, str) for v in values):
            texts = [str(v) if ok else None for v, ok in zip(values, present, strict=True)]
            common = Counter(t for t in texts if t is not None).most_common(CATEGORIES_MAX)
            for text, _ in common:
                columns.append(np.array([t == text for t in texts], dtype=np.float64))
                of.append(name)
        elif present.any():
            z = _standard(np.array([float(v) if ok else math.nan  # type: ignore[arg-type]
                                    for v, ok in zip(values, present, strict=True)]))  # fmt: skip
            columns += [z, z * z]
            of += [name, name]
    varying = [i for i, column in enumerate(columns) if column.std() > 1e-9][:COLUMNS_MAX]
    if not varying:
        return np.zeros((len(rows), 0)), []
    x = np.stack([columns[i] for i in varying], axis=1)
    scaled: np.ndarray = (x - x.mean(axis=0)) / x.std(axis=0)
    return scaled, [of[i] for i in varying]


def _standard(values: np.ndarray) -> np.ndarray:
    """Return values in robust standard deviations from the median, clipped; missing as 0."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(len(values))
    low, middle, high = np.quantile(finite, [0.16, 0.5, 0.84])
    with np.errstate(over="ignore", invalid="ignore"):
        spread = (high - low) / 2 or finite.std() or 1.0
        z = np.clip((values - middle) / spread, -_CLIP, _CLIP)
    standardised: np.ndarray = np.nan_to_num(z, nan=0.0)
    return standardised


def _solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    centre = y.mean(axis=0)
    gram = x.T @ x + _RIDGE * np.eye(x.shape[1])
    solved: np.ndarray = np.linalg.solve(gram, x.T @ (y - centre))
    return solved


def _out_of_fold(x: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the mean over the folds of the AUC of each column of labels."""
    fold = rng.permutation(len(x)) % FOLDS
    scores = []
    for i in range(FOLDS):
        out = fold == i
        scores.append(_aucs(x[out] @ _solve(x[~out], labels[~out]), labels[out]))
    aucs: np.ndarray = np.mean(scores, axis=0)
    return aucs


def _aucs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the AUC of each column, from ranks (Mann & Whitney 1947), ties at their mean rank."""
    n = len(scores)
    forward = np.argsort(np.argsort(scores, axis=0, kind="stable"), axis=0)
    backward = np.argsort(np.argsort(scores[::-1], axis=0, kind="stable"), axis=0)[::-1]
    ranks = (forward + backward) / 2 + 1
    n1 = labels.sum(axis=0)
    above = (ranks * labels).sum(axis=0) - n1 * (n1 + 1) / 2
    aucs: np.ndarray = np.where((n1 > 0) & (n1 < n), above / np.maximum(n1 * (n - n1), 1), 0.5)
    return aucs


def _drivers(x: np.ndarray, labels: np.ndarray, names: list[str]) -> tuple[tuple[str, float], ...]:
    weights = np.abs(_solve(x, labels[:, None])[:, 0])
    by_name: dict[str, float] = {}
    for name, weight in zip(names, weights, strict=True):
        by_name[name] = max(by_name.get(name, 0.0), float(weight))
    largest = max(by_name.values()) or 1.0
    ranked = sorted(by_name.items(), key=lambda item: (-item[1], item[0]))
    return tuple((name, weight / largest) for name, weight in ranked[:10])
