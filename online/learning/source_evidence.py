"""Rows carry the filters' evidence about sources; it stands beside the parameters, as blocks.

It was worked out before the row was written (:mod:`online.trust.filtering`) and stands in it, so
whoever learns the row, at whatever time, says the same.  It is pushed with the row's range, like
all else that rows do, and adds up over replicas.
"""

from __future__ import annotations

from typing import Final, Protocol

from paramserver.core.blocks import COUNT, EXTREMA, Block, Blocks, add_counts, merge
from paramserver.filters.sources import (
    EVIDENCE,
    OFFENCES,
    RELEASES,
    SOURCES_MAX,
    TAKEN,
    of_sources,
)
from replay.example import Judged
from replay.journal.base import Row, Verdict

_LEARNED: Final = (Verdict.ACCEPTED, Verdict.CLIPPED)


class Heard(Protocol):
    """Who is told what is known of sources."""

    def effects(self, key: bytes) -> Blocks | None:
        """Return what the row with this key does, as it was judged here; None: it was not."""

    def passed(self, row: Row, effects: Blocks) -> None:
        """A row's evidence is counted from now on."""

    def rebase(self, values: Blocks, opened: Blocks) -> None:
        """New values of the sources named; ``opened``: what was counted since, not in them."""

    def reset(self, values: Blocks) -> None:
        """All values, and nothing was counted since."""


class Evidence:
    """The open delta of the rows' evidence; the verbs of a tally.

    Attributes:
        heard: Who is told; None: nobody here judges.
        sources_max: Sources of which evidence is kept.
    """

    def __init__(self) -> None:
        self.sources_max = SOURCES_MAX
        self.heard: Heard | None = None
        self._open: Blocks = {}

    def add(self, row: Row, judged: Judged | None) -> None:
        """Count a row that is passed, learned or not."""
        if judged is None:
            return
        effects = None if self.heard is None else self.heard.effects(row.key)
        if effects is None:
            effects = effects_of(judged, row.source, row.verdict)
        add_counts(self._open, effects)
        if self.heard is not None:
            self.heard.passed(row, effects)

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        blocks, self._open = self._open, {}
        return blocks

    def rebase(self, values: Blocks) -> None:
        """Take new values of the sources named, with the open delta on top."""
        if self.heard is not None and (named := of_sources(values)):
            self.heard.rebase(named, self._open)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with nothing open."""
        self._open = {}
        if self.heard is not None:
            self.heard.reset(of_sources(values))


def effects_of(judged: Judged, source: str, verdict: Verdict) -> Blocks:
    """Return what a row does to what is known of sources."""
    blocks = {EVIDENCE + test: Block(COUNT, {source: x}) for test, x in judged.evidence.items()}
    if verdict in _LEARNED:
        blocks[TAKEN] = Block(COUNT, {source: 1})
    more: Blocks = {}
    for name, numbers in (judged.more or {}).items():
        highest = name in (OFFENCES, RELEASES)
        data = {who: (0.0, x) for who, x in numbers.items()} if highest else dict(numbers)
        more[name] = Block(EXTREMA if highest else COUNT, data)
    merge(blocks, more)
    return blocks


def judged_of(effects: Blocks, source: str, score: float, reason: str) -> Judged:
    """How a row keeps what it does, so that :func:`effects_of` gives it again."""
    evidence: dict[str, float] = {}
    more: dict[str, dict[str, float]] = {}
    for name, block in effects.items():
        if len(block.data) == 1 and source in block.data:  # as nearly all are
            if name.startswith(EVIDENCE):
                evidence[name[len(EVIDENCE) :]] = block.data[source]
                continue
            if name == TAKEN:
                continue
        for who, x in block.data.items():
            if name == TAKEN and who == source:
                continue
            if name.startswith(EVIDENCE) and who == source:
                evidence[name.removeprefix(EVIDENCE)] = x
            else:
                more.setdefault(name, {})[who] = x[1] if isinstance(x, tuple) else x
    return Judged(score, reason, evidence, more or None)
