"""Learners, servers and a journal under every fault that is known: each event counts once.

A seeded simulation in one thread of the real learner, server, messages, snapshot format and
SQLite journal.  Messages are lost, doubled, late and out of order; the journal's answers get lost;
servers restart from older snapshots and live on beside their successors; replicas die, are sealed
while they live, and adopt; operators roll back, freeze and unfreeze.  The model is a ledger, so
every double, missing or undone event is seen: ``counts[event]`` is 0 or 1.

A state that travels whole is right for one writer whose requests arrive in their order, one at a
time, as the shell and Ray do it; so that is how its messages go here.  What merges has no such
condition.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from online.learner import Learner
from online.models.base import Model
from online.tally import DIGEST, event_hash
from paramserver import lineage, rewrites
from paramserver.server import Server
from paramserver.snapshots import format as snapshot_format
from paramserver.state import SnapshotState
from paramserver.wire import FORMAT, SyncRequest, decode_reply, encode
from replay.errors import PartitionSealed
from replay.journal.base import NewRow, Row, Verdict
from replay.journal.sqlite import SqliteJournal


def _beside(name: str) -> Any:
    """The module in a file beside this one (tests are no package)."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


_ledger: Any = _beside("protocol_ledger")
_served: Any = _beside("protocol_served")
LEARNED, Event, Ledger, Whole = _ledger.LEARNED, _ledger.Event, _ledger.Ledger, _ledger.Whole
NOTHING, SPEC, Served = _served.NOTHING, _served.SPEC, _served.Served

_models = itertools.count(1)


