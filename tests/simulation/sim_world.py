"""The whole service in one thread, on simulated time, network and disk, by seed."""

from __future__ import annotations

import contextvars
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import sim_chaos
import sim_loss
import sim_tables
from sim_actor import SPEC, Actor, Observer
from sim_choices import ChoiceClients, Choices
from sim_clerk import Clerk, LabelClients
from sim_clients import Clients
from sim_disk import DeadProcess, SimDisk
from sim_labels import Labels, drawn
from sim_loop import Process, SimLoop
from sim_model import Event, Oracle
from sim_network import Network
from sim_operator import Operator
from sim_processes import Learning, Replica, Server
from sim_reshard import at_work
from sim_shards import held_by, not_served, note_published
from sim_vfs import Vfs

import replay.journal.sqlite.file

ActorT = TypeVar("ActorT", bound=Actor)

HEAL_S = 90.0
"""Simulated seconds after the last fault within which everything has to be right."""


@dataclass(frozen=True)
class Faulty:
    """Mutants that are a flag and not a text: a machine that does not keep its word."""

    synchronous: Literal["FULL", "OFF"] = "FULL"
    lying_disk: bool = False


@dataclass(frozen=True)
class Climate:
    """What one seed is like: bounds, paces, and which faults it has."""

    faults: frozenset[str]
    fault_s: float
    chaos_s: float
    events: int
    tend_s: float
    snapshot_s: float
    confirm_s: float
    lease_s: float
    hasty: float
    keep: int
    history: int
    retain_bytes: int
    rows_max: int
    updates: int
    sync_ms: float
    feedback_wait_s: float
    ongoing_max: int
    deadly: float
    busy: float
    twice: bool
    old: float
    old_s: float = 10.0
    busy_s: float = 0.1
    spread_s: float = 0.2
    background: bool = False
    forgets: bool = False
    peers: bool = False
    relearns: float = 0.4
    ahead: bool = False
    older: bool = False
    labels: bool = False
    defaults: bool = False
    choices: bool = False
    shards: int = 1
    reshards: bool = False
    by_settings: bool = False
    cached: bool = False
    shared: bool = False
    aggregate: str = "earliest"

    @classmethod
    def draw(cls, r: random.Random) -> Climate:
        """Each seed has its own: what all faults together would hide shows where few are."""
        share = r.choice((0.3, 0.6, 1.0))
        return cls(
            faults=frozenset(name for name in sorted(sim_chaos.FAULTS) if r.random() < share),
            fault_s=r.choice((0.1, 0.25, 0.6)),
            chaos_s=r.uniform(2.0, 6.0),
            events=r.randint(10, 60),
            tend_s=r.choice((0.05, 0.4, 2.0)),
            snapshot_s=r.choice((0.1, 0.5, 2.0)),
            confirm_s=r.choice((0.05, 0.15, 0.4)),
            lease_s=r.choice((0.5, 1.5)),
            hasty=r.choice((0.0, 0.02, 0.2)),
            keep=r.choice((1, 2, 4)),
            history=r.choice((1, 3, 40)),
            retain_bytes=r.choice((0, 600, 10**6)),
            rows_max=r.randint(1, 6),
            updates=r.choice((1, 3, 64)),
            sync_ms=r.choice((20.0, 80.0, 300.0)),
            feedback_wait_s=r.choice((0.5, 2.0, 10.0)),
            ongoing_max=r.choice((4, 256)),
            deadly=r.choice((0.0, 0.0, 0.0, 0.03)),
            busy=r.choice((0.0, 0.2, 0.6)),
            twice=(twice := r.random() < 0.25),
            old=0.7 if twice else 0.0,
        )


def climate_of(
    seed: int, r: random.Random, dice: random.Random, given: Mapping[str, Any]
) -> Climate:
    """The climate of a seed, with what is given in it."""
    drawn: dict[str, Any] = {"background": dice.random() < 0.2}
    drawn |= {"forgets": dice.random() < 0.25}
    drawn |= {"ahead": random.Random(f"ahead {seed}").random() < 0.25}
    drawn |= {"peers": dice.random() < 0.25, **(given or sim_tables.drawn(seed))}
    if drawn.get("cached") or drawn.get("shared"):
        drawn["background"] = False
    climate = replace(Climate.draw(r), **drawn)
    older = random.Random(f"older {seed}").random() < 0.1
    if (older and not given) or climate.older:
        return sim_loss.alone(climate)
    if not given and not climate.twice:  # no label comes when its event is no more known
        climate = replace(climate, labels=random.Random(f"provisional {seed}").random() < 0.25)
        waits = climate.labels and random.Random(f"defaults {seed}").random() < 0.3
        climate = replace(climate, defaults=waits)
    if climate.labels:  # what waits for another's row has to find room, or is learned over and over
        climate = replace(climate, retain_bytes=max(climate.retain_bytes, 100_000))
    return climate


