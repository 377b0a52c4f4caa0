"""How long until a killed process is replaced, beside an empty deployment of Ray Serve.

The parameter server holds 64 MB: 1.3 million weights of a river model, learned from feedback with
4,096 features each.  While it is gone, predictions go on at a steady rate.  The peer
(:mod:`benchmarks.speed.bare`) runs at the same time, with the same flags.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import (
    Running,
    own_environment,
    service,
    settle,
    status,
    write_settings,
)
from benchmarks.speed.http import Figure
from online.service.processes import end, free_port, runs

ACKNOWLEDGED_S = 3.0
"""Target: from the kill of the server until a push is acknowledged again."""

RESTORE_S = 0.5
"""Target: from the server's constructor until it serves."""

REPLICA_RATIO = 1.5
"""Target: from the kill of a replica until there are as many as before, over the peer's."""

WEIGHTS = 1_316_000  # 51 bytes each on the wire: 40 of the key, 9 of the number, 2 of framing
_FEATURES = 4_096  # of one event
_POLL_S = 0.01
_WAIT_S = 60.0
_MODEL = "counting"
_PATH = f"/v1/models/{_MODEL}"


@dataclass(frozen=True, slots=True)
class Recovery:
    """Figures of one run; ``failed`` of ``predictions`` were not answered with 200."""

    figures: list[Figure]
    predictions: int
    failed: int
    good: bool


class Predictions(threading.Thread):
    """Asks for a prediction ``rate`` times a second until it is stopped."""

    def __init__(self, url: str, rate: float) -> None:
        super().__init__(daemon=True)
        self._url, self._rate = url, rate
        self._stop_event = threading.Event()
        self.latencies_ms: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """The loop; latencies count from when a request was due."""
        begun, i = time.monotonic(), 0
        with contextlib.closing(Connection(self._url)) as client:
            while not self._stop_event.wait(max(begun + i / self._rate - time.monotonic(), 0)):
                due = begun + i / self._rate
                i += 1
                try:
                    code, answer = client.post(f"{_PATH}/predict", {"features": {"x": 1.0}})
                except (OSError, http.client.HTTPException) as error:
                    code, answer = 0, repr(error)
                self.latencies_ms.append((time.monotonic() - due) * 1e3)
                if code != 200:
                    self.failures.append(f"{code}: {answer}")

    def stop(self) -> None:
        """End the loop and wait for it."""
        self._stop_event.set()
        self.join()


@contextlib.contextmanager
def bare(replicas: int) -> Iterator[tuple[str, tuple[int, int], psutil.Process]]:
    """The peer: its URL, the range of its replicas' ports, its process."""
    with tempfile.TemporaryDirectory(prefix="online-bare-") as name:
        folder, port = Path(name), free_port()
        settings = write_settings(folder, {"replicas": replicas, "port": port})
        command = [sys.executable, "-m", "benchmarks.speed.bare", str(settings), str(folder)]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=own_environment(),
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            lines = (line for line in process.stdout if line.startswith(b'{"replica_ports"'))
            first, last = json.loads(next(lines, b"{}"))["replica_ports"]
            yield f"http://127.0.0.1:{port}", (first, last), psutil.Process(process.pid)
        finally:
            left = psutil.Process(process.pid).children(recursive=True)
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            end([*left, psutil.Process(process.pid)] if process.poll() is None else left)


def run(
    *, runs: int = 5, weights: int = WEIGHTS, replicas: int = 2, rate: float = 50.0
) -> Recovery:
    """``runs`` kills of the parameter server and as many of a replica, the peer's in between."""
    found: dict[str, list[float]] = {}
    model = {
        "name": _MODEL,
        "task": "regression",
        "learner": "benchmarks.fixtures.learners:counting",
        "sync": {"merge": "sum"},
    }
    limits = {"names_max": 4 * weights, "names_s": 1e6}  # they are to be filled at once
    settings = {"replicas": replicas, "models": [model], "limits": limits}
    with service(settings) as running, bare(replicas) as peer:
        _fill(running, weights)
        asked = Predictions(running.url, rate)
        asked.start()
        for i in range(runs):
            _kill_server(running, found, i)
            _kill_bare_actor(peer[0], peer[2], found)
        asked.stop()
        first, last = running.facts["replica_ports"]
        for _ in range(runs):
            _kill_replica(found, "replica killed → as many serve, s", _service(running),
                          (first, last), replicas, "POST", f"{_PATH}/predict")  # fmt: skip
            _kill_replica(found, "bare Ray Serve: the same, s", peer[2], peer[1], replicas,
                          "GET", "/actor")  # fmt: skip
    found["longest prediction meanwhile, ms"] = [max(asked.latencies_ms)]
    return _judge(found, asked)


