"""How two writers share one journal without starving each other.

Six ways are measured with the same batches, each writer as fast as it can: SQLite's busy
handler, a file lock, a file lock with a queue before it, waited for in the kernel or asked for
again and again (what the SQLite journal does), a file of rows per writer with a shared index of
keys, and one process that writes for all.  The decision and its figures are in
``docs/decisions/journal-lock.md``.
"""

from __future__ import annotations

import fcntl
import multiprocessing as mp
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import msgspec

from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.append import Batch
from replay.journal.sqlite.file import SqliteFile
from replay.journal.sqlite.journal import SqliteJournal

BATCH = 8
CHECKPOINT_S = 0.25
"""How often one of the writers moves pages out of the log."""

Append = Callable[[Sequence[NewRow]], None]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[NewRow]).decode


class _Unlocked(SqliteFile):
    """Only SQLite's own lock, which a waiting writer polls."""

    @contextmanager
    def _exclusive(self, waited_s: float = 0.0) -> Iterator[None]:
        yield


class _NoQueue(SqliteFile):
    """The kernel's lock alone: who gives it back may have it again before the next one wakes."""

    @contextmanager
    def _exclusive(self, waited_s: float = 0.0) -> Iterator[None]:
        assert self._lock is not None
        fcntl.flock(self._lock.lock_fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._lock.release()


class _InKernel(SqliteFile):
    """Lock and queue, both waited for in the kernel: without a bound, and woken at once."""

    @contextmanager
    def _exclusive(self, waited_s: float = 0.0) -> Iterator[None]:
        assert self._lock is not None
        fcntl.flock(self._lock.queue_fd, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._lock.lock_fd, fcntl.LOCK_EX)
        finally:
            fcntl.flock(self._lock.queue_fd, fcntl.LOCK_UN)
        try:
            yield
        finally:
            self._lock.release()


class _UnlockedJournal(SqliteJournal):
    _file_type = _Unlocked


class _NoQueueJournal(SqliteJournal):
    _file_type = _NoQueue


class _InKernelJournal(SqliteJournal):
    _file_type = _InKernel


_ONE_FILE: dict[str, type[SqliteJournal]] = {
    "busy handler": _UnlockedJournal,
    "file lock": _NoQueueJournal,
    "queued, in the kernel": _InKernelJournal,
    "queued file lock": SqliteJournal,
}
_PER_WRITER = "file per writer"
_ONE_PROCESS = "one process"
METHODS = (*_ONE_FILE, _PER_WRITER, _ONE_PROCESS)


def run(
    seconds: float = 5.0, writers: Sequence[int] = (1, 2), folder: Path = Path()
) -> list[dict[str, Any]]:
    """Measure each method with one and with two saturated writer processes.

    Parameters:
        seconds: Length of each measurement.
        writers: Numbers of writer processes.
        folder: Where the files are made and removed again: on the disk that is asked about.

    Returns:
        list of dict: ``method``, ``writers``, ``rows_s`` (of all writers), ``shares`` (of each
            writer in the rows), and ``p50_ms``, ``p99_ms``, ``max_ms`` of a commit of 8 rows,
            checkpoints beside.
    """
    return [_measure(method, n, seconds, folder) for method in METHODS for n in writers]


def _measure(method: str, writers: int, seconds: float, folder: Path) -> dict[str, Any]:
    spawn = mp.get_context("spawn")  # an open SQLite connection must not be forked
    with tempfile.TemporaryDirectory(dir=folder, prefix="journal-bench-") as made:
        place = Path(made)
        ready = spawn.Barrier(writers)
        ends = [spawn.Pipe() for _ in range(writers)]
        results = [spawn.Pipe(duplex=False) for _ in range(writers)]
        processes = [
            spawn.Process(
                target=_write,
                args=(method, place, i, seconds, ready, ends[i][0], results[i][1]),
            )
            for i in range(writers)
        ]
        if method in _ONE_FILE:
            _ONE_FILE[method](place / "journal.db").close()
        elif method == _ONE_PROCESS:
            serving = [near for _, near in ends]
            processes.append(spawn.Process(target=_serve, args=(place, serving)))
        for process in reversed(processes):
            process.start()
        for far, near in ends:  # so that a process that dies is seen as the end of its pipe
            far.close()
            near.close()
        for _, theirs in results:
            theirs.close()
        times = [mine.recv() for mine, _ in results]
        for process in processes:
            process.join()
    every = sorted(t for one in times for t in one)
    return {
        "method": method,
        "writers": writers,
        "rows_s": round(BATCH * len(every) / seconds),
        "shares": [round(len(one) / len(every), 3) for one in times],
        "p50_ms": round(1e3 * every[len(every) // 2], 2),
        "p99_ms": round(1e3 * every[len(every) * 99 // 100], 2),
        "max_ms": round(1e3 * every[-1], 1),
    }


def _rows(writer: int, batch: int) -> list[NewRow]:
    """Keys as they come from a hash: spread over the whole index, and never the same."""
    rows = []
    for i in range(batch * BATCH, (batch + 1) * BATCH):
        key = ((writer << 64 | i) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)).to_bytes(16)
        rows.append(NewRow(key, f"event-{i}", "bench", Verdict.ACCEPTED, bytes(160), 1e9))
    return rows


def _write(
    method: str,
    folder: Path,
    writer: int,
    seconds: float,
    ready: Any,
    server: Connection,
    result: Connection,
) -> None:
    """A writer: appends until the time is over and sends how long each commit took."""
    with ExitStack() as stack:
        append, checkpoint = _opened(method, folder, writer, server, stack)
        times: list[float] = []
        ready.wait()
        now = time.perf_counter()
        end, moved = now + seconds, now
        while now < end:
            rows = _rows(writer, len(times))
            start = time.perf_counter()
            append(rows)
            now = time.perf_counter()
            times.append(now - start)
            if checkpoint is not None and now - moved > CHECKPOINT_S:
                checkpoint()
                moved = time.perf_counter()
    server.close()
    result.send(times)


def _opened(
    method: str, folder: Path, writer: int, server: Connection, stack: ExitStack
) -> tuple[Append, Callable[[], object] | None]:
    """Return what writes a batch, and what this writer calls now and then.

    The second is None where another writer calls it.
    """
    if method == _ONE_PROCESS:

        def ask(rows: Sequence[NewRow]) -> None:
            server.send_bytes(_encode(rows))
            server.recv_bytes()

        return ask, None
    if method in _ONE_FILE:
        journal = stack.enter_context(closing(_ONE_FILE[method](folder / "journal.db")))
    else:
        journal = stack.enter_context(closing(SqliteJournal(folder / f"rows-{writer}.db")))
    number, known = journal.register("bench", str(writer), "spec", 0.0).id, 0

    def append(rows: Sequence[NewRow]) -> None:
        nonlocal known
        known = journal.append(number, known, rows).end

    if method in _ONE_FILE:
        return append, journal.checkpoint if writer == 0 else None
    keys = stack.enter_context(closing(_Keys(folder / "keys.db")))

    def claim_and_append(rows: Sequence[NewRow]) -> None:
        keys.claim(rows, writer)
        append(rows)

    return claim_and_append, journal.checkpoint


class _Keys:
    """The index that all writers share.  Not synced: it can be made again from the rows."""

    def __init__(self, path: Path) -> None:
        self._lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS keys (key BLOB PRIMARY KEY, writer INTEGER) WITHOUT ROWID"
        )
        fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def claim(self, rows: Sequence[NewRow], writer: int) -> None:
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for row in rows:
                self._db.execute("INSERT INTO keys VALUES (?, ?)", (row.key, writer))
            self._db.execute("COMMIT")
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def close(self) -> None:
        self._db.close()
        os.close(self._lock_fd)


def _serve(folder: Path, writers: list[Connection]) -> None:
    """The one process that writes: what waits at the same time is one commit."""
    with closing(SqliteJournal(folder / "journal.db")) as journal:
        numbers = {w: journal.register("bench", "", "spec", 0.0).id for w in writers}
        moved = time.perf_counter()
        while writers:
            asked = []
            for writer in wait(writers):
                assert isinstance(writer, Connection)
                try:
                    asked.append((writer, _decode(writer.recv_bytes())))
                except EOFError:
                    writers.remove(writer)
            _commit(journal, [(numbers[writer], rows) for writer, rows in asked])
            for writer, _ in asked:
                writer.send_bytes(b"done")
            if time.perf_counter() - moved > CHECKPOINT_S:
                journal.checkpoint()
                moved = time.perf_counter()


def _commit(journal: SqliteJournal, batches: list[tuple[int, list[NewRow]]]) -> None:
    """Batches of several partitions in one transaction."""
    with journal._file.write() as db:
        for number, rows in batches:
            Batch(db, number, 0, halves_max=0, seen=0).write(rows)
