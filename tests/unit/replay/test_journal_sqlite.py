"""What only the SQLite file can show: its format, its bounds, its locks and its recovery."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from journal_rows import rows

from replay.errors import JournalHeld, JournalUnavailable, PartitionSealed
from replay.journal.sqlite import file as sqlitefile
from replay.journal.sqlite.file import SqliteFile
from replay.journal.sqlite.journal import SqliteJournal
from replay.journal.sqlite.schema import FOLLOW


class SmallLog(SqliteJournal):
    _log_mb_max = 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[SqliteJournal]:
    with closing(SqliteJournal(path, synchronous="OFF")) as opened:
        yield opened


def test_synchronous_is_one_of_two_words(path: Path) -> None:
    with pytest.raises(ValueError, match="FULL or OFF"):
        SqliteJournal(path, synchronous="off")  # type: ignore[arg-type]


def test_a_second_opening_keeps_the_locks_of_the_first(path: Path) -> None:
    """Else another process that closes the file removes the log, with rows that were promised."""
    opened = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute({!r}); db.close()"
    read = opened.format("SELECT count(*) FROM meta")
    with closing(SqliteJournal(path)) as first, closing(SqliteJournal(path)) as second:
        p = first.register("m", "r", "spec", 1.0).id
        first.append(p, 0, rows(0, 2))
        subprocess.run([sys.executable, "-c", read, str(path)], check=True)
        assert path.with_name("journal.db-wal").exists()
        first.append(p, 2, rows(2, 2))
        assert second.partition(p).end == 4
    with closing(SqliteJournal(path)) as again:
        assert again.partition(p).end == 4


def test_the_log_is_cut_above_its_bound_when_nobody_reads(path: Path) -> None:
    log = path.with_name("journal.db-wal")
    with closing(SmallLog(path, synchronous="OFF")) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        journal.append(p, 0, rows(0, 8, 100_000))
        assert journal.checkpoint() == 0
        assert 0 < log.stat().st_size <= 1 << 20, "kept for the next rows below the bound"
        journal.append(p, 8, rows(8, 16, 100_000))
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM rows").fetchone()
            journal.append(p, 24, rows(24))
            assert journal.checkpoint() > 0, "a reader keeps pages in the log"
            assert log.stat().st_size > 1 << 20
            reader.execute("COMMIT")
        assert journal.checkpoint() == 0
        assert log.stat().st_size == 0
        assert len(journal.read(p, 1, 99)) == 25


def test_reads_do_not_wait_for_a_write(journal: SqliteJournal) -> None:
    p = journal.register("m", "r", "spec", 1.0).id
    journal.append(p, 0, rows(1))
    with journal._file.write() as db:
        db.execute("UPDATE partitions SET sealed = 1")
        assert len(journal.read(p, 1, 9)) == 1
        seen = journal.partition(p)
        assert seen is not None
        assert not seen.sealed


def test_threads_of_several_objects_agree_on_one_order(path: Path) -> None:
    per_writer, batch = 30, 4
    with (
        closing(SqliteJournal(path, synchronous="OFF")) as one,
        closing(SqliteJournal(path, synchronous="OFF")) as two,
        ThreadPoolExecutor(4) as pool,
    ):

        def write(number: int) -> tuple[int, int]:
            journal = (one, two)[number % 2]
            p, end, new = journal.register("m", str(number), "spec", 1.0).id, 0, 0
            for i in range(per_writer):  # the writers' keys overlap by half
                answer = journal.append(p, end, rows(number % 2 * 60 + i * batch, batch))
                end, new = answer.end, new + sum(o.new for o in answer.outcomes)
                one.read(p, 1, 9)
            return end, new

        ends = list(pool.map(write, range(4)))
        everything = [r for p in one.partitions("m") for r in two.read(p.id, 1, 999)]
    assert all(end == new for end, new in ends)
    assert sum(end for end, _ in ends) == len(everything) == 180
    assert {r.key for r in everything} == {r.key for r in rows(0, 180)}
    assert sorted(r.seq for r in everything) == list(range(1, 181))


def test_following_walks_over_no_row_that_was_read(journal: SqliteJournal, path: Path) -> None:
    p = journal.register("m", "r", "s", 1.0).id
    journal.append(p, 0, rows(0, 50))
    with sqlite3.connect(path) as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {FOLLOW}", ("m", 7, 9, 5)).fetchall()
    steps = [step[-1] for step in plan]
    assert "SEARCH rows USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in steps, steps
    assert not any("B-TREE" in step for step in steps), steps


def test_two_seals_and_a_write_race_to_one_end(path: Path) -> None:
    with closing(SqliteJournal(path)) as one, closing(SqliteJournal(path)) as two:
        for _ in range(20):
            p, start = one.register("m", "r", "spec", 1.0).id, threading.Barrier(3)

            def append(p: int = p, start: threading.Barrier = start) -> int:
                start.wait()
                try:
                    return one.append(p, 0, rows(p)).end
                except PartitionSealed as refusal:
                    return refusal.end

            def seal(p: int = p, start: threading.Barrier = start) -> int:
                start.wait()
                return two.seal(p)

            with ThreadPoolExecutor(3) as pool:
                calls = [pool.submit(f) for f in (append, seal, seal)]
            ends = {call.result() for call in calls}
            assert len(ends) == 1
            assert len(one.read(p, 1, 9)) == ends.pop()


def test_a_foreign_lock_is_waited_for_and_then_named(path: Path) -> None:
    with closing(SqliteJournal(path, busy_ms=20)) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        with closing(sqlite3.connect(path, isolation_level=None)) as foreign:
            foreign.execute("BEGIN IMMEDIATE")
            with pytest.raises(JournalHeld, match=f"process {os.getpid()} ") as refusal:
                journal.append(p, 0, rows(1))
            assert refusal.value.definite, "nothing was begun"
            foreign.execute("ROLLBACK")
        assert journal.append(p, 0, rows(1)).outcomes[0].new


def test_a_closed_journal_says_so(journal: SqliteJournal) -> None:
    p = journal.register("m", "r", "spec", 1.0).id
    journal.close()
    for call in (lambda: journal.append(p, 0, rows(1)), lambda: journal.read(p, 1, 1)):
        with pytest.raises(JournalUnavailable, match="closed"):
            call()
    with pytest.raises(JournalUnavailable, match="closed"):
        journal.checkpoint()


class NoQueue(SqliteFile):
    @contextmanager
    def _exclusive(self, waited_s: float = 0.0) -> Iterator[None]:
        assert self._lock is not None
        fcntl.flock(self._lock.lock_fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._lock.release()


def waiters(file: Path) -> int:
    """How many threads the kernel lets wait for a lock on the file."""
    inodes = {str(file.stat().st_ino)}
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sum(w[1] == "->" and w[6].rsplit(":", 1)[-1] in inodes for w in locks)


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs Linux's list of locks")
@pytest.mark.parametrize(("file_type", "fair"), [(SqliteFile, True), (NoQueue, False)])
def test_a_writer_that_waits_is_not_passed_by_the_last_one(
    file_type: type[SqliteFile], fair: bool, path: Path
) -> None:
    class Under(SqliteJournal):
        _file_type = file_type

    order: list[str] = []
    passable: set[bool] = set()
    with closing(Under(path)) as one, closing(Under(path)) as two, ThreadPoolExecutor(1) as pool:

        def wait_for_a_turn() -> None:
            with two._file._exclusive():
                order.append("who waited")

        locks = [path.with_name(f"journal.db.{kind}") for kind in ("lock", "queue")]
        for _ in range(20):
            with one._file._exclusive():
                waiting = pool.submit(wait_for_a_turn)
                while is_free(locks[1]) if fair else not waiters(locks[0]):
                    os.sched_yield()
                passable.add(is_free(locks[1]))
            with one._file._exclusive():
                order.append("who had it")
            waiting.result()
    assert passable == {not fair}, "while somebody waits, the queue is theirs"
    if fair:
        assert order == ["who waited", "who had it"] * 20


def is_free(lock: Path) -> bool:
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class FailingCommit(sqlite3.Connection):
    """Fails the commits that are announced, before or after they took place."""

    failures: ClassVar[list[bool]] = []

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        if sql == "COMMIT" and self.failures:
            if self.failures.pop():
                super().execute(sql)
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise error
        return super().execute(sql, *values)


@pytest.mark.parametrize("committed", [False, True])
def test_an_error_at_commit_is_indefinite_and_the_batch_is_sent_again(
    committed: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def failing(*args: object, **kwargs: object) -> sqlite3.Connection:
        connections.append(connect(*args, factory=FailingCommit, **kwargs))  # type: ignore[call-overload]
        return connections[-1]

    monkeypatch.setattr(FailingCommit, "failures", [])
    monkeypatch.setattr(sqlite3, "connect", failing)
    with closing(SqliteJournal(path)) as journal:
        p = journal.register("m", "r", "spec", 1.0).id
        journal.append(p, 0, rows(1))
        opened = len(connections)
        FailingCommit.failures.append(committed)
        with pytest.raises(JournalUnavailable) as refusal:
            journal.append(p, 1, rows(2, 3))
        assert not refusal.value.definite
        assert len(connections) == opened + 2, "nothing of the failed connections is believed"
        assert path.with_name("journal.db-wal").stat().st_size == 0, "the log was rewritten"
        assert len(journal.read(p, 1, 9)) == (4 if committed else 1)
        answer = journal.append(p, 1, rows(2, 3))
        offsets = [(o.new, o.row and o.row.offset) for o in answer.outcomes]
        assert offsets == [(True, 2), (True, 3), (True, 4)]


def test_a_disk_that_stays_broken_is_tried_again_at_each_write(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = journal.register("m", "r", "spec", 1.0).id
    broken = [True]
    prepare = sqlitefile._prepare

    def failing(db: sqlite3.Connection, its: sqlitefile.Tables) -> None:
        if broken[0]:
            raise sqlite3.OperationalError("unable to open database file")
        prepare(db, its)

    monkeypatch.setattr(sqlitefile, "_prepare", failing)
    journal._file._writer.close()
    for call in (
        lambda: journal.append(p, 0, rows(1)),
        lambda: journal.seal(p),
        journal.checkpoint,
    ):
        with pytest.raises(JournalUnavailable):
            call()
    with pytest.raises(JournalUnavailable):
        journal.partition(p)
    broken[0] = False
    assert journal.append(p, 0, rows(1)).end == 1
    assert len(journal.read(p, 1, 1)) == 1