def _judge(found: dict[str, list[float]], asked: Predictions) -> Recovery:
    figures = []
    for name, values in found.items():
        what, _, unit = name.rpartition(", ")
        figures.append(Figure(what, statistics.median(values), min(values), max(values), unit))
    median = {figure.what: figure.median for figure in figures}
    ratio = median["replica killed → as many serve"] / median["bare Ray Serve: the same"]
    figures.append(Figure("replica beside bare Ray Serve", ratio, ratio, ratio, "times"))
    good = (
        not asked.failures
        and median["server killed → a push is acknowledged"] <= ACKNOWLEDGED_S
        and median["own restore"] <= RESTORE_S
        and ratio <= REPLICA_RATIO
    )
    return Recovery(figures, len(asked.latencies_ms), len(asked.failures), good)


def _fill(running: Running, weights: int) -> None:
    """Learn events until so many weights are not 0, and publish a snapshot of them."""
    events = -(-weights // _FEATURES)
    with contextlib.closing(Connection(running.url)) as client:
        for i in range(events):
            names = range(i * _FEATURES, min((i + 1) * _FEATURES, weights))
            features = {f"feature-{n:032d}": 1.0 for n in names}
            body = {"features": features, "label": COUNT_LABEL, "event_id": f"fill-{i}"}
            _good(client.post(f"{_PATH}/feedback", body))
        settle(running, _MODEL, events)
        _good(client.post(f"{_PATH}/snapshots", None))


def _good(answer: tuple[int, Any]) -> Any:
    if answer[0] != 200:
        raise RuntimeError(f"answered {answer[0]}: {answer[1]}")
    return answer[1]


def _until(what: str, holds: Callable[[], Any]) -> Any:
    """Ask until it holds; what it gave."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if (given := holds()) is not None:
                return given
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {_WAIT_S:g} s")
        time.sleep(_POLL_S)


def _kill_server(running: Running, found: dict[str, list[float]], i: int) -> None:
    """Kill it, send an event at once, and wait until the server's clock has the event."""
    old = status(running, _MODEL)["server"]["pid"]
    begun = time.monotonic()
    os.kill(old, signal.SIGKILL)
    body = {"features": {"x": 1.0}, "label": COUNT_LABEL, "event_id": f"kill-{i}"}
    with contextlib.closing(Connection(running.url)) as client:
        partition, offset = _good(client.post(f"{_PATH}/feedback", body))["seen"].split(":")

    def new_server() -> Any:
        server = status(running, _MODEL)["server"]
        return server if server and server["pid"] != old and server["epoch"] else None

    server = _until("a new server", new_server)
    serving_s = time.monotonic() - begun

    def acknowledged() -> Any:
        server = status(running, _MODEL)["server"]
        return server if server and server["clock"].get(partition, 0) >= int(offset) else None

    server = _until("an acknowledged push", acknowledged)
    for name, value in (
        ("server killed → a push is acknowledged, s", time.monotonic() - begun),
        ("server killed → it serves, s", serving_s),
        ("own restore, s", server["restore_s"]),
        ("parameters, MB", server["bytes"] / 2**20),
    ):
        found.setdefault(name, []).append(value)


def _kill_bare_actor(url: str, process: psutil.Process, found: dict[str, list[float]]) -> None:
    """The peer's actor: until it answers again."""
    with contextlib.closing(Connection(url)) as client:
        old = _good(client.get("/actor"))["pid"]
        if old not in {child.pid for child in process.children(recursive=True)}:
            raise RuntimeError(f"{old} is no process of the peer")
        begun = time.monotonic()
        os.kill(old, signal.SIGKILL)

        def answers() -> Any:
            code, answer = client.get("/actor")
            return answer if code == 200 and answer["pid"] != old else None

        _until("the peer's actor", answers)
    seconds = time.monotonic() - begun
    found.setdefault("bare Ray actor: killed → it answers, s", []).append(seconds)


def _service(running: Running) -> psutil.Process:
    return psutil.Process(running.process.pid)


def listening(ports: tuple[int, int]) -> set[int]:
    """Ports of the range on which somebody listens."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state = line.split()[:4]
        port = int(local.rpartition(":")[2], 16)
        if state == "0A" and ports[0] <= port <= ports[1]:
            found.add(port)
    return found


def _kill_replica(
    found: dict[str, list[float]], name: str, root: psutil.Process, ports: tuple[int, int],
    replicas: int, method: str, path: str,
) -> None:  # fmt: skip
    """Kill one; wait until as many as before listen, and the new one answers on its own port."""
    body = None if method == "GET" else {"features": {"x": 1.0}}

    def complete() -> Any:
        now = listening(ports)
        if len(now) < replicas:
            return None
        for port in now:
            with contextlib.closing(Connection(f"http://127.0.0.1:{port}", 5)) as client:
                if client.request(method, path, body)[0] != 200:
                    return None
        return now

    _until("all replicas", complete)
    titles = {p: " ".join(p.cmdline()) for p in root.children(recursive=True) if p.is_running()}
    victim = next(p for p, title in titles.items() if "ServeReplica" in title)
    begun = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    _until("the end of the killed one", lambda: listening(ports) if not runs(victim) else None)
    _until(name, complete)
    found.setdefault(name, []).append(time.monotonic() - begun)
