"""Replicas follow the load, while feedback goes on: nothing is lost, nothing learned twice."""

from __future__ import annotations

import contextlib
import http.client
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest

from benchmarks import exactly_once
from benchmarks.service import Running, launch, status, write_settings
from online.processes import free_port
from online.settings.config import load
from online.settings.places import open_journal
from replay.journal.base import Partition

pytestmark = pytest.mark.ray

UP_S, DOWN_S = 1.0, 4.0
BOUND_S = 240.0
PATH = "/v1/models/counting/predict"


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline, f"no {what} in {BOUND_S:g} s"
        time.sleep(0.1)


def ask(running: Running, stop: threading.Event) -> None:
    """Keep a replica busy: many rows in a body that is made once, and answers that nobody reads.

    Else this process, whose threads share an interpreter, would be the busier one.
    """
    body = msgspec.json.encode({"instances": [{f"a{i}": 1.0} for i in range(1000)]})
    place = urlsplit(running.url)
    while not stop.is_set():
        client = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(client):
            while not stop.is_set():
                client.request("POST", PATH, body, {"Content-Type": "application/json"})
                client.getresponse().read()


def written(path: Path) -> list[Partition]:
    """The partitions that have rows."""
    with contextlib.closing(open_journal(load(path, {}, {}))) as journal:
        return [p for p in journal.partitions("counting") if p.end]


def test_load_brings_a_replica_and_takes_it_back() -> None:
    with tempfile.TemporaryDirectory(prefix="online-scale-") as name:
        folder = Path(name)
        replicas: dict[str, Any] = {"min": 1, "max": 2, "up_s": UP_S, "down_s": DOWN_S}
        settings = {**exactly_once.settings_of(free_port()), "replicas": replicas}
        path = write_settings(folder, settings)
        running = launch(folder)
        sent, stop, calm = exactly_once.Sent(), threading.Event(), threading.Event()
        feeders = [
            exactly_once.Client(i, lambda: running.url, sent, stop, i, pause_s=0.02)
            for i in range(3)
        ]
        askers = [threading.Thread(target=ask, args=(running, calm)) for _ in range(4)]
        try:

            def count() -> int:
                return len(running.named("ServeReplica"))

            assert count() == 1
            for thread in (*feeders, *askers):
                thread.start()
            until(lambda: count() == 2, "second replica")
            until(lambda: len(status(running, "counting")["replicas"]) == 2, "word of it")
            until(lambda: len(written(path)) >= 2, "feedback to both")
            calm.set()
            for asker in askers:
                asker.join()
            until(lambda: count() == 1, "return to one")
            answered = len(sent.acknowledged)
            until(lambda: len(sent.acknowledged) > answered + 100, "feedback to one again")
            stop.set()
            for feeder in feeders:
                feeder.join(240)
            found = exactly_once.judge(running, load(path, {}, {}), sent)
            assert [found.lost, found.twice, found.strangers] == [[], [], []]
            assert found.fsck_good
            sealed = {p.sealed for p in written(path)}
            assert sealed == {True, False}, "the one that went has handed over"
            print(f"{len(sent.acknowledged):,} acknowledged: {dict(sent.statuses)}")
        finally:
            calm.set()
            stop.set()
            running.stop()
