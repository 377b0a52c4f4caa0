"""A service that tests operate: starting it, teaching it, its commands, what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from benchmarks.fixtures.service import Running, launch, status, write_settings
from online.service.processes import runs

MODEL = {
    "name": "clicks",
    "task": "binary",
    "learner": "logreg",
    "classes": {"negative": "no", "positive": "yes"},
}
FILE_MODEL = {**MODEL, "learner": "learner.py:build"}
LEARNER = """
from river import linear_model, optim, preprocessing


def build():
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD({rate}))
"""
_STOP_S = 16.0
"""In how many seconds a service ends: `online serve` gives itself four, and ends all at once then.
Without that bound Ray takes 20 or more."""
PROBES = [{"a": 0.25 * i, "b": 1.0 - i} for i in range(8)]


def stop_s(started_s: float) -> float:
    """In how many seconds a service ends on a machine on which its start took so many, of ten."""
    return _STOP_S * max(started_s / 10, 1.0)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="online-ops-") as name:
        yield Path(name)


def learn(running: Running, n: int, first: int = 0) -> None:
    """Send ``n`` events, each of them acknowledged, and wait until every replica has them."""
    before = status(running, "clicks")["learned"]
    events = [
        {
            "features": {"a": float(i % 7), "b": (i % 5) - 1.5},
            "label": ("no", "yes")[i % 3 == 0],
            "event_id": str(i),
        }
        for i in range(first, first + n)
    ]
    answer = httpx.post(
        f"{running.url}/v1/models/clicks/feedback", json={"events": events}, timeout=120
    )
    assert answer.status_code == 200
    assert {event["status"] for event in answer.json()["events"]} == {"learned"}
    everywhere(running, before + n)


def everywhere(running: Running, learned: int) -> None:
    """Wait until every replica has so many events."""
    deadline = time.monotonic() + 240
    for url in running.replica_urls().values():
        while httpx.get(f"{url}/v1/models/clicks", timeout=120).json()["learned"] != learned:
            assert time.monotonic() < deadline, "a replica does not learn what others did"
            time.sleep(0.1)


def answers(running: Running) -> list[float]:
    """Probability of "yes" for each probe row."""
    url = f"{running.url}/v1/models/clicks/predict"
    body = httpx.post(url, json={"instances": PROBES}, timeout=120).json()
    return [row["probabilities"]["yes"] for row in body["predictions"]]


def close_to(expected: Sequence[float]) -> Any:
    return pytest.approx(expected, rel=0, abs=1e-12)


def online(*arguments: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
    """A command, as a shell would run it; whatever happens it shows no stack trace."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ONLINE_")}
    done = subprocess.run(
        [sys.executable, "-m", "online", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment,
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


def refused(*arguments: str) -> str:
    """Standard error of a command that is refused."""
    done = online(*arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("online: ")
    return done.stderr


@dataclass(frozen=True)
class Traces:
    """What a service has on the machine while it runs."""

    processes: list[psutil.Process]
    private: str
    port: int

    @classmethod
    def of(cls, running: Running) -> Traces:
        port = urlsplit(running.url).port
        assert port is not None
        return cls(running.processes(), running.facts["private"], port)

    def left(self) -> list[str]:
        """What is still there."""
        out = [f"pid {p.pid} {p.name()}" for p in self.processes if runs(p)]
        for process in psutil.process_iter(["pid", "cmdline"]):
            if any(self.private in part for part in process.info["cmdline"] or ()):
                out.append(f"pid {process.info['pid']} names {self.private}")
        if Path(self.private).exists():
            out.append(self.private)
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", self.port)) == 0:
                out.append(f"port {self.port}")
        return out


@contextlib.contextmanager
def serving(**more: Any) -> Iterator[Running]:
    """Two replicas that have learned forty events; ``more`` settings of the model."""
    with folder() as place:
        (place / "root.csv").write_text(
            "a,b,label\n"
            + "".join(f"{i % 7},{i % 5 - 1.5},{('no', 'yes')[i % 3 == 0]}\n" for i in range(30))
        )
        write_settings(place, {"replicas": 2, "models": [{**MODEL, **more}]})
        before = os.umask(0)  # what it makes is its owner's all the same
        try:
            running = launch(place)
        finally:
            os.umask(before)
        try:
            learn(running, 40)
            yield running
        finally:
            running.stop()


def good(*arguments: str) -> str:
    """Standard output of a command that succeeds."""
    done = online(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