class Replica:
    """What the shell in ``online.replica`` does, one step at a time."""

    def __init__(self, world: World) -> None:
        self.world, self.alive = world, True
        n, size = world.r.randint(1, 5), world.retain_bytes
        self.learner = world.learner_class(
            world.build, task="binary", spec=SPEC, retain_bytes=size, rows_max=n
        )
        self.name = f"replica {next(world.numbers)}"
        self.queue, self.batch = list[Any](), list[tuple[Any, NewRow]]()
        self.page = list[Row]()
        self.skip, self.learned = set[bytes](), dict[str, tuple[int, bool]]()
        self.asked = self.paused = self.acts_on = 0
        self.register()

    def register(self) -> None:
        self.partition = self.world.journal.register(self.world.model, self.name, SPEC, 0.0).id
        self.known = 0
        self.learned.clear()
        self.learner.open_partition(self.partition)

    def commit(self) -> None:
        world = self.world
        if not self.batch:
            k = world.r.randint(1, 3)
            taken, self.queue = self.queue[:k], self.queue[k:]
            self.batch = [(event, event.row(frozen=self.learner.frozen)) for event in taken]
        if not self.batch or world.chance(0.12):
            return  # no answer, nothing was written: the same batch again
        before = world.journal.partition(self.partition)
        try:
            rows = [row for _, row in self.batch]
            appended = world.journal.append(self.partition, self.known, rows)
        except PartitionSealed:
            world.stats["sealed alive"] += 1
            self.page.clear()
            self.learner.abandon(self.partition)
            self.register()
            return
        if world.chance(0.15):
            return  # written, and the answer lost: the same batch again
        for (event, _), outcome in zip(self.batch, appended.outcomes, strict=True):
            if outcome.new and before and outcome.row.offset <= before.end and world.own_is_repeat:
                self.skip.add(event.key)
            world.acked.add(event.name)
        self.known, self.batch = appended.end, []

    def learn(self) -> None:
        if not self.page:
            wanted = self.learner.wanted()
            self.world.r.shuffle(wanted)
            for partition, offset in wanted:
                n = self.world.r.randint(1, 4)
                if partition == self.partition:
                    n = min(n, self.known - offset + 1)
                if n > 0 and (page := self.world.journal.read(partition, offset, n)):
                    self.page = list(page)
                    break
        row = self.page.pop(0) if self.page else None
        if row is None or (row.partition, row.offset) not in self.learner.wanted():
            self.page.clear()
            return
        event = self.world.events[row.event_id]
        skipped = row.key in self.skip
        failed = self.learner.learn(replace(row, verdict=Verdict.FROZEN) if skipped else row)
        self.world.stats["failed"] += failed is not None
        asked = row.verdict in LEARNED and not skipped
        poisoned = event.poison and asked and not self._is_undone(row.partition, row.offset)
        assert (failed is not None) == poisoned, f"{event} failed: {failed}"
        if row.partition == self.partition:
            self.learned[event.name] = row.offset, event.counts(row)

    def _is_undone(self, partition: int, offset: int) -> bool:
        return bool(self.learner.undone.has(partition, offset))

    def ask(self) -> None:
        served, learner = self.world.resolve(), self.learner
        if served is None:
            return
        push = self.world.chance(0.6, 1.0)
        pushes = learner.pushes(self.world.r.randint(1, 6)) if push else []
        values = learner.mergeable or learner.want_all
        adopting = [p for p, t in learner.tracks.items() if t.end is not None]
        if learner.control > self.acts_on and not (self.batch or self._owes()):
            self.acts_on = self.acts_on if learner.pushes(1) else learner.control
        request = SyncRequest(
            FORMAT, self.name, self.partition, pushes, learner.since, values, adopting,
            control=self.acts_on,
        )  # fmt: skip
        self.asked = next(self.world.numbers)
        self.world.send(Message(self, served, self.asked, encode(request), None))

    def _owes(self) -> bool:
        """Whether own rows are not learned yet."""
        track = self.learner.tracks.get(self.partition)
        return track is not None and track.next <= self.known

    def hear(self, number: int, named: set[int], data: bytes) -> None:
        if not named.issuperset(self.learner.tracks):
            return  # the clock of one that is not named may be left out
        if self.world.whole and number != self.asked:
            return  # the shell takes no late answers; a model that merges could
        reply = decode_reply(data)
        version, rewrite = self.learner.version, self.learner.rewrite
        self.world.stats["old replies"] += reply.epoch < version[0]
        self.learner.on_reply(reply)
        if self.learner.rewrite != rewrite:
            self._on_rewrite()
        assert self.learner.version >= version, f"{self.learner.version} after {version}"
        for partition in reply.orphans:
            if partition not in self.learner.tracks:
                self.learner.adopt(partition, self.world.journal.seal(partition))
                self.world.stats["adopted"] += 1

    def _on_rewrite(self) -> None:
        """What the shell does, and own rows that are to be learned again."""
        world, track = self.world, self.learner.tracks.get(self.partition)
        assert self.learner.serving is self.learner._training, "an undone copy goes on answering"
        if world.tells_undone:
            controls = world.journal.controls(world.model, 0)
            known = [c for c in controls if c.seq <= self.learner.control]
            self.learner.undone = world.undone(known)
        if track is not None:
            self.learned = {e: x for e, x in self.learned.items() if x[0] < track.next}

    def check(self, event: Any, row: Row | None) -> None:
        learner = self.learner
        serving: Any = learner.serving
        training: Any = learner._training
        for name, model in (("serving", serving), ("training", training)):
            most = max(model.counts.values(), default=0)
            assert most <= 1, f"{self.name}: an event counts {most} times in the {name} model"
        counts = serving.counts
        undone = self.world.undone_by.get(learner.rewrite, NOTHING)
        for own, (offset, counted) in self.learned.items():
            wanted = counted and (self.partition, offset) not in undone
            assert counts.get(own, 0) == wanted, f"{self.name}: own {own} counts not {wanted}"
        if row and (row.partition, row.offset) in undone:
            assert not training.counts.get(event.name), f"{self.name} holds the undone {event.name}"
        assert learner.tally.digest == self.world.digest(training.counts), "a digest"
        if event.counts(row) and row and learner.includes(row.partition, row.offset):
            assert counts.get(event.name), f"{self.name} does not include {event.name}"
        if serving is not training:
            held = any(track.held for track in learner.tracks.values())
            assert learner.wanted() or learner.want_all or held, f"{self.name} waits for nothing"
        n = sum(delta.n for delta in learner._deltas.pending(learner.clock))
        n += len(learner._open.rows) if learner._open else 0
        assert learner.own == n, f"{self.name}: {learner.own} own rows, not {n}"


