"""A SQLite file in which a commit is on disk when it returns, written by several processes.

Why each part is as it is:

* ``synchronous=FULL`` in WAL mode: a commit returns after the log is synced.
* A file lock around each write.  SQLite's own busy handler sleeps and polls, and two saturated
  writers starve each other for seconds; this one is fair, freed by the kernel on death, and
  waited for with a bound (:mod:`replay.journal.filelock`; figures:
  ``docs/decisions/journal-lock.md``).
* Checkpoints run under the same lock and never by themselves: they do not land inside somebody's
  commit, and no commit can reset the log during one (SQLite 3.7.0 – 3.51.2 can corrupt a file
  there, https://sqlite.org/wal.html#walresetbug).
* A checkpoint when the file is opened: a writer killed between write and sync leaves complete
  frames that the next process takes for committed.  They are synced before anyone sees them.
* No write goes into a file that is not in its place any more, since it was moved or removed by
  hand: what is in the log then goes into the database, and the caller is refused.  Nor is a log
  opened whose database is not there.
* Nor into one that another program has changed where it lies: it is looked through first
  (:mod:`replay.journal.sqlitemark`).
* After an I/O error nothing is believed: a second sync may succeed without having written
  anything (Rebello et al., "Can Applications Recover from fsync Failures?", 2020).  The file is
  reopened, the log is copied into the database and truncated, and the caller sends again.
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
from replay.journal.sqlitelog import broken
from replay.journal.sqlitemark import Mark

Synchronous = Literal["FULL", "OFF"]
_Place = tuple[int, int]
"""Device and number of a file."""

_TEXT = partial(str, encoding="utf-8", errors="surrogateescape")
"""Damaged text is read like any other, so that whoever compares checksums can name its place."""
_FRAME_HEADER = 24
"""Bytes that the log adds to each page."""
_USED = (
    "SELECT (page_count - freelist_count) * page_size"
    " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
)
_STILL_MS = 50
"""How long to wait for readers before the log is cut, while writers are kept out."""
_SAY_NEW = "INSERT INTO meta VALUES ('still', 1) ON CONFLICT (name) DO UPDATE SET value = value + 1"


@dataclass(frozen=True, slots=True)
class Tables:
    """These tables stand in a file, and so it comes to have them.

    Attributes:
        schema: Statements that make the tables; one of them makes ``meta (name, value)``.
        format: Number that a new file gets; a file with a greater one is refused.
        upgrades: Statements that make a file of a lower format, the key, one of the next format;
            all that a file needs are one transaction.
        prove: The statement that writes down what the tables are, after they were made or changed.
        newest: A query for the greatest number of a row that was ever given.
    """

    schema: str
    format: int
    upgrades: Mapping[int, str]
    prove: str
    newest: str


class SqliteFile:
    """One file, one connection that writes and one that reads, each used by one thread at a time.

    Parameters:
        path: ``<path>.lock``, ``.queue``, ``.elder``, ``.mark``, ``-wal`` and ``-shm`` appear
            beside it.
        tables: They are made in a new file, and an older file is changed to have them.
        synchronous: ``"FULL"``: a commit is on disk.  ``"OFF"``: it survives the process, not the
            machine.
        wal_max: Bytes of the log above which :meth:`checkpoint` also cuts its file.
        lock_wait_s: How long a write waits for another one, of this process or of another, in
            seconds.
        busy_ms: How long to wait for a foreign program that holds SQLite's own lock.

    Raises:
        JournalFormat: The file was written by a newer version or is another program's.
        JournalUnavailable: The file can't be opened.
        JournalHeld: Another process holds it for too long.
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
        """Hold the file lock.  Raises JournalHeld (definite) if another process does not end."""
        if self._lock is None:
            raise JournalUnavailable("the journal is closed")
        self._lock.take(waited_s)
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold this process's own lock of writing, and the file lock: whoever writes waits here."""
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
            self._path,
            timeout=self._busy_ms / 1000,
            isolation_level=None,
            check_same_thread=False,
        )
        db.execute(f"PRAGMA synchronous = {self._synchronous}")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA fullfsync = 1")  # macOS: fsync alone does not reach the disk there
        db.execute("PRAGMA cache_size = -16384")
        db.text_factory = _TEXT
        db.create_function("checksum", -1, checksum, deterministic=True)
        return db

    def _open(self) -> None:
        """Open both connections, make the tables if there are none, sync what lies in the log."""
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
        """Refuse to write into files that nobody finds.  Raises JournalMoved (definite)."""
        for name, place in self._places.items():
            if _place(name) != place:
                with suppress(sqlite3.Error):  # all of it is in one file then, wherever that is
                    self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                raise JournalMoved(name)

    def _check_unchanged(self) -> None:
        """Refuse to write into files that nobody finds, or that another program has spoilt.

        Raises JournalMoved or JournalDamaged (both definite), or JournalUnavailable.
        """
        self._check_places()
        if self._mark.check():
            self._recover()  # nothing that was read before is believed

    def _changing(self) -> AbstractContextManager[None]:
        """The block moves pages of the log into the file."""
        self._check_unchanged()
        return self._mark.changing()

    def _recover(self) -> None:
        """Start again from what the disk holds.  Called with the file lock held."""
        try:
            self._check_places()  # else an empty file would be made, and the open one let go of
            with self._reading, self._mark.changing():
                # Nothing is open from here on, and log and index may come anew: not the database.
                database = str(self._path)
                self._places = {n: place for n, place in self._places.items() if n == database}
                self._reader.close()
                self._writer.close()
                self._open()
            with self._mark.changing():
                busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            # A read-only disk lets itself be opened: then reads go on, and this is tried again.
            self._writer.execute("DELETE FROM meta WHERE false")
        except (sqlite3.Error, OSError, JournalFormat, JournalMoved, JournalDamaged) as error:
            self._broken = str(error)
            return
        self._broken = "a reader holds the log" if busy else None

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: committed and synced when the block ends without an error."""
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
                    found = posix_holder(f"{self._path}-shm")
                    holder = "a program that reads or copies it" if found is None else str(found)
                    raise JournalHeld(
                        holder, self._busy_ms / 1000, None if found is None else found.pid
                    ) from error
                self._recover()
                raise _refusal(error, self._path) from error
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _foreign(self, error: sqlite3.Error) -> bool:
        """Whether a foreign program held SQLite's own lock: then nothing was begun."""
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code == sqlite3.SQLITE_BUSY and not self._writer.in_transaction

    def query(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """All rows of one SELECT, in a transaction that ends before it returns."""
        try:
            return self._select(sql, values)
        except sqlite3.ProgrammingError:  # closed by a recovery that has failed
            with self.write():
                pass  # recovers: who only reads would else be shut out for ever
        except sqlite3.Error as error:
            raise _refusal(error, self._path) from error
        try:
            return self._select(sql, values)
        except sqlite3.Error as error:
            raise _refusal(error, self._path) from error

    def examine(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Query like :meth:`query`, to know what SQLite says.  Raises sqlite3.Error."""
        return self._select(sql, values)

    def _select(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._reading:
            return self._reader.execute(sql, values).fetchall()

    def lost(self) -> int:
        """Rows that were committed, by the mark, and that it does not have."""
        with self._alone():
            return self._mark.lost(self._writer)

    def accept(self) -> None:
        """Believe from now on that no more was ever committed than the file has."""
        with self._alone():
            self._mark.accept(self._writer)

    def size(self, db: sqlite3.Connection | None = None) -> int:
        """Bytes in use: pages that are not free, and the log's file.

        Within :meth:`write`, give its connection: what it has written counts then.
        """
        try:
            (used,) = db.execute(_USED).fetchone() if db else self.query(_USED, ())[0]
            return int(used) + os.stat(f"{self._path}-wal").st_size
        except OSError as error:
            raise JournalUnavailable(str(error)) from error

    def checkpoint(self, wal_max: int | None = None) -> int:
        """Move committed pages out of the log; bytes that a reader still keeps there.

        The step is as large as what was committed since the last one: call it often.  A log file
        above ``wal_max`` (by default that of the file) is cut when all of it was moved and nobody
        reads.
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
        """Keep writers out while all that is committed is in the file; a descriptor of that.

        None: somebody reads, and keeps the log from being cut.  Pages that the block changes are
        read anew by every process that writes: a commit after it says that there is something new.
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
                    db.execute("PRAGMA shrink_memory")  # this process's own pages go, too
            except (sqlite3.Error, OSError) as error:
                self._recover()
                raise _refusal(error, self._path) from error

    def close(self) -> None:
        """Release the file; later calls raise JournalUnavailable.  Idempotent.

        A write that the disk does not end, and another process that does not let go of the file,
        are waited for as any write waits; then the rest is left to the end of this process.
        """
        if self._lock is None or not self._writing.acquire(timeout=self._lock_wait_s):
            return
        try:
            with self._reading:
                self._reader.close()
            with suppress(JournalHeld), self._exclusive():
                try:
                    with self._changing():  # whoever is the last one moves all of the log
                        self._reader.close()  # it was opened anew if others have changed the file
                        self._writer.close()
                except ReplayError:
                    self._writer.close()
            self._close_locks()
        finally:
            self._writing.release()


def _prepare(db: sqlite3.Connection, its: Tables) -> None:
    """Make the tables if there are none, or those of this version of what an older one made."""
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
    if tables:
        if "meta" not in tables:
            raise JournalFormat(None, its.format)
        (found,) = db.execute("SELECT max(value) FROM meta WHERE name = 'format'").fetchone()
        if found is None or found > its.format:
            raise JournalFormat(found, its.format)
        if found < its.format:
            steps = "".join(its.upgrades[i] for i in range(found, its.format))
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
    """Refuse a log without its database, which SQLite would remove, or move into an empty file.

    Whoever still has the database open would not notice, and lack what was moved.  Raises
    JournalMoved.
    """
    if _size(f"{path}-wal") and not _size(str(path)):
        raise JournalMoved(str(path))


def _size(name: str) -> int:
    try:
        return os.stat(name).st_size
    except FileNotFoundError:
        return 0


def _make(path: Path) -> None:
    """Make the file if there is none, with the mode that the umask allows.

    SQLite itself lets no group write; what it makes beside the file has the file's mode.  A file
    that is there is not opened: closing it would let go of SQLite's own locks of this process, as
    POSIX has it, and whichever other process closes the file then would remove a log in use.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))


