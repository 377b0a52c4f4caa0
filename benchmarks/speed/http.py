"""Rates and latencies through the balancer, beside a bare server that keeps nothing.

Each round measures every party once, so that drift of the machine hits all of them; a ratio is
made of two figures of one round.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, own_environment, service
from online.client.load.bodies import Bodies
from online.client.load.generator import Lane, Operation, Report, measure
from online.errors import StartRefused
from online.service.processes import free_port

PEER_MIN: Final = 4000.0
"""Predictions/s of the peer alone; with fewer the machine was too slow for the table to count."""

_CONNECTIONS = 16
_MANY = 1000  # rows of one body
_MANY_CONNECTIONS = 4
_WARM_S = 0.5
_FORGOTTEN = 5_000  # rows of a source that is taken back
_FOREST_LEARNS = 200.0  # events/s: about half of what it learns in a second beside predictions
_PREDICT, _FEEDBACK = "/v1/models/m/predict", "/v1/models/m/feedback"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """Median and spread of one quantity over the runs."""

    what: str
    median: float
    low: float
    high: float
    unit: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table.

    Attributes:
        beside, other: What it is compared with, and the median of that.
        ratio, ratio_low, ratio_high: Median and spread of the rounds' ratios to it.
        target, good: What is asked for; None if nothing is, or if the run does not judge.
    """

    what: str
    unit: str
    median: float
    low: float
    high: float
    beside: str | None
    other: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    target: str | None
    good: bool | None


@dataclass(frozen=True, slots=True)
class Table:
    """All lines of one run, whether the peer was fast enough for it to count, and what to know."""

    lines: list[Line]
    void: bool
    warnings: list[str]

    @property
    def good(self) -> bool:
        """Every target is met, in a run that counts."""
        return not self.void and all(line.good is not False for line in self.lines)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A quantity, what it stands beside, and a bound of the ratio (or of the value itself)."""

    what: str
    unit: str
    beside: str | None = None
    least: float | None = None
    most: float | None = None
    of_value: bool = False


_RATE, _ROWS, _MS = "requests/s", "rows/s", "ms"
_TABLE: Final = (
    _Asked("peer alone: predict", _RATE),
    _Asked("predict, 1 replica", _RATE, "peer: predict", least=1.45),
    _Asked("predict, 2 replicas", _RATE, "peer: predict, beside 2"),
    _Asked("predict, direct port", _RATE, "peer: predict"),
    _Asked("feedback, 1 replica", _RATE, "peer: learn, nothing durable", least=1.0),
    _Asked("feedback, 1 replica", _RATE, "peer: one commit a request", least=2.6),
    _Asked("feedback, 2 replicas", _RATE, "peer: learn, beside 2"),
    _Asked(f"predict, {_MANY} rows", _ROWS, "peer: predict many", least=50_000, of_value=True),
    _Asked(f"feedback, {_MANY} rows", _ROWS, "peer: learn many", least=50_000, of_value=True),
    _Asked(f"feedback, {_MANY} rows, 2 replicas", _ROWS, "peer: learn many, beside 2"),
    _Asked("predict p50 at half", _MS, "peer: predict p50 at this rate"),
    _Asked("predict p99 at half", _MS, "peer: predict p99 at this rate", most=1.5),
    _Asked("predict p99 beside feedback", _MS, "predict p99 at half", most=1.5),
    _Asked("predict p99 beside feedback", _MS, "peer: predict p99 beside learning"),
    _Asked("feedback p50 at half", _MS),
    _Asked("feedback p99 at half", _MS),
    _Asked("predict p99 during a forget", _MS, "predict p99 at half", most=2.0),
    _Asked("forest: predict p99", _MS),
    _Asked("forest: predict p99 while it learns", _MS, "forest: predict p99", most=1.5),
    _Asked("start, 1 replica", "s"),
    _Asked("start, 2 replicas", "s"),
    _Asked("memory, 1 replica", "MB"),
    _Asked("memory, 2 replicas", "MB"),
)


@contextlib.contextmanager
def peer() -> Iterator[int]:
    """The peer's process; its port."""
    with tempfile.TemporaryDirectory(prefix="online-peer-") as name:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.speed.peer_durable", str(port)]
        process = subprocess.Popen([*command, str(Path(name) / "rows.db")], env=own_environment())
        try:
            _await_answer(process, port)
            yield port
        finally:
            process.terminate()
            process.wait(120)


