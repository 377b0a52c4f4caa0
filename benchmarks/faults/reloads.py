"""This benchmark measures what it costs callers that a replica comes and goes.

HAProxy loads its settings anew each time.  One service has a fixed rate of predictions and
feedback, over connections that are kept: with one replica, while a second one starts, with two, and
while one goes.  The phases without a change are what the others are compared with, in the same run.
"""

from __future__ import annotations

import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from benchmarks.faults.exactly_once import settings_of
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import Running, service, write_settings
from online.client.load.generator import Lane, Load, Operation, measure
from online.service.processes import free_port

PHASES: Final = {"one replica": None, "1 to 2": 2, "two replicas": None, "2 to 1": 1}
"""In their order: to how many replicas it is scaled meanwhile."""
_AFTER_S: Final = 1.0  # of the phase, then it is scaled
_FEATURES: Final = 100
_FEEDBACK_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Cost:
    """One phase of all rounds: median percentiles, the worst of all, and what failed.

    ``failed`` are requests without a good answer, by status in ``statuses`` (``no answer``: the
    connection was closed before one came).  ``scaled_s``: from the signal until it was done.
    """

    what: str
    rounds: int
    requests: int
    p50_ms: float
    p99_ms: float
    worst_ms: float
    failed: int
    statuses: Mapping[str, int]
    scaled_s: float | None


def run(
    *,
    rounds: int = 5,
    seconds: float = 15.0,
    rate: float = 400.0,
    connections: int = 16,
    progress: Callable[[str], None] = print,
) -> list[Cost]:
    """So many rounds of all phases; each takes ``seconds``, or until it is scaled."""
    settings = {**settings_of(free_port()), "replicas": 1}
    found: dict[str, list[tuple[Load, float | None]]] = {name: [] for name in PHASES}
    with service(settings) as running:
        for turn in range(rounds):
            for name, replicas in PHASES.items():
                measured = _phase(running, settings, replicas, seconds, rate, connections, turn)
                found[name].append(measured)
                load = measured[0]
                progress(f"{name}: p99 {load.p99_ms:.1f} ms, {load.errors} failed")
    return [_cost(name, rows) for name, rows in found.items()]


def _phase(
    running: Running,
    settings: Mapping[str, Any],
    replicas: int | None,
    seconds: float,
    rate: float,
    connections: int,
    turn: int,
) -> tuple[Load, float | None]:
    begun, done = time.monotonic(), list[float]()
    scaling = threading.Thread(target=_scale, args=(running, settings, replicas, done))
    if replicas is not None:
        scaling.start()
    parts = urlsplit(running.url)
    assert parts.hostname is not None
    assert parts.port is not None
    lane = Lane(_operations(f"{turn} {begun}"), connections, rate)
    over = begun + seconds

    def stopped() -> bool:
        return time.monotonic() > over and not scaling.is_alive()

    report = measure(parts.hostname, [parts.port], [lane], seconds=10 * seconds, stopped=stopped)
    return report.total, done[0] if done else None


def _operations(name: str) -> list[Operation]:
    def predict(i: int) -> bytes:
        return msgspec.json.encode({"features": {f"f{i % _FEATURES}": 1.0}})

    def feedback(i: int) -> bytes:
        event = {"features": {f"f{i % _FEATURES}": 1.0}, "label": COUNT_LABEL}
        return msgspec.json.encode({**event, "event_id": f"{name} {i}"})

    path = "/v1/models/counting"
    return [
        Operation("predict", f"{path}/predict", predict, share=1.0 - _FEEDBACK_SHARE),
        Operation("feedback", f"{path}/feedback", feedback, share=_FEEDBACK_SHARE),
    ]


def _scale(running: Running, settings: Mapping[str, Any], replicas: int, done: list[float]) -> None:
    """Have the service scale, and note how long it took."""
    time.sleep(_AFTER_S)
    log = running.folder / "serve.log"
    before = len(log.read_text())
    write_settings(running.folder, {**settings, "replicas": replicas})
    begun = time.monotonic()
    running.process.send_signal(signal.SIGHUP)
    while f"-> {replicas}" not in log.read_text()[before:]:
        if time.monotonic() - begun > 120 or running.process.poll() is not None:
            raise TimeoutError(f"not scaled to {replicas}: {log.read_text()[before:]}")
        time.sleep(0.05)
    done.append(time.monotonic() - begun)
    time.sleep(_AFTER_S)  # what the last reload breaks belongs to it


def _cost(name: str, rows: list[tuple[Load, float | None]]) -> Cost:
    loads = [load for load, _ in rows]
    took = [seconds for _, seconds in rows if seconds is not None]
    return Cost(
        what=name,
        rounds=len(rows),
        requests=sum(load.requests for load in loads),
        p50_ms=statistics.median(load.p50_ms for load in loads),
        p99_ms=statistics.median(load.p99_ms for load in loads),
        worst_ms=max(load.max_ms for load in loads),
        failed=sum(load.errors for load in loads),
        statuses=dict(sum((Counter(load.statuses) for load in loads), Counter[str]())),
        scaled_s=statistics.median(took) if took else None,
    )
