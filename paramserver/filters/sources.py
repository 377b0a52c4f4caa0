"""The bounded table of source statistics, shared by replicas as blocks that add up.

Evidence is exchanged as increments, so an attacker who spreads over replicas is seen as one.  The
adder enforces bounds on sums (increments beyond them are dropped), so two replicas at the same time
may exceed them by one step each; readers clip what they read.  Quarantines and releases are
numbered and the largest number counts, so replicas that decide the same decide once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final

from paramserver.core.blocks import COUNT, EXTREMA, Block, Blocks, Touched
from paramserver.core.sums import add_counts
from paramserver.evidence.generations import Newest
from paramserver.evidence.losses import LOSS_BLOCKS
from paramserver.filters.arrivals import EARNED
from paramserver.filters.base import EVIDENCE_MAX, Source, clipped_step
from paramserver.filters.surprise import ABOUT

SOURCES_MAX: Final = 100_000
EVIDENCE: Final = "filter.evidence."
TAKEN: Final = "filter.taken"
EXTRA: Final = "filter.extra_weight"
OFFENCES: Final = "filter.offences"
RELEASES: Final = "filter.releases"
"""Names of blocks by source: evidence in nats (followed by the test's name), taken events, the sum
of their weights − 1, numbers of the last quarantine and release."""

_PREFIX: Final = "filter."
_LEAVE_SHARE: Final = 16
_NEW_SHARE: Final = 4
_GOOD: Final = 4.0
_TURNED: Final = -2.0
_NONE: Final = (0.0, 0.0)


def keep_bounds(
    values: Blocks, touched: Touched, sources_max: int, newest: Newest | None = None
) -> int:
    """Enforce the bounds on a server's source statistics; return how many sources were evicted.

    Touched evidence is clipped to ±``EVIDENCE_MAX``, so that it cannot be accumulated through
    several replicas.  Above ``sources_max`` a sixteenth is evicted, those with the fewest taken
    events first and quarantined ones last, or made-up names could push them out.  An evicted source
    returns as a new one; a replica that still knows it does no harm.

    Parameters:
        newest: Remembers which losses were seen before; None: examine all of them.
    """
    newest = newest or Newest()
    for name, keys in touched.items():
        if name.startswith(EVIDENCE) and keys:
            data = values[name].data
            for source in keys:
                data[source] = min(max(data[source], -EVIDENCE_MAX), EVIDENCE_MAX)
    for name in LOSS_BLOCKS & (touched.keys() or values.keys()):
        kept = newest.keep(values[name].data, name)
        if kept is not None:  # a new container, as a snapshot may share the old one
            values[name].data = kept
    blocks = [block for name, block in values.items() if _is_of_sources(name)]
    if all(len(block.data) <= sources_max for block in blocks):
        return 0
    taken, offences, releases = (
        values[name].data if name in values else {} for name in (TAKEN, OFFENCES, RELEASES)
    )

    def worth(name: str) -> tuple[bool, float]:
        quarantined = offences.get(name, _NONE)[1] > releases.get(name, _NONE)[1]
        return quarantined, taken.get(name, 0)

    known = dict.fromkeys(name for block in blocks for name in block.data)  # older ones first
    most = len(known) - sources_max + sources_max // _LEAVE_SHARE
    leaving = set(sorted(known, key=worth)[:most])
    for block in blocks:  # a new container, as a snapshot may share the old one
        block.data = {name: x for name, x in block.data.items() if name not in leaving}
    return len(leaving)


def _is_of_sources(name: str) -> bool:
    """Return whether the block's keys are sources."""
    return name.startswith(_PREFIX) and name not in LOSS_BLOCKS


def of_sources(blocks: Blocks) -> Blocks:
    """Return the blocks with source statistics."""
    return {name: block for name, block in blocks.items() if name.startswith(_PREFIX)}


def has_turned(source: Source) -> bool:
    """Return whether a test still has evidence against it; else it was only unlucky."""
    return any(e < 0.0 for test, e in source.evidence.items() if not test.startswith(ABOUT))


def condemned_by(source: Source, test: str) -> bool:
    """Return whether this test alone has evidence against the source."""
    against = {name for name, e in source.evidence.items() if e < 0.0}
    return against == {test}


@dataclass(slots=True)
class Effects:
    """Holds what one event changes in the statistics of sources.

    Attributes:
        source: The event's source.
        evidence: Nats about it, by test.
        taken: How many events of it were taken.
        more: All other changes, such as of other sources.
    """

    source: str
    evidence: dict[str, float]
    taken: int
    more: Blocks

    def blocks(self) -> Blocks:
        """Return all changes as blocks."""
        out: Blocks = {}
        self.add_to(out)
        return out

    def add_to(self, sums: Blocks) -> None:
        """Add the changes to ``sums``, in place."""
        for test, nats in self.evidence.items():
            _add(sums, _block_of(test), self.source, nats)
        if self.taken:
            _add(sums, TAKEN, self.source, self.taken)
        if self.more:
            add_counts(sums, self.more)


def _add(sums: Blocks, block: str, source: str, x: float) -> None:
    try:
        data = sums[block].data
    except KeyError:
        data = (sums.setdefault(block, Block(COUNT, {}))).data
    data[source] = data.get(source, 0) + x


@cache
def _block_of(test: str) -> str:
    """Return the name of a test's evidence block; cached with its hash."""
    return EVIDENCE + test


class Sources:
    """The table of at most ``sources_max`` sources.

    The least recently seen source is evicted; if it returns, it is a new one with the pooled
    budget.  A quarter of the table is reserved for sources that are not established, so made-up
    identities evict each other and not the established ones.

    Attributes:
        evicted: Number of evicted sources.
        heard: By source, events that other replicas have taken since this was last processed.
    """

    def __init__(self, sources_max: int = SOURCES_MAX) -> None:
        self._new_max = max(sources_max // _NEW_SHARE, 1)
        self._known_max = max(sources_max - self._new_max, 1)
        self._new: OrderedDict[str, Source] = OrderedDict()
        self._known: OrderedDict[str, Source] = OrderedDict()
        self._open: Blocks = {}
        self._of_event = Effects("", {}, 0, {})
        self.evicted = 0
        self.heard: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._known)

    def __iter__(self) -> Iterator[Source]:
        yield from self._known.values()
        yield from self._new.values()

    def get(self, name: str) -> Source:
        """Return the source, or a new record if it is unknown.  Changes nothing."""
        return self._known.get(name) or self._new.get(name) or Source(name)

    def begin(self, name: str) -> Source:
        """Return the source of an event, whose effects are collected from now on."""
        self._settle_event()
        self._of_event.source = name
        return self.touch(name)

    def end(self) -> Effects:
        """Return the effects of the last event, with what has changed before it."""
        effects, self._of_event = self._of_event, Effects("", {}, 0, {})
        effects.more, self._open = self._open, {}
        return effects

    def _settle_event(self) -> None:
        """Move an event's effects that nobody has asked for to the other changes."""
        if self._of_event.evidence or self._of_event.taken:
            self._of_event.add_to(self._open)
            self._of_event = Effects("", {}, 0, {})

    def touch(self, name: str) -> Source:
        """Return the source, adding it if it is unknown, and mark it as last seen."""
        if name in self._known:
            self._known.move_to_end(name)
            return self._known[name]
        source = self._new.get(name)
        if source is None:
            source = self._new[name] = Source(name)
        self._new.move_to_end(name)
        self._settle(source)
        return source

    def _settle(self, source: Source) -> None:
        """Move the source to the table that it belongs to, and enforce both bounds."""
        if source.taken >= EARNED or source.quarantined:
            self._new.pop(source.name, None)
            self._known[source.name] = source
        for table, most in ((self._new, self._new_max), (self._known, self._known_max)):
            while len(table) > most:
                table.popitem(last=False)
                self.evicted += 1

    def add(self, source: Source, test: str, evidence: float, arrival: int) -> None:
        """Add the evidence of one event, clipping the sum to ±``EVIDENCE_MAX``."""
        old = source.evidence.get(test, 0.0)
        if old == EVIDENCE_MAX and evidence > 0.0:  # most of the time, for honest sources
            source.good = source.good or not test.startswith(ABOUT)
            return
        new = old + clipped_step(evidence)
        new = min(max(new, -EVIDENCE_MAX), EVIDENCE_MAX) if abs(new) > EVIDENCE_MAX else new
        self._write(source, test, new, arrival)
        if new != old:
            self._increase(test, source.name, new - old)

    def _write(self, source: Source, test: str, evidence: float, arrival: int) -> None:
        source.evidence[test] = evidence
        if test.startswith(ABOUT):  # learned poison turns this test against honest sources, too
            return
        if evidence >= _GOOD:
            source.good = True
        elif evidence < _TURNED and source.good:
            source.good, source.turned_at = False, arrival

    def take(self, source: Source, weight: float = 1.0) -> None:
        """Count one more accepted or clipped event of the source."""
        source.taken += 1
        if weight != 1.0:
            source.extra += weight - 1.0
            _add(self._open, EXTRA, source.name, weight - 1.0)
        if source.name == self._of_event.source:
            self._of_event.taken += 1
        else:
            _add(self._open, TAKEN, source.name, 1)
        if source.taken == EARNED:
            self._settle(source)

    def quarantine(self, source: Source) -> None:
        """Quarantine the source's events from now on."""
        if not source.quarantined:
            source.offences = source.releases + 1
            source.shadow = 0
            self._highest(OFFENCES, source.name, source.offences)
            self._settle(source)

    def release(self, source: Source) -> None:
        """Release the source from quarantine, with no evidence for or against it."""
        if source.quarantined:
            source.releases = source.offences
            self._highest(RELEASES, source.name, source.releases)
            self.pardon(source)

    def pardon(self, source: Source) -> None:
        """Reset the source's evidence to 0, and release it if it is quarantined."""
        if source.quarantined:
            self.release(source)
        else:
            for test, evidence in source.evidence.items():
                self._increase(test, source.name, -evidence)
                source.evidence[test] = 0.0

    def _increase(self, test: str, source: str, by: float) -> None:
        if source != self._of_event.source:
            _add(self._open, _block_of(test), source, by)
            return
        evidence = self._of_event.evidence
        evidence[test] = evidence.get(test, 0.0) + by

    def _highest(self, block: str, key: str, number: int) -> None:
        data = self._open.setdefault(block, Block(EXTREMA, {})).data
        data[key] = (0.0, float(number))

    def cut(self) -> Blocks:
        """Return the increments since the last cut, to be pushed with the range of rows."""
        self._settle_event()
        out, self._open = self._open, {}
        return out

    def rebase(self, values: Blocks, arrival: int) -> list[Source]:
        """Replace statistics by the server's values plus open increments; return those sources."""
        self._settle_event()
        named: dict[str, Source] = {}
        for block, got in values.items():
            if not _is_of_sources(block):
                continue
            opened = self._open.get(block)
            mine = {} if opened is None else opened.data
            for name, value in got.data.items():
                named[name] = self._take_value(block, name, value, mine.get(name), arrival)
        return list(named.values())

    def _take_value(
        self, block: str, name: str, value: object, mine: object, arrival: int
    ) -> Source:
        source = self._known.get(name) or self._new.get(name) or self.touch(name)
        if block.startswith(EVIDENCE):
            assert isinstance(value, int | float)
            total = value + (mine if isinstance(mine, int | float) else 0.0)
            bounded = min(max(float(total), -EVIDENCE_MAX), EVIDENCE_MAX)
            self._write(source, block[len(EVIDENCE) :], bounded, arrival)
            return source
        if block == TAKEN:
            assert isinstance(value, int | float)
            taken = int(value) + (mine if isinstance(mine, int) else 0)
            if taken > source.taken:
                self.heard[name] = self.heard.get(name, 0) + taken - source.taken
            source.taken = taken
        elif block == EXTRA:
            assert isinstance(value, int | float)
            source.extra = float(value) + (mine if isinstance(mine, int | float) else 0.0)
        elif block in (OFFENCES, RELEASES):
            assert isinstance(value, tuple)
            field = block.removeprefix(_PREFIX)
            setattr(source, field, max(getattr(source, field), int(value[1])))
        self._settle(source)
        return source

    def reset(self, values: Blocks, arrival: int = 0) -> None:
        """Replace all statistics by ``values``, with no open increments."""
        self._new.clear()
        self._known.clear()
        self._open, self._of_event = {}, Effects("", {}, 0, {})
        self.rebase(values, arrival)
        self.heard = {}
