"""Scores gradients against a curated root set, and draws the distribution of honest scores.

An honest gradient is approximately a non-negative mixture Σ p_c V_c, where V_c is the root set's
gradient of class c *with the parameters that the gradient was computed with*.  Its score is the
cosine to the nearest such mixture, with each element divided by its usual size.  Three choices were
found important on the digits data (distance between honest and hostile pushes in mean cosine, in
standard deviations):

* the parameters: sources are stale, and two thirds of a stale gradient are determined by the
  parameters.  Sign flips differ from honest gradients by 0.9 deviations with the newest parameters,
  and by 3.0 with their own;
* the mixture: a source that sees three classes must not score lower than one that sees all.
  Flipped labels differ by 1.4 (0.4 with three classes per source) deviations with the mean
  gradient, and by 1.9 (2.2) with the mixture;
* the usual size: a backdoor trigger changes rarely changed elements, which then weigh more.

The rows are split into two halves, each with every class.  Mixtures use one half, and the
distribution of honest scores (the null draws) uses the *other*; the halves are swapped at each
refresh.  Null draws from the mixture's own rows would score higher than any honest source.  Half of
the null draws have three classes only.  The method follows Zeno++ (Xie et al. 2020) and FLTrust
(Cao et al. 2021), which use one mean gradient and a fixed threshold.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np
import numpy.typing as npt

from paramserver.filters.base import Gradient, Probes

NULLS_KEPT: Final = 80
CLASSES_OF_A_NARROW_DRAW: Final = 3
ROWS_MIN: Final = 10
"""Least number of rows in a root set; with fewer, directions are not scored."""

CLASSES_MAX: Final = 32
PROBES: Final = 8192
"""Number of elements of a gradient that are scored, sampled once; all if there are fewer."""

FRAMES_KEPT: Final = 24
_USUAL_KEEP: Final = 0.9
_USUAL_FLOOR: Final = 0.03
_RIDGE: Final = 1e-4

RootGradient = Callable[[npt.NDArray[np.intp]], Gradient]
"""Returns the mean gradient of rows of the root set, float32 [d], with the present parameters."""

Half = list[npt.NDArray[np.intp]]
"""Rows of each class."""


@dataclass(frozen=True, slots=True)
class Score:
    """The similarity of a gradient to a mixture of honest ones.

    ``as_is`` and ``turned`` are the cosines of the gradient and of its negative; ``mass`` is the
    sum of the mixture's weights: 1 for a mean gradient, 3 for one three times as long.
    """

    as_is: float
    turned: float
    mass: float


@dataclass(frozen=True, slots=True)
class Frame:
    """The classes' gradients at one version of the parameters.

    ``weighed`` [k, m] has the gradient of each class, divided by the square of each element's usual
    size, which is 1/√``inverse`` [m].  ``root`` [k, k] is the upper Cholesky factor of their inner
    products, ``unrooted`` the inverse of its transpose.
    """

    version: int
    weighed: Gradient
    inverse: Gradient
    products: npt.NDArray[np.float64]
    root: npt.NDArray[np.float64]
    unrooted: npt.NDArray[np.float64]

    def score(self, probes: Gradient, of_class: int | None) -> Score:
        """Return the score of sampled elements; ``of_class``: class of a single row, or None."""
        return self.scores(probes[None], [of_class])[0]

    def scores(self, probes: Gradient, of_class: Sequence[int | None]) -> list[Score]:
        """Return the scores of several gradients' sampled elements, shape [n, m]."""
        lengths = np.sqrt((probes * probes) @ self.inverse).tolist()
        along = (probes @ self.weighed.T).astype(np.float64)
        return list(map(self._score, along, lengths, of_class))

    def _score(self, along: npt.NDArray[np.float64], length: float, of_class: int | None) -> Score:
        if length == 0.0:
            return Score(0.0, 0.0, 0.0)
        if of_class is not None:
            own = float(self.products[of_class, of_class])
            one = float(along[of_class])
            cosine = one / (length * own**0.5)
            return Score(cosine, -cosine, one / own)
        (as_is, mass), (turned, _) = self._nearest(along), self._nearest(-along)
        return Score(as_is / length, turned / length, mass)

    def _nearest(self, along: npt.NDArray[np.float64]) -> tuple[float, float]:
        """Return the norm of the projection onto the cone of mixtures, and the mixture's mass."""
        if not (along > 0.0).any():
            return 0.0, 0.0
        from scipy.optimize import nnls

        mix, _ = nnls(self.root, self.unrooted @ along)
        # the residual is orthogonal to the nearest mixture, whose squared norm is this product
        square = max(float(mix @ along), 0.0)
        return square**0.5, float(mix.sum())


