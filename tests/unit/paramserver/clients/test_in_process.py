"""A parameter server beside its replica in one process: it begins anew by itself, and it ends."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from paramserver.clients.in_process import InProcess, InProcessClient
from paramserver.core import wire
from paramserver.errors import (
    FormatRefused,
    PublishFailed,
    RequestRefused,
    ServerUnavailable,
    SnapshotMissing,
)
from paramserver.process import settings as of_server
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.attempts import Attempts
from paramserver.process.lineage import Lineage, begin_epoch
from replay.errors import JournalUnavailable
from replay.journal.sqlite.journal import SqliteJournal

LINEAGE = Lineage("m", "s" * 64, "{}", "sum")
QUICK = ServerSettings(confirm_s=0.01, retry_s=0.01, interval_s=0.05)


def until(true: Callable[[], Any], what: str) -> None:
    """Wait until it is so; at most twenty seconds."""
    end_s = time.monotonic() + 240
    while not true():
        assert time.monotonic() < end_s, what
        time.sleep(0.005)


@pytest.fixture
def opener(tmp_path: Path) -> Callable[[], SqliteJournal]:
    return partial(SqliteJournal, tmp_path / "journal.db", synchronous="OFF")


def server(opener: Callable[[], Any], folder: Path) -> InProcess:
    made = InProcess("m", LINEAGE, opener, str(folder / "snapshots"), QUICK, lambda _: [])
    made.start()
    return made


def serving(made: InProcess) -> bool:
    return bool(made.status()["state"] == "serving")


def test_a_server_that_has_ended_is_replaced(opener: Any, tmp_path: Path) -> None:
    made = server(opener, tmp_path)
    try:
        until(lambda: serving(made), "it serves")
        assert made.status()["epoch"] == 1
        journal = opener()
        begin_epoch(journal, LINEAGE)  # as another server would
        journal.close()
        until(lambda: serving(made) and made.status()["epoch"] == 3, "another one serves")
    finally:
        made.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("parameter-server")]


def test_a_server_that_was_refused_looks_whether_it_was_put_right(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It began anew while its snapshots' disk was away, say: the service goes on meanwhile."""
    monkeypatch.setattr(of_server, "_REFUSED_S", 0.02)
    looks, restore = [0], ParameterServer.restore

    def counted(one: ParameterServer) -> bool:
        looks[0] += 1
        return restore(one)

    monkeypatch.setattr(ParameterServer, "restore", counted)
    made = server(opener, tmp_path)
    until(lambda: serving(made), "it serves")
    made.last_snapshot(60)
    made.stop()
    place, away = tmp_path / "snapshots", tmp_path / "away"
    place.rename(away)
    looks[0] = 0
    made = server(opener, tmp_path)
    try:
        until(lambda: looks[0] > 3, "it looks again")
        assert made.status()["state"] == "refused"
        assert len([one for one in caplog.records if "refuses to start" in one.getMessage()]) == 1
        shutil.copytree(away, place, dirs_exist_ok=True)
        until(lambda: serving(made), "it serves what was put back")
        assert made.status()["reason"] == ""
    finally:
        made.stop()


def test_a_store_that_stays_away_is_logged_once_and_again_after_it_was_back(
    opener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[str] = []
    away = threading.Event()

    def confirm(server: ParameterServer) -> None:
        looks.append("away" if away.is_set() else "there")
        if away.is_set():
            raise JournalUnavailable("database or disk is full")

    def looked(what: str) -> None:
        before = len(looks)
        until(lambda: looks[before:].count(what) > 3, f"it looks: {looks[before:]}")

    monkeypatch.setattr(ParameterServer, "confirm", confirm)
    made = server(opener, tmp_path)
    try:
        for _ in range(2):
            away.set()
            looked("away")
            away.clear()
            looked("there")
    finally:
        made.stop()
    said = [one.getMessage() for one in caplog.records if "confirm failed" in one.getMessage()]
    assert said == ["ParameterServer.confirm failed; it is tried again"] * 2, looks


def test_its_errors_are_those_of_the_actor(opener: Any, tmp_path: Path) -> None:
    made = server(opener, tmp_path)
    client = InProcessClient(made)

    async def scene() -> None:
        with pytest.raises(SnapshotMissing):
            await client.call("pin", 5, "no name", True)
        with pytest.raises(RequestRefused):
            await client.call("sync", 5, b"no message")
        request = wire.SyncRequest(wire.FORMAT + 1, "r", 1, [], None, True, [])
        with pytest.raises(FormatRefused):
            await client.sync(request, 5)
        with pytest.raises(ServerUnavailable, match="it failed: TypeError"):
            await client.call("pin", 5)
        with pytest.raises(ServerUnavailable, match=r"none within 0\.05 s"):
            await client.call("waits", 0.05)

    until(lambda: serving(made), "it serves")
    release = threading.Event()
    made._server.waits = release.wait  # type: ignore[attr-defined]
    try:
        asyncio.run(scene())
    finally:
        release.set()
        made.stop()
    with pytest.raises(ServerUnavailable, match="shutdown"):
        asyncio.run(client.call("status", 5))


def test_the_last_snapshot_holds_the_state(opener: Any, tmp_path: Path) -> None:
    made = server(opener, tmp_path)
    until(lambda: serving(made), "it serves")
    name = made.last_snapshot(5)
    made.stop()
    again = server(opener, tmp_path)
    try:
        until(lambda: serving(again), "it serves")
        assert again.status()["snapshot"] == name
    finally:
        again.stop()


def test_a_stop_waits_for_what_is_still_asked(opener: Any, tmp_path: Path) -> None:
    made = server(opener, tmp_path)
    until(lambda: serving(made), "it serves")
    entered, release = threading.Event(), threading.Event()

    def asked() -> None:
        entered.set()
        release.wait(240)

    made._asking.submit(asked)
    assert entered.wait(240)
    threading.Timer(0.05, release.set).start()
    made.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("parameter-server")]


def test_what_fails_again_is_said_once_whatever_its_snapshot_is_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts, worth = Attempts("publish"), [False, True, True, True]

    def full(name: str) -> None:
        raise PublishFailed(name, "no space left")

    for name in ("1-1", "1-2", "1-3", "1-4"):
        attempts(partial(full, name), lambda: worth.pop(0))
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1, said
    assert "1-2" in said[0], "what was not worth saying is not said"
    attempts(lambda: None)
    attempts(partial(full, "1-5"))
    assert len(caplog.records) == 2, "it had worked meanwhile"
