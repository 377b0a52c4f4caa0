"""The actor in a real Ray: killed, superseded, replaced."""

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