def _await_answer(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            contextlib.closing(Connection(f"http://127.0.0.1:{port}", 10)) as client,
        ):
            client.get("/openapi.json")
            return
        time.sleep(0.05)
    raise StartRefused("the peer does not answer", "It needs uvicorn, uvloop and httptools")


def run(
    *, runs: int = 5, seconds: float = 3.0, judge: bool = True, embedded: bool = False,
    progress: Progress = lambda line: None,
) -> Table:  # fmt: skip
    """The table: every quantity ``runs`` times, ``seconds`` long.

    Without ``judge`` no target is looked at.  ``embedded``: of a service in one process, without
    Ray, balancer, a second replica or a forest.  Raises RuntimeError if a request fails.
    """
    rounds = _Rounds(seconds, progress)
    with peer() as port:
        beside = _Peer(rounds, port)
        for _ in range(runs):
            rounds.closed("peer alone: predict", port, beside.predict)
        for replicas in (1,) if embedded else (1, 2):
            name = f"{replicas} replica{'s' if replicas > 1 else ''}"
            model = {"name": "m", "task": "binary", "learner": "logreg", "params": {"lr": 0.05}}
            settings: dict[str, object] = {"replicas": replicas, "models": [model]}
            if embedded:
                settings["cluster"] = "embedded"
            with service(settings) as running:
                rounds.note(f"start, {name}", running.started_s)
                own = _Own(rounds, running)
                if replicas == 1:
                    _one_replica(rounds, own, beside, runs)
                    _forgetting(rounds, own, running, runs)
                else:
                    _two_replicas(rounds, own, beside, runs)
                rounds.note(f"memory, {name}", memory_mb(running))
    if not embedded:
        _forest(rounds, runs)
    void = statistics.median(rounds.found["peer alone: predict"]) < PEER_MIN
    found = rounds.found
    measured = [asked for asked in _TABLE if asked.what in found]
    lines = [_line(asked, found, judge=judge and not void) for asked in measured]
    return Table(lines, void, rounds.warnings)


class _Rounds:
    """The values that were measured are here, by name and in the order of the rounds."""

    def __init__(self, seconds: float, progress: Progress) -> None:
        self.seconds, self._progress = seconds, progress
        self.found: dict[str, list[float]] = {}
        self.warnings: list[str] = []
        self.bodies = Bodies()
        self._runs = 0

    def note(self, name: str, value: float) -> None:
        """One more value of a quantity."""
        self.found.setdefault(name, []).append(value)
        self._progress(f"{name}: {value:,.1f}")

    def median(self, name: str) -> float:
        """Return the median of a quantity's values so far."""
        return statistics.median(self.found[name])

    def closed(
        self, name: str, port: int, operation: Operation, connections: int = _CONNECTIONS
    ) -> None:
        """Rows/s of one operation, as fast as answers come."""
        report = self.measure(name, port, [Lane([operation], connections)])
        self.note(name, report.total.rows_rate)

    def fixed(self, name: str, port: int, lanes: Sequence[tuple[Operation, float]]) -> Report:
        """Operations at rates, at the same time, each with connections of its own."""
        made = [Lane([operation], _CONNECTIONS, rate) for operation, rate in lanes]
        return self.measure(name, port, made)

    def measure(self, name: str, port: int, lanes: Sequence[Lane], *, warm: bool = False) -> Report:
        """One measurement.  Raises RuntimeError for a failed request or a row not learned."""
        self._runs += 1
        self.bodies.run = self._runs  # no event is a repeat
        seconds = min(self.seconds, _WARM_S) if warm else self.seconds
        report = measure("127.0.0.1", [port], lanes, seconds=seconds)
        for load in report.operations:
            odd = {k: n for k, n in load.outcomes.items() if k not in ("learned", "queued")}
            if load.errors or odd or not load.requests:
                raise RuntimeError(
                    f"{name}, {load.what}: {load.errors} of {load.requests} requests failed: "
                    f"{dict(load.statuses)} {odd}"
                )
        if not warm and report.bottleneck:
            self.warnings.append(f"{name}: {report.bottleneck}")
        if report.unfinished:
            self.warnings.append(f"{name}: {report.unfinished} requests were not sent in time")
        return report


