"""A pinned, curated root set: what an honest gradient looks like now, and how honest ones scatter.

The rows are split into two halves with every class in each.  The unit mean gradient of one half is
the direction; gradients of small draws from the *other* half are the null.  The halves change
places at each refresh.  Null and direction of the same rows would look more alike than an honest
source ever does: measured, that rejected 72 % of honest updates late in training.

Half of the null draws are of three classes only: sources that see a part of the classes are
honest.  After Zeno++ (Xie et al. 2020) and FLTrust (Cao et al. 2021), which use one set and a
fixed threshold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from paramserver.filters.base import Gradient

NULLS_KEPT: Final = 80
CLASSES_OF_A_NARROW_DRAW: Final = 3
ROWS_MIN: Final = 10
"""Fewest rows of a root set that scores directions; below it the test is off, and says so."""

RootGradient = Callable[[npt.NDArray[np.intp]], Gradient]
"""Mean gradient of these rows of the root set, float32 [d], by the present parameters."""


class Reference:
    """Directions and nulls from a root set.

    Parameters
    ----------
    labels
        One for each row of the root set.
    gradient
        Asks the model; called (1 + ``draws``) times by :meth:`refresh`.
    rows
        Rows behind an honest gradient: 1 for feedback row by row, the batch for pushes.
    draws
        Null draws of a refresh.

    Attributes
    ----------
    problem
        Why directions are not scored (no class twice, too few rows, no gradient); None: they are.
    direction
        float32 [d] of length 1; None until the first refresh, or if the root's gradient is zero.
    cosines, lengths
        Of the last null draws with the direction of the other half.
    """

    def __init__(
        self, labels: Sequence[Hashable], gradient: RootGradient, *, rows: int = 1, draws: int = 4
    ) -> None:
        self._gradient = gradient
        self._rows = rows
        self._draws = draws
        self._turn = 0
        self._halves = _halves(labels)
        self.problem = _problem(labels)
        self.direction: Gradient | None = None
        self.cosines: deque[float] = deque(maxlen=NULLS_KEPT)
        self.lengths: deque[float] = deque(maxlen=NULLS_KEPT)
        self.nulls: list[Gradient] = []

    def refresh(self, rng: np.random.Generator) -> None:
        """Take a direction from one half and nulls from the other, by the present parameters."""
        if self.problem is not None:
            return
        mine, other = self._halves[self._turn], self._halves[1 - self._turn]
        self._turn = 1 - self._turn
        mean = self._gradient(np.concatenate(mine))
        length = _length(mean)
        self.direction = None if length == 0.0 else mean / np.float32(length)
        self.nulls = []
        for i in range(self._draws):
            null = self._gradient(_draw(other, self._rows, narrow=i % 2 == 1, rng=rng))
            size = _length(null)
            if size == 0.0:
                continue
            self.lengths.append(size)
            self.nulls.append(null)
            if self.direction is not None:
                self.cosines.append(float(self.direction @ null) / size)


def _length(gradient: Gradient) -> float:
    """0 for a gradient that is none: the model may have diverged, the root is then no measure."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = float(gradient @ gradient)
    return square**0.5 if np.isfinite(square) else 0.0


def _problem(labels: Sequence[Hashable]) -> str | None:
    if len(labels) < ROWS_MIN:
        return f"{len(labels)} rows in the root set; directions are scored from {ROWS_MIN} on"
    sizes = {label: list(labels).count(label) for label in set(labels)}
    if len(sizes) < 2:
        return "one class in the root set; directions are scored from two on"
    thin = sorted(str(label) for label, n in sizes.items() if n < 2)
    if thin:
        return f"only one row of class {thin[0]} in the root set; each class needs two"
    return None


Half = list[npt.NDArray[np.intp]]


def _halves(labels: Sequence[Hashable]) -> tuple[Half, Half]:
    """Rows of each class, every other one, in two halves."""
    rows: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        rows.setdefault(label, []).append(i)
    a = [np.array(of[::2], dtype=np.intp) for of in rows.values()]
    b = [np.array(of[1::2], dtype=np.intp) for of in rows.values() if len(of) > 1]
    return a, b


def _draw(
    half: Half, rows: int, *, narrow: bool, rng: np.random.Generator
) -> npt.NDArray[np.intp]:
    classes = half
    if narrow and len(half) > CLASSES_OF_A_NARROW_DRAW:
        at = rng.choice(len(half), CLASSES_OF_A_NARROW_DRAW, replace=False)
        classes = [half[i] for i in at]
    pool = np.concatenate(classes)
    return pool[rng.integers(len(pool), size=rows)]