class Reference:
    """Frames and null draws from a root set.

    Parameters:
        labels: Label of each row of the root set, in the same form as events' labels.
        gradient: Computes gradients; called once per class and ``draws`` times by :meth:`refresh`.
        rows: Number of rows behind an honest gradient: 1 for single events, the batch for pushes.
        draws: Number of null draws per refresh.

    Attributes:
        problem: Why directions are not scored (too few rows, a class with one row), or None.
        nulls: Scores of the last null draws, shape [n, 3]: cosine, cosine of the negative, mass.
        lengths: Norms of the last null draws.
        alike: Cosines between null draws of one refresh, that is, between honest gradients.
        size: Length of gradients; 0 before the first draw.
    """

    def __init__(
        self, labels: Sequence[Hashable], gradient: RootGradient, *, rows: int = 1, draws: int = 4
    ) -> None:
        importlib.import_module("scipy.optimize")  # half a second, before anything is judged
        self._gradient = gradient
        self._rows = rows
        self._draws = draws
        self._turn = 0
        self.problem = _problem(labels)
        self._class_of = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        self._halves = _halves(labels)
        self._probes: Probes | None = None
        self._usual: Gradient | None = None
        self._frames: deque[Frame] = deque(maxlen=FRAMES_KEPT)
        self.nulls: npt.NDArray[np.float64] = np.zeros((0, 3))
        self.lengths: deque[float] = deque(maxlen=NULLS_KEPT)
        self.alike: deque[float] = deque(maxlen=NULLS_KEPT)
        self.size = 0

    def score(self, gradient: Gradient, base: int, label: Hashable | None) -> Score | None:
        """Return the score of a gradient computed with version ``base``; None without a frame.

        The newest frame that is not newer than ``base`` is used, or else the oldest one.
        """
        frame: Frame | None = None
        for frame in reversed(self._frames):
            if frame.version <= base:
                break
        if frame is None:
            return None
        # a label that is not in the root set is compared as a mixture
        of_class = None if label is None else self._class_of.get(label)
        assert self._probes is not None
        return frame.score(self._probes.of(gradient), of_class)

    def refresh(self, rng: np.random.Generator, version: int) -> None:
        """Compute a frame from one half and null draws from the other, with present parameters."""
        if self.problem is not None:
            return
        mine, other = self._halves[self._turn], self._halves[1 - self._turn]
        self._turn = 1 - self._turn
        classes = [self._gradient(rows) for rows in mine]
        if self._probes is None:
            self._probes = Probes(len(classes[0]), PROBES, rng)
        of_class = self._probes.of_each(classes)
        lengths, labels, drawn = [], [], []
        for i in range(self._draws):
            gradient, label = self._null(other, i, rng)
            lengths.append(float(gradient @ gradient) ** 0.5)
            labels.append(label)
            drawn.append(gradient)
        nulls = self._probes.of_each(drawn)
        products = nulls @ nulls.copy().T  # numpy is slower with a transposed view of itself
        if not np.isfinite(products).all():
            return  # the model has diverged
        self.size = len(classes[0])
        self._keep_usual(nulls)
        frame = self._framed(of_class, version)
        if frame is None:
            return
        for i, j in combinations(range(len(nulls)), 2):
            if (square := float(products[i, i] * products[j, j])) > 0.0:
                self.alike.append(float(products[i, j]) / square**0.5)
        if self._frames and self._frames[-1].version == version:
            self._frames.pop()  # keep one frame per version
        self._frames.append(frame)
        good = [i for i, length in enumerate(lengths) if 0.0 < length < float("inf")]
        if good:
            self.lengths += [lengths[i] for i in good]
            scores = frame.scores(nulls[good], [labels[i] for i in good])
            new = [(score.as_is, score.turned, score.mass) for score in scores]
            self.nulls = np.concatenate((self.nulls, new))[-NULLS_KEPT:]

    def _null(self, other: Half, i: int, rng: np.random.Generator) -> tuple[Gradient, int | None]:
        if self._rows == 1:  # a row with its label
            of_class = int(rng.integers(len(other)))
            return self._gradient(rng.choice(other[of_class], 1)), of_class
        return self._gradient(_draw(other, self._rows, narrow=i % 2 == 1, rng=rng)), None

    def _keep_usual(self, nulls: Gradient) -> None:
        fresh: Gradient = np.full(len(nulls), 1 / len(nulls), np.float32) @ (nulls * nulls)
        keep = np.float32(_USUAL_KEEP)
        old = self._usual
        self._usual = fresh if old is None else old * keep + fresh * (1 - keep)

    def _framed(self, classes: Gradient, version: int) -> Frame | None:
        assert self._usual is not None
        mean = float(self._usual.mean())
        if mean == 0.0:
            return None
        inverse = 1.0 / (self._usual + np.float32(_USUAL_FLOOR * mean))
        weighed = classes * inverse
        products = (weighed @ classes.T).astype(np.float64)
        trace = float(np.trace(products))
        if not np.isfinite(trace) or trace <= 0.0:
            return None
        k = len(products)
        products += _RIDGE * trace / k * np.eye(k)
        lower = np.asarray(np.linalg.cholesky(products), dtype=np.float64)
        unrooted = np.asarray(np.linalg.inv(lower), dtype=np.float64)
        return Frame(version, weighed, inverse, products, lower.T, unrooted)


