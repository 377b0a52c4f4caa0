"""Models leave a running service and come back, gently or while a replica is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.fixtures.service import Running, settle, status
from benchmarks.fixtures.service import service as serving
from online.settings.config import load
from online.settings.places import open_journal
from replay.journal.base import Partition

pytestmark = pytest.mark.ray

NAMES = ("stays", "leaves")
MODELS = [{"name": name, "task": "binary", "learner": "logreg"} for name in NAMES]


class Teacher(threading.Thread):
    """Sends one event after the other until the model is unknown."""

    def __init__(self, url: str, round_: int) -> None:
        super().__init__(daemon=True)
        self._url, self._round = f"{url}/v1/models/leaves/feedback", round_
        self.taught, self.unanswered, self.refused = 0, False, dict[str, Any]()

    def run(self) -> None:
        with httpx.Client(timeout=120) as client:
            while not self.refused:
                event = {"features": {"a": 1.0}, "label": True}
                event["event_id"] = f"{self._round}:{self.taught}"
                try:
                    answer = client.post(self._url, json=event)
                except httpx.HTTPError:  # its replica has gone: the same event is sent again
                    self.unanswered = True
                    continue
                if answer.status_code == 200:
                    self.taught, self.unanswered = self.taught + 1, False
                elif answer.status_code == 404:
                    self.refused = answer.json()["error"]


def reload(running: Running, models: list[dict[str, Any]], *, kill: bool = False) -> str:
    """Change the models of the settings, send SIGHUP, and wait until replicas are replaced."""
    path, log = running.folder / "online.yaml", running.folder / "serve.log"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "models": models}))
    before, deadline = len(log.read_text()), time.monotonic() + 240
    replicas = running.replica_urls()
    running.process.send_signal(signal.SIGHUP)
    while "every replica was replaced" not in (said := log.read_text()[before:]):
        assert time.monotonic() < deadline, said
        assert running.process.poll() is None, said
        if kill and len(now := running.replica_urls()) > len(replicas):
            name = next(name for name in now if name in replicas)
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(name.partition(":")[0]), signal.SIGKILL)
            kill = False
        time.sleep(0.02)
    return said


def partitions(running: Running) -> list[Partition]:
    """The partitions of the model that leaves."""
    place = {"state_dir": str(running.state_dir)}
    settings = load(running.folder / "online.yaml", place, {})
    with contextlib.closing(open_journal(settings)) as journal:
        return list(journal.partitions("leaves"))


@pytest.mark.parametrize("killed", [[True], pytest.param([False, True], marks=pytest.mark.long)])
def test_a_model_leaves_and_comes_back_with_all_that_it_has_acknowledged(
    killed: list[bool],
) -> None:
    acknowledged = unanswered = 0
    with serving({"replicas": 2, "models": MODELS}) as running:
        epoch = status(running, "stays")["server"]["epoch"]
        path = f"{running.url}/v1/models/leaves"
        for round_, kill in enumerate(killed):
            teacher = Teacher(running.url, round_)
            teacher.start()
            while teacher.taught < 100:
                assert teacher.is_alive()
                time.sleep(0.01)
            said = reload(running, MODELS[:1], kill=kill)
            assert "model leaves is no longer served; its state stays in" in said
            assert "model leaves: its state is in snapshot" in said
            teacher.join(240)
            assert teacher.refused["code"] == "unknown_model"
            for _ in range(20):  # whichever replica answers
                answers = [httpx.get(path, timeout=120), httpx.post(f"{path}/predict", json={})]
                assert [answer.status_code for answer in answers] == [404, 404]
            assert kill or all(partition.sealed for partition in partitions(running))
            assert status(running, "stays")["server"]["epoch"] == epoch, "it went on, beside it"
            acknowledged += teacher.taught
            unanswered += teacher.unanswered
            written = sum(partition.end for partition in partitions(running))
            assert acknowledged <= written <= acknowledged + unanswered

            assert "model leaves is new" in reload(running, MODELS)
            now = settle(running, "leaves", written)
            adopted = any(report.get("adopted") for report in now["replicas"].values())
            assert kill or not adopted, "all was pushed before it left"
