"""A service whose files are taken away or set back: what it says, and what it goes on with."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import operated
import pytest

from benchmarks.fixtures.service import Running, launch, status, write_settings

pytestmark = [pytest.mark.ray, pytest.mark.long]

URL = "/v1/models/clicks"


def send(running: Running, names: range) -> dict[str, int]:
    """Events of these numbers; how often which answer came."""
    events = [
        {
            "features": {"a": i % 7, "b": i % 5},
            "label": ("no", "yes")[i % 3 == 0],
            "event_id": str(i),
        }
        for i in names
    ]
    body = {"events": events}
    answer = httpx.post(f"{running.url}{URL}/feedback", json=body, timeout=120).json()
    found: dict[str, int] = {}
    for event in answer["events"]:
        kind = "duplicate" if event.get("duplicate") else event["status"]
        found[kind] = found.get(kind, 0) + 1
    return found


def snapshot(running: Running) -> str:
    name = httpx.post(f"{running.url}{URL}/snapshots", timeout=120).json()["name"]
    assert list((running.state_dir / "snapshots").rglob(f"{name}.snapshot")), "its name is said"
    return str(name)


def fsck(running: Running) -> tuple[int, dict[str, Any]]:
    done = operated.online("fsck", "--json", "--config", str(running.folder / "online.yaml"))
    return done.returncode, json.loads(done.stdout)[0]


def until(what: Any, timeout_s: float = 240.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def copied(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as now, closing(sqlite3.connect(target)) as copy:
        now.backup(copy)


def test_a_service_whose_files_are_taken_away(tmp_path: Path) -> None:
    seldom = {**operated.MODEL, "snapshots": {"interval_s": 3600}}  # else it mends before we look
    settings = {"replicas": 2, "models": [seldom]}
    path = write_settings(tmp_path, settings)
    running = launch(tmp_path)
    try:
        assert send(running, range(40)) == {"learned": 40}
        until(lambda: status(running, "clicks")["learned"] == 40)
        snapshot(running)
        until(lambda: fsck(running)[0] == 0)

        # snapshots are removed under the idle service
        shutil.rmtree(running.state_dir / "snapshots")
        assert fsck(running)[0] == 1
        name = snapshot(running)
        code, found = fsck(running)
        assert (code, found["snapshot"], found["no_start"]) == (0, name, None)
        shown = status(running, "clicks")
        assert "the newest, is written anew" in shown["incident"]
        metrics = httpx.get(f"{running.url}/metrics", timeout=120).text
        assert 'online_snapshots_vanished{model="clicks"}' in metrics

        # a copy of the journal, and what comes after it
        copied(running.state_dir / "journal.db", tmp_path / "copy.db")
        assert send(running, range(40, 100)) == {"learned": 60}
        until(lambda: status(running, "clicks")["learned"] == 100)
        snapshot(running)
    finally:
        running.stop()
    said = (tmp_path / "serve.log").read_text()
    assert "model clicks: its state is in snapshot" in said

    # it is put back beside the newer snapshots
    for file in running.state_dir.glob("journal.db*"):
        file.unlink()
    shutil.copy(tmp_path / "copy.db", running.state_dir / "journal.db")
    error = operated.refused("serve", str(path))
    assert error.count("\n") == 1
    assert "it lacks 60 events" in error
    assert "--accept-loss" in error
    code, found = fsck(running)
    assert (code, found["lacks"]) == (1, 60)
    running = launch(tmp_path, "--accept-loss")
    try:
        assert any("without 60 events" in line for line in running.lines)
        until(lambda: status(running, "clicks")["learned"] == 100)
        assert send(running, range(40)) == {"duplicate": 40}
        assert send(running, range(40, 60)) == {"learned": 20}
        assert send(running, range(100, 110)) == {"learned": 10}
        until(lambda: status(running, "clicks")["learned"] == 130)
        snapshot(running)
        until(lambda: fsck(running)[0] == 0)
        assert fsck(running)[1]["digest_equal"]
        assert status(running, "clicks")["rewrites"]["lost"]["events"] == 60
        metrics = httpx.get(f"{running.url}/metrics", timeout=120).text
        assert 'online_lost_events{model="clicks"} 60.0' in metrics
    finally:
        running.stop()
    assert "--relearn --accept-loss" in operated.refused("serve", str(path), "--relearn")

    # all snapshots are removed while it is stopped: fsck says that it can't start
    shutil.rmtree(running.state_dir / "snapshots")
    code, found = fsck(running)
    assert code == 1
    assert "can be used" in found["no_start"]
