"""How often is a source's label a surprise to the model?  A sequential test on the loss.

For every model that answers with a loss, trees too.  A surprise is a loss above the null's 90 %
quantile; the null is of the losses of the last taken events.  Honest sources surprise at a rate of
at most q₀, twice the median over sources and at least 20 %; hostile ones at 70 %: a Bernoulli test,
as sequential as the others.  When the world turns all sources surprise, q₀ rises, and from 50 % on
the test says nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import log
from typing import Final

import numpy as np

from paramserver.filters.base import OFF, PASS, Event, Opinion, Source

_KEPT: Final = 512
_ENOUGH: Final = 64
_RATE_MIN: Final = 0.2
_RATE_MAX: Final = 0.5
_HOSTILE: Final = 0.7
_SOURCES_MIN: Final = 4


class Surprise:
    """The test on losses.  Says nothing before 64 taken events have a loss."""

    name = "surprise"

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=_KEPT)
        self.bound: float | None = None
        self.rate = _RATE_MIN

    def judge(self, event: Event, source: Source) -> Opinion:
        if self.bound is None or self.rate >= _RATE_MAX:
            return OFF
        if event.loss is None:
            return PASS
        if event.loss > self.bound:
            return Opinion(1.0, log(self.rate / _HOSTILE), event.loss)
        return Opinion(1.0, log((1.0 - self.rate) / (1.0 - _HOSTILE)), event.loss)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if event.loss is None:
            return
        if self.bound is not None:
            source.mean(self.name, float(event.loss > self.bound))
        if taken:
            self._losses.append(event.loss)

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        if len(self._losses) < _ENOUGH:
            return
        self.bound = float(np.quantile(list(self._losses), 0.9))
        rates = [s.means[self.name] for s in sources if self.name in s.means]
        rate = 2.0 * float(np.median(rates)) if len(rates) >= _SOURCES_MIN else 0.0
        self.rate = max(rate, _RATE_MIN)
