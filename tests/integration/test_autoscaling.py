"""Replicas follow how busy they are, while feedback goes on: nothing is lost or learned twice."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import exactly_once
from benchmarks.fixtures.service import launch, status, write_settings
from online.service.processes import free_port
from online.settings.config import load
from online.settings.places import open_journal
from replay.journal.base import Partition

pytestmark = pytest.mark.ray

UP_S, DOWN_S = 1.0, 4.0
BOUND_S = 240.0
BUSY = """
import os

import online.service.on_ray.scaling as module

_real = module.Busy.__call__

def told(self):
    found = _real(self)
    return dict.fromkeys(found, 1.0) if os.path.exists(os.environ["TEST_BUSY"]) else found

module.Busy.__call__ = told
"""
"""While a file is there, each replica takes a whole core.

On a machine that is shared with others no load would get it so much; what it takes is tested in
`tests/unit/service/test_scaling.py`.
"""


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < deadline, f"no {what} in {BOUND_S:g} s"
        time.sleep(0.1)


def written(path: Path) -> list[Partition]:
    """The partitions that have rows."""
    with contextlib.closing(open_journal(load(path, {}, {}))) as journal:
        return [p for p in journal.partitions("counting") if p.end]


def test_being_busy_brings_a_replica_and_takes_it_back() -> None:
    with tempfile.TemporaryDirectory(prefix="online-scale-") as name:
        folder = Path(name)
        replicas: dict[str, Any] = {"min": 1, "max": 2, "up_s": UP_S, "down_s": DOWN_S}
        settings = {**exactly_once.settings_of(free_port()), "replicas": replicas}
        path = write_settings(folder, settings)
        (folder / "sitecustomize.py").write_text(BUSY)
        busy = folder / "busy"
        running = launch(folder, environment={"PYTHONPATH": name, "TEST_BUSY": str(busy)})
        sent, stop = exactly_once.Sent(), threading.Event()
        feeders = [
            exactly_once.Client(i, lambda: running.url, sent, stop, i, pause_s=0.02)
            for i in range(3)
        ]
        try:

            def count() -> int:
                return len(running.named("ServeReplica"))

            assert count() == 1
            for feeder in feeders:
                feeder.start()
            busy.touch()
            until(lambda: count() == 2, "second replica")
            until(lambda: len(status(running, "counting")["replicas"]) == 2, "word of it")
            until(lambda: len(written(path)) >= 2, "feedback to both")
            busy.unlink()
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
            stop.set()
            running.stop()
