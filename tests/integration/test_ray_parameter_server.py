"""The actors in a real Ray: killed, superseded, replaced, ended, each server alone or several."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from paramserver.core import wire
from paramserver.errors import FormatRefused, ParamServerError, ServerUnavailable
from paramserver.process.actor import ServerSettings
from paramserver.process.lineage import Lineage
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

pytestmark = pytest.mark.ray

LINEAGE = Lineage("prices", "s" * 64, "LR()", "sum")
NAME = "ParameterServer:prices"
SETTINGS = ServerSettings(interval_s=36_000.0, confirm_s=0.2)


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    yield
    ray.shutdown()


def request(**changes: Any) -> wire.SyncRequest:
    fields: dict[str, Any] = {
        "format": wire.FORMAT,
        "replica": "r1",
        "partition": 1,
        "pushes": [],
        "since": None,
        "values": True,
        "adopting": [],
    }
    return wire.SyncRequest(**(fields | changes))


def push(epoch: int, offset: int) -> wire.Push:
    blocks = {"w": wire.WireBlock("additive", {"k": 1.0})}
    return wire.Push(epoch, LINEAGE.spec, 1, offset, offset, 1, (epoch, 0), blocks)


async def answered(client: Any, sent: wire.SyncRequest) -> wire.SyncReply:
    """The reply, as a replica gets it: asking again while the server is away."""
    async with asyncio.timeout(240):
        while True:
            try:
                return await client.sync(sent, 60.0)
            except ParamServerError:
                await asyncio.sleep(0.05)


def test_killed_superseded_replaced(
    ray_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from paramserver.clients import ray_client
    from paramserver.clients.ray_client import ParameterClient, start_or_get

    monkeypatch.setattr(ray_client, "_NEAR_S", 60.0)  # however slow the machine is
    open_store = partial(SqliteJournal, tmp_path / "journal.db", disk_low_mb=0)
    journal = open_store()
    assert journal.register("prices", "r1", LINEAGE.spec, 0.0).id == 1
    rows = [NewRow(bytes([i]) * 16, str(i), "x", Verdict.ACCEPTED, b"", 0.0) for i in range(3)]
    journal.append(1, 0, rows)
    directory = str(tmp_path / "snapshots")

    async def play() -> None:
        client = ParameterClient(NAME)
        with pytest.raises(ServerUnavailable, match="no actor"):
            await client.sync(request(), 60.0)
        start_or_get(NAME, LINEAGE, open_store, directory, SETTINGS)()
        assert (await answered(client, request())).epoch == 1
        with pytest.raises(FormatRefused):
            await client.sync(request(format=99), 60.0)
        assert (await client.sync(request(pushes=[push(1, 1)]), 60.0)).clock == {1: 1}
        assert client.near  # it went over a kept connection
        await client.call("snapshot", 60.0)
        assert (await client.sync(request(pushes=[push(1, 2)]), 60.0)).clock == {1: 2}

        status = await client.call("status", 60.0)
        os.kill(status["pid"], signal.SIGKILL)
        back = await answered(client, request())
        assert (back.epoch, back.clock) == (2, {1: 1})  # the second push was in no snapshot
        again = await client.sync(request(pushes=[push(2, 1), push(2, 2)]), 60.0)
        assert [a.status for a in again.acks] == ["repeat", "applied"]
        assert again.blocks["w"].data == {"k": 2.0}

        journal.begin_epoch("prices", LINEAGE.spec, 2)  # another server somewhere
        async with asyncio.timeout(240):
            while (back := await answered(client, request())).epoch == 2:
                await asyncio.sleep(0.05)
        assert (back.epoch, back.clock) == (4, {1: 1})
        await client.sync(request(pushes=[push(4, 2)]), 60.0)

        same = start_or_get(NAME, LINEAGE, open_store, directory, SETTINGS)()
        assert (await client.call("status", 60.0))["epoch"] == 4
        other_rule = Lineage("prices", LINEAGE.spec, LINEAGE.spec_text, "average")
        handle = start_or_get(NAME, other_rule, open_store, directory, SETTINGS)()
        assert handle != same
        back = await answered(client, request())
        assert (back.epoch, back.clock, back.durable) == (5, {1: 2}, {1: 2})
        assert (await client.call("status", 60.0))["merge"] == "average"
        ray.kill(handle, no_restart=True)

    asyncio.run(play())
    journal.close()


def test_servers_that_share_a_process(ray_here: None, tmp_path: Path) -> None:
    import ray

    from paramserver.clients import ray_client
    from paramserver.clients.hosted import Given
    from paramserver.clients.ray_client import ParameterClient

    open_store = partial(SqliteJournal, tmp_path / "journal.db", disk_low_mb=0)
    journal = open_store()
    directory = str(tmp_path / "snapshots")

    def given(model: str, rule: str = "sum") -> Given:
        return Given(Lineage(model, "s" * 64, "LR()", rule), open_store, directory, SETTINGS)

    async def play() -> None:
        clients = {name: ParameterClient(name) for name in ("a", "b", "c")}
        found: dict[str, Any] = {}

        async def epochs() -> list[int]:
            replies = [await answered(clients[name], request()) for name in found]
            return [reply.epoch for reply in replies]

        wait = ray_client.start_shared({"a": given("a"), "b": given("b")})
        found |= {"a": wait("a"), "b": wait("b")}
        assert await epochs() == [1, 1]
        pids = {(await clients[name].call("status", 60.0))["pid"] for name in found}
        assert len(pids) == 1
        os.kill(pids.pop(), signal.SIGKILL)
        assert await epochs() == [2, 2], "both are back"

        journal.begin_epoch("a", "s" * 64, 2)  # another server of one of them somewhere
        async with asyncio.timeout(240):
            while (now := await epochs()) == [2, 2]:
                await asyncio.sleep(0.05)
        assert now == [4, 2], "the other one has not noticed"

        wait = ray_client.start_shared({"b": given("b", "average"), "c": given("c")})
        found["c"] = wait("c")
        assert (await clients["b"].call("status", 60.0))["merge"] == "average"
        assert await epochs() == [4, 3, 1], "only the changed one was replaced"
        assert set(ray_client.shared()) == {"a", "b", "c"}

        ray_client.end(["a"])
        del found["a"]
        with pytest.raises(ServerUnavailable, match=r"no actor|does not run"):
            await clients["a"].call("status", 60.0)
        with pytest.raises(ValueError, match=r"\ba\b"):
            ray_client.find("a")
        assert await epochs() == [3, 1]
        ray_client.end(["b", "c"])
        async with asyncio.timeout(240):
            while ray_client.exists("ParameterServers"):
                await asyncio.sleep(0.05)
        assert not ray_client.shared()
        ray.get(ray_client.start_or_get("a", *given("a"))().ping.remote())
        assert (await answered(clients["a"], request())).epoch == 5, "found again, on its own"
        ray_client.end(["a"])

    asyncio.run(play())
    journal.close()
