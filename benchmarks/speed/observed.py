"""A service that is looked at, or asked for more, uses more CPU time a request: measured in pairs.

Two services of one process each run side by side, one as it comes, one that does more, and are
asked in turn; traces, and the journal's checksums, are switched on and off in one service, which is
asked all the time; pages are opened and closed on one that is left alone meanwhile.  What the
process has used is read from the system: what it does later for its requests is in it, the driver
and the collector of the traces, which are another process, are not.  The ratio of a pair is what
the machine's other work disturbs least.  Both are laid out alike in memory, and hash alike: else
two processes of the same program differ by some per cent, as long as they live.  A control without
any difference says what pairs are worth.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import select
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from benchmarks.commands.table import AsJson, app, one_of, progress, verdict
from benchmarks.fixtures.connection import Connection
from online.client.load.own_service import start, stop, write_settings
from online.http.middleware.traced import Traced
from online.service.embedded import Embedded
from online.settings.config import environment, load
from replay.journal.checksum import checksum, proves
from replay.journal.sqlite import append as sqliteappend
from replay.journal.sqlite import proof as sqliteproof

_MODEL: Final = {"name": "m", "task": "binary", "learner": "logreg"}
_LINEAR: Final = {"learner": "linear"}
_FEATURES: Final = 20
_LOOK_S: Final = 0.05
_HALF_S: Final = 4.0
_TURNS: Final = 4
_WARM: Final = 300
_SHORT: Final = 50
_END_S: Final = 60.0
_NEVER_MS: Final = 3_600_000
_SEND: Final = "send"
_PROCESS_CLOCK: Final = 2  # clock_getcpuclockid(3)
_SAME_ADDRESSES: Final = 0x0040000  # ADDR_NO_RANDOMIZE of personality(2)


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to look at a service.

    Attributes:
        telemetry: As in the settings; ``{collector}`` stands for the address of one.
        action: Which requests are counted.
        most: The relative cost that was asked for.
        pages: Open pages of the service, each told of changes by a stream.
        model: Settings of the model of both.
        more, asked: Further ones, and fields of each request, of the one that does more.
        proves: Whether what is switched are the checksums of the journal.
    """

    what: str
    telemetry: dict[str, Any]
    action: str
    most: float
    pages: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    proves: bool = False


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time a request beside none of it, in pairs.

    ``off_us`` and ``on_us`` are medians; ``cost`` is the median ratio less one, ``low`` and
    ``high`` a 95 % interval of it by ranks, which a pair that something else disturbed moves
    little.
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
    Subject("nothing: the control", {}, "feedback", math.inf),
    Subject("20 open pages", {}, "a busy second", 0.02, pages=20),
    Subject("explain, linear", {}, "predict", 1 / 0.7 - 1, model=_LINEAR, asked={"explain": True}),
    Subject("confidence, linear", {}, "predict", 0.05, model=_LINEAR, more={"confidence": 0.9}),
    Subject("checksums in the journal", {}, "feedback", 1 / 0.97 - 1, proves=True),
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


class Pages:
    """Open pages that follow a service by its stream, and show nothing."""

    def __init__(self, url: str, n: int) -> None:
        self._place, self._open, self._ended = urlsplit(url), dict[int, socket.socket](), False
        self.heard, self._n = 0, n
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _listen(self) -> socket.socket:
        made = socket.create_connection((self._place.hostname, self._place.port))
        host = self._place.netloc.encode()
        made.sendall(b"GET /v1/live HTTP/1.1\r\nhost: " + host + b"\r\n\r\n")
        return made

    def _follow(self) -> None:
        while not self._ended:
            for i in range(self._n):
                if i not in self._open:
                    self._open[i] = self._listen()
            for one in select.select(list(self._open.values()), [], [], 0.1)[0]:
                told = one.recv(1 << 20)
                self.heard += b"event: models" in told
                if not told or told.endswith(b"0\r\n\r\n"):  # its end: another one
                    self._open = {i: s for i, s in self._open.items() if s is not one}
                    one.close()

    def close(self) -> None:
        """Close all of them."""
        self._ended = True
        self._thread.join()
        for one in self._open.values():
            one.close()


class Side:
    """One service, asked over one connection."""

    def __init__(self, url: str, pid: int, seed: int, asked: dict[str, Any]) -> None:
        self.url, self._asked = url, asked
        self._pid, self._random = pid, Random(seed)
        self._connection, self._sent = Connection(url), 0

    def _body(self, action: str) -> dict[str, Any]:
        self._sent += 1
        body: dict[str, Any] = {
            "features": {f"f{i}": self._random.gauss(0.0, 1.0) for i in range(_FEATURES)}
        }
        if action == "predict":
            body |= self._asked
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


