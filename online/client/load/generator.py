"""A load generator on one event loop: keep-alive connections, closed loop or a fixed rate.

At a fixed rate latency counts from the time when a request was due, so a stalled server is not
hidden by requests that were never sent (coordinated omission).  Requests wait for a free
connection; those that still wait at the end are counted with their waiting time.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import selectors
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from online.client.load.histogram import Histogram

Body = Callable[[int], bytes]

_LATE_S = 2.0  # requests that were due before the end are sent until this long after it
_ANSWER_S = 10.0  # the last responses may take this long
_TICK_S = 0.05
_PROGRESS_S = 1.0
_RECONNECT_S = 0.1
_CPU_MAX = 0.9  # of a core; beyond it responses wait for the generator
_OWN_SHARE = 0.2  # acceptable share of the generator's own lateness in the p99
_OWN_MS = 0.5  # lateness below this is never reported
_SELECTABLE, _OWN_FILES = 1024, 16  # files that select() supports; files of an event loop
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_STATUS = re.compile(rb'"status": ?"(\w+)"')
_LEARNED = b'"status":"learned"'


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of request.

    Attributes:
        body: Makes the body of the lane's ``i``-th request.
        share: Weight among the operations of its lane.
        rows: Rows in each body.
        receipts: Responses have an outcome per row, which is counted; `refused` is an error.
        headers: Further header lines, each ended by CR LF.
    """

    name: str
    path: str
    body: Body
    share: float = 1.0
    rows: int = 1
    receipts: bool = False
    headers: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """Operations that share connections.  ``rate``: requests/s of all; None: closed loop."""

    operations: Sequence[Operation]
    connections: int
    rate: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """Throughput, and latencies in ms, of one run.

    ``rate`` and ``rows_rate`` count successful responses per second.  ``errors`` are responses with
    a status other than 2xx, missing responses, and bodies with a refused row.  ``statuses`` counts
    HTTP statuses (and `no answer`, `no connection`), ``outcomes`` the outcomes of rows.
    """

    what: str
    requests: int
    errors: int
    rate: float
    rows_rate: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    p9999_ms: float
    max_ms: float
    statuses: Mapping[str, int]
    outcomes: Mapping[str, int]
    bars: tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a measurement, and whether the generator limited it.

    Attributes:
        unfinished: Requests that were due and not sent, or in progress when the run was
            interrupted.  They are in the percentiles with their waiting time: the true values are
            higher.
        waited_p99_ms: Delay between due time and sending because no connection was free.
        own_late_p99_ms, cpu_share: The generator's own lateness, and its share of a core.
    """

    seconds: float
    total: Load
    operations: tuple[Load, ...]
    unfinished: int
    waited_p99_ms: float
    own_late_p99_ms: float
    cpu_share: float
    interrupted: bool

    @property
    def bottleneck(self) -> str | None:
        """Why the generator itself limits the measurement; None if it does not."""
        if self.cpu_share > _CPU_MAX:
            return f"the generator takes {self.cpu_share:.0%} of a core"
        if self.own_late_p99_ms > max(_OWN_MS, _OWN_SHARE * self.total.p99_ms):
            return f"the generator itself is late by {self.own_late_p99_ms:.1f} ms (p99)"
        return None


class _Tally:
    """Counts the outcomes of one operation's requests."""

    def __init__(self, operation: Operation, host: str) -> None:
        self.operation = operation
        self.latencies = Histogram()
        self.statuses: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.requests = self.errors = 0
        self._head = (
            f"POST {operation.path} HTTP/1.1\r\nhost: {host}\r\n"
            f"content-type: application/json\r\n{operation.headers}content-length: "
        ).encode()

    def request(self, i: int) -> bytes:
        """The ``i``-th request: head and body."""
        data = self.operation.body(i)
        return b"%b%d\r\n\r\n%b" % (self._head, len(data), data)

    def fail(self, why: str, seconds: float) -> None:
        self.requests += 1
        self.errors += 1
        self.statuses[why] += 1
        self.latencies.add(seconds)

    def answer(self, status: bytes, body: bytes, seconds: float) -> None:
        self.requests += 1
        self.statuses[status.decode()] += 1
        self.latencies.add(seconds)
        good = status[:1] == b"2"
        if good and self.operation.receipts:
            if body.count(_LEARNED) == self.operation.rows:
                self.outcomes["learned"] += self.operation.rows
            else:
                outcomes = Counter(outcome.decode() for outcome in _STATUS.findall(body))
                self.outcomes += outcomes
                good = "refused" not in outcomes
        self.errors += not good

    def load(self, seconds: float) -> Load:
        return _load(self.operation.name, [self], seconds)