def _place(name: str) -> _Place | None:
    """Device and number of the file of this name; None: none can be found."""
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _places(path: Path) -> dict[str, _Place]:
    """Where database, log and index of the log are, as far as they are there."""
    found = {f"{path}{end}": _place(f"{path}{end}") for end in ("", "-wal", "-shm")}
    return {name: place for name, place in found.items() if place is not None}


_descriptors: dict[_Place, int] = {}


def _descriptor(path: Path) -> int:
    """The file, open beside SQLite: never closed, for the reason given above at :func:`_make`."""
    if (place := _place(str(path))) is None:
        raise FileNotFoundError(path)
    if place not in _descriptors:
        _descriptors[place] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return _descriptors[place]


def _refusal(error: sqlite3.Error | OSError, path: Path) -> ReplayError:
    """Pages that make no sense stay so: that is no reason to send the same again."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return JournalDamaged(str(path), str(error))
    return JournalUnavailable(f"{path}: {error}")


def cut_log(path: Path, lock_wait_s: float) -> str | None:
    """Go on without what lies behind the damage in a log; what was wrong, None if nothing was.

    Nobody else may have the file open.  Raises JournalDamaged if what is left does not fit
    together, JournalHeld, or JournalUnavailable.
    """
    lock = FairLock(path, lock_wait_s)
    try:
        lock.take()
        if (why := broken(Path(f"{path}-wal"))) is None:
            return None
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise JournalDamaged(f"{path} without what is behind the damage in its log", found)
    except sqlite3.Error as error:
        raise _refusal(error, path) from error
    finally:
        lock.close()
    return why
