"""An operator who forgets a source, or goes on with what recent rows alone have taught.

Everything goes wrong meanwhile; the steps are those of the command, and of the task.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from sim_actor import MODEL, SPEC, Actor
from sim_disk import SnapshotDisk
from sim_labels import SOURCES as ALL_LABELS
from sim_model import SOURCES
from sim_shards import publish_aside
from sim_tables import ledger

import online.errors
import online.rebuild.forget
import online.rebuild.rebuild
import online.rebuild.relearn
import online.rows.history
from paramserver.core.state import Contained
from paramserver.errors import ParamServerError
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay.errors import ReplayError

if TYPE_CHECKING:
    from sim_world import World

_TRIES = 12


class Operator(Actor):
    """A process that bans a source, builds a state without it, and has the server take it.

    Attributes:
        busy: It may still decide something.
    """

    kind = "operator"

    def __init__(self, world: World, number: int) -> None:
        self.dice = random.Random(f"forget {world.seed}")  # other dice stay as they are
        self.busy = True
        super().__init__(world, number)

    async def live(self) -> None:
        world, dice = self.world, self.dice
        source = dice.choice((*SOURCES, *(ALL_LABELS if world.climate.labels else ())))
        relearns = random.Random(f"relearn {world.seed}").random() < world.climate.relearns
        await asyncio.sleep(dice.random() * world.climate.chaos_s)
        for number in range(_TRIES):
            try:
                aside = f"aside-{number}"
                if await (self._relearn(aside) if relearns else self._forget(source, aside)):
                    break
            except (online.errors.OnlineError, ReplayError, TimeoutError, OSError) as error:
                world.note(f"{self.name}: {error!r}")
            await asyncio.sleep(dice.random())
        self.busy = False

    async def _forget(self, source: str, aside: str) -> bool:
        """Whether it is done."""
        world = self.world
        world.oracle.bans += 1
        banned = await self._ask(lambda server: server.ban(source, True))
        world.counts["ban"] += 1
        if not await self._acted(banned["control"]):
            return False
        status = await self._ask(lambda server: server.status())
        journal = await self.thread("main", self.open_journal)
        if status["rewrite"] is None:
            return False
        made, base, names = await self.thread(
            "main", self._build, journal, source, aside, status["rewrite"]
        )
        await asyncio.sleep(self.dice.choice((0.0, 0.3, 1.0)) * self.dice.random())
        world.oracle.forget(aside, names)
        world.note(f"{self.name} wants {source} to be forgotten: {sorted(names)}")
        await self._ask(lambda server: server.forget(aside, source, None, base, made.undone))
        world.counts["forget"] += 1
        return True

    def _build(
        self, journal: Any, source: str, aside: str, rewrite: int
    ) -> tuple[Any, str | None, set[str]]:
        """The state aside; and, found out in another way, whose events it has to be without."""
        place = lineage_place("/simulated/snapshots", MODEL, SPEC)
        history = SnapshotHistory(open_snapshots(place, SnapshotDisk(self.world.disk)), Retention())
        history.index()
        decisions = online.rows.history.Decisions(SPEC)
        decisions.read(journal, MODEL)
        wanted = online.rebuild.rebuild.ForgetScope(source)
        found = online.rebuild.forget.influence(journal, MODEL, decisions, wanted, 0.0)
        online.rebuild.forget.check_reach(found, wanted)
        bases = online.rebuild.forget.Bases(journal, MODEL, decisions, journal.partitions(MODEL))
        head = journal.head(MODEL, SPEC).snapshot
        base = bases.before(history, head, 0, found)
        if self.world.climate.shards > 1:  # no snapshot has all of it
            base = online.rebuild.forget.Base(None, Contained({}, frozenset()))
        start = online.rebuild.rebuild.nothing(MODEL, SPEC, "{}", {})
        if base.name is not None:
            start = history.load(base.name)
        climate = self.world.climate
        method = online.rebuild.rebuild.Method(
            partial(ledger(climate, counts=climate.shards > 1), _deadly),
            "regression",
            rows_max=climate.rows_max,
        )
        rebuild = online.rebuild.rebuild.Rebuild(journal, decisions, wanted, start, method)
        rebuild.run()
        made = rebuild.built((0, self._number(aside)), rewrite, self.world.wall())
        publish_aside(self.world, history, aside, made.state, SnapshotDisk(self.world.disk))
        names = set()
        for partition in journal.partitions(MODEL):
            upto = made.state.clock.get(partition.id, 0)
            if partition.id in made.state.closed:
                upto = partition.end
            rows = journal.read(partition.id, partition.trimmed + 1, 10_000)
            names |= {r.event_id for r in rows if r.source == source and r.offset <= upto}
        return made, base.name, names

    async def _relearn(self, aside: str) -> bool:
        """Whether it is done.  What is judged is tested elsewhere: here any state is as good."""
        world = self.world
        status = await self._ask(lambda server: server.status())
        if status["rewrite"] is None:
            return False
        rewrite = status["rewrite"]
        if not await self._ask(lambda server: server.may_relearn(rewrite, 0.2)):
            return False
        journal = await self.thread("main", self.open_journal)
        made, since, names = await self.thread("main", self._taught, journal, aside, rewrite)
        await asyncio.sleep(self.dice.choice((0.0, 0.3, 1.0)) * self.dice.random())
        world.oracle.forget(aside, names)
        world.note(f"{self.name} wants {sorted(names)} to be left behind")
        await self._ask(lambda server: server.relearn(aside, since, made.undone, {}))
        world.counts["relearn"] += 1
        return True

    def _taught(self, journal: Any, aside: str, rewrite: int) -> tuple[Any, float, set[str]]:
        """The state aside, and, found out in another way, the events that are older."""
        world, place = self.world, lineage_place("/simulated/snapshots", MODEL, SPEC)
        history = SnapshotHistory(open_snapshots(place, SnapshotDisk(world.disk)), Retention())
        decisions = online.rows.history.Decisions(SPEC)
        decisions.read(journal, MODEL)
        head = journal.head(MODEL, SPEC).snapshot
        state = None if head is None else history.load(head)
        rows = self.dice.randint(1, 40)
        window = online.rebuild.relearn.window_of(journal, MODEL, decisions, -math.inf, rows)
        work = online.rebuild.relearn.Relearning(
            journal, decisions, window, state,
            online.rebuild.rebuild.Method(partial(ledger(world.climate), _deadly), "regression"),
            model=MODEL, spec_text="{}",
        )  # fmt: skip
        work.run()
        made = work.built((0, self._number(aside)), rewrite, world.wall())
        history.publish(aside, made.state)
        names = set()
        for partition in journal.partitions(MODEL):
            older = journal.read(partition.id, partition.trimmed + 1, 10_000)
            names |= {r.event_id for r in older if r.seq <= window.after}
        return made, window.since, names

    def _number(self, aside: str) -> int:
        return int(aside.rpartition("-")[2])

    async def _acted(self, control: int) -> bool:
        """Whether every replica that the server has heard of acts on the control row."""
        for _ in range(20):
            status = await self._ask(lambda server: server.status())
            if all(seen["control"] >= control for seen in status["replicas"].values()):
                return True
            await asyncio.sleep(0.2)
        return False

    async def _ask(self, step: Callable[[Any], Any]) -> Any:
        """What the newest server answers.  TimeoutError: none, or it has another reason."""
        servers = self.world.servers()
        if not servers:
            raise TimeoutError
        server, arrived = servers[-1], self.world.loop.create_future()

        async def ask() -> None:
            answer: Any
            try:
                answer = await server.thread("operator", partial(step, server.real))
            except ParamServerError as error:
                answer = error
            if not arrived.done():
                arrived.set_result(answer)

        server.process.spawn(ask())
        async with asyncio.timeout(5.0):
            answer = await arrived
        if isinstance(answer, ParamServerError):
            self.world.note(f"{self.name}: {answer!r}")
            raise TimeoutError
        return answer


def _deadly() -> None:
    """It would end the command's process; here the row is one that can't be learned."""
    raise ValueError("deadly")
