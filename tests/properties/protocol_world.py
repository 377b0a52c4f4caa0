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

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from protocol_ledger import Event, Ledger, Whole
from protocol_replica import Message, Replica
from protocol_served import Served

from online.learning.counters import DIGEST, event_hash
from online.learning.merged import Learner
from online.models.base import Model
from paramserver.core import rewrites
from paramserver.core.server import Server
from paramserver.core.state import SnapshotState
from paramserver.core.wire import SyncRequest
from paramserver.process import lineage
from paramserver.snapshots import format as snapshot_format
from replay.journal.base import Row, Verdict
from replay.journal.sqlite.journal import SqliteJournal

_models = itertools.count(1)


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
    replays = fenced = True

    def __init__(
        self,
        journal: SqliteJournal,
        seed: int,
        *,
        whole: bool = False,
        operators: bool = True,
        parts: bool = False,
    ) -> None:
        self.journal, self.r, self.whole = journal, random.Random(seed), whole
        self.operators = operators
        self.part_keys = self.r.choice((1, 3, 8)) if parts else 10**6
        self.tells_undone = seed % 2 == 0  # else what is undone is left out by the clock alone
        self.build: Callable[[], Model] = Whole if whole else Ledger
        self.numbers = itertools.count(1)
        self.model = f"model {next(_models)}"
        self.retain_bytes = self.r.choice((0, 600, 10**6))
        self.calm = False
        self.hasty = self.r.choice((0.01, 0.1, 0.4))  # chance that one who lives is thought dead
        self.kept = self.r.choice((1, 3, 20, 20) if operators else (1, 3))  # snapshots
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
            if self.servers[-1].skipped and self.chance(0.5):
                self.servers[-1].roll_back()

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
        version, adopted = server.version, self.stats["adopted"]
        acts_on = [replica.acts_on for replica in self.live()]
        assert min(acts_on) >= server.frozen, "who has pushed all says so"
        for _ in range(3):
            event = self._event(len(self.events))
            self.events[event.name] = event
            self._heal()
        self._settle()
        if self.stats["adopted"] == adopted:
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
