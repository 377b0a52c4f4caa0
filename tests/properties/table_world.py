"""Replicas of a machine with a table, their server, and what was sent, by seed."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import numpy as np

from online.learning.cached_rows import CachedRows
from online.learning.merged import Learner
from online.models.fm import Fm, FmTable
from online.models.state import factors
from online.models.state.factors import TABLE, TableLines
from paramserver.core import wire
from paramserver.core.blocks import Blocks, from_wire
from paramserver.core.server import Server
from paramserver.core.state import SnapshotState
from paramserver.core.tables.rows import Rows
from replay import codec
from replay.example import Example, Features
from replay.journal.base import Row, Verdict

SPEC = "s" * 64
EXACT = 3  # columns that are not rounded: those of the weight, and the vector's s
CACHE: Any = CachedRows
Numbers = dict[int, Any]


class Info:
    id, end, sealed, replica, trimmed = 1, 10_000, False, "r", 0


def build(*, rounds: bool = True) -> FmTable:
    model = Fm(4, ["film"], table=True).model_for("regression")
    assert isinstance(model, FmTable)
    if rounds:
        model.round_deltas()
    return model


def row(partition: int, offset: int, user: int, film: int, label: float) -> Row:
    features: Features = {"user": f"u{user}", "film": film}
    key = f"{partition}:{offset}".encode().ljust(16)
    payload = codec.encode(Example(features, label))
    return Row(0, partition, offset, key, "", "", Verdict.ACCEPTED, 1.0, payload, 1.0)


def add(into: Numbers, rows: Rows) -> None:
    """Add float32 rows, one after the other."""
    for i, numbers in zip(rows.ids.tolist(), rows.numbers, strict=True):
        into[i] = into[i] + numbers if i in into else numbers


def numbers_of(blocks: Blocks) -> Numbers:
    """Return the rows of the table by id."""
    if TABLE not in blocks:
        return {}
    rows = blocks[TABLE].data
    return dict(zip(rows.ids.tolist(), rows.numbers, strict=True))


def same(one: Numbers, other: Numbers) -> bool:
    """Whether both have the same rows, to the bit; a row that is missing has zeros."""
    nothing = np.zeros(EXACT + 4, np.float32)
    return all(
        np.array_equal(one.get(i, nothing), other.get(i, nothing)) for i in one.keys() | other
    )


def _model(learner: Learner) -> FmTable:
    model = learner._training
    assert isinstance(model, FmTable)
    return model


def lines_of(learner: Learner) -> TableLines:
    return _model(learner)._table


def known_by(learner: Learner) -> Numbers:
    """Return the model's rows without its open delta."""
    lines = lines_of(learner)
    hot = {i: lines._base[at].copy() for i, at in lines._hot.items()}
    return numbers_of({TABLE: factors.Block("rows", lines._table)}) | hot


def rests_of(learner: Learner) -> Numbers:
    """Return what rounding has left over, by id, when no row is open."""
    lines = lines_of(learner)
    return {i: lines._moved[at].astype(np.float64) for i, at in lines._hot.items()}


class Replica:
    """A learner with a journal of its own."""

    def __init__(self, partition: int, most: int | None, users: int) -> None:
        self.partition, self.rows, self.users = partition, list[Row](), users
        self.learner = Learner(
            build, task="regression", spec=SPEC, retain_bytes=1 << 24, rows_max=5
        )
        self.learner.open_partition(partition)
        if most is not None:
            self.learner.cache = CACHE(TABLE, most, lambda x: _model(self.learner).row_ids(x))

    def step(self, draw: random.Random) -> None:
        """Write a row."""
        user, film = min(draw.randrange(self.users), draw.randrange(self.users)), draw.randrange(4)
        label = draw.gauss(0.0, 3.0) + user - film
        self.rows.append(row(self.partition, len(self.rows) + 1, user, film, label))

    def ask(self) -> None:
        """Request the rows of the table that the next rows need."""
        if (cache := self.learner.cache) is not None:
            wanted = [at for _, at in self.learner.wanted()]
            rows = [r for at in wanted for r in self.rows[at - 1 : at + 3]]
            cache.soon = [i for r in rows for i in cache.ids_of(codec.decode(r.payload).features)]
            cache.ask(cache.soon)

    def catch_up(self) -> None:
        """Learn all rows that are wanted."""
        while True:
            wanted = [at for _, at in self.learner.wanted() if at <= len(self.rows)]
            if not wanted:
                return
            self.learner.learn(self.rows[wanted[0] - 1])


