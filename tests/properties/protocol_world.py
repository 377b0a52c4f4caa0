"""Learners, servers and a journal under every fault that is known: each event counts once.

A seeded simulation in one thread of the real learner, server, messages, snapshot format and
SQLite journal.  Messages are lost, doubled, late and out of order; the journal's answers get lost;
servers restart from older snapshots and live on beside their successors; replicas die, are sealed
while they live, and adopt.  The model is a ledger, so every double or missing event is seen:
``counts[event]`` is 0 or 1.

A state that travels whole is right for one writer whose requests arrive in their order, one at a
time, as the shell and Ray do it; so that is how its messages go here.  What merges has no such
condition.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from online.learner import Learner
from online.models.base import Model, Prediction
from online.tally import DIGEST, event_hash
from paramserver.blocks import Block, Blocks
from paramserver.server import Server
from paramserver.snapshots import format as snapshot_format
from paramserver.state import Contained, SnapshotState
from paramserver.wire import FORMAT, SyncRequest, decode_reply, decode_request, encode
from replay import codec
from replay.errors import EpochLost, PartitionSealed
from replay.example import Example, Features, Label
from replay.journal.base import NewRow, Row, Verdict
from replay.journal.sqlite import SqliteJournal

SPEC = "5" * 64
_models = itertools.count(1)


class Ledger:
    """Counts each event under its name, and damages itself when it can't learn."""

    mergeable, learns, numeric_only, structure = True, True, False, "ledger"
    why_not_mergeable: str | None = None

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self._open: dict[str, float] = {}

    def predict(self, features: Features) -> Prediction:
        return Prediction(None, None)

    def learn(self, features: Features, label: Label, weight: float) -> None:
        event = str(features["event"])
        for counts in (self.counts, self._open):
            counts[event] = counts.get(event, 0) + 1
        if features["poison"]:
            self.counts["damage"] = self._open["damage"] = 7
            raise ValueError("poison")

    def cut(self) -> Blocks:
        opened, self._open = self._open, {}
        return {"w": Block("additive", opened)} if opened else {}

    def rebase(self, values: Blocks) -> None:
        for event, x in values["w"].data.items() if "w" in values else ():
            self.counts[event] = x + self._open.get(event, 0)

    def reset(self, values: Blocks) -> None:
        self.counts, self._open = {}, {}
        self.rebase(values)


class Whole(Ledger):
    """The same as a state that travels whole and does not merge."""

    mergeable = False

    def cut(self) -> Blocks:
        opened, self._open = self._open, {}
        return {"w": Block("opaque", json.dumps(self.counts).encode())} if opened else {}

    def rebase(self, values: Blocks) -> None:
        assert "w" not in values, "only tallies are merged into a model that travels whole"

    def reset(self, values: Blocks) -> None:
        self.counts, self._open = {}, {}
        if "w" in values:
            self.counts = json.loads(values["w"].data)


@dataclass(frozen=True)
class Event:
    name: str
    verdict: Verdict
    poison: bool

    @property
    def key(self) -> bytes:
        return hashlib.blake2b(self.name.encode(), digest_size=16).digest()

    @property
    def counts(self) -> bool:
        return self.verdict in (Verdict.ACCEPTED, Verdict.CLIPPED) and not self.poison

    def row(self) -> NewRow:
        payload = codec.encode(Example({"event": self.name, "poison": self.poison}, True))
        factor = 0.5 if self.verdict is Verdict.CLIPPED else 1.0
        return NewRow(self.key, self.name, "s", self.verdict, payload, 1.0, factor)


class Served:
    """A server's process: it restores under a new epoch, and publishes in two steps."""

    def __init__(self, world: World) -> None:
        journal, self.world, self.alive = world.journal, world, True
        expected = journal.head(world.model, SPEC).epoch
        epoch = journal.begin_epoch(world.model, SPEC, expected)
        self.parent = journal.head(world.model, SPEC).snapshot
        self.draft: SnapshotState | None = None
        n = world.r.choice((1, 3, 40))
        if self.parent is None:
            self.server = world.server_class(world.model, SPEC, "", "sum", epoch, history_max=n)
        else:
            if len(world.snapshots) > 1 and world.chance(0.25):  # the newest one is corrupt
                world.snapshots.popitem()
            self.parent = list(world.snapshots)[-1]
            state = snapshot_format.decode(world.snapshots[self.parent])
            self.server = world.server_class.restored(state, "sum", epoch, history_max=n)
        self.confirm()
        world.stats["epochs"] += epoch > 1

    def confirm(self) -> None:
        self.server.note_partitions(self.world.journal.partitions(self.world.model))

    def publish(self) -> None:
        """Begin a snapshot, or finish the one begun: pushes come in between."""
        world, draft = self.world, self.draft
        if draft is None:
            self.draft = self.server.begin_snapshot(0.0, self.parent, {})
            return
        self.draft = None
        name = f"snapshot {next(world.numbers)}"
        try:
            world.journal.move_head(world.model, SPEC, draft.version[0], name)
        except EpochLost:
            self.alive = False
            return
        world.snapshots[name] = snapshot_format.encode(draft)
        self.parent = name
        self.server.note_durable(draft)
        for old in list(world.snapshots)[: -world.kept]:
            del world.snapshots[old]
        states = map(snapshot_format.decode, world.snapshots.values())
        kept = [Contained(state.clock, state.closed) for state in states]
        for partition in world.journal.partitions(world.model):
            world.stats["closed"] += self.server.close(partition, kept)

    def answer(self, data: bytes) -> tuple[set[int], bytes]:
        """Encoded reply, and the partitions that it tells the clock of."""
        message = decode_request(data)
        acks = [self.server.push(push, self.world.journal.partition) for push in message.pushes]
        orphans = self.world.orphans(self.server, message)
        named = {message.partition, *message.adopting}
        return named, encode(self.server.reply(message, acks, orphans, 0.0))


