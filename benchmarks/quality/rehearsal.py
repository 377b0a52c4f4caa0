"""Rehearsal in the running service: the digits that an in-process loop learns, sent over HTTP.

Five tasks of two digits each come one after the other (F1 of
:mod:`benchmarks.studies.memory.forgetting` with one row a step), predicted first and then learned,
a row at a time.  Once undisturbed, and once with every process killed in the middle and the service
started again on the same folder.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, launch, service, settle, write_settings
from benchmarks.studies.memory import digits as data
from benchmarks.studies.memory.forgetting import F1, Protocol, run_one
from benchmarks.studies.memory.rehearser import OURS, TWICE
from online.service.processes import end
from online.settings.config import data_dir
from replay.example import Features

NEAR = 1.0
"""Points of accuracy that the service may be apart from the loop."""

P50_RATIO = 1.1
"""Times that half of the predictions may take longer with replay."""

_PROTOCOL = F1[2]
_PATH = "/v1/models/digits"
_ASKED_ROWS = 200


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """One run; ``acc`` in percent, over all digits held back, as the mean of the five tasks."""

    what: str
    rows: int
    acc: float
    rows_per_s: float
    replayed_per_row: float
    learn_us: float
    good: bool


def run(rows: int = 1_000, seed: int = 1) -> Iterator[Rehearsed]:
    """The loop, the service without replay, with it, killed, and with one pass at a higher rate.

    ``rows`` of each task.
    """
    digits = data.mnist(data_dir())
    tasks = data.split(digits, seed, rows)
    begun = time.perf_counter()
    alone = run_one(_protocol(rows), TWICE, digits, seed).figures.acc
    n = sum(len(task.y) for task in tasks)
    yield Rehearsed("in-process loop", n, alone, n / (time.perf_counter() - begun), 0.0, 0.0, True)
    yield _served("service without replay", tasks, _settings({"policy": "none"}), None)
    kept = {"policy": "balanced", "capacity": 500}
    once = _settings({**kept, "passes": 1}, OURS.name, {"average": OURS.average})
    for what, settings, at in (
        ("service", _settings(kept), None),
        ("service, all processes killed halfway", _settings(kept), n // 2),
        ("service, one pass", once, None),
    ):
        line = _served(what, tasks, settings, at)
        yield Rehearsed(
            line.what, line.rows, line.acc, line.rows_per_s, line.replayed_per_row, line.learn_us,
            line.acc >= alone - NEAR,
        )  # fmt: skip


def _protocol(rows: int) -> Protocol:
    return replace(_PROTOCOL, tasks=lambda digits, seed: data.split(digits, seed, rows))


def _settings(
    replay: dict[str, Any], method: str = TWICE.name, training: dict[str, Any] | None = None
) -> dict[str, Any]:
    model = {
        "name": "digits",
        "task": "multiclass",
        "learner": "mlp",
        "params": {
            "inputs": [str(i) for i in range(784)],
            "hidden": 400,
            "outputs": 10,
            "lr": _PROTOCOL.rates[method],
            "scale": False,
        },
        "replay": replay,
        "training": training or {},
    }
    return {"replicas": 1, "models": [model]}


def _served(
    what: str, tasks: Sequence[data.Task], settings: dict[str, Any], kill_at: int | None
) -> Rehearsed:
    rows = [(x, y) for task in tasks for x, y in zip(task.x, task.y.tolist(), strict=True)]
    with tempfile.TemporaryDirectory(prefix="online-bench-") as name:
        folder = Path(name)
        write_settings(folder, settings)
        running = launch(folder)
        replayed, seconds = 0.0, 0.0
        try:
            for first, last in ((0, kill_at or len(rows)), (kill_at or len(rows), len(rows))):
                if first == last:
                    break
                if first:
                    end(running.processes())
                    running = launch(folder)
                begun = time.perf_counter()
                _learn(running.url, rows[first:last], first)
                seconds += time.perf_counter() - begun
                status = settle(running, "digits", last)
                replayed += _of_replicas(status, "replay_rows")
            acc = statistics.fmean(_accuracy(running.url, task) for task in tasks)
        finally:
            running.stop()
    cost = _of_replicas(status, "learn_us")
    per_row = replayed / len(rows)
    return Rehearsed(what, len(rows), 100 * acc, len(rows) / seconds, per_row, cost, True)


def _of_replicas(status: dict[str, Any], name: str) -> float:
    replica = status["replicas"][status["answered_by"]]
    return float(replica.get(name, 0.0))


def _features(x: Tensor) -> Features:
    at = x.nonzero()[:, 0].tolist()
    return dict(zip(map(str, at), x[at].tolist(), strict=True))


def _learn(url: str, rows: Sequence[tuple[Tensor, int]], first: int) -> None:
    with contextlib.closing(Connection(url)) as client:
        for i, (x, label) in enumerate(rows):
            code, answer = client.post(f"{_PATH}/predict", {"features": _features(x)})
            assert code == 200, (first + i, answer)
            code, answer = client.post(f"{_PATH}/feedback", {"id": answer["id"], "label": label})
            assert code == 200, (first + i, answer)


def _accuracy(url: str, task: data.Task) -> float:
    right = 0
    with contextlib.closing(Connection(url)) as client:
        for at in range(0, len(task.asked_y), _ASKED_ROWS):
            asked = [_features(x) for x in task.asked_x[at : at + _ASKED_ROWS]]
            code, answer = client.post(f"{_PATH}/predict", {"instances": asked})
            assert code == 200, answer
            labels = task.asked_y[at : at + _ASKED_ROWS].tolist()
            right += sum(
                row["prediction"] == label
                for row, label in zip(answer["predictions"], labels, strict=True)
            )
    return right / len(task.asked_y)


@dataclass(frozen=True, slots=True)
class Waits:
    """Predictions beside feedback at the same rate, with replay and without, in turns."""

    what: str
    p50_ms: float
    p99_ms: float
    without_p50_ms: float
    without_p99_ms: float
    ratio: float
    good: bool


def waits(runs: int = 5, seconds: float = 4.0, rate: float = 100.0) -> Waits:
    """Medians of ``runs`` turns of each, ``rate`` rows and predictions a second.

    The model is the built-in network on eight inputs; both are in one replica.
    """
    inputs = [f"x{i}" for i in range(8)]
    base = {"task": "binary", "learner": "mlp", "params": {"inputs": inputs}}
    models = [{**base, "name": name, "replay": {"policy": policy}}
              for name, policy in (("on", "balanced"), ("off", "none"))]  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {"on": [], "off": []}
    with service({"replicas": 1, "models": models}) as running:
        for i in range(2 * runs + 2):
            name = ("on", "off")[i % 2]
            turn = _turn(running, name, inputs, seconds, rate, i)
            if i >= 2:  # the first of each warms up
                found[name].append(turn)
    p50, p99 = (statistics.median(x) for x in zip(*found["on"], strict=True))
    off50, off99 = (statistics.median(x) for x in zip(*found["off"], strict=True))
    what = f"predictions beside {rate:g} rows a second, network of 8 inputs"
    return Waits(what, p50, p99, off50, off99, p50 / off50, p50 <= P50_RATIO * off50)


def _turn(
    running: Running, name: str, inputs: list[str], seconds: float, rate: float, seed: int
) -> tuple[float, float]:
    draw, took = Random(seed), list[float]()
    path = f"/v1/models/{name}"

    def row() -> dict[str, float]:
        return {x: draw.gauss(0, 1) for x in inputs}

    def teach(client: Connection, i: int) -> None:
        x = row()
        event = {"features": x, "label": sum(x.values()) > 0, "event_id": f"{seed} {i}"}
        code, answer = client.post(f"{path}/feedback", event)
        assert code == 200, answer

    def ask(client: Connection, i: int) -> None:
        begun = time.monotonic()
        code, answer = client.post(f"{path}/predict", {"features": row()})
        assert code == 200, answer
        took.append((time.monotonic() - begun) * 1e3)

    threads = [
        threading.Thread(target=_at_rate, args=(running.url, step, seconds, rate))
        for step in (teach, ask)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took.sort()
    return statistics.median(took), took[int(len(took) * 0.99)]


def _at_rate(
    url: str, step: Callable[[Connection, int], None], seconds: float, rate: float
) -> None:
    begun = time.monotonic()
    with contextlib.closing(Connection(url)) as client:
        for i in range(int(seconds * rate)):
            time.sleep(max(begun + i / rate - time.monotonic(), 0.0))
            step(client, i)
