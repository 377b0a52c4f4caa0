"""Rates and latencies through the balancer, beside a bare server that keeps nothing."""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from urllib.parse import urlsplit

import psutil

from evaluation.streams import open_stream
from online.bench import load
from online.bench.service import Running, service
from online.http import Connection
from online.processes import free_port

_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Figure:
    """Median and spread of one quantity over the runs."""

    what: str
    median: float
    low: float
    high: float
    unit: str


@dataclass(frozen=True, slots=True)
class Table:
    """All figures of one run, and whether the peer was fast enough for it to count."""

    figures: list[Figure]
    void: bool


class Bodies:
    """Requests made of real rows, each feedback an event of its own."""

    def __init__(self) -> None:
        rows = list(islice(open_stream("phishing", None).rows, 500))
        self._predict = [json.dumps({"features": x}).encode() for x, _ in rows]
        self._peer_learn = [json.dumps({"features": x, "label": bool(y)}).encode() for x, y in rows]
        self._feedback = [
            json.dumps({"features": x, "label": bool(y), "event_id": "@"}).encode() for x, y in rows
        ]
        self.run = 0

    def predict(self, i: int) -> bytes:
        return self._predict[i % 500]

    def peer_learn(self, i: int) -> bytes:
        return self._peer_learn[i % 500]

    def feedback(self, i: int) -> bytes:
        return self._feedback[i % 500].replace(b"@", f"{self.run}-{i}".encode())


@contextlib.contextmanager
def peer() -> Iterator[int]:
    """The peer's process; its port."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-m", "online.bench.peer", str(port)])
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with (
                contextlib.suppress(OSError),
                contextlib.closing(Connection(f"http://127.0.0.1:{port}", 1)) as client,
            ):
                client.get("/openapi.json")
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def _settings(replicas: int) -> dict[str, object]:
    return {
        "replicas": replicas,
        "models": [{"name": "m", "task": "binary", "learner": "logreg", "params": {"lr": 0.05}}],
    }


def run(*, runs: int = 5, seconds: float = 3.0, rate: float = 400.0) -> Table:
    """The table: each quantity in turn, ``runs`` times, so that drift of the machine hits all."""
    bodies = Bodies()
    found: dict[str, list[float]] = {}
    with peer() as peer_port:
        _measure_peer(found, bodies, peer_port, runs, seconds, rate)
        for replicas in (1, 2):
            with service(_settings(replicas)) as running:
                found.setdefault(f"start, {replicas} replicas, s", []).append(running.started_s)
                _measure_service(found, bodies, running, replicas, runs, seconds, rate, peer_port)
                found.setdefault(f"memory, {replicas} replicas, MB", []).append(memory_mb(running))
    figures = []
    for name, values in found.items():
        what, _, unit = name.rpartition(", ")
        figures.append(Figure(what, statistics.median(values), min(values), max(values), unit))
    peak = next(f.median for f in figures if f.what == "peer predict")
    return Table(figures, void=peak < 4000)


def _measure_peer(
    found: dict[str, list[float]],
    bodies: Bodies,
    port: int,
    runs: int,
    seconds: float,
    rate: float,
) -> None:
    for _ in range(runs):
        for name, path, body in (
            ("predict", "/predict", bodies.predict),
            ("learn", "/learn", bodies.peer_learn),
        ):
            _one(found, f"peer {name}", "127.0.0.1", port, path, body, seconds, rate)


def _measure_service(
    found: dict[str, list[float]], bodies: Bodies, running: Running, replicas: int, runs: int,
    seconds: float, rate: float, peer_port: int,
) -> None:  # fmt: skip
    balancer = urlsplit(running.url).port or 0
    direct = urlsplit(min(running.replica_urls().values())).port or 0
    name = f"{replicas} replica{'s' if replicas > 1 else ''}"
    for _ in range(runs):
        _one(found, f"peer predict beside {name}", "127.0.0.1", peer_port, "/predict",
             bodies.predict, seconds, None)  # fmt: skip
        path = "/v1/models/m/predict"
        _one(found, f"predict, {name}", "127.0.0.1", balancer, path, bodies.predict, seconds, rate)
        if replicas == 1:
            _one(found, "predict, direct port", "127.0.0.1", direct, path, bodies.predict, seconds,
                 rate)  # fmt: skip
        bodies.run += 1
        path = "/v1/models/m/feedback"
        _one(
            found, f"feedback, {name}", "127.0.0.1", balancer, path, bodies.feedback, seconds, None
        )
        bodies.run += 1
        _fixed(found, f"feedback, {name}", balancer, path, bodies.feedback, seconds, rate)


def _one(
    found: dict[str, list[float]], name: str, host: str, port: int, path: str, body: load.Body,
    seconds: float, rate: float | None,
) -> None:  # fmt: skip
    fast = load.run(host, port, path, body, connections=_CONNECTIONS, seconds=seconds)
    if fast.errors:
        raise RuntimeError(f"{name}: {fast.errors} of {fast.requests} requests failed")
    found.setdefault(f"{name}, requests/s", []).append(fast.rate)
    if rate is not None:
        _fixed(found, name, port, path, body, seconds, rate)


def _fixed(
    found: dict[str, list[float]], name: str, port: int, path: str, body: load.Body, seconds: float,
    rate: float,
) -> None:  # fmt: skip
    slow = load.run(
        "127.0.0.1", port, path, body, connections=_CONNECTIONS, seconds=seconds, rate=rate
    )
    found.setdefault(f"{name} p50 at {rate:g}/s, ms", []).append(slow.p50_ms)
    found.setdefault(f"{name} p99 at {rate:g}/s, ms", []).append(slow.p99_ms)


def memory_mb(running: Running) -> float:
    """Proportional memory of all processes of the service."""
    total = 0
    for process in running.processes():
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20
