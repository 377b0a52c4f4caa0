"""The evidence about sources in one replica, including its own rows that are not learned yet.

    evidence = pulled values + own deltas  +  rows learned since  +  rows judged but not learned yet

So each row counts exactly once, no matter which replica learns it and when.  The last two are one
sum: learning a row that was judged here moves it from the one to the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, KeysView, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paramserver.core.blocks import COUNT, EXTREMA, Block, Blocks, copy, merge
from paramserver.core.sums import add_counts
from paramserver.evidence.losses import LOSS_BLOCKS
from paramserver.filters.chain import Chain
from paramserver.filters.sources import EVIDENCE, EXTRA, OFFENCES, TAKEN, Effects
from replay.journal.base import Row

_log = logging.getLogger(__name__)

_SUM_ANEW: Final = 16_384


@dataclass(slots=True)
class _Pending:
    """A row that is judged but not learned yet.

    ``place`` is its partition and offset, once it is written.
    """

    effects: Effects
    place: tuple[int, int] | None = None


class Reputations:
    """Keeps the filter chain's table of sources at the learner's values plus pending rows.

    Parameters:
        chain: The chain of filters with the table.
        clock: Returns the clock of the learner's values.

    Attributes:
        on_quarantine: Called with a source when it is quarantined, and for each of its rows that is
            learned afterwards.
    """

    def __init__(self, chain: Chain, clock: Callable[[], dict[int, int]]) -> None:
        self.on_quarantine: Callable[[str], object] = lambda source: None
        self._chain, self._clock = chain, clock
        self._pending: dict[bytes, _Pending] = {}
        self._ahead: Blocks = {}  # sum of the pending effects and of the learner's open delta
        self._subtracted = 0  # keys subtracted from it since it was last recomputed
        self._unwritten: Blocks = {}  # effects to be written with the next row
        self._quarantined: dict[str, None] = {}

    @property
    def quarantined(self) -> list[str]:
        """Return the quarantined sources."""
        return list(self._quarantined)

    def evidence(self, source: str) -> dict[str, float]:
        """Return the source's evidence by test, in nats."""
        return {k: round(x, 2) for k, x in self._chain.sources.get(source).evidence.items()}

    def release(self, source: str) -> bool:
        """Release a quarantined source, by an operator's decision; False if it was not quarantined.

        Earlier evidence about the source no longer counts.  Other replicas learn of the release
        with the next row.
        """
        known = self._chain.sources.get(source)
        if not known.quarantined:
            return False
        self._chain.sources.release(known)
        merge(self._unwritten, self._chain.cut())
        self._update_quarantined([source])
        return True

    @property
    def pending(self) -> KeysView[bytes]:
        """Return the keys of the rows that are judged but not learned yet."""
        return self._pending.keys()

    def waits(self, key: bytes) -> bool:
        """Return whether a row is judged but not learned yet."""
        return key in self._pending

    def decided(self, key: bytes, source: str) -> Effects:
        """Return the effects of the event that the chain just observed, to write with its row."""
        effects = self._chain.effects()
        if self._unwritten:
            merge(effects.more, self._unwritten)
            self._unwritten = {}
        self._pending[key] = _Pending(effects)
        effects.add_to(self._ahead)
        self._update_quarantined([source])
        return effects

    def stands(self, key: bytes, place: tuple[int, int]) -> None:
        """Record the partition and offset at which a pending row was written."""
        self._pending[key].place = place

    def leave(self, partition: int) -> None:
        """Drop the pending rows of a partition that another replica now learns.

        Their effects come back with pulled values.
        """
        for key, pending in list(self._pending.items()):
            if pending.place is not None and pending.place[0] == partition:
                del self._pending[key]
                self._subtract(pending.effects.blocks())

    def take_back(self, key: bytes) -> None:
        """Subtract the effects of a row that was not written, or that was a repeat."""
        effects = self._pending.pop(key).effects.blocks()
        self._subtract(effects)
        self._apply(_negative(effects))
        for source, (_, number) in _data(effects, OFFENCES).items():
            known = self._chain.sources.get(source)
            if known.offences == number and known.quarantined:
                known.offences = known.releases
        self._update_quarantined(_named(effects))

    def effects(self, row: Row) -> Effects | None:
        """Return the effects of a pending row; None if the row is not pending."""
        pending = self._pending_row(row)
        return None if pending is None else pending.effects

    def _pending_row(self, row: Row) -> _Pending | None:
        """Return what is pending of the row, and not of a repeat that is being written here."""
        pending = self._pending.get(row.key)
        stands = pending is not None and pending.place == (row.partition, row.offset)
        return pending if stands else None

    def passed(self, row: Row, effects: Effects | None) -> None:
        """Record that the learner has passed a row; None: it adds no effects of it."""
        if (pending := self._pending_row(row)) is not None:
            del self._pending[row.key]
            if effects is not pending.effects:
                self._subtract(pending.effects.blocks())
        elif effects is not None:  # a row of another replica, or a replayed one
            effects.add_to(self._ahead)
            self._apply(blocks := effects.blocks())
            self._update_quarantined(_named(blocks))
        if row.source in self._quarantined:  # judged before its source was quarantined
            self.on_quarantine(row.source)

    def cut(self, opened: Blocks) -> None:
        """Record that the learner's open delta was cut: from now on its values include that."""
        self._subtracted += sum(len(block.data) for block in opened.values())
        if self._subtracted > _SUM_ANEW or not self._pending:
            self._sum_anew()
        else:
            self._subtract(opened)

    def rebase(self, values: Blocks) -> None:
        """Set new values of the named sources."""
        self._settle()
        total = copy(values)
        for mine in (self._ahead, self._unwritten):
            for name, block in mine.items():
                if name in total and block.kind == COUNT:
                    data = total[name].data
                    data.update({x: data[x] + n for x, n in block.data.items() if x in data})
        self._set(total)

    def reset(self, values: Blocks) -> None:
        """Set the evidence to these values plus that of pending rows; no delta is open."""
        self._settle()
        self._sum_anew()
        total = copy(values)
        merge(total, self._ahead)
        self._chain.reset({})
        self._quarantined = {}
        self._set(total)

    def _set(self, total: Blocks) -> None:
        self._chain.rebase(total)
        merge(self._unwritten, {k: b for k, b in self._chain.cut().items() if b.kind == EXTREMA})
        self._update_quarantined(_named(total))

    def _settle(self) -> None:
        """Drop pending rows that the learner's values include: other replicas learned them."""
        clock = self._clock()
        for key, pending in list(self._pending.items()):
            if pending.place is None or pending.place[1] > clock.get(pending.place[0], 0):
                break  # rows are in the order of their offsets
            del self._pending[key]
            self._subtract(pending.effects.blocks())

    def _subtract(self, effects: Blocks) -> None:
        """Subtract effects from the sum ahead of the values."""
        add_counts(self._ahead, effects, -1)
        for name in LOSS_BLOCKS & effects.keys():  # most keys occur only once
            data = self._ahead[name].data
            for key in [key for key in effects[name].data if data[key] == 0]:
                del data[key]

    def _sum_anew(self) -> None:
        """Recompute the sum while no delta is open, to drop unused names."""
        self._ahead, self._subtracted = {}, 0
        for pending in self._pending.values():
            pending.effects.add_to(self._ahead)

    def _apply(self, effects: Blocks) -> None:
        """Add effects to the chain's table."""
        total: Blocks = {}
        for name, block in effects.items():
            data: dict[str, Any] = {}
            for source, x in block.data.items():
                known = self._chain.sources.get(source)
                if name in LOSS_BLOCKS:
                    data[source] = self._chain.losses.count(source) + x
                    continue
                if name == TAKEN:
                    data[source] = known.taken + x
                elif name == EXTRA:
                    data[source] = known.extra + x
                elif block.kind == COUNT:
                    data[source] = known.evidence.get(name.removeprefix(EVIDENCE), 0.0) + x
                else:
                    data[source] = x
            total[name] = Block(block.kind, data)
        self._set(total)

    def _update_quarantined(self, sources: Sequence[str]) -> None:
        """Update the set of quarantined sources; report the new ones."""
        for source in sources:
            if not self._chain.sources.get(source).quarantined:
                if self._quarantined:
                    self._quarantined.pop(source, None)
            elif source not in self._quarantined:
                self._quarantined[source] = None
                _log.warning("source %s is quarantined: %s", source, self.evidence(source))
                self.on_quarantine(source)


def _data(blocks: Blocks, name: str) -> dict[str, Any]:
    return blocks[name].data if name in blocks else {}


def _named(blocks: Blocks) -> list[str]:
    of_sources = (block.data for name, block in blocks.items() if name not in LOSS_BLOCKS)
    return list(dict.fromkeys(source for data in of_sources for source in data))


def _negative(blocks: Blocks) -> Blocks:
    """Return the negated counts; maxima are left out, since they can't be undone."""
    return {
        name: Block(COUNT, {source: -x for source, x in block.data.items()})
        for name, block in blocks.items()
        if block.kind == COUNT
    }