class Replica:
    """What the shell in ``online.replica`` does, one step at a time."""

    def __init__(self, world: World) -> None:
        self.world, self.alive = world, True
        n, size = world.r.randint(1, 5), world.retain_bytes
        self.learner = world.learner_class(
            world.build, task="binary", spec=SPEC, retain_bytes=size, rows_max=n
        )
        self.name = f"replica {next(world.numbers)}"
        self.queue, self.batch = list[Event](), list[Event]()
        self.page = list[Row]()
        self.skip, self.learned = set[bytes](), dict[str, bool]()
        self.asked = self.paused = 0
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
            self.batch, self.queue = self.queue[:k], self.queue[k:]
        if not self.batch or world.chance(0.12):
            return  # no answer, nothing was written: the same batch again
        before = world.journal.partition(self.partition)
        try:
            rows = [event.row() for event in self.batch]
            appended = world.journal.append(self.partition, self.known, rows)
        except PartitionSealed:
            world.stats["sealed alive"] += 1
            self.page.clear()
            self.learner.abandon(self.partition)
            self.register()
            return
        if world.chance(0.15):
            return  # written, and the answer lost: the same batch again
        for event, outcome in zip(self.batch, appended.outcomes, strict=True):
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
        poisoned = event.poison and event.verdict is not Verdict.QUARANTINED and not skipped
        assert (failed is not None) == poisoned, f"{event} failed: {failed}"
        if row.partition == self.partition:
            self.learned[event.name] = event.counts

    def ask(self) -> None:
        served, learner = self.world.resolve(), self.learner
        if served is None:
            return
        push = self.world.chance(0.6, 1.0)
        pushes = learner.pushes(self.world.r.randint(1, 6)) if push else []
        values = learner.mergeable or learner.want_all
        adopting = [p for p, t in learner.tracks.items() if t.end is not None]
        request = SyncRequest(
            FORMAT, self.name, self.partition, pushes, learner.since, values, adopting
        )
        self.asked = next(self.world.numbers)
        self.world.send(Message(self, served, self.asked, encode(request), None))

    def hear(self, number: int, named: set[int], data: bytes) -> None:
        if not named.issuperset(self.learner.tracks):
            return  # the clock of one that is not named may be left out
        if self.world.whole and number != self.asked:
            return  # the shell takes no late answers; a model that merges could
        reply = decode_reply(data)
        version = self.learner.version
        self.world.stats["old replies"] += reply.epoch < version[0]
        self.learner.on_reply(reply)
        assert self.learner.version >= version, f"{self.learner.version} after {version}"
        for partition in reply.orphans:
            if partition not in self.learner.tracks:
                self.learner.adopt(partition, self.world.journal.seal(partition))
                self.world.stats["adopted"] += 1

    def check(self, event: Event, row: Row | None) -> None:
        learner = self.learner
        serving: Any = learner.serving
        training: Any = learner._training
        for name, model in (("serving", serving), ("training", training)):
            most = max(model.counts.values(), default=0)
            assert most <= 1, f"{self.name}: an event counts {most} times in the {name} model"
        counts = serving.counts
        for own, counted in self.learned.items():
            assert counts.get(own, 0) == counted, f"{self.name}: own {own} counts not {counted}"
        assert learner.tally.digest == self.world.digest(training.counts), "a digest"
        if event.counts and row and learner.includes(row.partition, row.offset):
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
    own_is_repeat = False  # a mutant of the shell

    def __init__(self, journal: SqliteJournal, seed: int, *, whole: bool = False) -> None:
        self.journal, self.r, self.whole = journal, random.Random(seed), whole
        self.build: Callable[[], Model] = Whole if whole else Ledger
        self.numbers = itertools.count(1)
        self.model = f"model {next(_models)}"
        self.retain_bytes = self.r.choice((0, 600, 10**6))
        self.calm = False
        self.hasty = self.r.choice((0.01, 0.1, 0.4))  # chance that one who lives is thought dead
        self.kept = self.r.choice((1, 3))  # snapshots
        self.stats: Counter[str] = Counter()
        self.snapshots: dict[str, bytes] = {}
        self.events = {e.name: e for e in map(self._event, range(self.r.randint(20, 50)))}
        self.unsent, self.acked = list(self.events.values()), set[str]()
        self.net: list[Message] = []
        self.replicas: list[Replica] = []
        self.servers = [Served(self)]

    def _event(self, k: int) -> Event:
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
        elif served.alive:
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
            r.choice(alive).confirm()
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
        if not self.servers[-1].alive:
            self.servers.append(Served(self))
        if not self.live():
            self.replicas.append(Replica(self))
        for replica in self.live():
            replica.queue.clear()
            replica.paused = 0
        for _ in range(60):
            self._heal()
            if self._healed():
                break
        else:
            raise AssertionError("it does not heal")
        for replica in self.live() * 2:
            replica.ask()
        self._check_end()
        self.stats["relearned"] += sum(r.learner.relearned for r in self.replicas)

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
        ends = {p.id: p.end for p in self.journal.partitions(self.model)}
        behind = [p for p in ends.keys() - server.closed if server.clock.get(p, 0) < ends[p]]
        relearning = [r for r in self.live() if r.learner.serving is not r.learner._training]
        return not behind and not relearning and len(self.acked) == len(self.events)

    def _check_end(self) -> None:
        expected = {event.name: 1.0 for event in self.events.values() if event.counts}
        digest = self.digest(expected)
        assert _state(self.servers[-1].server) == (expected, digest), "the server is not exact"
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