def _problem(labels: Sequence[Hashable]) -> str | None:
    if len(labels) < ROWS_MIN:
        return f"{len(labels)} rows in the root set; directions are scored from {ROWS_MIN} on"
    sizes: dict[Hashable, int] = {}
    for label in labels:
        sizes[label] = sizes.get(label, 0) + 1
    if not 2 <= len(sizes) <= CLASSES_MAX:
        return (
            f"{len(sizes)} classes in the root set; directions are scored with 2 to {CLASSES_MAX}"
        )
    thin = sorted(str(label) for label, n in sizes.items() if n < 2)
    if thin:
        return f"only one row of class {thin[0]} in the root set; each class needs two"
    return None


def _halves(labels: Sequence[Hashable]) -> tuple[Half, Half]:
    """Split the rows of each class alternately into two halves; classes in order of appearance."""
    rows: dict[Hashable, list[int]] = {}
    for i, label in enumerate(labels):
        rows.setdefault(label, []).append(i)
    a = [np.array(of[::2], dtype=np.intp) for of in rows.values()]
    b = [np.array(of[1::2], dtype=np.intp) for of in rows.values()]
    return a, b


def _draw(half: Half, rows: int, *, narrow: bool, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    classes = half
    if narrow and len(half) > CLASSES_OF_A_NARROW_DRAW:
        at = rng.choice(len(half), CLASSES_OF_A_NARROW_DRAW, replace=False)
        classes = [half[i] for i in at]
    pool = np.concatenate(classes)
    return pool[rng.integers(len(pool), size=rows)]
