"""Replicas of one host that read one table: memory, faults, start, and a server that stands still.

A parameter server with a table of millions of ids runs in a process of its own; replicas of `fm`
that learn and answer are processes beside it.  Each says what the kernel counts as its own memory.
A replica that does not share would have two tables, about as large as the server's.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.speed.ids import BATCH, WIDTH
from online.learning.merged import Learner
from online.models.fm import Fm
from online.models.state.factors import TABLE
from online.replica.host_tables import HostTables
from online.replica.replica import ModelReplica
from online.replica.surroundings import Identity, Services
from online.rows.prediction_ids import event_key
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from paramserver.core import wire
from paramserver.core.blocks import ROWS, Block
from paramserver.core.tables.rows import Rows
from paramserver.errors import ServerUnavailable
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from paramserver.process.local_socket import LocalConnection, LocalSocketServer
from paramserver.snapshots.views import Views, lineage_folder
from replay import codec
from replay.example import Example, Features
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

_SPEC: Final = "f" * 64
_SUMS: Final = 3  # numbers of a row of `fm` beside its vector
_EVENTS: Final = 1_000
_ASKED: Final = 2_000
_REPLICAS: Final = 2
_MB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Process:
    """Megabytes of one process, and page faults that read from a disk.

    ``own`` is memory that no other process has, ``proportional`` counts shared memory by shares.
    """

    what: str
    own_mb: float
    proportional_mb: float
    resident_mb: float
    major_faults: int


@dataclass(frozen=True, slots=True)
class Replica:
    """Seconds until a replica answers, and its answers, also while the server stands still.

    Own rows are those that it has in both of its tables, after events and at the end.
    """

    what: str
    ready_s: float
    ready_cpu_s: float
    parts: int
    own_rows_most: int
    own_rows_left: int
    predict_us: float
    predict_still_us: float
    slowest_still_ms: float


def run(
    n: int, width: int = WIDTH, events: int = _EVENTS
) -> Iterator[list[Process] | list[Replica]]:
    """Start a server and two replicas, one after the other; yield both tables."""
    context = get_context("spawn")
    folder = Path(tempfile.mkdtemp())
    memory = Path(tempfile.mkdtemp(prefix="online-bench-", dir="/dev/shm"))
    ends: list[Any] = []
    processes: list[Any] = []
    try:
        way = None
        for act in (_fill, _serve, *[_replicate] * _REPLICAS):
            here, there = context.Pipe()
            given = (there, n, width, folder, memory, way, len(ends))
            process = context.Process(target=act, args=given, daemon=True)
            process.start()
            way = here.recv() or way
            if act is _fill:
                process.join()
            else:
                ends.append(here)
                processes.append(process)
        yield from _asked(ends, processes, events)
    finally:
        for process in processes:
            process.kill()
            process.join()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(memory, ignore_errors=True)


def _asked(
    ends: list[Any], processes: list[Any], events: int
) -> Iterator[list[Process] | list[Replica]]:
    def ask(*what: object) -> list[Any]:
        for end in ends[1:]:
            end.send(what)
        return [end.recv() for end in ends[1:]]

    ask("learn", events)
    for end in ends:
        end.send(("memory",))
    yield [end.recv() for end in ends]
    os.kill(processes[0].pid, signal.SIGSTOP)
    ask("still")
    os.kill(processes[0].pid, signal.SIGCONT)
    yield ask("tell")


# -- the server's process ------------------------------------------------------------------------


def _server(folder: Path, memory: Path | None) -> ParameterServer:
    settings = ServerSettings(shared=None if memory is None else str(memory), interval_s=1e9)
    server = ParameterServer(
        Lineage("m", _SPEC, "{}", "sum"),
        lambda: SqliteJournal(folder / "journal.db", disk_low_mb=0),
        str(folder / "snapshots"),
        settings,
        background=False,
    )
    assert server.restore()
    return server


def _fill(end: Any, n: int, width: int, folder: Path, memory: Path, way: None, number: int) -> None:
    """Write a snapshot with a table of so many ids."""
    rows = Rows.empty(width)
    every = np.random.default_rng(1).permutation(_places(n)).astype(np.uint64)[:n]
    for begin in range(0, n, BATCH):
        ids = every[begin : begin + BATCH]
        rows.put(ids, np.full((len(ids), width), 0.25, dtype=np.float32))
    server = _server(folder, None)
    assert server._running.server is not None
    server._running.server.values[TABLE] = Block(ROWS, rows)
    server._running.server.count += 1
    server.snapshot()
    end.send(None)


def _serve(
    end: Any, n: int, width: int, folder: Path, memory: Path, way: None, number: int
) -> None:
    server = _server(folder, memory)
    end.send(LocalSocketServer(server.sync).way())
    while True:
        while not end.poll(0.25):
            server.confirm()
            server.snapshot_if_due()
        end.recv()
        end.send(_memory("server"))


def _places(n: int) -> int:
    return 1 << (n.bit_length() + 1)


# -- a replica's process -------------------------------------------------------------------------


class _Near:
    """Asks the server over its local socket, and counts parts of values."""

    def __init__(self, way: tuple[bytes, bytes]) -> None:
        self._way, self.parts = way, 0
        self._connection: LocalConnection | None = None

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        connection, self._connection = self._connection, None
        try:
            async with asyncio.timeout(timeout_s):
                connection = connection or await LocalConnection.to(*self._way)
                answer = await connection.ask(wire.encode(request))
        except (OSError, EOFError) as error:
            if connection is not None:
                connection.close()
            raise ServerUnavailable("m", str(error)) from error
        self._connection = connection
        reply = wire.decode_reply(answer)
        self.parts += bool(reply.pieces)
        return reply


def _replicate(
    end: Any, n: int, width: int, folder: Path, memory: Path, way: Any, number: int
) -> None:
    asyncio.run(_Replicated(end, n, width, folder, memory, way, number).run())


class _Replicated:
    """One replica, which does what its pipe says."""

    def __init__(
        self, end: Any, n: int, width: int, folder: Path, memory: Path, way: Any, number: int
    ) -> None:
        self.end, self.number, self.what = end, number, f"replica {number}"
        self.client = _Near(way)
        bits, k = _places(n).bit_length() - 1, width - _SUMS
        self.learner = Learner(
            lambda: Fm(k, bits=bits, table=True).model_for("binary"),
            task="binary", spec=_SPEC, retain_bytes=1 << 26, rows_max=1024,
        )  # fmt: skip
        place = lineage_folder(str(memory), "m", _SPEC)
        self.replica = ModelReplica(
            ModelSettings(name="m", task="binary", learner="fm"),
            Limits(feedback_wait_s=60),
            self.learner,
            Identity(f"r{number}", _SPEC),
            Services(
                SqliteJournal(folder / "journal.db", disk_low_mb=0),
                self.client,
                tables=HostTables(self.learner, Views(place, _SPEC), time.monotonic),
            ),
        )
        self.draw = random.Random(number)
        self.most = 0
        self.took: dict[str, list[float]] = {}

    async def run(self) -> None:
        begun, cpu = time.perf_counter(), time.process_time()
        await self.replica.start()
        self.ready = time.perf_counter() - begun, time.process_time() - cpu
        self.end.send(None)
        while True:
            while not self.end.poll():
                await asyncio.sleep(0.01)
            what, *given = self.end.recv()
            self.end.send(await getattr(self, what)(*given))

    async def learn(self, events: int) -> str:
        """Learn events, then wait until published rows have taken the place of own ones."""
        for i in range(events):
            example = Example(self._event(), self.draw.random() < 0.5)
            key = event_key("event", "test", f"{self.number}-{i}")
            row = NewRow(key, f"{i}", "test", Verdict.ACCEPTED, codec.encode(example), 1.0)
            await self.replica.writer.record([row])
            self.most = max(self.most, self._own_rows())
        deadline = time.monotonic() + 60
        while self._own_rows() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await self._answers("before")
        return ""

    async def still(self) -> str:
        """Answer while the server stands still."""
        await asyncio.sleep(1.0)
        await self._answers("still")
        return ""

    async def memory(self) -> Process:
        return _memory(self.what)

    async def tell(self) -> Replica:
        before, still = self.took["before"], self.took["still"]
        return Replica(
            self.what, *self.ready, self.client.parts, self.most, self._own_rows(),
            statistics.median(before) * 1e6, statistics.median(still) * 1e6, max(still) * 1e3,
        )  # fmt: skip

    async def _answers(self, when: str) -> None:
        took = self.took.setdefault(when, [])
        for _ in range(_ASKED):
            features, begun = self._event(), time.thread_time()
            self.learner.predict(features)
            took.append(time.thread_time() - begun)
            await asyncio.sleep(0)

    def _event(self) -> Features:
        return {f"f{i}": f"w{self.draw.randrange(1 << 30)}" for i in range(29)}

    def _own_rows(self) -> int:
        pulled, model = self.learner.pulled[TABLE].data, self.learner.serving
        own: int = pulled.own_rows + model._table._table.own_rows  # type: ignore[attr-defined]
        return own


def _memory(what: str) -> Process:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {name: int(size.split()[0]) / 1024 for name, size in (x.split(":") for x in lines)}
    own = found["Private_Clean"] + found["Private_Dirty"]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
    return Process(what, own, found["Pss"], found["Rss"], faults)
