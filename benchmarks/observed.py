"""A service that is looked at uses more CPU time a request: measured with it and without, in pairs.

Two services of one process each run side by side, one as it comes, one with what is looked at.
They are asked in turn, so many requests each, the order changing from pair to pair.  What each
process has used over the pair is read from the system: what it does later for its requests is in
it, the driver and the collector of the traces, which are another process, are not.  The ratio of a
pair is what the machine's other work disturbs least.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final

import typer

from benchmarks.table import AsJson, app, show
from online.client.connection import Connection
from online.load.own_service import start, stop, write_settings

_MODEL: Final = {"name": "m", "task": "binary", "learner": "logreg"}
_FEATURES: Final = 20
_STUDENT: Final = {2: 4.303, 4: 2.776, 9: 2.262, 19: 2.093}
"""By degrees of freedom: the quantile of 97.5 %."""
_STUDENT_OF_ONE: Final = 12.706
_WARM: Final = 300
_PROCESS_CLOCK: Final = 2  # clock_getcpuclockid(3)


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to look at a service.

    Attributes
    ----------
    telemetry
        As in the settings; ``{collector}`` stands for the address of one.
    action
        Which requests are counted.
    most
        The relative cost that was asked for.
    """

    what: str
    telemetry: dict[str, Any]
    action: str
    most: float


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time a request beside none of it: the median of the pairs, and a 95 % interval.

    ``off_us`` and ``on_us`` are medians; ``cost`` is the mean ratio less one.
    """

    what: str
    action: str
    pairs: int
    requests: int
    off_us: float
    on_us: float
    cost: float
    low: float
    high: float
    asked: float
    good: bool


SUBJECTS: Final = (
    Subject("traces, 1 % sampled", {"endpoint": "{collector}", "sample": 0.01}, "feedback", 0.03),
    Subject("traces, 1 % sampled", {"endpoint": "{collector}", "sample": 0.01}, "predict", 0.03),
)


class _Collector(BaseHTTPRequestHandler):
    """Takes whatever is sent, and forgets it."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is written down here."""


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Address of a collector that takes everything."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Side:
    """One service, asked over one connection."""

    def __init__(self, url: str, pid: int, seed: int) -> None:
        self.url = url
        self._pid, self._random = pid, Random(seed)
        self._connection, self._sent = Connection(url), 0

    def _body(self, action: str) -> dict[str, Any]:
        self._sent += 1
        body: dict[str, Any] = {
            "features": {f"f{i}": self._random.gauss(0.0, 1.0) for i in range(_FEATURES)}
        }
        if action == "feedback":
            body |= {"label": self._random.random() < 0.5, "event_id": f"e{self._sent}"}
        return body

    def turn(self, action: str, requests: int) -> None:
        """Ask it so often."""
        bodies = [self._body(action) for _ in range(requests)]
        for body in bodies:
            status, answer = self._connection.post(f"/v1/models/m/{action}", body)
            assert status == 200, answer

    def used_ns(self) -> int:
        """CPU time of the service's process: Linux has a clock for each, and counts in ns."""
        return time.clock_gettime_ns(~self._pid << 3 | _PROCESS_CLOCK)


@contextlib.contextmanager
def side(telemetry: dict[str, Any], seed: int) -> Iterator[Side]:
    """A service of one process, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="online-observed-") as name:
        write_settings(
            Path(name), {"cluster": "embedded", "models": [_MODEL], "telemetry": telemetry}
        )
        process, _, url = start(Path(name))
        try:
            yield Side(url, process.pid, seed)
        finally:
            stop(process)


def measure(subject: Subject, *, pairs: int, requests: int) -> Cost:
    """Ask both in turn."""
    with collector() as address:
        given = {
            name: value.format(collector=address) if isinstance(value, str) else value
            for name, value in subject.telemetry.items()
        }
        with side({}, 1) as off, side(given, 1) as on:
            for one in (off, on):
                one.turn(subject.action, _WARM)
            found: list[tuple[float, float]] = []
            for pair in range(pairs):
                before = off.used_ns(), on.used_ns()
                for one in (off, on) if pair % 2 else (on, off):
                    one.turn(subject.action, requests)
                after = off.used_ns(), on.used_ns()
                times = [(y - x) / requests / 1e3 for x, y in zip(before, after, strict=True)]
                found.append((times[0], times[1]))
    return cost_of(subject, requests, found)


def cost_of(subject: Subject, requests: int, found: list[tuple[float, float]]) -> Cost:
    """Return what pairs of CPU times say, each without and with it."""
    ratios = [on / off - 1.0 for off, on in found]
    mean, n = statistics.fmean(ratios), len(ratios)
    half = math.inf
    if n > 1:
        larger = (q for df, q in _STUDENT.items() if df <= n - 1)
        quantile = min(larger, default=_STUDENT_OF_ONE)  # of fewer pairs: rather too wide
        half = quantile * statistics.stdev(ratios) / math.sqrt(n)
    return Cost(
        subject.what, subject.action, n, requests,
        round(statistics.median(off for off, _ in found), 1),
        round(statistics.median(on for _, on in found), 1),
        mean, mean - half, mean + half, subject.most, mean + half <= subject.most,
    )  # fmt: skip


def run(
    *, pairs: int = 10, requests: int = 3_000, progress: Callable[[str], None] = print
) -> list[Cost]:
    """Every subject, one after the other."""
    found = []
    for subject in SUBJECTS:
        progress(f"{subject.what}: {subject.action}")
        found.append(measure(subject, pairs=pairs, requests=requests))
    return found


@app.command("observed")
def observed(
    pairs: Annotated[int, typer.Option(help="of turns, one of each service", min=2)] = 10,
    requests: Annotated[int, typer.Option(help="of a turn", min=1)] = 3_000,
    as_json: AsJson = False,
) -> None:
    """CPU time a request of a service that is traced beside one that is not.

    Exits 1 if the upper end of a 95 % interval is above what was asked for.

    Example: python -m benchmarks observed --pairs 5
    """
    import sys

    found = run(pairs=pairs, requests=requests, progress=lambda x: print(x, file=sys.stderr))
    show("what being looked at costs", found, as_json=as_json)
    raise typer.Exit(0 if all(cost.good for cost in found) else 1)
