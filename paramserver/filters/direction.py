"""Does the gradient point where the root set's does?  A sequential test for each source.

c = cosine of the gradient and the reference direction.  Honest ones scatter as N(μ, σ), hostile
ones as N(0, σ): one event adds (c − μ/2) · μ / σ² nats (Wald 1945), at most 2 in either sense, to
the evidence of its source.  μ is the smaller of the nulls' lower quartile and the median over the
sources of their mean c: when the root set loses its power, late in training or under drift, μ
shrinks with it and the test says nothing, instead of condemning everybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from paramserver.filters.base import PASS, Event, Opinion, Source, clipped_step
from paramserver.filters.reference import Reference

_NULLS_MIN: Final = 8
_SOURCES_MIN: Final = 4
_SD_MIN: Final = 0.02
_AGAINST: Final = 0.1
"""An event is against the root set if its c is below −max(this, 3 σ).  It is set aside."""

_HEARD: Final = 0.25
"""Unless its source has evidence for it: then so much of it is learned, for the world may turn."""

_REASON: Final = "direction: against the root set"


class Direction:
    """The test on directions; off, with a reason, where the reference is."""

    name = "direction"

    def __init__(self, reference: Reference) -> None:
        self._reference = reference
        self.mu = 0.0
        self.sd = 1.0

    def judge(self, event: Event, source: Source) -> Opinion:
        direction = self._reference.direction
        if event.gradient is None or direction is None:
            return PASS
        square = float(event.gradient @ event.gradient)
        if square == 0.0 or self.mu <= 0.0:
            return PASS
        c = float(event.gradient @ direction) / square**0.5
        step = clipped_step((c - self.mu / 2.0) * self.mu / self.sd**2)
        if c < -max(_AGAINST, 3.0 * self.sd):
            known = source.evidence.get(self.name, 0.0) + step >= 0.0
            return Opinion(_HEARD if known else 0.0, step, c, _REASON, stop=not known)
        return Opinion(1.0, step, c)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        """Every event moves its own source's mean, taken or not: that is what it is judged by."""
        direction = self._reference.direction
        if event.gradient is None or direction is None:
            return
        square = float(event.gradient @ event.gradient)
        if square > 0.0:
            source.mean(self.name, float(event.gradient @ direction) / square**0.5)

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        nulls = np.array(self._reference.cosines)
        if len(nulls) < _NULLS_MIN:
            self.mu = 0.0
            return
        mu = float(np.quantile(nulls, 0.25))
        self.sd = max(float(nulls.std()), _SD_MIN)
        means = [s.means[self.name] for s in sources if self.name in s.means]
        if len(means) >= _SOURCES_MIN:
            mu = min(mu, float(np.median(means)))
        self.mu = max(mu, 0.0)
