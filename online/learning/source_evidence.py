"""Sums the filters' evidence about sources, which rows carry, into blocks beside the parameters.

The evidence was computed before the row was written (:mod:`online.trust.filtering`) and is stored
in it, so every process that learns the row, at any time, gets the same.  It is pushed with the
row's range and adds up over replicas.
"""

from __future__ import annotations

from typing import Final, Protocol

from paramserver.core.blocks import COUNT, EXTREMA, Block, Blocks
from paramserver.filters.sources import OFFENCES, RELEASES, SOURCES_MAX, Effects, of_sources
from replay.example import Judged
from replay.journal.base import Row, Verdict

_LEARNED: Final = (Verdict.ACCEPTED, Verdict.CLIPPED)
_HIGHEST: Final = frozenset((OFFENCES, RELEASES))
"""Blocks of numbers of which the highest counts."""


class EvidenceObserver(Protocol):
    """Receives what becomes known about sources."""

    def effects(self, row: Row) -> Effects | None:
        """Return the effects of the row if it was judged here; otherwise None."""

    def passed(self, row: Row, effects: Effects) -> None:
        """Take note that a row's evidence is counted from now on."""

    def cut(self, opened: Blocks) -> None:
        """Take note that new values will include what was counted since the last cut."""

    def rebase(self, values: Blocks) -> None:
        """Take new values of sources, which lack what was counted since the last cut."""

    def reset(self, values: Blocks) -> None:
        """Take all values; nothing was counted since."""


class Evidence:
    """The open delta of the rows' evidence; has the methods of a tally.

    Attributes:
        observer: Is notified of changes; None: nothing judges rows here.
        sources_max: Largest number of sources whose evidence is kept.
    """

    def __init__(self) -> None:
        self.sources_max = SOURCES_MAX
        self.observer: EvidenceObserver | None = None
        self._open: Blocks = {}

    def add(self, row: Row, judged: Judged | None) -> None:
        """Count a row that the pointer has passed, learned or not."""
        if judged is None:
            return
        effects = None if self.observer is None else self.observer.effects(row)
        if effects is None:
            effects = effects_of(judged, row.source, row.verdict)
        effects.add_to(self._open)
        if self.observer is not None:
            self.observer.passed(row, effects)

    def cut(self) -> Blocks:
        """Return the open delta, and reset it."""
        blocks, self._open = self._open, {}
        if self.observer is not None and blocks:
            self.observer.cut(blocks)
        return blocks

    def rebase(self, values: Blocks) -> None:
        """Replace the values of the given sources, and apply the open delta on top."""
        if self.observer is not None and (named := of_sources(values)):
            self.observer.rebase(named)

    def reset(self, values: Blocks) -> None:
        """Replace the state by exactly ``values``, with an empty open delta."""
        self._open = {}
        if self.observer is not None:
            self.observer.reset(of_sources(values))


def effects_of(judged: Judged, source: str, verdict: Verdict) -> Effects:
    """Return a row's effects on the state of sources."""
    more: Blocks = {}
    for name, numbers in (judged.more or {}).items():
        highest = name in _HIGHEST
        data = {who: (0.0, x) for who, x in numbers.items()} if highest else dict(numbers)
        more[name] = Block(EXTREMA if highest else COUNT, data)
    return Effects(source, judged.evidence, int(verdict in _LEARNED), more)


def judged_of(effects: Effects, score: float, reason: str) -> Judged:
    """Encode a row's effects for the row itself; the inverse of :func:`effects_of`."""
    more = {name: block.data for name, block in effects.more.items()}
    for name in effects.more.keys() & _HIGHEST:
        more[name] = {who: x for who, (_, x) in more[name].items()}
    return Judged(score, reason, effects.evidence, more or None)