@dataclass(frozen=True)
class Message:
    """A request, or (with ``named``) the reply to one."""

    replica: Replica
    served: Served
    number: int
    data: bytes
    named: set[int] | None


class World:
    """Everything, and the dice."""

    learner_class: type[Learner] = Learner
    server_class: type[Server] = Server
    replayed = staticmethod(lineage.replayed)
    roll_back = staticmethod(rewrites.roll_back)
    held = staticmethod(rewrites.held)
    undone = staticmethod(rewrites.undone)
    # mutants of the shells
    own_is_repeat = False
    replays = fenced = tells_undone = True

    def __init__(
        self, journal: SqliteJournal, seed: int, *, whole: bool = False, operators: bool = True
    ) -> None:
        self.journal, self.r, self.whole = journal, random.Random(seed), whole
        self.operators = operators
        self.build: Callable[[], Model] = Whole if whole else Ledger
        self.numbers = itertools.count(1)
        self.model = f"model {next(_models)}"
        self.retain_bytes = self.r.choice((0, 600, 10**6))
        self.calm = False
        self.hasty = self.r.choice((0.01, 0.1, 0.4))  # chance that one who lives is thought dead
        self.kept = self.r.choice((1, 3, 20) if operators else (1, 3))  # snapshots
        self.stats: Counter[str] = Counter()
        self.snapshots: dict[str, bytes] = {}
        self.parents: dict[str, str | None] = {}
        self.startable: set[str] = set()  # kept to be started from
        self.gone: dict[int, int] = {}  # rows that may be trimmed, by partition
        self.undone_in: dict[str, frozenset[tuple[int, int]]] = {}  # by snapshot
        self.undone_by: dict[int, frozenset[tuple[int, int]]] = {}  # by control row
        self.events = {e.name: e for e in map(self._event, range(self.r.randint(20, 50)))}
        self.unsent, self.acked = list(self.events.values()), set[str]()
        self.net: list[Message] = []
        self.replicas: list[Replica] = []
        self.servers = [Served(self)]

    def load(self, name: str) -> SnapshotState:
        assert name in self.snapshots, f"{name} is needed, and gone"
        return snapshot_format.decode(self.snapshots[name])

    def ancestors(self, head: str | None) -> list[str]:
        """The head and what it descends from, as far as a server may start from it."""
        found = []
        while head is not None:
            if head in self.snapshots and head in self.startable:
                found.append(head)
            head = self.parents[head]
        return found

    def _event(self, k: int) -> Any:
        verdicts = (Verdict.QUARANTINED, Verdict.CLIPPED, *[Verdict.ACCEPTED] * 6)
        return Event(f"event {k}", self.r.choice(verdicts), self.r.random() < 0.1)

    def chance(self, p: float, calm: float = 0.0) -> bool:
        return self.r.random() < (calm if self.calm else p)

    def resolve(self) -> Served | None:
        alive = [s for s in self.servers if s.alive]
        other = bool(alive) and self.chance(0.3)
        return self.r.choice(alive) if other else alive[-1] if alive else None

    def send(self, message: Message) -> None:
        if self.calm:
            self.deliver(message)
        elif self.r.random() > 0.1:
            self.net.append(message)
            if self.r.random() < 0.15:
                self.net.append(message)

    def deliver_one(self) -> None:
        """Any message; of a model that travels whole the oldest one, as Ray does it."""
        self.deliver(self.net.pop(0 if self.whole else self.r.randrange(len(self.net))))

    def deliver(self, message: Message) -> None:
        replica, served = message.replica, message.served
        if message.named is not None:
            if replica.alive and not replica.paused:
                replica.hear(message.number, message.named, message.data)
        elif served.alive and served.decided is None:
            named, data = served.answer(message.data)
            self.send(Message(replica, served, message.number, data, named))

    def orphans(self, server: Server, message: SyncRequest) -> list[int]:
        """Whose rows the replica is asked to learn: sometimes of one that lives."""
        held = {p for r in self.live() if not r.paused for p in r.learner.tracks}
        out = []
        for info in self.journal.partitions(self.model):
            p = info.id
            finished = info.sealed and server.clock.get(p, 0) >= info.end
            if finished or p in (message.partition, *message.adopting, *server.closed):
                continue
            if self.chance(self.hasty) or (p not in held and self.chance(0.4, 1.0)):
                out.append(p)
        return out

    def live(self) -> list[Replica]:
        return [r for r in self.replicas if r.alive]

    def awake(self) -> list[Replica]:
        """Those that live and do not stand still."""
        for replica in self.replicas:
            replica.paused = max(replica.paused - 1, 0)
        return [r for r in self.replicas if r.alive and not r.paused]

    def step(self) -> None:
        r, x, live = self.r, self.r.random(), self.awake()
        alive = [s for s in self.servers if s.alive]
        if x < 0.14:
            if live and self.unsent:
                r.choice(live).queue.append(event := r.choice(self.unsent))
                if event.name in self.acked:
                    self.unsent.remove(event)
        elif x < 0.28 and live:
            r.choice(live).commit()
        elif x < 0.46 and live:
            r.choice(live).learn()
        elif x < 0.62 and live:
            r.choice(live).ask()
        elif x < 0.86 and self.net:
            self.deliver_one()
        elif x < 0.92 and alive:
            r.choice(alive).publish()
        elif x < 0.94 and alive:
            served = r.choice(alive)
            if self.operators and x >= 0.928:
                self.operate(served)
            else:
                served.confirm()
        elif x < 0.96:
            if len(self.live()) < (1 if self.whole else 3):
                self.replicas.append(Replica(self))
        elif x < 0.965 and live:
            self.kill(r.choice(live))
        elif x < 0.973 and live:
            r.choice(live).paused = r.choice((20, 100, 200))
        elif x < 0.98 and alive:
            if r.random() < 0.6:
                r.choice(alive).alive = False
        elif not alive or r.random() < 0.3:
            self.servers.append(Served(self))

    def operate(self, served: Any) -> None:
        if served.decided:
            served.serve()
        elif self.chance(0.6):
            served.roll_back()
        else:
            served.freeze_or_not()

    def kill(self, replica: Replica) -> None:
        replica.alive = False
        if self.whole:  # one writer at a time is the condition of such models
            self.net = [m for m in self.net if m.replica is not replica]

    def check(self) -> None:
        event = self.r.choice(list(self.events.values()))
        row = self.journal.find(self.model, event.key)
        for replica in self.live():
            replica.check(event, row)
        for served in self.servers:
            if served.alive:
                counts, digest = _state(served.server)
                assert (most := max(counts.values(), default=0)) <= 1, f"{most} times in the server"
                assert digest == self.digest(counts), "the server's digest"
                self._check_undone(served, event, row, counts)
        newest = self.servers[-1]
        if newest.alive and newest.decided is None:
            assert newest.server.rewrite >= max(self.undone_by, default=0), "a decision is idle"

    def _check_undone(self, served: Any, event: Any, row: Row | None, counts: Any) -> None:
        if row is None or served.decided:
            return
        clock = served.server.clock.get(row.partition, 0)
        if (row.partition, row.offset) in served.undone:
            assert not counts.get(event.name), f"the server holds the undone {event.name}"
        elif row.partition in served.server.closed or row.offset <= clock:
            assert counts.get(event.name, 0) == event.counts(row), f"{event.name} in the server"

    def digest(self, counts: dict[str, float]) -> tuple[int, int]:
        hashes = [event_hash(self.events[name].key) for name, x in counts.items() if x]
        return len(hashes), sum(hashes) % 2**64

    def run(self, steps: int = 600) -> None:
        for _ in range(steps):
            self.step()
            self.check()
        while self.net:  # old messages come late
            self.deliver_one()
            self.check()
        self.calm = True
        for served in self.servers[:-1]:
            served.alive = False
        if self.servers[-1].decided and self.servers[-1].alive:
            self.servers[-1].serve()
        if not self.servers[-1].alive:
            self.servers.append(Served(self))
        if not self.live():
            self.replicas.append(Replica(self))
        for replica in self.live():
            replica.queue.clear()
            replica.paused = 0
        self._settle()
        if self.servers[-1].server.frozen:
            self._check_that_the_version_stands()
            self.servers[-1].freeze_or_not()
            self._settle()
        self.stats["relearned"] += sum(r.learner.relearned for r in self.replicas)

    def _settle(self) -> None:
        for _ in range(60):
            self._heal()
            if self._healed():
                break
        else:
            raise AssertionError("it does not heal")
        for replica in self.live() * 2:
            replica.ask()
            for _ in range(20):  # rows that a frozen model does not push are learned again
                replica.learn()
        self._check_end()

    def _check_that_the_version_stands(self) -> None:
        for _ in range(5):  # what the dead left is adopted
            self._heal()
        server = self.servers[-1].server
        version = server.version
        acts_on = [replica.acts_on for replica in self.live()]
        assert min(acts_on) >= server.frozen, "who has pushed all says so"
        for _ in range(3):
            event = self._event(len(self.events))
            self.events[event.name] = event
            self._heal()
        self._settle()
        assert server.version == version, "a frozen model's version stands"
        self.stats["frozen"] += 1

    def _heal(self) -> None:
        live, served = self.live(), self.servers[-1]
        for event in self.events.values():
            if event.name not in self.acked:
                self.r.choice(live).queue.append(event)
        for replica in live:
            while replica.queue or replica.batch:
                replica.commit()
            for _ in range(20):
                replica.learn()
            replica.ask()
            self.check()
        served.confirm()
        served.publish()

    def _healed(self) -> bool:
        server = self.servers[-1].server
        behind = [
            row
            for p in self.journal.partitions(self.model)
            if p.id not in server.closed and (done := server.clock.get(p.id, 0)) < p.end
            for row in self.journal.read(p.id, done + 1, p.end)
            if not server.frozen or self.events[row.event_id].counts(row)
        ]
        relearning = [r for r in self.live() if r.learner.serving is not r.learner._training]
        return not behind and not relearning and len(self.acked) == len(self.events)

    def _check_end(self) -> None:
        served, expected = self.servers[-1], {}
        undone = self.undone(self.journal.controls(self.model, 0))
        for event in self.events.values():
            row = self.journal.find(self.model, event.key)
            assert row is not None
            lost = (row.partition, row.offset) in served.undone
            assert undone.has(row.partition, row.offset) == lost, f"{event.name}: what is undone"
            if event.counts(row) and not lost:
                expected[event.name] = 1.0
        assert undone.count == len(served.undone), "how many are undone"
        digest = self.digest(expected)
        assert _state(served.server) == (expected, digest), "the server is not exact"
        for replica in self.live():
            learner: Any = replica.learner
            assert learner.serving.counts == expected, f"{replica.name} is not exact"
            assert learner.tally.digest == digest, f"{replica.name}'s digest"


def _state(server: Server) -> tuple[dict[str, float], tuple[int, int]]:
    block, digest = server.values.get("w"), server.values.get(DIGEST)
    counts = {} if block is None else block.data
    if isinstance(counts, bytes):
        counts = json.loads(counts)
    return counts, (digest.data["count"], digest.data["sum"]) if digest else (0, 0)
