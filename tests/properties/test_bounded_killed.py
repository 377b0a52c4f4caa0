"""A bounded table through kills: no event is lost or counted twice, and all have the same rows.

The server's process is ended wherever it stands, as often as not between a push and its answer, and
starts from what is on disk, snapshots that lean on others among it.  Replicas send what its clock
lacks, as they do from the journal.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_world import LINEAGE, Info, World

from online.learning.deltas import Pulled
from paramserver.core import state, wire
from paramserver.core.admission import KEPT, TableBounds
from paramserver.core.blocks import DIGEST, ROWS, Block, Blocks, to_wire
from paramserver.core.server import Server
from paramserver.core.tables.rows import Rows
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.snapshots.format import read_manifest
from paramserver.snapshots.store import Retention

ROWS_MAX = 64
REPLICAS = 3


class Replica:
    """What one partition's journal holds, and what was pulled of the server."""

    def __init__(self, number: int) -> None:
        self.number, self.journal = number, list[Blocks]()
        self.pulled, self.since = Pulled(), None
        self.clock = 0

    def learn(self, draw: random.Random, now: int) -> None:
        some = {now // 4 + int(draw.paretovariate(0.7)) % 200 for _ in range(9)}
        ids = np.array(sorted(some), dtype=np.uint64)
        numbers = np.full((len(ids), 2), draw.randrange(1, 9), dtype=np.float32)
        event = {"count": 1, "sum": draw.randrange(2**60)}
        self.journal.append({"t": Block(ROWS, Rows(ids, numbers)), "d": Block(DIGEST, event)})

    def exchange(self, server: ParameterServer, *, heard: bool = True) -> None:
        """Push what the clock lacks, and pull; the answer may not be heard."""
        epoch = server.status()["epoch"]
        base = self.since if self.since is not None and self.since[0] == epoch else (epoch, 0)
        pushes = [
            wire.Push(epoch, LINEAGE.spec, self.number, at, at, 1, base, to_wire(blocks))
            for at, blocks in enumerate(self.journal[self.clock :], self.clock + 1)
        ]
        request = wire.SyncRequest(
            wire.FORMAT, f"r{self.number}", self.number, pushes, self.since, True, []
        )
        reply = wire.decode_reply(server.sync(wire.encode(request)))
        if not heard:
            return
        self.clock = reply.clock.get(self.number, 0)
        self.pulled.take(reply, ())
        self.since = (reply.epoch, reply.count)
        mine, held = self.pulled.blocks, values(server)
        assert table_of(mine) == table_of(held), "the same rows at a version"
        assert not [name for name in mine if name.startswith(KEPT)]


def values(server: ParameterServer) -> Blocks:
    held = server._running.server
    assert held is not None
    return held.values


def table_of(blocks: Blocks) -> dict[int, list[float]]:
    block = blocks.get("t")
    if block is None:
        return {}
    return dict(zip(block.data.ids.tolist(), block.data.numbers.tolist(), strict=True))


def killed(folder: Path, seed: int, steps: int = 160) -> Counter[str]:
    """A service of some replicas, ended again and again; what was met on the way."""
    draw, met = random.Random(seed), Counter[str]()
    bounds = TableBounds(ROWS_MAX, draw.choice((1, 2)))
    world = World(folder / "snapshots")
    world.settings = ServerSettings(tables=bounds, retention=Retention(4, 0, 0, 0, full_every=3))
    world.store.rows = {n: Info(n, 10**6) for n in range(1, REPLICAS + 1)}
    server, replicas = world.serving(), [Replica(n) for n in range(1, REPLICAS + 1)]
    for now in range(steps):
        replica = draw.choice(replicas)
        for _ in range(draw.randrange(3)):
            replica.learn(draw, now)
        match draw.randrange(12):
            case 0 | 1:
                world.now_s += 10.0
                name = server.snapshot()["name"] if values(server) else None
                if name is not None:
                    met["leaning"] += read_manifest(world.file(name).read_bytes()).base is not None
            case 2:
                replica.exchange(server, heard=False)
                server = world.serving()
                met["killed before its answer"] += 1
            case 3:
                server = world.serving()
                met["killed"] += 1
            case _:
                replica.exchange(server)
    for _ in range(2):  # the second time all know what the others have pushed
        for replica in replicas:
            replica.exchange(server)
            replica.exchange(server)
    sent = [blocks["d"].data for replica in replicas for blocks in replica.journal]
    digest = values(server)["d"].data
    assert digest["count"] == len(sent), "none is lost, and none is counted twice"
    assert digest["sum"] == sum(event["sum"] for event in sent) % 2**64
    keeper = server._running.server and server._running.server.keeper
    assert keeper is not None
    met["left"] = keeper.left
    assert len(table_of(values(server))) <= ROWS_MAX
    assert len({str(sorted(table_of(replica.pulled.blocks))) for replica in replicas}) == 1
    return met


@pytest.fixture(autouse=True)
def small_tables_lean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_ROWS_LEAST", 8)
    monkeypatch.setattr(state, "_SHARE", 1)


def all_killed(folder: Path) -> Counter[str]:
    met = Counter[str]()
    for seed in range(6):
        met += killed(folder / str(seed), seed)
    return met


def test_a_bounded_table_loses_nothing_and_counts_nothing_twice(tmp_path: Path) -> None:
    met = all_killed(tmp_path)
    assert not {"leaning", "killed", "killed before its answer", "left"} - {*(+met)}, met


def _forgets_its_clock(state: Any, *given: Any, **named: Any) -> Server:
    server = _restored(state, *given, **named)
    server.clock = {}
    return server


_restored = Server.restored


def test_a_server_that_forgets_its_clock_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "restored", _forgets_its_clock)
    with pytest.raises(AssertionError):
        all_killed(tmp_path)


def test_a_replica_that_is_not_told_what_left_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own table loses its rows by ``drop``; what a replica pulls, by ``update``."""
    monkeypatch.setattr(Rows, "update", lambda self, new: self.put(new.ids, new.numbers))
    with pytest.raises(AssertionError, match="the same rows at a version"):
        all_killed(tmp_path)