class World:
    """Three replicas, a server, and what was sent."""

    def __init__(self, seed: int, most: int | None = None, users: int = 5) -> None:
        self.draw = random.Random(seed)
        self.server = Server("m", SPEC, "", "sum", 1)
        self.replicas = [Replica(partition, most, users) for partition in (1, 2, 3)]
        self.summed: Numbers = {}  # what was applied, added up
        self.bodies: dict[tuple[int, int, int], bytes] = {}  # content of each push, when first sent
        self.repeats = self.restarts = self.parts = 0
        self.late = list[bytes]()  # requests that arrive later, once more or for the first time
        self.unread = 0  # changed rows that a replica received and did not hold
        self.saved: tuple[SnapshotState, Numbers] = self._state()
        for replica in self.replicas:
            self.exchange(replica)

    def _state(self) -> tuple[SnapshotState, Numbers]:
        return self.server.begin_snapshot(0.0, None, {}), dict(self.summed)

    def exchange(self, replica: Replica, *, lost: bool = False, late: bool = False) -> None:
        """Push and pull; ``late``: the request arrives later, and nobody awaits the reply."""
        learner, cache = replica.learner, replica.learner.cache
        pushes = learner.pushes(9)
        if learner.up_to_date:
            self._check_known(learner)
        for push in pushes:
            self._check_sent(learner, push)
        request = wire.encode(
            wire.SyncRequest(
                wire.FORMAT,
                f"r{replica.partition}",
                replica.partition,
                pushes,
                learner.since,
                True,
                [],
                **(cache.request(learner.server, learner.catching_up) if cache else {}),
            )
        )
        if late:
            self.late.append(request)
            return
        reply = self._served(request)
        self._check_unread(learner, reply)
        if not lost:
            stays = 0
            if cache is not None:
                stays = sum(map(learner._may_be_sent, cache._changed.values()))
                stays += len(cache._sent - cache._uses.keys())
            if cache is not None and cache.is_part(reply, learner.server):
                self.parts += 1
                for _ in learner.take_part(cache.part_of(reply, learner.server)):
                    pass
            else:
                learner.on_reply(reply)
            self._check_fetched(learner, stays)
            replica.catch_up()
            if learner.up_to_date:
                self._check_known(learner)

    def _served(self, data: bytes) -> wire.SyncReply:
        """Let a request arrive at the server."""
        request, acks = wire.decode_request(data), []
        for push in request.pushes:
            acks.append(self.server.push(push, lambda _: Info))  # type: ignore[arg-type,return-value]
            if acks[-1].status == "applied" and TABLE in push.blocks:
                add(self.summed, from_wire(push.blocks)[TABLE].data)
        reply = wire.decode_reply(wire.encode(self.server.reply(request, acks, [], 0.0)))
        assert same(numbers_of(self.server.values), self.summed), "the sum of what was sent"
        return reply

    def _check_unread(self, learner: Learner, reply: wire.SyncReply) -> None:
        """Count rows that the replica neither holds nor has requested."""
        if (cache := learner.cache) is not None and TABLE in reply.rows:
            ids = {*from_wire(reply.rows)[TABLE].data.ids.tolist()}
            self.unread += len(ids - cache._uses.keys() - cache._sent)

    def _check_sent(self, learner: Learner, push: wire.Push) -> None:
        """The own delta has the numbers that are sent, each time the same ones."""
        body = msgspec.msgpack.encode(push.blocks)
        key = (push.epoch, push.partition, push.first)
        self.repeats += key in self.bodies
        assert self.bodies.setdefault(key, body) == body, "a repeat is equal to the bit"
        own = next(d for d in learner._deltas._kept
                   if (d.partition, d.first) == (push.partition, push.first))  # fmt: skip
        sent = from_wire(msgspec.msgpack.decode(body, type=dict[str, wire.WireBlock]))
        assert same(numbers_of(own.blocks), numbers_of(sent)), "the own delta is what is sent"
        for numbers in numbers_of(sent).values():
            rounded = numbers[EXACT:].astype(np.float16).astype(np.float32)
            assert np.array_equal(rounded, numbers[EXACT:])

    def _check_known(self, learner: Learner) -> None:
        """The model is the server's values with the own deltas on top, to the bit."""
        known, values = known_by(learner), numbers_of(learner._values())
        if (cache := learner.cache) is not None:
            known, values = ({i: x[i] for i in cache._uses if i in x} for x in (known, values))
        assert same(known, values)

    def _check_fetched(self, learner: Learner, stays: int) -> None:
        """Rows that are held are the server's with the own deltas on top, and not too many.

        ``stays``: how many had to stay when some were evicted, and how many were requested.
        """
        if (cache := learner.cache) is None or not learner.up_to_date or learner.catching_up:
            return
        values, pending = numbers_of(self.server.values), learner._deltas.pending(learner.clock)
        for delta in pending:
            if TABLE in delta.blocks:
                ids = {*delta.blocks[TABLE].data.ids.tolist()}
                assert ids <= cache._uses.keys() | cache._partial, "own rows stay"
                add(values, delta.blocks[TABLE].data)
        known = known_by(learner)
        held = [{i: x[i] for i in cache._uses if i in x} for x in (known, values)]
        assert same(*held), "rows that are held are those of the server"
        assert numbers_of(learner._pulled.blocks).keys() <= cache._uses.keys(), "only held rows"
        assert len(cache._uses) <= 2 * cache.most + stays + len(cache.soon)

    def restart(self) -> None:
        """Start the server again from the last snapshot."""
        state, summed = self.saved
        self.server = Server.restored(state, "sum", self.server.epoch + 1)
        self.summed = dict(summed)
        self.restarts += 1

    def _meet_late(self, replica: Replica, faults: bool) -> None:
        """Let a request be late, or an earlier one arrive."""
        if not faults or replica.learner.cache is None or self.draw.random() < 0.6:
            return
        self.exchange(replica, late=True)
        if len(self.late) > 6 or self.draw.random() < 0.5:
            self._served(self.late.pop(self.draw.randrange(len(self.late))))

    def run(self, steps: int = 120, *, faults: bool) -> None:
        for _ in range(steps):
            replica = self.draw.choice(self.replicas)
            what = self.draw.randrange(12)
            if what < 7:
                replica.step(self.draw)
                if replica.learner.cache is not None and what > 1:  # otherwise it is not waited for
                    replica.ask()
                    self.exchange(replica, lost=what == 2)
                    self._meet_late(replica, faults)
                replica.catch_up()
            elif what < 10:
                self.exchange(replica, lost=what == 9)
            elif what == 10:
                self.saved = self._state()
                self.server.note_durable(self.saved[0])
            elif faults:
                self.restart()
        for _ in range(8):
            for replica in self.replicas:
                self.exchange(replica)
