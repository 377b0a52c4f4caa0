"""This benchmark measures what one model's growth costs callers of another of the same service.

A sender teaches a model rows with names that nobody has sent before, as fast as answers come, until
the model has no more room for them and beyond.  Meanwhile another model of the same replicas is
asked at a fixed rate; how long that takes is compared with the same without the sender, in turns.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final
from urllib.parse import urlsplit

import psutil
import typer

from benchmarks.service import Running, service, status
from benchmarks.table import AsJson, app, show
from online.client.connection import Connection
from online.load.bodies import Bodies
from online.load.generator import Lane, Operation, measure

RATIO_MAX: Final = 1.5
"""Times that the 99th percentile of the neighbour's answers may be what it is alone."""

_RATE: Final = 200.0
_CONNECTIONS: Final = 8
_ROWS: Final = 20  # of a body
_WAIT_S: Final = 30.0
_MODEL: Final = {"task": "binary"}


@dataclass(frozen=True, slots=True)
class Grown:
    """One model grows beside another one; times in ms, medians of the turns, memory in MB."""

    what: str
    names_a_row: int
    names: int
    left_out: int
    alone_p99_ms: float
    beside_p99_ms: float
    ratio: float
    beside_max_ms: float
    memory_before_mb: float
    memory_after_mb: float
    asked: str
    good: bool


def run(learner: str, names_a_row: int, turns: int, seconds: float) -> Grown:
    """Turns of ``seconds`` alone and beside the sender, on two replicas."""
    models = [
        {**_MODEL, "name": "neighbour", "learner": "logreg"},
        {**_MODEL, "name": "growing", "learner": learner},
    ]
    with service({"replicas": 2, "models": models}) as running:
        _asked(running, 5.0)  # it warms up
        before = _memory_mb(running)
        alone, beside, most = [], [], 0.0
        for turn in range(turns):
            alone.append(_asked(running, seconds)[0])
            with _growing(running.url, names_a_row, turn):
                p99, worst = _asked(running, seconds)
            beside.append(p99)
            most = max(most, worst)
        replicas = status(running, "growing")["replicas"].values()
        ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
        return Grown(
            f"predict at {_RATE:.0f}/s beside {learner} with new names",
            names_a_row,
            int(max(report.get("names", 0) for report in replicas)),
            int(sum(report.get("names_left_out", 0) for report in replicas)),
            statistics.median(alone), statistics.median(beside), ratio, most,
            before, _memory_mb(running), f"ratio <= {RATIO_MAX}", ratio <= RATIO_MAX,
        )  # fmt: skip


def _asked(running: Running, seconds: float) -> tuple[float, float]:
    """99th percentile and the worst of the neighbour's answers, in ms, from when they were due."""
    bodies = Bodies()
    ask = Operation("predict", "/v1/models/neighbour/predict", bodies.predict)
    port = urlsplit(running.url).port or 0
    lane = Lane([ask], _CONNECTIONS, _RATE)
    total = measure("127.0.0.1", [port], [lane], seconds=seconds).total
    if total.errors:
        raise RuntimeError(f"{total.errors} of {total.requests} failed: {dict(total.statuses)}")
    return total.p99_ms, total.max_ms


@contextlib.contextmanager
def _growing(url: str, names_a_row: int, turn: int) -> Iterator[None]:
    """A sender in a process of its own, so that it takes nothing from the clock of the other."""
    spawned = multiprocessing.get_context("spawn")
    sender = spawned.Process(target=_send, args=(url, names_a_row, turn), daemon=True)
    sender.start()
    try:
        yield
    finally:
        sender.terminate()
        sender.join(_WAIT_S)


def _send(url: str, names_a_row: int, turn: int) -> None:
    names = (f"w{turn}-{i}" for i in itertools.count())
    with contextlib.closing(Connection(url)) as client:
        for body in itertools.count():
            events = [
                {
                    "features": {
                        "known": 1.0,
                        **dict.fromkeys(itertools.islice(names, names_a_row), 1.0),
                    },
                    "label": bool(row % 2),
                    "event_id": f"{turn}-{body}-{row}",
                    "source": f"s{body % 20}",
                }
                for row in range(_ROWS)
            ]
            with contextlib.suppress(OSError):
                client.post("/v1/models/growing/feedback", {"events": events})


def _memory_mb(running: Running) -> float:
    """Resident memory of replicas and parameter servers."""
    total = 0
    for process in (*running.named("Replica"), *running.named("ParameterServer")):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total / 1e6


@app.command("growth")
def growth(
    learner: Annotated[str, typer.Option(help="of the model that grows")] = "logreg",
    names_a_row: Annotated[int, typer.Option(help="new names in each row", min=1)] = 500,
    turns: Annotated[int, typer.Option(help="alone and beside the sender", min=1)] = 5,
    seconds: Annotated[float, typer.Option(help="of each half of a turn", min=1)] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Measure what the callers of one model feel while another one is taught names without end.

    Exits 1 if their 99th percentile is above 1.5 times what it is alone.

    Example: python -m benchmarks growth --names-a-row 2000
    """
    found = run(learner, names_a_row, turns, seconds)
    show("growth", [found], as_json=as_json)
    raise typer.Exit(0 if found.good else 1)