def events_of(climate: Climate, r: random.Random) -> Iterable[Event]:
    """The events of a seed whose labels stay."""
    for k in range(climate.events):
        poison, deadly = r.random() < 0.08, r.random() < climate.deadly
        weight, factor = r.choice((1.0, 1.0, 0.5, 2.0)), r.choice((1.0, 1.0, 1.0, 0.25))
        kept_s = climate.old_s if r.random() < climate.old else None
        yield Event(f"event {k}", weight, factor, poison, deadly, kept_s)


class World:
    """One seed.

    Attributes:
        counts: Faults by kind.
        met: What else came about, which would else be tested in name only.
        calm: Faults have stopped, and everything has to heal.
    """

    def __init__(
        self,
        vfs: Vfs,
        folder: Path,
        seed: int,
        *,
        faulty: Faulty | None = None,
        climate: Mapping[str, Any] | None = None,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.r, self.seed, self.faulty = random.Random(seed), seed, faulty or Faulty()
        self.counts: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.dice = random.Random(f"background {seed}")  # of its own: other seeds stay as they are
        self.climate = climate_of(seed, self.r, self.dice, climate or {})
        self.shards, self.spec = self.climate.shards, SPEC
        self.answers = 0  # what was asked before a loss is not answered any more
        self.loop = SimLoop(self.r)
        self.loop.step_s, self.loop.at_work = self._step_s, self.at_work
        self.loop.set_exception_handler(self._unexpected)
        self.memory = sim_tables.HostMemory(folder, self.loop)
        self.outside = contextvars.copy_context()
        self.disk = SimDisk(self.r, self.counts)
        self.disk.lying = self.faulty.lying_disk
        self.disk.between, self.disk.encoding = self._between, partial(note_published, self)
        self._vfs = vfs
        vfs.begin(self.disk, seed)
        self.network = Network(self.loop, self.r, self.counts)
        self.journal_path = folder / "journal.db"
        self.events = {event.name: event for event in events_of(self.climate, self.r)}
        self.oracle = Oracle(self.events)
        self.labels = Labels(drawn(seed) if self.climate.labels else (), seed)
        self.oracle.labels = self.labels if self.climate.labels else None
        self.choices = Choices(self.climate.aggregate)
        self.oracle.choices = self.choices if self.climate.choices else None
        self.sealed: set[int] = set()
        self.actors: list[Actor] = []
        # by replica and shard: those that stick to an older server
        self.servers_of: dict[tuple[str, int], Server] = {}
        self.calm, self.rewritten = False, 0  # by which row
        self.slow_s = self.kill_at_work = self.lost_answers = self.cancels = 0.0
        self.wall_offset_s, self._number, self._buried = 0.0, 0, set[Actor]()
        self._failure: BaseException | None = None
        self._observer: Observer | None = None
        self.published: dict[str, set[str]] = {}  # what counts in each snapshot, by version
        self._trace = trace
        replay.journal.sqlite.file.os = _Os(self.disk)  # type: ignore[attr-defined]

    # -- what everybody asks for ---------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line of the trace."""
        if self._trace is not None:
            self._trace(f"{self.loop.time() - 1000:8.4f} {text}")

    def wall(self) -> float:
        """The wall clock, which may be set back, and be a month ahead for a while."""
        return 1.7e9 + self.loop.time() + self.wall_offset_s

    def chance(self, p: float) -> bool:
        """A fault by the dice; none when all has to heal."""
        return not self.calm and self.r.random() < p

    def patience_s(self, longest_s: float) -> float:
        """How soon a caller knows that no answer comes: a broken link, or only the time-out."""
        return min(longest_s, self.r.choice((0.1, 0.5, longest_s)))

    def fail(self, error: BaseException) -> None:
        """The seed has failed."""
        if self._failure is None:
            self._failure = error
            self.note(f"FAILED: {error!r}")

    def _unexpected(self, _: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.fail(error if error is not None else AssertionError(context["message"]))

    # -- processes -------------------------------------------------------------------------------

    def start(self, kind: Callable[[World, int], ActorT]) -> ActorT:
        """A new process."""
        self._number += 1
        actor = kind(self, self._number)
        self.actors.append(actor)
        self.note(f"{actor.name} starts")
        return actor

    def live(self, kind: type[ActorT]) -> list[ActorT]:
        """Those that were not killed, oldest first."""
        return [a for a in self.actors if isinstance(a, kind) and a.alive]

    def kill(self, actor: Actor) -> None:
        """SIGKILL: nothing of it runs any more, and what it had open is closed by the kernel."""
        if actor in self._buried:
            return
        self._buried.add(actor)
        self.note(f"{actor.name} is dead")
        actor.process.kill()
        dead, self.disk.dead = self.disk.dead, True
        for journal in actor.journals:
            journal.close()
        actor.journals = []
        if isinstance(actor, Replica) and actor.learning is not None:  # it belongs to this one
            self.kill(actor.learning)
        self._vfs.release(actor.process)
        sim_tables.release(actor)
        self.disk.dead = dead

    def release(self, process: Process | None) -> None:
        """What it had open is closed by the kernel."""
        self._vfs.release(process)

    def power_cut(self) -> None:
        """All at once, and what was not synced is gone."""
        self.note("power cut")
        for actor in self.actors:
            self.kill(actor)
        self.disk.power_cut()
        self.memory.begin()
        self.servers_of.clear()

    def servers(self, shard: int = 0, spec: str | None = None) -> list[Server]:
        """Those of a shard that were not killed, oldest first; None: of what serves."""
        return [s for s in self.live(Server) if (s.shard, s.spec) == (shard, spec or self.spec)]

    def server_of(self, replica: Replica, shard: int = 0) -> Server | None:
        """Whom a replica takes for the server: the newest, or one that lives on beside it."""
        stuck = self.servers_of.get((replica.name, shard))
        if stuck is not None and stuck.alive and stuck.spec == replica.spec and self.chance(0.6):
            return stuck
        servers = self.servers(shard, replica.spec)
        return servers[-1] if servers else None

    def find_gone(self, partitions: Iterable[Any]) -> list[int]:
        """What the server is told of the dead: the truth, a part of it, or now and then a lie."""
        alive = {one.name for one in (*self.live(Replica), *self.live(Learning))}
        return [
            p.id
            for p in partitions
            if not p.sealed
            and (self.chance(self.climate.hasty) or (p.replica not in alive and self.chance(0.5)))
        ]

    # -- steps on threads ------------------------------------------------------------------------

    def _step_s(self) -> float:
        slow = self.slow_s and self.r.random() < 0.3
        if slow:
            self.counts["slow disk"] += 1
        return self.r.random() * (self.slow_s if slow else 0.004)

    def at_work(self, process: Process | None, step: Callable[[], Any]) -> Any:
        """Do what a thread was given; the process may be killed in the middle of it."""
        if self.disk.worker is not None or process is None:
            return step()
        actor = next(a for a in self.actors if a.process is process)
        self.disk.worker = process
        if self.chance(self.kill_at_work):
            self.disk.steps_left = self.r.randrange(12)
        try:
            return step()
        except DeadProcess:
            return None
        finally:
            self.disk.worker, self.disk.steps_left = None, None
            if self.disk.dead:
                self.disk.dead = False
                self.counts[f"crash {actor.kind}"] += 1
                self.counts["crash in a step"] += 1
                self.kill(actor)
                self._spread()
            elif not actor.alive:
                self.kill(actor)

    def _spread(self) -> None:
        """What has killed one in the middle of a step may have hit all."""
        if "power cut" in self.climate.faults and self.r.random() < 0.15:
            self.counts["power cut"] += 1
            self.power_cut()
        elif "kill all" in self.climate.faults and self.r.random() < 0.3:
            self.counts["crash all"] += 1
            for actor in self.actors:
                self.kill(actor)

    def _between(self) -> None:
        """While a snapshot is written, the server goes on answering."""
        server = next((s for s in self.live(Server) if s.process is self.disk.worker), None)
        if server is not None and self.r.random() < 0.5:
            server.turn()

    # -- the run -----------------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        """Raises AssertionError if anything is not as promised."""
        logging.disable(logging.CRITICAL if self._trace is None else logging.NOTSET)
        try:
            self.loop.run_until_complete(self.outside.run(self._task))
        finally:
            self._dispose()
        self.counts.update(self.choices.met)
        return self.counts

    def _task(self) -> Any:
        return self.loop.create_task(self._live())

    async def _live(self) -> None:
        sim_chaos.start(self)
        clients, labels, choices = Clients(self), LabelClients(self), ChoiceClients(self)
        await sim_chaos.storm(self)
        if self.climate.twice:  # between the storms rows become old enough to be removed
            sim_chaos.heal(self)
            clients.persist()
            await self._rest(self.climate.old_s + 3.0)
            self.calm = False
            clients.go_on()
            await sim_chaos.storm(self)
        self.note("calm")
        sim_chaos.heal(self)
        clients.persist()
        labels.persist()
        choices.persist()
        self._observer = self.start(Observer)
        deadline = self.loop.time() + HEAL_S
        while (wrong := self._wrong(clients, labels, choices)) is not None:
            assert self.loop.time() < deadline, f"it does not heal: {wrong}"
            await self._rest(0.25)
        self.note(f"all is right, {HEAL_S - deadline + self.loop.time():.1f} s after the storm")

    async def _rest(self, seconds: float) -> None:
        until = self.loop.time() + seconds
        while self.loop.time() < until:
            await sim_chaos.sleep(0.25)
            self.check()
            sim_chaos.supervise(self)

    def check(self) -> None:
        """What holds at any time."""
        if self._failure is not None:
            raise self._failure
        for actor in self.actors:
            if isinstance(actor, (Replica, Learning, Server)) and actor.alive:
                actor.check()

    def _wrong(self, clients: Clients, labels: LabelClients, choices: ChoiceClients) -> str | None:
        """What is not yet as it must be in the end."""
        if left := clients.open + labels.open + choices.open:
            return f"{left} requests have no answer"
        if self._observer is None or self._observer.rollbacks is None:
            return "nobody has looked at the journal"
        self.oracle.decided(self._observer.rollbacks)
        self.met["undone"] = len(self.oracle.undone)
        self.met["trimmed"] = self._observer.trimmed
        busy = [one.busy for one in self.live(Operator)] + [one.busy for one in self.live(Clerk)]
        if any(busy) or at_work(self):
            return "an operator is at work"
        journal = self._observer.found
        if journal is not None and (lost := self.labels.lost(journal)) is not None:
            return lost
        servers, replicas = self.live(Server), [x for x in self.live(Replica) if x.ready]
        if (unserved := not_served(servers, self.shards, len(replicas))) is not None:
            return unserved
        sums, digests = held_by(servers)
        wrong = None
        for name, found in digests.items():
            wrong = wrong or self.oracle.wrong(sums, found, name, journal)
        for replica in replicas:
            learner = replica.model.learner
            here = learner.serving.sums
            if learner.serving.torn:
                return f"{replica.name} has not the same of all shards"
            if {n: x for n, x in here.items() if x} != {n: x for n, x in sums.items() if x}:
                return f"{replica.name} differs from the server"
            digest_here = learner.tally.digest
            wrong = wrong or self.oracle.wrong(here, digest_here, replica.name, journal)
            if learner.own:
                return f"{replica.name} has {learner.own} rows of its own"
        return wrong

    def _dispose(self) -> None:
        """Close what is open, without letting anything of it go on."""
        for actor in self.actors:
            self.kill(actor)
        for actor in self.actors:
            for task in actor.process.tasks:
                if not task.done():
                    try:
                        task.get_coro().close()  # type: ignore[union-attr]
                    except RuntimeError:
                        pass  # it wanted to wait for something on its way out
        self.loop.close()
        replay.journal.sqlite.file.os = os  # type: ignore[attr-defined]


class _Os:
    """``os`` for the journal's file: sizes are those of the simulated disk."""

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def stat(self, path: Any) -> Any:
        """Size of a simulated file."""
        inode = self._disk.names.get(str(path))
        if inode is None:
            raise FileNotFoundError(path)
        return os.stat_result((0,) * 6 + (len(inode.content), 0, 0, 0))