class _Peer:
    """The operations that the peer is asked, and the port that it answers on."""

    def __init__(self, rounds: _Rounds, port: int) -> None:
        self.port, bodies = port, rounds.bodies
        self.predict = Operation("peer predict", "/predict", bodies.predict)
        self.learn = Operation("peer learn", "/learn", bodies.peer_learn)
        self.durable = Operation("peer commit", "/learn_durable", bodies.peer_learn)
        many = partial(bodies.peer_many, n=_MANY)
        self.predict_many = Operation("peer predict many", "/predict_many", many, rows=_MANY)
        self.learn_many = Operation("peer learn many", "/learn_many", many, rows=_MANY)
        for operation in (self.learn, self.predict):
            rounds.measure("warm-up", port, [Lane([operation], _CONNECTIONS)], warm=True)


class _Own:
    """The operations that the service is asked, and the ports that it answers on."""

    def __init__(self, rounds: _Rounds, running: Running) -> None:
        bodies = rounds.bodies
        self.port = urlsplit(running.url).port or 0
        behind = (
            running.replica_urls().values() if "replica_ports" in running.facts else [running.url]
        )
        self.direct = urlsplit(min(behind)).port or 0
        self.predict = Operation("predict", _PREDICT, bodies.predict)
        self.feedback = Operation("feedback", _FEEDBACK, bodies.feedback, receipts=True)
        self.predict_many = Operation(
            "predict many", _PREDICT, partial(bodies.instances, n=_MANY), rows=_MANY
        )
        self.feedback_many = Operation(
            "feedback many", _FEEDBACK, partial(bodies.events, n=_MANY), rows=_MANY, receipts=True
        )
        for operation in (self.feedback, self.predict):
            rounds.measure("warm-up", self.port, [Lane([operation], _CONNECTIONS)], warm=True)


def _one_replica(rounds: _Rounds, own: _Own, beside: _Peer, runs: int) -> None:
    for _ in range(runs):
        rounds.closed("peer: predict", beside.port, beside.predict)
        rounds.closed("predict, 1 replica", own.port, own.predict)
        rounds.closed("predict, direct port", own.direct, own.predict)
        rounds.closed("peer: learn, nothing durable", beside.port, beside.learn)
        rounds.closed("feedback, 1 replica", own.port, own.feedback)
        rounds.closed("peer: one commit a request", beside.port, beside.durable)
        for name, port, operation in (
            ("peer: predict many", beside.port, beside.predict_many),
            (f"predict, {_MANY} rows", own.port, own.predict_many),
            ("peer: learn many", beside.port, beside.learn_many),
            (f"feedback, {_MANY} rows", own.port, own.feedback_many),
        ):
            rounds.closed(name, port, operation, _MANY_CONNECTIONS)
    asks = rounds.median("predict, 1 replica") / 2
    learns = rounds.median("feedback, 1 replica") / 2
    for _ in range(runs):
        alone = rounds.fixed("peer at half", beside.port, [(beside.predict, asks)])
        rounds.note("peer: predict p50 at this rate", alone.total.p50_ms)
        rounds.note("peer: predict p99 at this rate", alone.total.p99_ms)
        alone = rounds.fixed("predict at half", own.port, [(own.predict, asks)])
        rounds.note("predict p50 at half", alone.total.p50_ms)
        rounds.note("predict p99 at half", alone.total.p99_ms)
        both = rounds.fixed(
            "peer, both", beside.port, [(beside.predict, asks), (beside.learn, learns)]
        )
        rounds.note("peer: predict p99 beside learning", both.operations[0].p99_ms)
        both = rounds.fixed("both", own.port, [(own.predict, asks), (own.feedback, learns)])
        rounds.note("predict p99 beside feedback", both.operations[0].p99_ms)
        alone = rounds.fixed("feedback at half", own.port, [(own.feedback, learns)])
        rounds.note("feedback p50 at half", alone.total.p50_ms)
        rounds.note("feedback p99 at half", alone.total.p99_ms)


