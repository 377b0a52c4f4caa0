"""The processes of the service, each built of the real code as its shell builds it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import sim_choices
import sim_defaults
import sim_tables
from sim_actor import MODEL, SPEC, Actor
from sim_disk import DeadProcess, SnapshotDisk
from sim_labels import Part
from sim_model import KEEP_ROWS_S, Event, counted, sums_of
from sim_shards import can_roll_back, client, shard_of
from sim_ways import Client, Peers

import online.errors
import online.learning.merged
import online.replica.replica
import online.settings.config
import paramserver.process.actor
import paramserver.process.lineage
from online.replica.surroundings import Clocks, Identity, Services
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from online.settings.sync import Sync
from paramserver.errors import ParamServerError
from paramserver.process.actor import Host, ServerSettings
from paramserver.snapshots.history import ASIDE
from paramserver.snapshots.store import Retention
from replay import codec

if TYPE_CHECKING:
    from sim_world import World

    from online.replica.pending import Recorded
    from replay.example import Example
    from replay.journal.base import NewRow


class Server(Actor):
    """A parameter server under its supervisor."""

    kind = "server"

    def __init__(self, world: World, number: int, shard: int = 0) -> None:
        climate, self.shard, self.spec = world.climate, shard, world.spec
        settings = ServerSettings(
            interval_s=climate.snapshot_s,
            retention=Retention(climate.keep, 0, 0, 0),
            lease_s=max(climate.lease_s, 3.5 * climate.confirm_s),
            history_max=climate.history,
            part_keys=(1, 4, 1 << 16)[world.seed % 3],
            confirm_s=climate.confirm_s,
            keep_rows_s=KEEP_ROWS_S,
            running_s=0.5,
            shared=str(world.memory.folder) if climate.shared else None,
        )
        clock = world.loop.time
        host = Host(clock, world.wall, self._die, SnapshotDisk(world.disk))
        self.real = paramserver.process.actor.ParameterServer(
            paramserver.process.lineage.Lineage(MODEL, self.spec, "{}", "sum"),
            self.open_journal,
            "/simulated/snapshots",
            settings,
            world.find_gone,
            host=host,
            background=False,
            shard=shard_of(world, shard, lambda: self),
        )
        self.settings = settings
        self.inbox: list[Callable[[], None]] = []
        super().__init__(world, number)

    def _die(self) -> None:
        self.world.counts["superseded"] += 1
        self.process.kill()
        raise DeadProcess

    async def live(self) -> None:
        while not await self.thread("main", self._restore):
            assert self.real.ping() != "refused", self.real.status()["reason"]
            await asyncio.sleep(self.settings.retry_s)
        self.process.spawn(self._repeat("snapshots", self.real.snapshot_if_due))
        await self._repeat("main", self.real.confirm)

    def _restore(self) -> bool:
        """Start, and compare at once with what was durable: a later start may come between."""
        if not self.real.restore():
            return False
        status = self.real.status()
        self.world.note(f"{self.name} serves {status['version']}")
        needed = self.real._running.needed
        forgot = needed is not None and needed.snapshot.startswith(ASIDE)
        if self.spec != self.world.spec:  # what serves now has begun with less
            return True
        self.world.oracle.restored(
            status["epoch"],
            status["clock"],
            status["closed"],
            at_head=not status["refused"],
            forgot=needed.seq if forgot else 0,
            shard=self.shard,
        )
        return True

    def decide(self, step: Callable[[], Any]) -> None:
        """An operator wants something; whether it is done is in the journal."""

        async def decide() -> None:
            try:
                await self.thread("operator", step)
            except Exception as error:
                self.world.note(f"{self.name}: {error!r}")

        self.process.spawn(decide())

    def roll_back(self) -> None:
        """Back to a snapshot by the dice."""
        world, server = self.world, self.real._running.server
        if self.real.ping() != "serving" or server is None:
            return
        names = [row["name"] for row in self.real.snapshots()]
        if names:
            name = world.r.choice(names)
            if not can_roll_back(self, name):  # meanwhile it may be pushed to
                return
            key = (server.epoch, server.count, name)
            now = counted(server.values)
            world.oracle.roll_back(key, now, world.published[name.partition("-from-")[0]])
            world.counts["rollback"] += 1
            world.note(f"{self.name} is rolled back to {name}")
            self.real.rollback(name)

    def freeze(self) -> None:
        """New events are kept and not learned."""
        self.world.oracle.freezes += 1
        self.world.choices.decided.add("frozen")
        self.world.counts["freeze"] += 1
        self.real.freeze()

    async def _repeat(self, thread: str, step: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(self.settings.confirm_s)
            try:
                await self.thread(thread, step)
            except Exception as error:  # as the actor's own threads do
                self.world.note(f"{self.name}: {error!r}")

    def receive(self, data: bytes, reply: Callable[[Any], None]) -> None:
        """A request has come: it waits for its turn, which a snapshot in the making may give."""

        def turn() -> None:
            try:
                answer: Any = self.world.at_work(self.process, lambda: self.real.sync(data))
            except ParamServerError as error:
                answer = error
            if self.alive:
                reply(answer)

        self.inbox.append(turn)
        climate, busy_s = self.world.climate, 0.0
        if self.world.chance(climate.busy):
            busy_s = self.world.r.random() * climate.busy_s
        self.world.loop.call_later(busy_s, self.turn)

    def turn(self) -> None:
        """Serve the next request, if there is one."""
        if self.inbox and self.alive:
            self.inbox.pop(0)()

    def check(self) -> None:
        """Nothing counts twice in what it has at present."""
        if (server := self.real._running.server) is not None:
            sim_tables.check_server(self, server.values)
            self.world.oracle.at_most_once(sums_of(server.values), self.name)
            if "seen" in server.values:
                self.world.oracle.at_most_once(server.values["seen"].data, self.name)


class Learner(Actor):
    """A process with a local model of its own: the real shell around the real learner."""

    def __init__(self, world: World, number: int) -> None:
        self.model: Any = None
        self.ready = False
        self.version, self.spec = (0, 0), world.spec
        self.pins: list[Any] = []
        super().__init__(world, number)

    async def start(self, *, learns: bool) -> None:
        """Build the model and begin."""
        world, climate = self.world, self.world.climate
        journal = await self.thread("main", self.open_journal)
        make = sim_tables.ledger(climate, counts=climate.shards > 1 or climate.reshards)
        learner = online.learning.merged.Learner(
            partial(make, self._die, self._note_twice),
            task="regression",
            spec=self.spec,
            retain_bytes=climate.retain_bytes,
            rows_max=climate.rows_max,
        )
        settings = ModelSettings(
            name=MODEL,
            task="regression",
            learner="linreg",
            sync=Sync(interval_ms=climate.sync_ms, updates=climate.updates),
            cache=sim_tables.hold_some(self, learner),
            choose=sim_choices.settings(climate.aggregate) if climate.choices else None,
        )
        limits = Limits(feedback_wait_s=climate.feedback_wait_s, ongoing_max=climate.ongoing_max)
        self.model = online.replica.replica.ModelReplica(
            settings,
            limits,
            learner,
            Identity(self.name, self.spec, learns),
            Services(
                journal,
                client(world, [Client(self, shard) for shard in range(world.shards)], self.spec),
                Peers(self) if climate.peers and isinstance(self, Replica) else None,
                tables=world.memory.tables(self, learner) if climate.shared else None,
            ),
            clocks=Clocks(world.wall, world.loop.time),
        )
        await self.model.start()
        if self.model.exchange.peer is not None:
            self._begun_from(self.model.exchange.peer)
        self.ready = True
        world.note(f"{self.name} has partition {self.model.writer.partition}")

    def _begun_from(self, name: str) -> None:
        """It has the values of a peer, which may die soon, with rows that nobody else has."""
        world = self.world
        world.counts["start from a peer"] += 1
        world.note(f"{self.name} begins with what {name} has pulled")
        (peer,) = (actor for actor in world.actors if actor.name == name)
        if not world.calm and world.dice.random() < 0.5:
            delay_s = 0.3 * world.dice.random()
            world.loop.call_later(delay_s, world.kill, peer, context=world.outside)

    def _note_twice(self, event: str) -> None:
        if event in self.world.oracle.lost:  # a repeat of what the journal has lost
            return
        if self.model is not None and self.model.learner._divergence is not None:
            return  # some shards have it, and no answer comes from this copy until all have
        before = self.model is None or self.model.learner.rewrite != self.world.rewritten
        if event in self.world.labels.events and before:  # values that it is about to drop
            return
        self.world.fail(AssertionError(f"{self.name} learns {event}, and has it already"))

    def _die(self) -> None:
        """A row that kills its learner."""
        self.world.counts["deadly row"] += 1
        self.process.kill()
        self.world.loop.call_soon(self.world.kill, self, context=self.world.outside)
        raise DeadProcess

    def check(self) -> None:
        """Each event counts at most once, and nothing unexpected has happened."""
        if not self.ready or not self.alive:
            return
        learner = self.model.learner
        assert learner.version >= self.version, f"{self.name} went back to {learner.version}"
        self.version = learner.version
        is_newest = learner.rewrite == self.world.rewritten
        self.world.oracle.at_most_once(learner.serving.sums, self.name, local=is_newest)
        sim_tables.check_replica(self, learner)
        self.world.oracle.at_most_once(learner.serving.seen, self.name, local=is_newest)
        errors = self.model.counts["internal_errors"]
        assert not errors, f"{self.name}: {self.model.incidents}"


class Learning(Learner):
    """The process that learns what a replica writes, where models are slow."""

    kind = "learning"

    def __init__(self, replica: Replica, world: World, number: int) -> None:
        self._replica = replica
        super().__init__(world, number)

    async def live(self) -> None:
        await self.start(learns=True)
        while True:
            self.model.follow(self._replica.model.writer.partition)
            await asyncio.sleep(0.1)


class Replica(Learner):
    """A replica: the three loops, and handlers that come and go."""

    kind = "replica"

    def __init__(self, world: World, number: int) -> None:
        self.stopping = False
        self.learning: Learning | None = None
        self.choosing: Any = None
        # by partition: offset and amount of what was answered here
        self.own: dict[int, dict[str, tuple[int, float]]] = {}
        self.handlers: list[asyncio.Task[Any]] = []
        super().__init__(world, number)

    async def live(self) -> None:
        if self.world.climate.peers:
            self._cut_off()
        await self.start(learns=not self.world.climate.background)
        if self.world.climate.defaults:
            self.process.spawn(sim_defaults.give(self))
        if self.world.climate.choices:
            self.choosing = sim_choices.serve(self, SPEC)
            self.process.spawn(sim_choices.give_for_ever(self.choosing))
        if self.world.climate.background:
            await self._tend()

    def _cut_off(self) -> None:
        """Its host may not reach the server for a while, and those beside it neither."""
        world, server = self.world, self.world.server_of(self)
        if world.calm or server is None or world.dice.random() < 0.3:
            return
        cut = [self.name]
        cut += [one.name for one in world.live(Replica) if world.dice.random() < 0.5]
        links = {link for name in cut for link in ((name, server.name), (server.name, name))}
        world.network.cut |= links
        undo = partial(world.network.cut.difference_update, links)
        world.loop.call_later(3.0 * world.dice.random(), undo, context=world.outside)

    async def _tend(self) -> None:
        """Keep a learner process, which is killed now and then."""
        world, loop = self.world, self.world.loop
        while True:
            learning = self.learning
            if learning is None or not learning.alive:
                loop.call_soon(self._start_learning, context=world.outside)
            elif not world.calm and world.dice.random() < 0.03:
                world.counts["crash learning"] += 1
                loop.call_soon(world.kill, learning, context=world.outside)
            await asyncio.sleep(0.1 + 0.3 * world.dice.random())

    def _start_learning(self) -> None:
        if self.alive:
            self.learning = self.world.start(partial(Learning, self))

    def stop(self) -> None:
        """Ask it to end as a scale-down does."""
        self.ready, self.stopping = False, True

        async def stop() -> None:
            await self.model.stop(3.0)
            self.world.kill(self)

        self.process.spawn(stop())

    def feedback(self, events: Sequence[Event | Part], reply: Callable[[Any], None]) -> None:
        """A request has come."""
        self.handlers = [task for task in self.handlers if not task.done()]
        task = self.process.spawn(self._handle(events, reply))
        self.handlers.append(task)
        if self.world.chance(self.world.cancels):
            self.world.counts["cancelled handler"] += 1
            self.world.loop.call_later(self.world.r.random() * 0.01, task.cancel)

    async def _handle(self, events: Sequence[Event | Part], reply: Callable[[Any], None]) -> None:
        if self.model is None or not (self.ready or self.stopping):
            reply(ConnectionRefusedError())
            return
        rows = [event.row(self.model.now_s()) for event in events]
        try:
            known = [codec.decode(row.payload) for row in rows]
            recorded = await self._record(rows, known)
        except online.errors.RequestError as error:
            reply(error)
            return
        try:
            self._note_own(events, recorded)
            self.check()
        except AssertionError as error:
            self.world.fail(error)
        reply(recorded)

    def ask(self, step: Callable[[Any], Any], reply: Callable[[Any], None]) -> None:
        """A request about a choice has come."""

        async def answer() -> None:
            try:
                reply(await step(self.choosing))
            except online.errors.RequestError as error:
                reply(error)

        self.process.spawn(answer())

    async def _record(self, rows: list[NewRow], known: list[Example]) -> list[Recorded]:
        """Write the rows as those of one request or, two or four of them, of as many requests."""
        writer = self.model.writer
        recorded: list[Recorded]
        if len(rows) not in (2, 4):
            recorded = await writer.record(rows, known)
            return recorded
        each = [self.world.loop.create_future() for _ in rows]
        try:
            writer.put(rows, known, each)
        except online.errors.RequestError:  # no room for so many
            recorded = await writer.record(rows, known)
        else:
            recorded = list(await asyncio.gather(*each))
        return recorded

    def _note_own(self, events: Sequence[Event | Part], recorded: Sequence[Recorded]) -> None:
        for event, one in zip(events, recorded, strict=True):
            assert one.row is not None
            if self.world.climate.background or isinstance(event, Part):
                continue  # it is learned elsewhere and comes back later, or may change
            if one.row.partition == self.model.writer.partition:
                own = self.own.setdefault(one.row.partition, {})
                own[event.name] = (
                    one.row.offset,
                    event.amount if one.status in ("learned", "clipped") else 0.0,
                )

    def check(self) -> None:
        """Own events count exactly, too, and a prediction is to be had."""
        super().check()
        if not self.ready or not self.alive:
            return
        learner, oracle = self.model.learner, self.world.oracle
        partition = self.model.writer.partition
        if partition not in self.world.sealed:
            for name, (offset, x) in self.own.get(partition, {}).items():
                again = learner.rewrite and learner.tracks[partition].next <= offset
                if (
                    name in oracle.shaken or name in oracle.lost or again
                ):  # after a rollback, until it is learned again
                    continue
                answer = learner.predict({"event": name}).label
                assert answer == x, f"{self.name}: its own {name} counts {answer}, not {x}"
