"""Whoever gives the model another number of parameter servers, while everything goes wrong.

Servers and replicas of before live on for a while beside those that begin.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sim_actor import MODEL, SPEC, Actor
from sim_disk import SnapshotDisk

import online.errors
import online.rebuild.reshard
import paramserver.core.resharding
import paramserver.core.shards
import paramserver.process.aligned
import paramserver.process.lineage
from paramserver.core.resharding import Reshard
from paramserver.errors import ParamServerError
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay.errors import ReplayError

if TYPE_CHECKING:
    from sim_world import World

_TIMES, _NUMBERS = 3, (1, 2, 3)
_ERRORS = (online.errors.OnlineError, ReplayError, ParamServerError, OSError)


def spec_of(born: int, shards: int) -> str:
    """The spec with so many servers, of a model that began with ``born``."""
    return SPEC if shards == born else f"{shards}" * 64


def of_before(world: World) -> list[Actor]:
    """Servers and replicas of a lineage that serves no more."""
    return [a for a in world.actors if a.alive and getattr(a, "spec", world.spec) != world.spec]


class Resharder(Actor):
    """Begins lineages with other numbers; what the journal says is done others find when it died.

    Attributes:
        busy: It may still begin one.
    """

    kind = "resharder"

    def __init__(self, world: World, number: int) -> None:
        self.dice = random.Random(f"reshard {world.seed} {number}")
        self.busy = True
        super().__init__(world, number)

    async def live(self) -> None:
        world = self.world
        journal = await self.thread("main", self.open_journal)
        if world.climate.by_settings:  # this start's settings name the number that there was
            await self._tried(self._answered, journal)
        for _ in range(_TIMES):
            self._follow(await self.thread("main", self._decided, journal))
            await asyncio.sleep(self.dice.random() * world.climate.chaos_s / 2)
            if world.calm:
                break
            wanted = self.dice.choice([n for n in _NUMBERS if n != world.shards])
            if world.climate.by_settings:
                await self._start(journal, wanted)
                continue
            await self._tried(self._wish, journal, wanted)
            await asyncio.sleep(self.dice.random())  # somebody may ask for a decision meanwhile
            await self._tried(self._reshard, journal, wanted)
            await asyncio.sleep(3.0 * self.dice.random())
            await self._tried(self._answered, journal)
        self._follow(await self.thread("main", self._decided, journal))
        self.busy = False

    async def _start(self, journal: Any, wanted: int) -> None:
        """A start whose settings name another number: others may start between its steps."""
        world = self.world
        said, seq = self._said(world.shards, wanted, "settings"), None
        try:
            claim = online.rebuild.reshard.claim
            seq = await self.thread("main", claim, journal, MODEL, said)
            await asyncio.sleep(self.dice.random())
            if await self.thread("main", self._begin, journal, wanted):
                await asyncio.sleep(2.0 * self.dice.random())
                await self.thread("main", online.rebuild.reshard.note, journal, MODEL, said, seq)
        except _ERRORS as error:
            world.note(f"{self.name}: {error!r}")
        await asyncio.sleep(self.dice.random())
        await self._tried(self._answered, journal)

    async def _tried(self, step: Callable[..., None], *given: Any) -> None:
        try:
            await self.thread("main", step, *given)
        except _ERRORS as error:
            self.world.note(f"{self.name}: {error!r}")

    def _decided(self, journal: Any) -> int:
        found = paramserver.core.resharding.newest(journal.controls(MODEL, 0), SPEC, done=True)
        return self.world.climate.shards if found is None else found[1].shards

    def _follow(self, shards: int) -> None:
        """Have those start that are to serve; those of before end one by one."""
        world = self.world
        if shards == world.shards:
            return
        world.note(f"{shards} servers are to serve instead of {world.shards}")
        world.counts["reshard"] += 1
        world.shards, world.spec = shards, spec_of(world.climate.shards, shards)
        world.oracle.begin_anew()
        for actor in of_before(world):
            later_s = 1.5 * self.dice.random() if self.dice.random() < 0.7 else 0.0
            world.loop.call_later(later_s, world.kill, actor, context=world.outside)

    def _said(self, before: int, shards: int, why: str, *, done: bool = True) -> Reshard:
        born = self.world.climate.shards
        specs = spec_of(born, before), spec_of(born, shards)
        return Reshard(SPEC, born, before, shards, done, why, *specs)

    def _wish(self, journal: Any, wanted: int) -> None:
        """From here on who serves decides nothing."""
        wish = self._said(self.world.shards, wanted, "operator", done=False)
        online.rebuild.reshard.note(journal, MODEL, wish)

    def _answered(self, journal: Any) -> None:
        """A wish that could not be done is taken back."""
        found = paramserver.core.resharding.newest(journal.controls(MODEL, 0), SPEC, done=False)
        if found is not None and not found[1].done:
            back = self._said(found[1].shards, found[1].before, "failed")
            online.rebuild.reshard.note(journal, MODEL, back)

    def _reshard(self, journal: Any, wanted: int) -> None:
        """The steps of the service, whose process may be killed at each."""
        if self.dice.random() < 0.5:  # else who serves has answered since the wish
            self._supersede(journal)
        if self._begin(journal, wanted):
            said = self._said(self.world.shards, wanted, "operator")
            online.rebuild.reshard.note(journal, MODEL, said)

    def _begin(self, journal: Any, wanted: int) -> bool:
        """Begin the other lineage, if there is a cut."""
        world = self.world
        spec = spec_of(world.climate.shards, wanted)
        histories = self._histories(world.shards)
        for history in histories:
            history.index()
        ends = {p.id: p.end for p in journal.partitions(MODEL)}
        names = paramserver.process.aligned.aligned(histories, ends)
        if names is None:
            world.note(f"{self.name} finds no cut")
            return False
        parts = [history.load(name) for history, name in zip(histories, names, strict=True)]
        state = paramserver.process.aligned.whole(parts)
        lineage = paramserver.process.lineage.Lineage(MODEL, spec, "{}", "sum")
        world.note(f"{self.name} begins {wanted} servers with {names}: {dict(state.clock)}")
        online.rebuild.reshard.begin(journal, lineage, state, self._histories(wanted))
        return True

    def _supersede(self, journal: Any) -> None:
        """Whoever serves may have begun to decide before the wish: he writes nothing any more."""
        lineage = paramserver.process.lineage.Lineage(MODEL, self.world.spec, "{}", "sum")
        paramserver.process.lineage.begin_epoch(journal, lineage)

    def _histories(self, shards: int) -> list[SnapshotHistory]:
        spec = spec_of(self.world.climate.shards, shards)
        places = (
            lineage_place(
                paramserver.core.shards.shard_place("/simulated/snapshots", k), MODEL, spec
            )
            for k in range(shards)
        )
        disk = SnapshotDisk(self.world.disk)
        return [SnapshotHistory(open_snapshots(place, disk), Retention()) for place in places]


def at_work(world: World) -> bool:
    """Whether somebody may begin another lineage, or lives of one that serves no more."""
    return any(one.busy for one in world.live(Resharder)) or bool(of_before(world))
