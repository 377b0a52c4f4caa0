"""How long until the service is ready, and what its processes keep, beside bare Ray Serve.

The peer (:mod:`benchmarks.speed.bare`) serves one answer and has neither a model nor a journal; it
is started as Ray Serve comes, and with the service's own flags and the fewest processes of Ray.
The three are started in turn, one at a time.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import psutil
import typer

from benchmarks.commands.table import AsJson, app, verdict
from benchmarks.fixtures.service import own_environment, service, write_settings
from online.service.processes import end, free_port

START_RATIO: Final = 1.15
"""Target: seconds until ready over those of the peer with the same flags."""

MEMORY_RATIO: Final = {"as shipped": 1.15, "same flags": 1.25}
"""Targets: memory over that of each peer."""

_QUIET_S: Final = 3.0
"""Idle workers of Ray, and garbage, are gone by then."""


@dataclass(frozen=True, slots=True)
class Start:
    """Medians of one number of replicas.

    ``ready_s``: from the command until HTTP answers; ``cpu_s``: of all processes by then;
    ``memory_mb``: proportional memory of all of them some seconds later.
    """

    what: str
    replicas: int
    ready_s: float
    cpu_s: float
    memory_mb: float
    ready_times: float
    memory_times: float
    good: bool | None


@dataclass(frozen=True, slots=True)
class _Figures:
    ready_s: float
    cpu_s: float
    memory_mb: float


def _figures(process: psutil.Process, ready_s: float) -> _Figures:
    def all_of(figure: Callable[[psutil.Process], float]) -> float:
        total = 0.0
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += figure(one)
        return total

    def cpu_s(one: psutil.Process) -> float:
        times = one.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)

    used = all_of(cpu_s)
    time.sleep(_QUIET_S)
    return _Figures(ready_s, used, all_of(lambda one: one.memory_full_info().pss / 1e6))


@contextlib.contextmanager
def hello(replicas: int, *, shipped: bool) -> Iterator[tuple[psutil.Process, float]]:
    """The peer's process, and the seconds until it answers."""
    with tempfile.TemporaryDirectory(prefix="online-hello-") as name:
        folder = Path(name)
        settings = write_settings(folder, {"replicas": replicas, "port": free_port()})
        kind = "shipped" if shipped else "hello"
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.speed.bare", str(settings), str(folder), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=own_environment(),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            lines = (line for line in process.stdout if line.startswith(b'{"replica_ports"'))
            json.loads(next(lines))
            yield psutil.Process(process.pid), time.monotonic() - begun
        finally:
            left = psutil.Process(process.pid).children(recursive=True)
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            end([*left, psutil.Process(process.pid)] if process.poll() is None else left)


def _ours(replicas: int) -> _Figures:
    begun = time.monotonic()
    with service({"replicas": replicas}) as running:
        ready_s = time.monotonic() - begun
        return _figures(psutil.Process(running.process.pid), ready_s)


def _peer(replicas: int, *, shipped: bool) -> _Figures:
    with hello(replicas, shipped=shipped) as (process, ready_s):
        return _figures(process, ready_s)


def run(*, runs: int = 5, replicas: tuple[int, ...] = (1, 2)) -> list[Start]:
    """Medians of ``runs`` starts of each; the peers' in between."""
    lines = []
    for count in replicas:
        found: dict[str, list[_Figures]] = {"online": [], "as shipped": [], "same flags": []}
        for _ in range(runs):
            found["online"].append(_ours(count))
            found["as shipped"].append(_peer(count, shipped=True))
            found["same flags"].append(_peer(count, shipped=False))
        lines += _lines(count, found)
    return lines


def _lines(count: int, found: dict[str, list[_Figures]]) -> list[Start]:
    medians = {
        name: _Figures(
            statistics.median(one.ready_s for one in several),
            statistics.median(one.cpu_s for one in several),
            statistics.median(one.memory_mb for one in several),
        )
        for name, several in found.items()
    }
    ours, out = medians.pop("online"), []
    out.append(Start("online serve", count, ours.ready_s, ours.cpu_s, ours.memory_mb, 1, 1, None))
    for name, peer in medians.items():
        ready, memory = ours.ready_s / peer.ready_s, ours.memory_mb / peer.memory_mb
        good = memory <= MEMORY_RATIO[name] and (name == "as shipped" or ready <= START_RATIO)
        what = f"bare Ray Serve, {name}"
        out.append(
            Start(what, count, peer.ready_s, peer.cpu_s, peer.memory_mb, ready, memory, good)
        )
    return out


@app.command("start")
def start(
    runs: Annotated[int, typer.Option(help="starts of each", min=1)] = 5, as_json: AsJson = False
) -> None:
    """Seconds until ready and memory beside bare Ray Serve, with one replica and with two.

    Exits 1 if one of them is above what was asked.

    Example: python -m benchmarks start --runs 3
    """
    lines = run(runs=runs)
    raise verdict("start", lines, as_json=as_json)
