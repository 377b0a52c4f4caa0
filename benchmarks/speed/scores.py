"""Scores read by key beside live predictions of a small model, on the same path; and loading them.

Each round measures predictions and reads one after the other, so that drift of the machine hits
both; a ratio is made of two figures of one round.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.fixtures.redis_server import Server, need_binary
from benchmarks.fixtures.service import Running, service
from online.client.load.bodies import Bodies
from online.client.load.generator import Lane, Load, Operation, measure
from online.rescore.published import Run
from online.rescore.stores import Part, RedisScores, Scores, SqliteScores

ASKED: Final = {"sqlite": 0.9, "redis": 0.7}
"""Reads a second to predictions a second, at least."""
P99_MAX: Final = 1.2
LOADED: Final = 50_000.0
"""Keys a second into Redis, at least."""

_MODEL: Final = {"name": "m", "task": "binary", "learner": "logreg", "params": {"lr": 0.05}}
_CONNECTIONS: Final = 16
_READ: Final = 20_000  # keys that are read from
_PART: Final = 50_000
_STRIDE: Final = 7_919  # keys are asked for out of order
_WARM_S: Final = 0.5
_PREDICT, _SCORES = "/v1/models/m/predict", "/v1/models/m/scores"


@dataclass(frozen=True, slots=True)
class Line:
    """A quantity: median, spread, what is asked, and whether that is met (None: it does not count).

    A ratio is of one round's figures.
    """

    what: str
    unit: str
    median: float
    low: float
    high: float
    asked: str | None
    good: bool | None


def run(
    *, runs: int = 5, seconds: float = 3.0, keys: int = 1_000_000, judge: bool = True,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Line]:  # fmt: skip
    """The table.  Raises RuntimeError if a request fails; StartRefused without a Redis server."""
    lines: list[Line] = []
    for kind in ("sqlite", "redis"):
        with _served(kind) as (running, store):
            store.load(_run("r"), _parts(_READ))
            store.point(lambda current: current.to(_run("r"), force=True))
            lines += _read(kind, running, runs, seconds, judge, progress)
    lines += _load(keys, runs, judge, progress)
    return lines


@contextlib.contextmanager
def _server() -> Iterator[Server]:
    """A server that keeps its scores in memory: they can be loaded again from the run's files."""
    with tempfile.TemporaryDirectory(prefix="online-bench-") as name:
        server = Server(Path(name), need_binary(), appendonly="no")
        try:
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def _served(kind: str) -> Iterator[tuple[Running, Scores]]:
    settings: dict[str, Any] = {"replicas": 1, "models": [_MODEL]}
    if kind == "sqlite":
        with service(settings) as running:
            yield running, SqliteScores(running.state_dir / "scores", "m")
        return
    with _server() as server, service({**settings, "scores": server.url}) as running:
        yield running, RedisScores(server.url, "m")


def _run(name: str) -> Run:
    return Run(name, "m", "1.1", 0.0, 0.0, 0)


def _parts(keys: int) -> Iterator[Part]:
    for begin in range(0, keys, _PART):
        rows = [(str(i), "true", i / keys) for i in range(begin, min(begin + _PART, keys))]
        yield Part(str(begin), lambda rows=rows: rows)  # type: ignore[misc]


def _read(
    kind: str, running: Running, runs: int, seconds: float, judge: bool,
    progress: Callable[[str], None],
) -> list[Line]:  # fmt: skip
    port, bodies = urlsplit(running.url).port or 0, Bodies()
    predict = Operation("predict", _PREDICT, bodies.predict)
    read = Operation("read", _SCORES, lambda i: b'{"keys":["%d"]}' % (i * _STRIDE % _READ))
    feedback = Operation("feedback", "/v1/models/m/feedback", bodies.feedback, receipts=True)

    def asked(operation: Operation, seconds: float, rate: float | None = None) -> Load:
        lane = Lane([operation], _CONNECTIONS, rate)
        load = measure("127.0.0.1", [port], [lane], seconds=seconds).total
        if load.errors or not load.requests:
            raise RuntimeError(f"{load.what}: {load.errors} failed: {dict(load.statuses)}")
        return load

    for operation in (feedback, predict, read):
        asked(operation, min(seconds, _WARM_S))
    rates: list[tuple[float, float]] = []
    for _ in range(runs):
        rates.append((asked(predict, seconds).rate, asked(read, seconds).rate))
        progress(f"{kind}: {rates[-1][0]:,.0f} predictions/s, {rates[-1][1]:,.0f} reads/s")
    half = statistics.median(min(pair) for pair in rates) / 2
    late: list[tuple[float, float]] = []
    for _ in range(runs):
        late.append((asked(predict, seconds, half).p99_ms, asked(read, seconds, half).p99_ms))
        progress(f"{kind}: p99 {late[-1][0]:.2f} ms of predictions, {late[-1][1]:.2f} of reads")
    at = f"at {half:,.0f} requests/s"
    return [
        _line(f"{kind}: predictions", "requests/s", [a for a, _ in rates]),
        _line(f"{kind}: reads", "requests/s", [b for _, b in rates]),
        _line(f"{kind}: reads to predictions", "ratio", [b / a for a, b in rates],
              least=ASKED[kind] if judge else None),
        _line(f"{kind}: p99 of predictions {at}", "ms", [a for a, _ in late]),
        _line(f"{kind}: p99 of reads to that", "ratio", [b / a for a, b in late],
              most=P99_MAX if judge else None),
    ]  # fmt: skip


def _load(keys: int, runs: int, judge: bool, progress: Callable[[str], None]) -> list[Line]:
    found = []
    with _server() as server:
        store = RedisScores(server.url, "m")
        for i in range(runs):
            began = time.monotonic()
            rows = store.load(_run(f"r{i}"), _parts(keys))
            found.append(rows / (time.monotonic() - began))
            progress(f"redis: {rows:,} keys loaded at {found[-1]:,.0f}/s")
            store.remove([f"r{i}"])
    return [_line(f"redis: {keys:,} keys loaded", "keys/s", found, least=LOADED if judge else None)]


def _line(
    what: str, unit: str, found: list[float], *, least: float | None = None,
    most: float | None = None,
) -> Line:  # fmt: skip
    median = statistics.median(found)
    asked, good = None, None
    if least is not None:
        asked, good = f"at least {least:,g}", median >= least
    if most is not None:
        asked, good = f"at most {most:,g}", median <= most
    return Line(what, unit, median, min(found), max(found), asked, good)
