"""The canary: what the server has written, each replica serves; who stops pulling is seen."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from replica_world import SPEC, Client, World, play, row, until

from paramserver.core import wire
from paramserver.core.blocks import Block, to_wire
from paramserver.core.replicas import Replicas


class Deaf(Client):
    """Exchanges as always; no values arrive any more, and nobody is told."""

    deaf = False

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        reply = await super().sync(request, timeout_s)
        return msgspec.structs.replace(reply, blocks={}) if self.deaf else reply


def _probe(world: World, n: int) -> None:
    """A value written at the server itself, of an event that no replica has seen."""
    server = world.server._running.server
    assert server is not None
    partition = world.journal().register("m", f"probe {n}", SPEC, 0.0).id
    blocks = {
        "weights": Block("additive", {f"probe {n}": 2.0**-10}),
        "digest": Block("digest", {"count": 1, "sum": 7}),
    }
    push = wire.Push(server.epoch, SPEC, partition, 1, 1, 1, server.version, to_wire(blocks))
    with world.server._running.lock:
        assert server.push(push, world.server._lookup).status == "applied"


def _unserved(world: World) -> dict[str, Any]:
    shown = world.server.status()["replicas"]
    return {name: seen["unserved_s"] for name, seen in shown.items()}


def test_a_probe_is_served_by_all_and_one_that_stopped_pulling_is_seen(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        clients = [Deaf(world.server) for _ in range(3)]
        replicas = [await world.replica(f"r{i}", client=c) for i, c in enumerate(clients)]
        await replicas[0].writer.record([row("before")])
        _probe(world, 1)
        for replica in replicas:
            await until(lambda replica=replica: world.weight(replica, "probe 1") == 1)
        await until(lambda: set(_unserved(world).values()) == {0.0})

        clients[2].deaf = True
        _probe(world, 2)
        for replica in replicas[:2]:
            await until(lambda replica=replica: world.weight(replica, "probe 2") == 1)

        def seen() -> bool:
            """Unserved for long, in contact, and as fresh as the others as far as it knows."""
            shown = world.server.status()["replicas"]
            unserved_s = shown["r2"]["unserved_s"] or 0.0
            ages = [replica.age_ms or 0.0 for replica in replicas]
            fresh = ages[2] - ages[0] < unserved_s * 500
            return unserved_s > 0.5 and shown["r2"]["age_s"] < unserved_s / 2 and fresh

        await until(seen)
        assert replicas[2].updates_behind == 0
        await until(lambda: (_unserved(world)["r0"], _unserved(world)["r1"]) == (0.0, 0.0))
        await asyncio.gather(*(replica.stop(5) for replica in replicas))

    play(tmp_path, scene)


def _told(name: str, epoch: int, events: int) -> wire.SyncRequest:
    report = {"served_epoch": float(epoch), "served_events": float(events)}
    return wire.SyncRequest(wire.FORMAT, name, 1, [], None, True, [], report)


@pytest.mark.parametrize(
    ("epoch", "events", "now_s", "expected"),
    [
        (1, 9, 20.0, 0.0),  # it has all
        (1, 8, 20.0, 18.0),  # the last one came right after another: as old as that one
        (1, 5, 20.0, 18.0),
        (1, 3, 20.0, 19.0),
        (0, 9, 20.0, 20.0),  # of an epoch before: what it has counts for nothing
    ],
)
def test_how_long_it_lacks_something(
    epoch: int, events: int, now_s: float, expected: float
) -> None:
    replicas = Replicas(60.0)
    for n, at_s in ((3, 0.0), (5, 1.0), (8, 2.0), (9, 2.1)):
        replicas.wrote(1, n, at_s)
    replicas.note(_told("r", epoch, events), now_s)
    assert replicas.summary(now_s)["r"]["unserved_s"] == pytest.approx(expected)


def test_who_says_nothing_is_not_judged() -> None:
    replicas = Replicas(60.0)
    replicas.note(wire.SyncRequest(wire.FORMAT, "r", 1, [], None, True, []), 1.0)
    assert replicas.summary(1.0)["r"]["unserved_s"] is None
