"""This module keeps what is known of every source, bounded, as blocks that add up over replicas.

Evidence travels as increases: an attacker who spreads over replicas is one attacker.  Bounds on a
sum are kept by whoever adds (what would lead beyond is not added), so two replicas at once may
pass them by one step each; readers bound what they read.  Quarantine and release are numbers of
which the largest counts, so two replicas that decide the same decide once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from typing import Final

from paramserver.core.blocks import COUNT, EXTREMA, Block, Blocks, Touched
from paramserver.filters.arrivals import EARNED
from paramserver.filters.base import EVIDENCE_MAX, Source, clipped_step
from paramserver.filters.losses import LOSS_BLOCKS, Newest
from paramserver.filters.surprise import ABOUT

SOURCES_MAX: Final = 100_000
EVIDENCE: Final = "filter.evidence."
TAKEN: Final = "filter.taken"
OFFENCES: Final = "filter.offences"
RELEASES: Final = "filter.releases"
"""Blocks: nats by source (and the test's name behind), events taken, numbers of the last quarantine
and release."""

_PREFIX: Final = "filter."
_LEAVE_SHARE: Final = 16
_NEW_SHARE: Final = 4
_GOOD: Final = 4.0
_TURNED: Final = -2.0
_NONE: Final = (0.0, 0.0)


def keep_bounds(
    values: Blocks, touched: Touched, sources_max: int, newest: Newest | None = None
) -> int:
    """Keep what a server holds of sources in its bounds; how many sources have left.

    Evidence that was touched stays within ±``EVIDENCE_MAX``, so that nobody saves it up by way of
    several replicas.  Above ``sources_max`` a sixteenth leaves, those of
    which the fewest events were taken; quarantined ones last, or made-up names would free them.
    Who has left comes back as a new source; a replica that still knows it does no harm.
    ``newest`` is what was seen of the values' losses before; None: they are looked at whole.
    """
    newest = newest or Newest()
    for name, keys in touched.items():
        if name.startswith(EVIDENCE) and keys:
            data = values[name].data
            for source in keys:
                data[source] = min(max(data[source], -EVIDENCE_MAX), EVIDENCE_MAX)
    for name in LOSS_BLOCKS & (touched.keys() or values.keys()):
        kept = newest.keep(values[name].data, name)
        if kept is not None:  # anew: a snapshot may hold the old ones
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
    for block in blocks:  # anew: a snapshot may hold the old ones
        block.data = {name: x for name, x in block.data.items() if name not in leaving}
    return len(leaving)


def _is_of_sources(name: str) -> bool:
    """Whether the block's keys are sources."""
    return name.startswith(_PREFIX) and name not in LOSS_BLOCKS


def of_sources(blocks: Blocks) -> Blocks:
    """Those that are about sources."""
    return {name: block for name, block in blocks.items() if name.startswith(_PREFIX)}


def has_turned(source: Source) -> bool:
    """Whether a test still speaks against it: the unlucky are good again, and did not turn."""
    return any(e < 0.0 for test, e in source.evidence.items() if not test.startswith(ABOUT))


def condemned_by(source: Source, test: str) -> bool:
    """Whether this test alone speaks against it."""
    against = {name for name, e in source.evidence.items() if e < 0.0}
    return against == {test}


@cache
def _block_of(test: str) -> str:
    """The block of a test's evidence: its name is made once, and has its hash then."""
    return EVIDENCE + test


class Sources:
    """The table of sources.

    At most ``sources_max``.  The least recently seen one leaves, and comes back as a new one, which
    has the pooled budget.  A quarter of the table is for sources that have not earned their own
    budget: made-up identities push out each other, not those that are known.

    Attributes:
        evicted: Sources that have left.
        heard: Events by source that other replicas have taken, since somebody last looked.
    """

    def __init__(self, sources_max: int = SOURCES_MAX) -> None:
        self._new_max = max(sources_max // _NEW_SHARE, 1)
        self._known_max = max(sources_max - self._new_max, 1)
        self._new: OrderedDict[str, Source] = OrderedDict()
        self._known: OrderedDict[str, Source] = OrderedDict()
        self._open: Blocks = {}
        self.evicted = 0
        self.heard: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._new) + len(self._known)

    def __iter__(self) -> Iterator[Source]:
        yield from self._known.values()
        yield from self._new.values()

    def get(self, name: str) -> Source:
        """Return what is known of a source, a new one if it is unknown.  Changes nothing."""
        return self._known.get(name) or self._new.get(name) or Source(name)

    def touch(self, name: str) -> Source:
        """The same, and it is the last one seen."""
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
        """Put it where it belongs, and keep both bounds."""
        if source.taken >= EARNED or source.quarantined:
            self._new.pop(source.name, None)
            self._known[source.name] = source
        for table, most in ((self._new, self._new_max), (self._known, self._known_max)):
            while len(table) > most:
                table.popitem(last=False)
                self.evicted += 1

    def add(self, source: Source, test: str, evidence: float, arrival: int) -> None:
        """Add evidence of one event; it stays within ±``EVIDENCE_MAX``."""
        old = source.evidence.get(test, 0.0)
        new = min(max(old + clipped_step(evidence), -EVIDENCE_MAX), EVIDENCE_MAX)
        self._write(source, test, new, arrival)
        if new != old:
            self._increase(_block_of(test), source.name, new - old)

    def _write(self, source: Source, test: str, evidence: float, arrival: int) -> None:
        source.evidence[test] = evidence
        if test.startswith(ABOUT):  # which a lie that was learned turns for the honest, too
            return
        if evidence >= _GOOD:
            source.good = True
        elif evidence < _TURNED and source.good:
            source.good, source.turned_at = False, arrival

    def take(self, source: Source) -> None:
        """One more event of it was accepted or clipped."""
        source.taken += 1
        self._increase(TAKEN, source.name, 1)
        if source.taken == EARNED:
            self._settle(source)

    def quarantine(self, source: Source) -> None:
        """Set its events aside from now on."""
        if not source.quarantined:
            source.offences = source.releases + 1
            source.shadow = 0
            self._highest(OFFENCES, source.name, source.offences)
            self._settle(source)

    def release(self, source: Source) -> None:
        """Take its events again, with no evidence for or against it."""
        if source.quarantined:
            source.releases = source.offences
            self._highest(RELEASES, source.name, source.releases)
            self.pardon(source)

    def pardon(self, source: Source) -> None:
        """Forget the evidence for and against it, and release it if it is quarantined."""
        if source.quarantined:
            self.release(source)
        else:
            for test, evidence in source.evidence.items():
                self._increase(EVIDENCE + test, source.name, -evidence)
                source.evidence[test] = 0.0

    def _increase(self, block: str, key: str, by: float) -> None:
        opened = self._open.get(block)
        if opened is None:
            opened = self._open[block] = Block(COUNT, {})
        opened.data[key] = opened.data.get(key, 0) + by

    def _highest(self, block: str, key: str, number: int) -> None:
        data = self._open.setdefault(block, Block(EXTREMA, {})).data
        data[key] = (0.0, float(number))

    def cut(self) -> Blocks:
        """Return what the events since the last cut did, and begin anew.

        It goes with the range's push.
        """
        out, self._open = self._open, {}
        return out

    def rebase(self, values: Blocks, arrival: int) -> list[Source]:
        """Take the server's values for what they name, with the open increases on top.

        Returns the sources that were named.
        """
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
            self._write(source, block.removeprefix(EVIDENCE), bounded, arrival)
        elif block == TAKEN:
            assert isinstance(value, int | float)
            taken = int(value) + (mine if isinstance(mine, int) else 0)
            if taken > source.taken:
                self.heard[name] = self.heard.get(name, 0) + taken - source.taken
            source.taken = taken
        elif block in (OFFENCES, RELEASES):
            assert isinstance(value, tuple)
            field = block.removeprefix(_PREFIX)
            setattr(source, field, max(getattr(source, field), int(value[1])))
        self._settle(source)
        return source

    def reset(self, values: Blocks, arrival: int = 0) -> None:
        """Be exactly ``values``, with nothing open."""
        self._new.clear()
        self._known.clear()
        self._open = {}
        self.rebase(values, arrival)
        self.heard = {}
