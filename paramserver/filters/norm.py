"""Clips the norm of gradients, so that no event moves the model further than honest ones do."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from paramserver.filters.base import PASS, Event, Filter, Opinion, Source, quantile
from paramserver.filters.reference import Reference

_KEPT: Final = 200
_ENOUGH: Final = 16
_FAR: Final = 5.0
"""An event longer than this many caps is quarantined and counts against its source."""


class Norm(Filter):
    """Clips to ``slack`` × a quantile of the norms of taken events (initially of the null draws).

    Without null draws and before sixteen taken events nothing is clipped.  Clipped events count
    with their clipped norm, so that nobody can raise the cap by sending long ones.
    """

    name = "norm"

    def __init__(
        self,
        reference: Reference | None,
        *,
        slack: float = 1.25,
        level: float = 0.5,
        alone: bool = True,
    ) -> None:
        self._alone = alone
        self._reference = reference
        self._level = level
        self._slack = slack
        self._taken: deque[float] = deque(maxlen=_KEPT)
        self.cap: float | None = None

    def judge(self, event: Event, source: Source) -> Opinion:
        if event.gradient is None or self.cap is None:
            return PASS
        length = event.square**0.5
        if length <= self.cap:
            return Opinion(score=length)
        if length > _FAR * self.cap and self._alone:
            reason = f"norm: more than {_FAR:g} times the cap"
            return Opinion(0.0, -2.0, length, reason, stop=True)
        return Opinion(self.cap / length, 0.0, length, "norm: longer than the cap")

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        if taken and event.gradient is not None:
            length = opinion.score * opinion.factor
            if self.cap is None:
                length = event.square**0.5
            self._taken.append(length)

    def refresh(self, sources: Sequence[Source]) -> None:
        bounds = []
        if self._reference is not None and len(self._reference.lengths) >= 4:
            bounds.append(quantile(self._reference.lengths, 0.9))
        if len(self._taken) >= _ENOUGH:
            bounds.append(quantile(self._taken, self._level))
        if bounds and max(bounds) > 0.0:
            self.cap = self._slack * bounds[-1]
