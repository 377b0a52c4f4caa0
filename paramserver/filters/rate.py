"""Limits the rate of each source relative to the median source, and of all new sources together.

The median is over sources, not events, so a flood does not move it while fewer than half of the
active sources are hostile.  It defends against the flood attack of "Robustifying Asynchronous SGD
via Soft Throttling" (Otsuka, Meyer et al. 2026), which earlier asynchronous defences ignored.
"""

from __future__ import annotations

from typing import Final

from paramserver.filters.arrivals import DOUBTFUL, Arrivals, is_new
from paramserver.filters.base import PASS, Event, Filter, Opinion, Source

_WINDOW_MIN: Final = 64
_DENIED_MAX: Final = 0.5
_DENIED_MORE: Final = 0.2
"""Greatest rate at which the model may contradict small sources while a large one has no budget,
and how much more often that one."""
_DENIED_LONG_MAX: Final = 0.25
"""The same over a longer time where several are large, if there are two labels."""


class Rate(Filter):
    """Reduces the weight of sources that send more than twice as much as the median source.

    An arrival counts as its weight, but at least as 1, since each takes a place in the window.
    With r = own arrivals / (m + 2 √m + 3) in the window, m = 2 · median (the other terms allow for
    chance), the weight is 1/r for r > 1, and events are quarantined from ``refuse_at`` on.  Sources
    in good standing are exempt while the model contradicts them hardly more often than small ones:
    a model that a flood has taught finds much of what it sends usual.  Several large sources can
    teach it together what each of them says, so it has to agree with small ones for longer and more
    often before one of these is exempt.  New sources
    share a pool of ``pool_share`` of the window, once at least eight sources are established and
    unless tests of losses know that they agree with these.

    Parameters:
        refuse_at: Ratio r from which on events are quarantined.
        pool_share: Share of the window for all new sources together.  Smaller values slow down
            growth and protect better against made-up identities.

    Attributes:
        arrivals: The window, in which the chain counts arrivals.
    """

    name = "rate"
    budgets = True

    def __init__(self, *, refuse_at: float = 4.0, pool_share: float = 0.25) -> None:
        self.arrivals = Arrivals()
        self.refuse_at = refuse_at
        self.pool_share = pool_share

    def judge(self, event: Event, source: Source) -> Opinion:
        arrivals, size = self.arrivals, event.weight if event.weight > 1.0 else 1.0
        own = arrivals.count(event.source) + size
        over = 0.0 if arrivals.budget is None else own / arrivals.budget
        reason = "rate: more than twice the median source"
        if source.taken < DOUBTFUL and self._is_pooled(event, source):
            pool = (arrivals.new + size) / max(self.pool_share * arrivals.total, 1.0)
            if pool > over:
                over, reason = pool, "rate: new sources together are over their share"
        if over <= 1.0 or (source.trusted and self._is_agreed(source)):
            return PASS if over == 0.0 else Opinion(score=over)
        if over >= self.refuse_at:
            return Opinion(0.0, score=over, reason=reason, stop=True)
        return Opinion(1.0 / over, score=over, reason=reason)

    def _is_agreed(self, source: Source) -> bool:
        """Return whether the model agrees with small sources, and about as often with this one."""
        usual, long = self.arrivals.denied, self.arrivals.denied_long
        if self.arrivals.large > 1 and long is not None and long > _DENIED_LONG_MAX:
            return False
        near = usual <= _DENIED_MAX or usual - source.denied <= _DENIED_MORE
        return near and source.denied <= usual + _DENIED_MORE

    def _is_pooled(self, event: Event, source: Source) -> bool:
        arrivals = self.arrivals
        known = arrivals.compares and len(arrivals) >= _WINDOW_MIN
        if not (known and is_new(source)):
            return False
        return event.loss is None or not arrivals.agrees_with_new

    def watch(self, arrivals: Arrivals) -> None:
        """Use the arrivals that the chain counts."""
        self.arrivals = arrivals
