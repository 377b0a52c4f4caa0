"""Budgets for sources that request predictions, where a missing label is learned as a negative.

No source has sent such a default label, so no filter tests it.  But a source with ten times as many
predictions as the others would cause ten times as many negatives.  So predictions have a budget of
the kind that feedback has (:mod:`paramserver.filters.rate`), but without a pool for new sources: a
source that never sends feedback stays new forever.
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
"""Default labels between two updates of the median source's rate."""
_LATELY: Final = 64
_FACTOR_MIN: Final = 1e-3


class AskerBudgets:
    """The recent default labels in one replica, by the source that requested the prediction.

    Parameters:
        sources: The table of sources.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources, self._rate = sources, Rate(refuse_at=inf, pool_share=inf)
        self._given = 0

    def judged(self, row: NewRow, weight: float) -> NewRow:
        """Return the row of a default label, with its weight reduced to its source's budget."""
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
