"""A SQLite file with durable commits that several processes write.

The design, and the reasons for it:

* ``synchronous=FULL`` in WAL mode: a commit returns after the log is synced.
* A file lock around each write.  SQLite's own busy handler sleeps and polls, and two saturated
  writers starve each other for seconds.  This lock is fair, released by the kernel on death, and
  taken with a timeout (:mod:`replay.journal.filelock`; measurements:
  ``docs/decisions/journal-lock.md``).
* Checkpoints run under the same lock and never automatically.  So they do not delay a commit, and
  no commit can reset the log during one (SQLite 3.7.0 – 3.51.2 can corrupt a file then,
  https://sqlite.org/wal.html#walresetbug).
* A checkpoint when the file is opened: a writer killed between write and sync leaves complete
  frames that the next process takes for committed.  The checkpoint syncs them before they are read.
* Nothing is written to a file that was moved or removed by hand: the log is moved into the
  database, and the caller is refused.  A log without its database is not opened.
* Nothing is written to a file that another program has changed in place before it was verified
  (:mod:`replay.journal.sqlite.mark`).
* After an I/O error the state in memory is not trusted: a second sync may succeed without having
  written anything (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).  The
  file is reopened, the log is copied into the database and truncated, and the caller sends again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from replay.errors import (
    JournalDamaged,
    JournalFormat,
    JournalHeld,
    JournalMoved,
    JournalUnavailable,
    ReplayError,
)
from replay.journal.checksum import checksum
from replay.journal.filelock import FairLock, posix_holder
from replay.journal.sqlite.mark import Mark
from replay.journal.sqlite.write_ahead_log import broken

Synchronous = Literal["FULL", "OFF"]
_Place = tuple[int, int]
"""Device and inode of a file."""

_TEXT = partial(str, encoding="utf-8", errors="surrogateescape")
"""Decodes damaged text without an error, so that the checksum mismatch is reported instead."""
_FRAME_HEADER = 24
"""Bytes that the log adds to each page."""
_USED = (
    "SELECT (page_count - freelist_count) * page_size"
    " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)
_STILL_MS = 50
"""How long to wait for readers before truncating the log, while writers are blocked."""
_SAY_NEW = "INSERT INTO meta VALUES ('still', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"


@dataclass(frozen=True, slots=True)
class Tables:
    """The schema of the file's tables, and how to create and upgrade it.

    Attributes:
        schema: Statements that create the tables; one of them creates ``meta (name, value)``.
        format: Format number of a new file; a file with a greater one is refused.
        upgrades: By format, the statements that upgrade a file to the next format; all that a file
            needs are run in one transaction.
        prove: Statement that stores a checksum of the schema, after it was created or changed.
        newest: Query for the greatest row number ever assigned.
    """

    schema: str
    format: int
    upgrades: Mapping[int, str]
    prove: str
    newest: str


class SqliteFile:
    """A file with one connection for writing and one for reading, each used by one thread at once.

    Parameters:
        path: The file; ``<path>.lock``, ``.queue``, ``.elder``, ``.mark``, ``-wal`` and ``-shm``
            are made beside it.
        tables: The schema, created in a new file; an older file is upgraded to it.
        synchronous: ``"FULL"``: a commit survives a crash of the machine.  ``"OFF"``: it survives
            the process only.
        wal_max: Size of the log in bytes above which :meth:`checkpoint` also truncates its file.
        lock_wait_s: Timeout of a write's wait for other writes, of this or other processes, in
            seconds.
        busy_ms: Timeout for another program that holds SQLite's own lock, in ms.

    Raises:
        JournalFormat: The file was written by a newer version or by another program.
        JournalUnavailable: The file cannot be opened.
        JournalHeld: Another process holds the lock for too long.
    """

    def __init__(
        self,
        path: Path,
        tables: Tables,
        *,
        synchronous: Synchronous,
        wal_max: int,
        lock_wait_s: float,
        busy_ms: int,
    ) -> None:
        self._path = path
        self._tables = tables
        self._synchronous = synchronous
        self._wal_max = wal_max
        self._lock_wait_s = lock_wait_s
        self._busy_ms = busy_ms
        self._writing = threading.Lock()
        self._reading = threading.Lock()
        self._broken: str | None = None
        self._places: dict[str, _Place] = {}
        self._lock: FairLock | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_log(path)
            _make(path)
            self._lock, self._mark = FairLock(path, lock_wait_s), Mark(path, tables.newest)
            with self._exclusive():
                if (why := broken(Path(f"{path}-wal"))) is not None:
                    raise JournalDamaged(f"{path}-wal", why)
                self._open()
        except (sqlite3.Error, OSError) as error:
            self._close_locks()
            raise _refusal(error, path) from error
        except ReplayError:
            self._close_locks()
            raise

    @contextmanager
    def _exclusive(self, waited_s: float = 0.0) -> Iterator[None]:
        """Hold the file lock.  Raises JournalHeld (definite) after the timeout."""
        if self._lock is None:
            raise JournalUnavailable("the journal is closed")
        self._lock.take(waited_s)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold this process's write lock and the file lock; raises JournalHeld as above."""
        begun_s = time.monotonic()
        if not self._writing.acquire(timeout=self._lock_wait_s):
            holder = "a write of this process that the disk has not ended"
            raise JournalHeld(holder, self._lock_wait_s)
        try:
            with self._exclusive(time.monotonic() - begun_s):
                yield
        finally:
            self._writing.release()

    def _close_locks(self) -> None:
        if self._lock is not None:
            self._mark.close()
            self._lock.close()
        self._lock = None

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self._path, timeout=self._busy_ms / 1000, isolation_level=None, check_same_thread=False
        )
        db.execute(f"PRAGMA synchronous = {self._synchronous}")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA fullfsync = 1")  # macOS: fsync alone does not reach the disk there
        db.execute("PRAGMA cache_size = -16384")
        db.text_factory = _TEXT
        db.create_function("checksum", -1, checksum, deterministic=True)
        return db

    def _open(self) -> None:
        """Open both connections, create or upgrade the tables, and sync the log's content."""
        _check_log(self._path)
        with self._mark.opening():
            self._writer = self._connect()
            try:
                _prepare(self._writer, self._tables)
                self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                self._reader = self._connect()
                self._reader.execute("PRAGMA query_only = 1")
                self._places = _places(self._path)
            except (sqlite3.Error, OSError, JournalFormat):
                self._writer.close()
                raise

    def _check_places(self) -> None:
        """Check that the files are where they were opened.  Raises JournalMoved (definite)."""
        for name, place in self._places.items():
            if _place(name) != place:
                with suppress(sqlite3.Error):  # so that the moved database file has everything
                    self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                raise JournalMoved(name)

    def _check_unchanged(self) -> None:
        """Check that the files were neither moved nor damaged by another program.

        Raises JournalMoved or JournalDamaged (both definite), or JournalUnavailable.
        """
        self._check_places()
        if self._mark.check():
            self._recover()  # discard cached pages, which may be outdated

    def _changing(self) -> AbstractContextManager[None]:
        """Return a context for a block that moves pages from the log into the database."""
        self._check_unchanged()
        return self._mark.changing()

    def _recover(self) -> None:
        """Reopen the files and continue from the disk's content.  The file lock must be held."""
        try:
            self._check_places()  # otherwise an empty file would be created in the old place
            with self._reading, self._mark.changing():
                # Everything is closed here: log and its index may be new files, the database not.
                database = str(self._path)
                self._places = {n: place for n, place in self._places.items() if n == database}
                self._reader.close()
                self._writer.close()
                self._open()
            with self._mark.changing():
                busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            # A read-only disk can be opened but not written: reads go on, the next write retries.
            self._writer.execute("DELETE FROM meta WHERE false")
        except (sqlite3.Error, OSError, JournalFormat, JournalMoved, JournalDamaged) as error:
            self._broken = str(error)
            return
        self._broken = "a reader holds the log" if busy else None

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run the block in a write transaction, committed and synced unless it raises."""
        with self._alone():
            if self._broken is not None:
                self._recover()
                if self._broken is not None:
                    raise JournalUnavailable(self._broken)
            self._check_unchanged()
            db = self._writer
            try:
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
                self._mark.note_newest(db)
            except sqlite3.Error as error:
                if self._foreign(error):
                    other = posix_holder(f"{self._path}-shm")
                    holder = "a program that reads or copies it" if other is None else str(other)
                    raise JournalHeld(
                        holder, self._busy_ms / 1000, None if other is None else other.pid
                    ) from error
                self._recover()
                raise _refusal(error, self._path) from error
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _foreign(self, error: sqlite3.Error) -> bool:
        """Return whether another program held SQLite's own lock, so that no write was begun."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code == sqlite3.SQLITE_BUSY and not self._writer.in_transaction

    def query(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Return all rows of one SELECT, read in a transaction that ends before returning."""
        try:
            return self._select(sql, values)
        except sqlite3.ProgrammingError:  # closed by a recovery that failed
            with self.write():
                pass  # an empty write recovers, for callers that only read
        except sqlite3.Error as error:
            raise _refusal(error, self._path) from error
        try:
            return self._select(sql, values)
        except sqlite3.Error as error:
            raise _refusal(error, self._path) from error

    def examine(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Query like :meth:`query`, but raise SQLite's own sqlite3.Error."""
        return self._select(sql, values)

    def _select(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._reading:
            return self._reader.execute(sql, values).fetchall()

    def lost(self) -> int:
        """Return the number of rows that were committed, by the mark, and are missing."""
        with self._alone():
            return self._mark.lost(self._writer)

    def accept(self) -> None:
        """Accept the loss of rows: set the mark to what the file has."""
        with self._alone():
            self._mark.accept(self._writer)

    def size(self, db: sqlite3.Connection | None = None) -> int:
        """Return the bytes in use: pages that are not free, and the size of the log.

        Within :meth:`write`, pass its connection, so that its uncommitted pages count.
        """
        try:
            (used,) = db.execute(_USED).fetchone() if db else self.query(_USED, ())[0]
            return int(used) + os.stat(f"{self._path}-wal").st_size
        except OSError as error:
            raise JournalUnavailable(str(error)) from error

    def checkpoint(self, wal_max: int | None = None) -> int:
        """Move committed pages out of the log; return the bytes that a reader still keeps there.

        It moves all that was committed since the last call, so call it often.  A log larger than
        ``wal_max`` (default: the constructor's) is truncated once all of it was moved and nobody
        reads it.
        """
        bound = self._wal_max if wal_max is None else wal_max
        with self._alone(), self._changing():
            try:
                _, frames, moved = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                page = int(self._writer.execute("PRAGMA page_size").fetchone()[0])
                if frames == moved and os.stat(f"{self._path}-wal").st_size > bound:
                    self._writer.execute("PRAGMA busy_timeout = 0")
                    self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                    self._writer.execute(f"PRAGMA busy_timeout = {self._busy_ms}")
            except (sqlite3.Error, OSError) as error:
                self._recover()
                raise JournalUnavailable(str(error)) from error
        return int(frames - moved) * (page + _FRAME_HEADER)

    @contextmanager
    def still(self) -> Iterator[int | None]:
        """Block writers while the database file contains everything; yield its descriptor.

        Yields None if a reader keeps the log from being truncated.  A commit after the block makes
        every process read changed pages again.
        """
        with self._alone(), self._changing():
            db = self._writer
            try:
                db.execute(f"PRAGMA busy_timeout = {_STILL_MS}")
                busy, _, _ = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                db.execute(f"PRAGMA busy_timeout = {self._busy_ms}")
                yield None if busy else _descriptor(self._path)
                if not busy:
                    db.execute(_SAY_NEW)
                    db.execute("PRAGMA shrink_memory")  # drop this process's cached pages
            except (sqlite3.Error, OSError) as error:
                self._recover()
                raise _refusal(error, self._path) from error

    def close(self) -> None:
        """Close the file; later calls raise JournalUnavailable.  Idempotent.

        It waits for a write in progress and for other processes up to the timeout of a write; after
        that the files are closed when this process ends.
        """
        if self._lock is None or not self._writing.acquire(timeout=self._lock_wait_s):
            return
        try:
            with self._reading:
                self._reader.close()
            with suppress(JournalHeld), self._exclusive():
                try:
                    with self._changing():  # the last process to close moves the whole log
                        self._reader.close()  # reopened if another program has changed the file
                        self._writer.close()
                except ReplayError:
                    self._writer.close()
            self._close_locks()
        finally:
            self._writing.release()


def _prepare(db: sqlite3.Connection, its: Tables) -> None:
    """Create the tables in a new file, or upgrade those of an older version."""
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    if tables:
        if "meta" not in tables:
            raise JournalFormat(None, its.format)
        (stored_format,) = db.execute(
            "SELECT max(value) FROM meta WHERE name = 'format'"
        ).fetchone()
        if stored_format is None or stored_format > its.format:
            raise JournalFormat(stored_format, its.format)
        if stored_format < its.format:
            steps = "".join(its.upgrades[i] for i in range(stored_format, its.format))
            db.executescript(
                f"BEGIN IMMEDIATE; {steps} {its.prove}"
                f"UPDATE meta SET value = {its.format} WHERE name = 'format'; COMMIT;"
            )
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise sqlite3.OperationalError(f"no write-ahead log on this disk (mode {mode})")
    if not tables:
        db.executescript(
            f"BEGIN IMMEDIATE; {its.schema} {its.prove}"
            f"INSERT INTO meta VALUES ('format', {its.format}); COMMIT;"
        )


def _check_log(path: Path) -> None:
    """Raise JournalMoved if there is a log without its database.

    SQLite would delete the log or move it into an empty file, unnoticed by a process that still has
    the moved database open.
    """
    if _size(f"{path}-wal") and not _size(str(path)):
        raise JournalMoved(str(path))


def _size(name: str) -> int:
    try:
        return os.stat(name).st_size
    except FileNotFoundError:
        return 0


def _make(path: Path) -> None:
    """Create the file if there is none, with the mode that the umask allows.

    SQLite itself would create it without write permission for the group; the files that it makes
    beside it get its mode.  An existing file is not opened: closing it would release this process's
    POSIX locks, which SQLite uses, and another process that closes the database could then delete
    a log in use.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


def _place(name: str) -> _Place | None:
    """Return device and inode of the file of this name, or None if there is none."""
    try:
        status = os.stat(name)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _places(path: Path) -> dict[str, _Place]:
    """Return device and inode of those of database, log and log index that exist."""
    places = {f"{path}{end}": _place(f"{path}{end}") for end in ("", "-wal", "-shm")}
    return {name: place for name, place in places.items() if place is not None}


_descriptors: dict[_Place, int] = {}


def _descriptor(path: Path) -> int:
    """Return a descriptor of the file, which is never closed, see :func:`_make`."""
    if (place := _place(str(path))) is None:
        raise FileNotFoundError(path)
    if place not in _descriptors:
        _descriptors[place] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return _descriptors[place]


def _refusal(error: sqlite3.Error | OSError, path: Path) -> ReplayError:
    """Return JournalDamaged for a corrupt file, JournalUnavailable (retry) for other errors."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return JournalDamaged(str(path), str(error))
    return JournalUnavailable(f"{path}: {error}")


def cut_log(path: Path, lock_wait_s: float) -> str | None:
    """Discard the part of a log after a damaged frame; return the damage, or None if none.

    No other process may have the file open.  Raises JournalDamaged if the remaining database is
    inconsistent, JournalHeld, or JournalUnavailable.
    """
    lock = FairLock(path, lock_wait_s)
    try:
        lock.take()
        if (why := broken(Path(f"{path}-wal"))) is None:
            return None
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            (result,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if result != "ok":
            raise JournalDamaged(f"{path} without what is behind the damage in its log", result)
    except sqlite3.Error as error:
        raise _refusal(error, path) from error
    finally:
        lock.close()
    return why
