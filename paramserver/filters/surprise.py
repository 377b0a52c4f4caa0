"""How often is a source's label a surprise to the model?  A sequential test on the loss.

For every model that answers with a loss, trees too.  A surprise is a loss above the null: the
median over sources of the 90 % quantile of each one's last taken losses.  A quantile of all of them
would be that of those who lie, or flood, as soon as every tenth event is theirs; it is used only
while too few sources have sent enough.  Honest sources surprise at a rate of at most q₀, twice the
median over sources and at least 20 %; hostile ones at 70 %: a Bernoulli test, as sequential as the
others.  A loss of four times the null is rarer (5 %, or twice the median) with honest sources,
still half of what hostile ones send, and counts for more: a model that learns fast believes a lie
that comes often after a few, and then it surprises no more.  While more of the last arrivals are
far off than the median source's are, such events weigh less: the sources are known before they are
believed.  When the world turns all sources surprise, q₀ rises, and from 50 % on the test says
nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import log
from typing import Final

import numpy as np

from paramserver.filters.base import OFF, PASS, STEP_MAX, Event, Opinion, Source

_KEPT: Final = 1024
_OF_A_SOURCE: Final = 8
_LEVEL: Final = 0.9
_ENOUGH: Final = 64
_RATE_MIN: Final = 0.2
_RATE_MAX: Final = 0.5
_HOSTILE: Final = 0.7
_SOURCES_MIN: Final = 4
_FAR: Final = 4.0
_FAR_RATE_MIN: Final = 0.05
_FAR_HOSTILE: Final = 0.5
_LATELY: Final = 32.0
_RUSH: Final = 1.5  # of twice the median's
_RUSH_MIN: Final = 0.12
_HEARD: Final = 0.3
"""Weight of what is far off in a rush of it: the sources are known before it is believed."""

_REASON: Final = "surprise: one of many labels at once that are far from what was expected"


class Surprise:
    """The test on losses.  Says nothing before 64 taken events have a loss.

    Parameters
    ----------
    answer
        Judge only events to which the model gave this label (its JSON text): whoever lies about a
        few things is not drowned in what it says of all others.  None: all events.
    enough
        Taken events before it says anything.
    """

    name = "surprise"

    def __init__(self, answer: str | None = None, *, enough: int = _ENOUGH) -> None:
        if answer is not None:
            self.name = f"surprise at {answer}"
        self._far_name = f"{self.name}, far"
        self._answer, self._enough = answer, enough
        self._losses: deque[tuple[str, float]] = deque(maxlen=_KEPT)
        self.bound: float | None = None
        self.rate = _RATE_MIN
        self.far_rate = _FAR_RATE_MIN
        self._lately = 0.0

    def judge(self, event: Event, source: Source) -> Opinion:
        if self.bound is None or self.rate >= _RATE_MAX:
            return OFF
        if event.loss is None or not self._concerns(event):
            return PASS
        if event.loss > _FAR * self.bound:
            least = min(log(self.far_rate / _FAR_HOSTILE), log(self.rate / _HOSTILE))
            evidence = max(least, -STEP_MAX)
            if self._is_rush:
                return Opinion(_HEARD, evidence, event.loss, _REASON)
            return Opinion(1.0, evidence, event.loss)
        if event.loss > self.bound:
            return Opinion(1.0, log(self.rate / _HOSTILE), event.loss)
        return Opinion(1.0, log((1.0 - self.rate) / (1.0 - _HOSTILE)), event.loss)

    def _concerns(self, event: Event) -> bool:
        return self._answer is None or event.answer == self._answer

    @property
    def _is_rush(self) -> bool:
        """Whether far more of the last arrivals are far off than of the median source's."""
        return self._lately > max(_RUSH * self.far_rate, _RUSH_MIN)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if event.loss is None or not self._concerns(event):
            return
        if self.bound is not None:
            source.mean(self.name, float(event.loss > self.bound))
            far = float(event.loss > _FAR * self.bound)
            source.mean(self._far_name, far)
            if not source.quarantined:
                self._lately += (far - self._lately) / _LATELY
        if taken:
            self._losses.append((event.source, event.loss))

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        if len(self._losses) < self._enough:
            return
        self.bound = self._null()
        rates = [s.means[self.name] for s in sources if self.name in s.means]
        rate = 2.0 * float(np.median(rates)) if len(rates) >= _SOURCES_MIN else 0.0
        self.rate = max(rate, _RATE_MIN)
        far = [s.means[self._far_name] for s in sources if self._far_name in s.means]
        far_rate = 2.0 * float(np.median(far)) if len(far) >= _SOURCES_MIN else 0.0
        self.far_rate = max(far_rate, _FAR_RATE_MIN)

    def _null(self) -> float:
        of_source: dict[str, list[float]] = {}
        for name, loss in self._losses:
            of_source.setdefault(name, []).append(loss)
        enough = [
            sorted(x)[round(_LEVEL * (len(x) - 1))]  # numpy takes ten times as long for a few
            for x in of_source.values()
            if len(x) >= _OF_A_SOURCE
        ]
        if len(enough) >= _SOURCES_MIN:
            return float(np.median(enough))
        return float(np.quantile([loss for _, loss in self._losses], _LEVEL))
