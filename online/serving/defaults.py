"""Predictions and choices whose wait has ended: each gets its default, once, whoever gives it.

Each is one half of a row in the journal until its label takes its place.  Every replica looks for
those that have waited long enough, and writes what a rule makes of them
(:mod:`online.serving.default_rewards`, :mod:`online.serving.default_labels`) over exactly the half
that it has seen: if a label, or the default of another replica, was faster, nothing is written.

Those that a rule leaves alone stay for as long as any half does.  So that nobody reads them each
second, a look begins where the last one ended, and at the oldest only now and then.

The wall clock may be wrong, so time is counted from the start of the process: what was asked before
it waits anew.  If the clock is set back, it was ahead at the start, and what a replica is asked
that starts now would look old: then all waits anew.  While it stays ahead, others' rows tell: it is
no later than the newest row of other replicas that are alive, and what has passed since that was
first seen.  A default may be late, and never comes before its time, as far as the clocks of the
other hosts agree.

What was stamped by a clock that was ahead would wait until then.  So a half from the future waits
from when a look at all of them has first met it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from math import inf
from typing import Final, Protocol

from online.errors import RequestError
from online.replica.replica import ModelReplica
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid, ReplayError
from replay.example import PredictionHalf
from replay.journal.base import NewRow, Stored

log = logging.getLogger(__name__)

PAGE: Final = 128
WHOLE_S: Final = 60.0
"""Seconds between looks at all that has waited: what comes late into an old half waits so long."""
OVERLAP_S: Final = 10.0
"""How far a look goes back behind the last one: halves are written after they are taken.  A clock
that is set back by more is one that was ahead."""
AHEAD_S: Final = 3600.0
"""A stamp later than now by more is of a wrong clock, as trimming has it."""
_MET_MAX: Final = 8192
"""Halves from the future that wait at a time; the others have their turn when these are done."""
SOURCE: Final = "default"
"""Who has sent a default of a prediction whose asker is not known."""
_LOOK_S: Final = 1.0
_TURN: Final = 16
"""After so many halves others have a turn of the event loop."""


class Rule(Protocol):
    """Says what becomes of halves of one model that have waited long enough.

    Attributes:
        wait_s: How long a half waits; None: nothing becomes of any.
        leftovers: Whether only what other settings have left is looked for, now and then.
        counted: The counter of those that were given something.
    """

    @property
    def wait_s(self) -> float | None: ...

    @property
    def leftovers(self) -> bool: ...

    @property
    def counted(self) -> str: ...

    def settled(self, key: bytes, half: Stored, made: PredictionHalf, at: float) -> NewRow | None:
        """The row that takes the half's place ``at`` that time; None: it stays."""


class Defaults:
    """Gives defaults of one model in one replica.

    Parameters:
        now_s, monotonic_s: POSIX seconds, and seconds since any time.
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
        self._seen = self._whole_at = self._told_at = -inf
        self._others: dict[int, tuple[float, float]] = {}
        self._met: dict[bytes, float] = {}  # from the future: when (monotonic) it was first seen

    async def give(self) -> int:
        """Give each half its default that has waited long enough; how many.

        Raises RequestError and ReplayError: the journal takes none now.
        """
        wait_s = self._rule.wait_s
        if wait_s is None or self._set_back():
            return 0
        await self._hear_others()
        now_s = self._monotonic_s()
        if (passed_s := now_s - self._began_s) < wait_s:
            return 0
        if self._rule.leftovers and now_s < self._whole_at:
            return 0
        at = min(self._began_at + passed_s, self._by_others(now_s))
        if whole := now_s >= self._whole_at:
            self._seen, self._whole_at = -inf, now_s + WHOLE_S
        given, after = await self._give(self._seen, at - wait_s, at, lambda key: True)
        self._seen = min(after, at - wait_s - OVERLAP_S)
        if whole:
            met, self._met = self._met, {}

            def waited(key: bytes) -> bool:
                if (since_s := met.get(key, now_s)) <= now_s - wait_s:
                    return True
                if len(self._met) < _MET_MAX:
                    self._met[key] = since_s
                return False

            given += (await self._give(at + AHEAD_S, inf, at, waited))[0]
        self._replica.counts[self._rule.counted] += given
        return given

    async def _give(
        self, after: float, before: float, at: float, due: Callable[[bytes], bool]
    ) -> tuple[int, float]:
        """Give what was taken between these times and is due; how many, and the last one's time."""
        given, store = 0, self._replica.store
        while True:
            page = await store.read(
                store.journal.predicted, self._replica.settings.name, after, before, PAGE
            )
            rows = []
            for i, (key, half) in enumerate(page.waiting):
                if i % _TURN == _TURN - 1:
                    await asyncio.sleep(0)
                if due(key) and (row := self._settled(key, half, at)):
                    rows.append(row)
            if rows:
                recorded = await self._replica.writer.record(rows)
                given += sum(one.row is not None and not one.repeat for one in recorded)
            if page.upto is None:
                return given, after
            after = page.upto

    async def _hear_others(self) -> None:
        """Look, now and then, at the newest row of each other replica that is alive."""
        now_s, replica = self._monotonic_s(), self._replica
        if now_s < self._told_at + WHOLE_S:
            return
        self._told_at, journal = now_s, replica.store.journal
        found = await replica.store.read(journal.partitions, replica.settings.name)
        others = [p for p in found if p.end and not p.sealed and p.id != replica.writer.partition]
        known, self._others = self._others, {}
        for other in others:
            for row in await replica.store.read(journal.read, other.id, other.end, 1):
                before = known.get(other.id, (-inf, now_s))
                self._others[other.id] = (row.at, now_s) if row.at > before[0] else before

    def _by_others(self, now_s: float) -> float:
        """The time by the clock of the other replica that is most ahead; infinite: by nobody's."""
        return max((at + now_s - seen_s for at, seen_s in self._others.values()), default=inf)

    def _set_back(self) -> bool:
        """Whether the clock was set back since the last look; then all waits from now on."""
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
        except (PayloadFormat, PayloadInvalid):  # others do not wait for it
            return None
        return self._rule.settled(key, half, made, at)


async def give_for_ever(models: Mapping[str, Defaults]) -> None:
    """Look every second, for whatever models there are by then."""
    while True:
        await asyncio.sleep(_LOOK_S)
        for name, model in list(models.items()):
            try:
                await model.give()
            except (RequestError, ReplayError) as error:
                log.warning("defaults of %s: %s", name, error)
