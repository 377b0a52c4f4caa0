"""A budget of arrivals relative to the median source, and one pool for those without a name yet.

The median is of sources, not of events: a flood doesn't move it while fewer than half of the
sources that are active are hostile.  After the flood attack of "Robustifying Asynchronous SGD via
Soft Throttling" (Otsuka, Meyer et al. 2026), which asynchronous defences before it ignored.
"""

from __future__ import annotations

from typing import Final

from paramserver.filters.arrivals import EARNED, Arrivals
from paramserver.filters.base import PASS, Event, Filter, Opinion, Source

_WINDOW_MIN: Final = 64
_TRUSTED: Final = 4.0
"""Nats that all tests say for a source that may send what it likes: honest ones differ in size."""


class Rate(Filter):
    """Weigh down who sends more than twice as much as the median source.

    An arrival counts as its weight, and at least as one: each takes a place in the window.

    With r = own arrivals / (m + 2 √m + 3) in the window, m = 2 · median (the rest is for chance):
    weight 1/r above 1, set aside from ``refuse_at``; not of a source in good standing.  Sources
    with fewer than ``EARNED`` taken events share the pool: together they get ``pool_share`` of the
    window once at least eight sources have earned their own.

    Parameters:
        pool_share: Share of the window for all new sources together.  Smaller: slower growth, safer
            from made-up identities.

    Attributes:
        arrivals: The window; the chain that asks this test counts arrivals in it.
    """

    name = "rate"
    budgets = True

    def __init__(self, *, refuse_at: float = 4.0, pool_share: float = 0.25) -> None:
        self.arrivals = Arrivals()
        self.refuse_at = refuse_at
        self.pool_share = pool_share

    def judge(self, event: Event, source: Source) -> Opinion:
        arrivals, size = self.arrivals, max(event.weight, 1.0)
        own = arrivals.count(event.source) + size
        over = 0.0 if arrivals.budget is None else own / arrivals.budget
        reason = "rate: more than twice the median source"
        if self._is_pooled(source):
            pool = (arrivals.new + size) / max(self.pool_share * arrivals.total, 1.0)
            if pool > over:
                over, reason = pool, "rate: new sources together are over their share"
        if over <= 1.0 or source.trust >= _TRUSTED:
            return PASS if over == 0.0 else Opinion(score=over)
        if over >= self.refuse_at:
            return Opinion(0.0, score=over, reason=reason, stop=True)
        return Opinion(1.0 / over, score=over, reason=reason)

    def _is_pooled(self, source: Source) -> bool:
        arrivals = self.arrivals
        known = arrivals.established >= EARNED and len(arrivals) >= _WINDOW_MIN
        return known and source.taken < EARNED

    def watch(self, arrivals: Arrivals) -> None:
        """Budgets are made of what the chain counts."""
        self.arrivals = arrivals