def _alike() -> dict[str, str]:
    """Return the environment of processes that hash alike; they are laid out alike from now on."""
    ctypes.CDLL(None).personality(_SAME_ADDRESSES)
    return {**environment(), "PYTHONHASHSEED": "0"}


@contextlib.contextmanager
def side(subject: Subject, telemetry: dict[str, Any], seed: int, *, on: bool) -> Iterator[Side]:
    """A service of one process, in a folder of its own; ``on``: the one that does more."""
    model = {**_MODEL, **subject.model, **(subject.more if on else {})}
    with tempfile.TemporaryDirectory(prefix="online-observed-") as name:
        write_settings(
            Path(name),
            {"cluster": "embedded", "models": [model], "telemetry": telemetry if on else {}},
        )
        process, _, url = start(Path(name), environment=_alike())
        try:
            yield Side(url, process.pid, seed, subject.asked if on else {})
        finally:
            stop(process)


def measure(subject: Subject, *, pairs: int, requests: int) -> Cost:
    """Ask with it and without it, in turn."""
    with collector() as address:
        given = {
            name: value.format(collector=address) if isinstance(value, str) else value
            for name, value in subject.telemetry.items()
        }
        if subject.pages:
            found = _with_pages(subject, pairs)
        elif subject.telemetry or subject.proves:
            found = _switched(subject, given, pairs, requests)
            requests = 2 * _SHORT
        else:
            found = [_beside(subject, given, i, requests) for i in range(pairs)]
    return cost_of(subject, requests, found)