def _forgetting(rounds: _Rounds, own: _Own, running: Running, runs: int) -> None:
    """Each time a source has sent some thousand rows, and the command takes them back."""
    asks = rounds.median("predict, 1 replica") / 2
    for i in range(runs):
        source = f"gone-{i}"
        bodies = Bodies(source=source, run=source)
        with contextlib.closing(Connection(running.url)) as client:
            for j in range(_FORGOTTEN // _MANY):
                client.post(_FEEDBACK, json.loads(bodies.events(j, _MANY)))
        command = [sys.executable, "-m", "online", "forget", "--source", source, "--yes"]
        forget = subprocess.Popen(
            [*command, "--config", str(running.folder / "online.yaml")],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=own_environment(),
        )  # fmt: skip
        try:
            both = rounds.fixed("forget", own.port, [(own.predict, asks)])
        finally:
            said, _ = forget.communicate(timeout=240)
        if forget.returncode:
            raise RuntimeError(f"online forget --source {source}: {said}")
        rounds.note("predict p99 during a forget", both.total.p99_ms)


def _two_replicas(rounds: _Rounds, own: _Own, beside: _Peer, runs: int) -> None:
    for _ in range(runs):
        rounds.closed("peer: predict, beside 2", beside.port, beside.predict)
        rounds.closed("predict, 2 replicas", own.port, own.predict)
        rounds.closed("peer: learn, beside 2", beside.port, beside.learn)
        rounds.closed("feedback, 2 replicas", own.port, own.feedback)
        for name, port, operation in (
            ("peer: learn many, beside 2", beside.port, beside.learn_many),
            (f"feedback, {_MANY} rows, 2 replicas", own.port, own.feedback_many),
        ):
            rounds.closed(name, port, operation, _MANY_CONNECTIONS)


def _forest(rounds: _Rounds, runs: int) -> None:
    """Ten adaptive trees, learned in the background: who predicts should not notice."""
    model = {
        "name": "m", "task": "binary", "learner": "benchmarks.fixtures.learners:arf",
        "learn": "background",
    }  # fmt: skip
    with service({"replicas": 1, "models": [model]}) as running:
        own = _Own(rounds, running)
        with contextlib.closing(Connection(running.url)) as client:  # empty trees are too fast
            for i in range(2):
                _, answer = client.post(
                    _FEEDBACK, json.loads(rounds.bodies.events(_MANY + i, _MANY))
                )
            asked = json.loads(rounds.bodies.predict(0))
            _await_learned(client, {**asked, "after": answer["events"][-1]["seen"]})
        rounds.closed("forest: predict", own.port, own.predict)
        asks = rounds.median("forest: predict") / 2
        for _ in range(runs):
            alone = rounds.fixed("forest at half", own.port, [(own.predict, asks)])
            rounds.note("forest: predict p99", alone.total.p99_ms)
            lanes = [(own.predict, asks), (own.feedback, _FOREST_LEARNS)]
            both = rounds.fixed("forest, both", own.port, lanes)
            rounds.note("forest: predict p99 while it learns", both.operations[0].p99_ms)


def _await_learned(client: Connection, asked: object, timeout_s: float = 120.0) -> None:
    """Wait until the answers count the event they are asked for: the last one that came."""
    deadline = time.monotonic() + timeout_s
    while not client.post(_PREDICT, asked)[1].get("includes"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the forest has not learned all in {timeout_s:g} s")
        time.sleep(0.05)


def _line(asked: _Asked, found: dict[str, list[float]], *, judge: bool) -> Line:
    values = found[asked.what]
    others = found[asked.beside] if asked.beside is not None else []
    ratios = [mine / other for mine, other in zip(values, others, strict=False)]
    value = statistics.median(values)
    ratio = statistics.median(ratios) if ratios else None
    judged = value if asked.of_value else ratio
    bound = asked.least if asked.least is not None else asked.most
    good = None
    if judge and bound is not None and judged is not None:
        good = judged >= bound if asked.least is not None else judged <= bound
    return Line(
        what=asked.what,
        unit=asked.unit,
        median=value,
        low=min(values),
        high=max(values),
        beside=asked.beside,
        other=statistics.median(others) if others else None,
        ratio=ratio,
        ratio_low=min(ratios) if ratios else None,
        ratio_high=max(ratios) if ratios else None,
        target=None if bound is None else f"{'≥' if asked.least is not None else '≤'} {bound:,g}",
        good=good,
    )


def shown(table: Table) -> list[dict[str, str]]:
    """The lines for people: a median and its spread in one cell."""
    return [
        {
            "what": line.what,
            "unit": line.unit,
            "median (spread)": _spread(line.median, line.low, line.high),
            "beside": line.beside or "",
            "that": "" if line.other is None else _number(line.other),
            "ratio (spread)": _spread(line.ratio, line.ratio_low, line.ratio_high),
            "target": line.target or "",
            "good": {True: "yes", False: "NO", None: ""}[line.good],
        }
        for line in table.lines
    ]


def _spread(median: float | None, low: float | None, high: float | None) -> str:
    if median is None or low is None or high is None:
        return ""
    return f"{_number(median)} ({_number(low)}…{_number(high)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def memory_mb(running: Running) -> float:
    """Proportional memory of all processes of the service."""
    total = 0
    for process in running.processes():
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20
