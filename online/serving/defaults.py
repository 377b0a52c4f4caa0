"""Gives predictions and choices whose wait has ended their default, exactly once.

Each is one half of a joined row in the journal until its label replaces it.  Every replica looks
for halves that have waited long enough, and writes the row that a rule makes
(:mod:`.choices.default_rewards`, :mod:`.default_labels`) by a compare-and-set on the half it has
read: if a label, or the default of another replica, came first, nothing is written.

Halves that a rule leaves alone stay as long as any half does.  To avoid reading them every second,
a scan starts where the last one ended, and at the oldest half only now and then.

The wall clock may be wrong, so waits are measured from the start of the process: halves from before
wait again, unless the running time that is summed in the store, and with which each half is
written, says that they have waited.  If the clock is set back, it was ahead at the start, and
halves written after the correction would look old; then all waits begin again.  While it is ahead,
the rows of others give a bound: the time is at most the newest row's of any other live replica,
plus the time passed since that row was first seen.  A default may be late, but is never early as
far as the clocks of the other hosts agree.

A half stamped by a clock that was ahead would wait until that time.  So a half from the future
waits from the moment it is first seen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from math import inf
from typing import Final, Protocol

from online.replica.replica import ModelReplica
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import PredictionHalf
from replay.journal.base import NewRow, Stored

log = logging.getLogger(__name__)

PAGE: Final = 128
WHOLE_S: Final = 60.0
"""Seconds between full scans, hence the longest delay for what arrives late in an old half."""
OVERLAP_S: Final = 10.0
"""How far a scan goes back behind the last one, because halves are written after they are stamped.
If the clock is set back by more than this, it was ahead before."""
AHEAD_S: Final = 3600.0
"""A stamp this much later than now is from a wrong clock; trimming uses the same rule."""
LAG_S: Final = 60.0
"""The store's running time may be this much older than a half that was written with it: several of
the steps in which it grows (:mod:`paramserver.process.trimming`)."""
_MET_MAX: Final = 8192
"""Halves from the future whose wait is tracked at a time; others follow when these are done."""
SOURCE: Final = "default"
"""Source of a default if the source of the prediction is not known."""
_LOOK_S: Final = 1.0
_TURN: Final = 16
"""After this many halves other tasks get a turn of the event loop."""


class Rule(Protocol):
    """Decides what becomes of one model's halves that have waited long enough.

    Attributes:
        wait_s: How long a half waits, in seconds; None: there are no defaults.
        leftovers: Whether only halves left by earlier settings are looked for, now and then.
        counted: Name of the counter of given defaults.
    """

    @property
    def wait_s(self) -> float | None: ...

    @property
    def leftovers(self) -> bool: ...

    @property
    def counted(self) -> str: ...

    def settled(self, key: bytes, half: Stored, made: PredictionHalf, at: float) -> NewRow | None:
        """The row that replaces the half at the time ``at``; None: the half stays."""


class Defaults:
    """Gives defaults for one model in one replica.

    Parameters:
        now_s, monotonic_s: Wall clock in POSIX seconds, and a monotonic clock in seconds.
    """

    def __init__(
        self,
        replica: ModelReplica,
        rule: Rule,
        now_s: Callable[[], float],
        monotonic_s: Callable[[], float],
    ) -> None:
        self._replica, self._rule, self._monotonic_s = replica, rule, monotonic_s
        self._now_s, self._began_at, self._began_s = now_s, now_s(), monotonic_s()
        self._latest = self._began_at
        self._seen = self._whole_at = self._told_at = self._early_at = -inf
        self._others: dict[int, tuple[float, float]] = {}
        self._met: dict[bytes, float] = {}  # halves from the future: monotonic time first seen

    async def give(self) -> int:
        """Give a default to each half that has waited long enough; return how many.

        Raises RequestError and ReplayError if the journal takes no rows now.
        """
        wait_s = self._rule.wait_s
        if wait_s is None or self._set_back():
            return 0
        await self._hear_others()
        now_s = self._monotonic_s()
        passed_s = now_s - self._began_s
        at = min(self._began_at + passed_s, self._by_others(now_s))
        if passed_s < wait_s:
            return await self._give_early(now_s, at, wait_s)
        if self._rule.leftovers and now_s < self._whole_at:
            return 0
        if whole := now_s >= self._whole_at:
            self._seen, self._whole_at = -inf, now_s + WHOLE_S
        given, after = await self._give(self._seen, at - wait_s, at, lambda key, _: True)
        self._seen = min(after, at - wait_s - OVERLAP_S)
        if whole:
            met, self._met = self._met, {}

            def waited(key: bytes, _: int) -> bool:
                if (since_s := met.get(key, now_s)) <= now_s - wait_s:
                    return True
                if len(self._met) < _MET_MAX:
                    self._met[key] = since_s
                return False

            given += (await self._give(at + AHEAD_S, inf, at, waited))[0]
        self._replica.counts[self._rule.counted] += given
        return given

    async def _give_early(self, now_s: float, at: float, wait_s: float) -> int:
        """Give defaults, now and then, to halves that have waited by both clocks of the store."""
        if now_s < self._early_at:
            return 0
        self._early_at, most_ms = now_s + WHOLE_S, 1000 * (wait_s + LAG_S)
        given, _ = await self._give(-inf, at - wait_s, at, lambda _, ran_ms: ran_ms >= most_ms)
        self._replica.counts[self._rule.counted] += given
        return given

    async def _give(
        self, after: float, before: float, at: float, due: Callable[[bytes, int], bool]
    ) -> tuple[int, float]:
        """Give defaults for due halves in a time range; return how many, and the last time."""
        given, store = 0, self._replica.store
        while True:
            page = await store.read(
                store.journal.predicted, self._replica.settings.name, after, before, PAGE
            )
            rows = []
            for i, (key, half) in enumerate(page.waiting):
                if i % _TURN == _TURN - 1:
                    await asyncio.sleep(0)
                ran_ms = page.ran_ms[i] if page.ran_ms else 0
                if due(key, ran_ms) and (row := self._settled(key, half, at)):
                    rows.append(row)
            if rows:
                recorded = await self._replica.writer.record(rows)
                given += sum(one.row is not None and not one.repeat for one in recorded)
            if page.upto is None:
                return given, after
            after = page.upto

    async def _hear_others(self) -> None:
        """Read, now and then, the newest row of each other live replica."""
        now_s, replica = self._monotonic_s(), self._replica
        if now_s < self._told_at + WHOLE_S:
            return
        self._told_at, journal = now_s, replica.store.journal
        partitions = await replica.store.read(journal.partitions, replica.settings.name)
        others = [
            p for p in partitions if p.end and not p.sealed and p.id != replica.writer.partition
        ]
        known, self._others = self._others, {}
        for other in others:
            for row in await replica.store.read(journal.read, other.id, other.end, 1):
                before = known.get(other.id, (-inf, now_s))
                self._others[other.id] = (row.at, now_s) if row.at > before[0] else before

    def _by_others(self, now_s: float) -> float:
        """The time by the other replica that is furthest ahead; infinite without others."""
        return max((at + now_s - seen_s for at, seen_s in self._others.values()), default=inf)

    def _set_back(self) -> bool:
        """Whether the clock was set back since the last call; if so, all waits begin again."""
        now = self._now_s()
        self._latest = max(self._latest, now)
        if self._latest - now <= OVERLAP_S:
            return False
        self._latest = self._began_at = now
        self._began_s = self._monotonic_s()
        self._seen = self._whole_at = -inf
        self._replica.counts["defaults_held"] += 1
        return True

    def _settled(self, key: bytes, half: Stored, at: float) -> NewRow | None:
        try:
            made = codec.decode_prediction(half.payload)
        except (PayloadFormat, PayloadInvalid):  # a damaged half must not block others
            return None
        return self._rule.settled(key, half, made, at)


async def give_for_ever(models: Mapping[str, Defaults]) -> None:
    """Give due defaults every second, for the models that exist at that time."""
    while True:
        await asyncio.sleep(_LOOK_S)
        for name, model in list(models.items()):
            try:
                await model.give()
            except Exception as error:  # also of a replica that was replaced meanwhile
                log.warning("defaults of %s: %r", name, error)