def _beside(
    subject: Subject, telemetry: dict[str, Any], turn: int, requests: int
) -> tuple[float, float]:
    """CPU time a request of two services that are asked in turn, four times each.

    Each pair is of processes of its own: what is left of how two of them differ is their own.
    """
    is_on, action = turn % 2 == 0, subject.action
    with (
        side(subject, telemetry, turn, on=is_on) as first,
        side(subject, telemetry, turn, on=not is_on) as second,
    ):
        for one in (first, second):
            one.turn("feedback", _WARM)
            one.turn(action, _WARM)
        before = first.used_ns(), second.used_ns()
        for i in range(2 * _TURNS):
            (first if i % 2 else second).turn(action, requests // _TURNS)
        after = first.used_ns(), second.used_ns()
    used = [(y - x) / requests / 1e3 for x, y in zip(before, after, strict=True)]
    return (used[0], used[1]) if turn % 2 else (used[1], used[0])


def _switched(
    subject: Subject, telemetry: dict[str, Any], pairs: int, requests: int
) -> list[tuple[float, float]]:
    """CPU time a request of one service whose traces or checksums are off and on in turn.

    Two processes of one program differ by more than these cost, and so do two seconds of a busy
    machine: so each of the pairs that are asked for is many, of two short turns each.  The spans of
    all of them are sent at the end, in one go, and what that takes is a part of what each costs.
    """
    found: list[tuple[float, float]] = []
    ours, its = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve_switched,
        args=(its, {**_MODEL, **subject.model}, telemetry, subject.proves),
        daemon=True,
    )
    process.start()
    try:
        url, pid = ours.recv()
        one = Side(url, pid, 1, {})
        one.turn("feedback", _WARM)
        one.turn(subject.action, _WARM)
        for _ in range(pairs):
            turns = []
            for _ in range(max(requests // (2 * _SHORT), 1)):
                used = {True: 0.0, False: 0.0}
                for is_on in (False, True, True, False):
                    ours.send(is_on)
                    ours.recv()
                    before = one.used_ns()
                    one.turn(subject.action, _SHORT)
                    used[is_on] += (one.used_ns() - before) / (2 * _SHORT) / 1e3
                turns.append(used)
            before = one.used_ns()
            ours.send(_SEND)
            ours.recv()
            sent = (one.used_ns() - before) / requests / 1e3
            found += [(used[False], used[True] + sent) for used in turns]
        ours.send(None)
    finally:
        process.join(_END_S)
        process.kill()
    return found


class _Traces:
    """Switches the tracing of requests in this process; ``send`` sends what has been traced."""

    def __init__(self) -> None:
        self._traced, self._tracing = Traced.__call__, set[Any]()

    def switch(self, on: bool) -> None:
        traced, tracing = self._traced, self._tracing

        async def noted(self: Traced, scope: Any, receive: Any, send: Any) -> None:
            tracing.add(self._tracing)
            await traced(self, scope, receive, send)

        async def passed(self: Traced, scope: Any, receive: Any, send: Any) -> None:
            await self._behind(scope, receive, send)

        Traced.__call__ = noted if on else passed  # type: ignore[method-assign]

    def send(self) -> None:
        for one in self._tracing:
            one._provider.force_flush()


class _Checksums:
    """Switches the journal's checksums in this process: neither made nor verified, or both.

    Rows that were written without one are read in both cases, so a wrong one is accepted.
    """

    def switch(self, on: bool) -> None:
        sqliteappend.checksum = checksum if on else _zero  # type: ignore[attr-defined]
        sqliteproof.proves = _verified if on else _accepted  # type: ignore[attr-defined]

    def send(self) -> None:
        """Nothing is done later."""


def _zero(*columns: Any) -> int:
    return 0


def _verified(stored: object, columns: tuple[Any, ...]) -> bool:
    proves(stored, columns)
    return True


def _accepted(stored: object, columns: tuple[Any, ...]) -> bool:
    return True


def _serve_switched(
    asked: Any, model: dict[str, Any], telemetry: dict[str, Any], proves: bool
) -> None:
    """Serve in this process, and have requests traced or rows proved or not, as is asked."""
    switched = _Checksums() if proves else _Traces()
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = str(_NEVER_MS)  # when it is asked to, and else never

    with tempfile.TemporaryDirectory(prefix="online-observed-") as name:
        data = {
            "cluster": "embedded", "models": [model], "telemetry": telemetry, "port": 0,
            "state_dir": str(Path(name) / "state"),
        }  # fmt: skip
        switched.switch(True)
        with Embedded(load(None, data, {}), lambda _: None) as running:
            running.start()
            asked.send((running.url, os.getpid()))
            while (what := asked.recv()) is not None:
                if what == _SEND:
                    switched.send()
                else:
                    switched.switch(what)
                asked.send(what)


def _with_pages(subject: Subject, pairs: int) -> list[tuple[float, float]]:
    """CPU time of a second at full load, without and with what open pages cost in a second.

    Pages cost what they cost however much is asked, so it is measured where nothing is: of one
    service, whose pages are closed and opened.
    """
    found: list[tuple[float, float]] = []
    with side(subject, {}, 1, on=False) as one:
        one.turn("feedback", _WARM)
        for pair in range(pairs):
            used = {}
            for is_open in (True, False) if pair % 2 else (False, True):
                pages = Pages(one.url, subject.pages) if is_open else None
                while pages is not None and pages.heard < subject.pages:
                    time.sleep(_LOOK_S)  # what opening them costs is not asked
                before, begun = one.used_ns(), time.perf_counter()
                time.sleep(_HALF_S)
                used[is_open] = (one.used_ns() - before) / 1e3 / (time.perf_counter() - begun)
                if pages is not None:
                    pages.close()
            found.append((1e6, 1e6 + used[True] - used[False]))
    return found


def cost_of(subject: Subject, requests: int, found: list[tuple[float, float]]) -> Cost:
    """Return what pairs of CPU times say, each without and with it."""
    ratios, n = sorted(on / off - 1.0 for off, on in found), len(found)
    left = _left_out(n)
    low, high = (ratios[left], ratios[n - 1 - left]) if left is not None else (-math.inf, math.inf)
    return Cost(
        subject.what, subject.action, n, requests,
        round(statistics.median(off for off, _ in found), 1),
        round(statistics.median(on for _, on in found), 1),
        statistics.median(ratios), low, high, subject.most, high <= subject.most,
    )  # fmt: skip


def _left_out(n: int) -> int | None:
    """Ratios on each side that a 95 % interval of the median of ``n`` leaves out; None: too few."""
    below, found = 0.0, None
    for k in range(n // 2):
        below += math.comb(n, k) / 2**n
        if below <= 0.025:
            found = k
    return found


def run(
    *,
    pairs: int = 12,
    requests: int = 2_000,
    only: str = "",
    progress: Callable[[str], None] = print,
) -> list[Cost]:
    """Every subject whose name begins so, one after the other."""
    found = []
    for subject in SUBJECTS:
        if not subject.what.startswith(only):
            continue
        progress(f"{subject.what}: {subject.action}")
        found.append(measure(subject, pairs=pairs, requests=requests))
    return found


@app.command("observed")
def observed(
    pairs: Annotated[int, typer.Option(help="of turns, one of each service", min=6)] = 12,
    requests: Annotated[int, typer.Option(help="of a turn", min=4)] = 2_000,
    only: Annotated[str, typer.Option(help="subjects that begin so")] = "",
    as_json: AsJson = False,
) -> None:
    """CPU time a request of a service that does more (traces, explains), beside one that does not.

    Exits 1 if the upper end of a 95 % interval is above what was asked for.

    Example: python -m benchmarks observed --pairs 10 --only explain
    """

    known = [subject.what for subject in SUBJECTS]
    if not any(name.startswith(only) for name in known):
        one_of([only], known)
    found = run(pairs=pairs, requests=requests, only=only, progress=progress)
    raise verdict("what being looked at costs", found, as_json=as_json)