def _load(what: str, tallies: Sequence[_Tally], seconds: float) -> Load:
    latencies = Histogram()
    statuses: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for tally in tallies:
        latencies.merge(tally.latencies)
        statuses.update(tally.statuses)
        outcomes.update(tally.outcomes)
    good = [(tally.requests - tally.errors, tally.operation.rows) for tally in tallies]
    return Load(
        what=what,
        requests=sum(tally.requests for tally in tallies),
        errors=sum(tally.errors for tally in tallies),
        rate=sum(n for n, _ in good) / seconds,
        rows_rate=sum(n * rows for n, rows in good) / seconds,
        p50_ms=latencies.ms(0.5),
        p90_ms=latencies.ms(0.9),
        p99_ms=latencies.ms(0.99),
        p999_ms=latencies.ms(0.999),
        p9999_ms=latencies.ms(0.9999),
        max_ms=latencies.ms(1),
        statuses=dict(statuses),
        outcomes=dict(outcomes),
        bars=latencies.bars(),
    )


class _Schedule:
    """Assigns a lane's requests and their due times, and has counters for its connections."""

    def __init__(self, lane: Lane, host: str, seconds: float, own_late: Histogram) -> None:
        self._rate, self._seconds = lane.rate, seconds
        self.tallies = [_Tally(operation, host) for operation in lane.operations]
        whole = sum(operation.share for operation in lane.operations)
        self._shares = [operation.share / whole for operation in lane.operations]
        self._owed = [0.0] * len(self._shares)
        self._next = 0
        self.begun = 0.0
        self._open = lane.connections  # connections that still take requests
        self.rested_at: float | None = None
        self.waited, self.own_late = Histogram(), own_late

    def next(self, now: float) -> tuple[_Tally, bytes, float] | None:
        """The next operation, request and due time; None at the end of the lane."""
        after = now - self.begun if self._rate is None else self._next / self._rate
        if after >= self._seconds or now >= self.begun + self._seconds + _LATE_S:
            return None
        tally = self._pick()
        request = tally.request(self._next)
        self._next += 1
        return tally, request, self.begun + after

    def _pick(self) -> _Tally:
        """Choose operations by their shares, evenly over time."""
        at = 0
        for k, share in enumerate(self._shares):
            self._owed[k] += share
            if self._owed[k] > self._owed[at]:
                at = k
        self._owed[at] -= 1
        return self.tallies[at]

    def rest(self, now: float) -> None:
        """Note that a connection takes no more requests; the last one ends the lane."""
        self._open -= 1
        if self._open == 0:
            self.rested_at = now

    def count_unsent(self, now: float) -> int:
        """Count due requests that were never taken, with their waiting time; returns the number."""
        if self._rate is None:
            return 0
        until = min(self._seconds, now - self.begun)
        n = max(math.ceil(until * self._rate) - self._next, 0)
        steps = min(n, 1000)
        for step in range(steps):
            count = n * (step + 1) // steps - n * step // steps
            due = self.begun + (self._next + n * step // steps) / self._rate
            self._pick().latencies.add(now - due, count)
        return n


class _Connection(asyncio.Protocol):
    """One connection with at most one request; it reconnects after a failure."""

    def __init__(self, schedule: _Schedule, host: str, port: int) -> None:
        self._schedule, self._host, self._port = schedule, host, port
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._held: tuple[_Tally, bytes, float] | None = None  # the request, due or in progress
        self._under_way = False
        self._closed = False
        self._forget()

    def _forget(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._need: int | None = None  # bytes of the whole response, once its head is known

    async def open(self) -> None:
        await self._loop.create_connection(lambda: self, self._host, self._port)

    def close(self, *, interrupted: bool) -> int:
        """Stop and count the request; returns 1 if that is neither a response nor an error."""
        self._closed = True
        for later in (self._task, self._timer):
            if later is not None:
                later.cancel()
        if self._transport is not None:
            self._transport.abort()
        late = 0.0 if self._held is None else self._loop.time() - self._held[2]
        if self._held is None or late < 0:
            return 0
        if self._under_way and not interrupted:
            self._held[0].fail("no answer", late)
            return 0
        self._held[0].latencies.add(late)
        return 1

    # -- sending -----------------------------------------------------------------------------

    def take(self) -> None:
        """Take the next request and send it when it is due."""
        now = self._loop.time()
        self._held = self._schedule.next(now)
        if self._held is None:
            self._schedule.rest(now)
        else:
            self._arm(self._held[2])

    def _arm(self, due: float) -> None:
        """Send the request at its due time, once."""
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        if due <= now:
            self._schedule.waited.add(now - due)
            self._send()
        else:
            self._timer = self._loop.call_at(due, self._on_time)

    def _on_time(self) -> None:
        if self._transport is None or self._held is None:  # it is sent after the reconnect
            return
        self._schedule.own_late.add(self._loop.time() - self._held[2])
        self._schedule.waited.add(0)
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        assert self._held is not None
        self._under_way = True
        self._transport.write(self._held[1])

    # -- what comes back ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._closed:
            return
        self._forget()
        if self._under_way:
            self._give_up("no answer")
        self._task = self._loop.create_task(self._reopen())

    def _give_up(self, why: str) -> None:
        if self._held is not None:
            self._held[0].fail(why, self._loop.time() - self._held[2])
        self._held, self._under_way = None, False

    async def _reopen(self) -> None:
        while self._transport is None:
            try:
                await self.open()
            except OSError:
                if self._held is not None and self._held[2] <= self._loop.time():
                    self._give_up("no connection")
                if self._held is None:
                    self._held = self._schedule.next(self._loop.time())
                if self._held is None:
                    self._schedule.rest(self._loop.time())
                    return
                await asyncio.sleep(_RECONNECT_S)
        if self._held is None:
            self.take()
        else:
            self._arm(self._held[2])

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._need is not None and self._size < self._need:
            return
        whole = b"".join(self._parts)
        self._parts = [whole]
        head, separator, body = whole.partition(b"\r\n\r\n")
        if not separator:
            return
        if length := _LENGTH.search(head):
            self._need = len(head) + 4 + int(length[1])
            if self._size < self._need:
                return
        elif _CHUNKED.search(head) and not (b"\r\n" + body).endswith(b"\r\n0\r\n\r\n"):
            return
        self._forget()
        if self._under_way and self._held is not None:
            late = self._loop.time() - self._held[2]
            self._under_way = False
            self._held[0].answer(head[9:12], body, late)
            if _CLOSES.search(head) and self._transport is not None:
                self._held = None  # the next one is taken after the reconnect
                self._transport.close()
            else:
                self.take()


def measure(
    host: str,
    ports: Sequence[int],
    lanes: Sequence[Lane],
    *,
    seconds: float,
    progress: Callable[[float, Load], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Report:
    """Send each lane's requests for ``seconds``, all lanes in parallel.

    Parameters:
        ports: The connections of a lane are distributed over them.
        progress: Called every second with the elapsed seconds and the load so far.
        stopped: Ends the run once it returns true; the result so far is returned.

    Raises:
        OSError: No connection can be made at the beginning.
    """

    connections = sum(lane.connections for lane in lanes)
    with asyncio.Runner(loop_factory=lambda: _new_loop(connections)) as runner:
        return runner.run(_measure(host, ports, lanes, seconds, progress, stopped))


def _new_loop(connections: int) -> asyncio.AbstractEventLoop:
    # epoll's timeouts are whole milliseconds: a request would be sent up to 1 ms late.  Those of
    # select are not, but it supports no more than 1,024 files.
    opened = max(map(int, os.listdir("/dev/fd")))
    if opened + connections + _OWN_FILES < _SELECTABLE:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())
    return asyncio.SelectorEventLoop(selectors.DefaultSelector())


async def _measure(
    host: str, ports: Sequence[int], lanes: Sequence[Lane], seconds: float,
    progress: Callable[[float, Load], None] | None, stopped: Callable[[], bool],
) -> Report:  # fmt: skip
    loop = asyncio.get_running_loop()
    own_late = Histogram()
    schedules, connections = [], []
    for lane in lanes:
        schedule = _Schedule(lane, host, seconds, own_late)
        schedules.append(schedule)
        for k in range(lane.connections):
            connections.append(_Connection(schedule, host, ports[k % len(ports)]))
            await connections[-1].open()
    tallies = [tally for schedule in schedules for tally in schedule.tallies]
    cpu, begun = time.process_time(), loop.time()
    for schedule in schedules:
        schedule.begun = begun
    for connection in connections:
        connection.take()
    progress_s = begun
    interrupted = False
    while any(schedule.rested_at is None for schedule in schedules):
        planned = loop.time() + _TICK_S
        await asyncio.sleep(_TICK_S)
        now = loop.time()
        own_late.add(now - planned)
        interrupted = stopped()
        if interrupted or now > begun + seconds + _ANSWER_S:
            break
        if progress is not None and now - progress_s >= _PROGRESS_S:
            progress_s = now
            progress(now - begun, _load("all", tallies, now - begun))
    now = loop.time()
    last = max(now if s.rested_at is None else s.rested_at for s in schedules)
    closed = interrupted or all(lane.rate is None for lane in lanes)
    took = max(last - begun, 1e-9 if closed else seconds)
    share = (time.process_time() - cpu) / took
    unfinished = sum(connection.close(interrupted=interrupted) for connection in connections)
    unfinished += sum(schedule.count_unsent(now) for schedule in schedules)
    waited = Histogram()
    for schedule in schedules:
        waited.merge(schedule.waited)
    await asyncio.sleep(0)  # the transports close their sockets
    return Report(
        seconds=took,
        total=_load("all", tallies, took),
        operations=tuple(tally.load(took) for tally in tallies),
        unfinished=unfinished,
        waited_p99_ms=waited.ms(0.99),
        own_late_p99_ms=own_late.ms(0.99),
        cpu_share=share,
        interrupted=interrupted,
    )


def run(
    host: str, port: int | Sequence[int], path: str, body: Body, *, connections: int,
    seconds: float, rate: float | None = None,
) -> Load:  # fmt: skip
    """Send ``body(i)`` to ``path`` for ``seconds``; ``rate`` requests/s, or as fast as possible.

    Connections are distributed over several ports.
    """
    ports = [port] if isinstance(port, int) else port
    lane = Lane([Operation("all", path, body)], connections, rate)
    return measure(host, ports, [lane], seconds=seconds).total
