"""Budgets for who asks, where what has no label in time is learned as a negative.

Nobody has sent such a label, so no test looks at it.  But who asks ten times as much as the others
would teach ten times as many.  So asking has a budget of its own, of the kind that sending has
(:mod:`paramserver.filters.rate`), without a pool for new names: whoever only asks stays new.
"""

from __future__ import annotations

from math import inf
from typing import Final

import msgspec

from paramserver.filters.base import Event
from paramserver.filters.rate import Rate
from paramserver.filters.sources import Sources
from replay.journal.base import NewRow, Verdict

_EVERY: Final = 50
"""Labels by default between two looks at what the median source asks."""
_LATELY: Final = 64
_FACTOR_MIN: Final = 1e-3


class Asking:
    """Labels by default of late in one replica, by who has asked.

    Parameters:
        sources: What is known of each.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources, self._rate = sources, Rate(refuse_at=inf, pool_share=inf)
        self._given = 0

    def judged(self, row: NewRow, weight: float) -> NewRow:
        """The row of a label by default with the part of its weight that its asker may have."""
        arrivals, known = self._rate.arrivals, self._sources.get
        event = Event(row.source, row.key, weight=weight)
        factor = self._rate.judge(event, known(row.source)).factor
        arrivals.add(row.source, new=False, weight=weight)
        self._given += 1
        if self._given % _EVERY == 0:
            arrivals.refresh(map(known, arrivals.lately(_LATELY)))
        if factor == 1.0:
            return row
        factor = max(factor, _FACTOR_MIN)
        return msgspec.structs.replace(row, verdict=Verdict.CLIPPED, factor=factor)
