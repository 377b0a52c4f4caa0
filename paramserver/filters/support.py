"""Does the gradient move numbers that the root set never moves?

A trigger that is learned beside the task, as a patch in the corner of an image, agrees with the
root set on everything that the root set shows; what gives it away is where else it moves the
model.  For each number of the gradient the second moment of the nulls is kept (one for each half
of the root set, the draws of a half are judged by the other's); the score is the part of the
gradient's squared length that lies beyond ``far``² second moments plus a floor.  The share of
honest draws beyond the bound is measured, the test on it is sequential as the one on directions.

For models whose inputs have a fixed meaning.  Where new inputs come all the time, as words do,
honest sources move what the root set has never moved, and the bound, which is also the median over
the sources, says nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import log
from typing import Final

import numpy as np

from paramserver.filters.base import PASS, Event, Gradient, Opinion, Source
from paramserver.filters.reference import NULLS_KEPT, Reference

_KEEP: Final = 0.9  # of a second moment, at each of its refreshes
_NULLS_MIN: Final = 8
_SOURCES_MIN: Final = 4
_OUTSIDE: Final = log(0.25 / 0.9)
_INSIDE: Final = 1.0
"""Nats of an event beyond the bound and of one within it.

Honest ones are beyond it one time in four at most (of the nulls it is one in ten, but sources are
not all alike), hostile ones nine in ten; log(.75 / .1) for those within is more than is due."""


class Support:
    """The test on where the gradient lies.

    Parameters
    ----------
    far
        Root mean squares beyond which a number is outside.
    floor
        Second moment, as a part of the mean one, that every number has: what nobody has moved yet
        may be moved so far.
    """

    name = "support"

    def __init__(self, reference: Reference, *, far: float = 3.0, floor: float = 0.05) -> None:
        self._reference = reference
        self._far, self._floor = far, floor
        self._moments: list[Gradient | None] = [None, None]
        self._turn = 0
        self._limit: Gradient | None = None
        self._scores: deque[float] = deque(maxlen=NULLS_KEPT)
        self.bound: float | None = None

    def judge(self, event: Event, source: Source) -> Opinion:
        if event.gradient is None or self._limit is None or self.bound is None:
            return PASS
        outside = self._outside(event.gradient)
        if outside <= self.bound:
            return Opinion(1.0, _INSIDE, outside)
        factor = (self.bound / outside) ** 0.5
        return Opinion(factor, _OUTSIDE, outside, "support: moves what the root set never moves")

    def _outside(self, gradient: Gradient) -> float:
        assert self._limit is not None
        square = gradient * gradient
        whole = float(square.sum())
        if whole == 0.0:
            return 0.0
        # the limit is of a gradient of length 1
        np.subtract(square, self._limit * np.float32(whole), out=square)
        np.maximum(square, 0, out=square)
        return float(square.sum()) / whole

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if event.gradient is not None and self.bound is not None:
            source.mean(self.name, opinion.score)

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        nulls = self._reference.nulls
        if not nulls:
            return
        self._turn = 1 - self._turn
        other = self._moments[1 - self._turn]
        if other is not None:
            self._limit = np.float32(self._far**2) * (other + np.float32(self._floor) * other.mean())
            self._scores.extend(self._outside(null) for null in nulls)
        fresh = np.mean([null * null / np.float32(null @ null) for null in nulls], axis=0)
        own = self._moments[self._turn]
        self._moments[self._turn] = (
            fresh if own is None else own * np.float32(_KEEP) + fresh * np.float32(1 - _KEEP)
        )
        if len(self._scores) < _NULLS_MIN:
            return
        bound = float(np.quantile(list(self._scores), 0.9))
        means = [s.means[self.name] for s in sources if self.name in s.means]
        if len(means) >= _SOURCES_MIN:
            bound = max(bound, 1.5 * float(np.median(means)))
        self.bound = bound
