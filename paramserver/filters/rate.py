"""A budget of arrivals relative to the median source, and one pool for those without a name yet.

The median is of sources, not of events: a flood doesn't move it while fewer than half of the
sources that are active are hostile.  After the flood attack of "Robustifying Asynchronous SGD via
Soft Throttling" (Otsuka, Meyer et al. 2026), which asynchronous defences before it ignored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np

from paramserver.filters.base import PASS, Event, Opinion, Source

_WINDOW_MIN: Final = 64
_CHANCE: Final = 3.0
_LEAST: Final = 0.5  # half of what one arrival counts at least
_TRUSTED: Final = 4.0
"""Nats that all tests say for a source that may send what it likes: honest ones differ in size."""

EARNED: Final = 8
"""Taken events after which a source has its own budget."""


class Rate:
    """Weigh down who sends more than twice as much as the median source.

    An arrival counts as its weight, and at least as one: each takes a place in the window.

    With r = own arrivals / (m + 2 √m + 3) in the window, m = 2 · median (the rest is for chance):
    weight 1/r above 1, set aside from ``refuse_at``; not of a source in good standing.  Sources
    with fewer than ``EARNED`` taken events share the pool: together they get ``pool_share`` of the
    window once at least eight sources have earned their own.

    Parameters
    ----------
    window_max
        Arrivals looked back at; at most, and 8 for each source seen in it.
    pool_share
        Share of the window for all new sources together.  Smaller: slower growth, safer from
        made-up identities.
    """

    name = "rate"

    def __init__(
        self, *, window_max: int = 4096, refuse_at: float = 4.0, pool_share: float = 0.25
    ) -> None:
        self.window_max = window_max
        self.refuse_at = refuse_at
        self.pool_share = pool_share
        self._window: deque[tuple[str, bool, float]] = deque()
        self._count: dict[str, float] = {}
        self._pooled = 0.0
        self._total = 0.0
        self._budget: float | None = None
        self._established = 0

    def judge(self, event: Event, source: Source) -> Opinion:
        size = max(event.weight, 1.0)
        own = self._count.get(event.source, 0.0) + size
        over = 0.0 if self._budget is None else own / self._budget
        reason = "rate: more than twice the median source"
        if self._is_pooled(source):
            pool = (self._pooled + size) / max(self.pool_share * self._total, 1.0)
            if pool > over:
                over, reason = pool, "rate: new sources together are over their share"
        if over <= 1.0 or source.standing >= _TRUSTED:
            return PASS if over == 0.0 else Opinion(score=over)
        if over >= self.refuse_at:
            return Opinion(0.0, score=over, reason=reason, stop=True)
        return Opinion(1.0 / over, score=over, reason=reason)

    def _is_pooled(self, source: Source) -> bool:
        known = self._established >= EARNED and len(self._window) >= _WINDOW_MIN
        return known and source.taken < EARNED

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        new = source.taken < EARNED and not source.quarantined
        self._move(event.source, max(event.weight, 1.0), pooled=new)
        self._window.append((event.source, new, max(event.weight, 1.0)))
        bound = min(self.window_max, max(8 * len(self._count), _WINDOW_MIN))
        while len(self._window) > bound:
            gone, was_new, size = self._window.popleft()
            self._move(gone, -size, pooled=was_new)

    def _move(self, source: str, by: float, *, pooled: bool) -> None:
        self._total += by
        self._pooled += by if pooled else 0.0
        new = self._count.get(source, 0.0) + by
        if new >= _LEAST:  # sums of fractions leave a rest
            self._count[source] = new
        else:
            self._count.pop(source, None)

    def refresh(self, rng: np.random.Generator, sources: Sequence[Source]) -> None:
        """The budget anew, by the median source of those that have earned their own, or of all."""
        earned = [s.name for s in sources if s.taken >= EARNED]
        self._established = len(earned)
        names = earned if len(earned) >= EARNED else [s.name for s in sources]
        counts = sorted(self._count.get(name, 0) for name in names)
        if len(counts) < EARNED:
            self._budget = None
            return
        twice = 2.0 * counts[len(counts) // 2]
        self._budget = twice + 2.0 * twice**0.5 + _CHANCE
