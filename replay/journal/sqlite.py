"""The journal as one SQLite file for all models of a ``state_dir``."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from replay.errors import (
    EpochLost,
    JournalBehind,
    JournalFull,
    PartitionSealed,
    PartitionUnknown,
    RowInvalid,
)
from replay.journal.base import (
    Appended,
    Control,
    Head,
    NewRow,
    Outcome,
    Partition,
    Row,
    Verdict,
)
from replay.journal.batch import check_batch
from replay.journal.sqlitefile import SqliteFile, Synchronous

FORMAT = 1
"""Format number of the file; a newer one is refused."""

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, replica TEXT NOT NULL,
    spec TEXT NOT NULL, "end" INTEGER NOT NULL DEFAULT 0, sealed INTEGER NOT NULL DEFAULT 0,
    at REAL NOT NULL);
CREATE INDEX partitions_model ON partitions (model);
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, model INTEGER NOT NULL, partition INTEGER NOT NULL,
    "offset" INTEGER NOT NULL, key BLOB NOT NULL, event_id TEXT NOT NULL, source TEXT NOT NULL,
    verdict TEXT NOT NULL, factor REAL NOT NULL, payload BLOB NOT NULL, at REAL NOT NULL,
    UNIQUE (partition, "offset"), UNIQUE (model, key));
CREATE TABLE control (
    model INTEGER NOT NULL, seq INTEGER NOT NULL, kind TEXT NOT NULL, key TEXT NOT NULL,
    payload BLOB NOT NULL, PRIMARY KEY (model, seq), UNIQUE (model, key));
CREATE TABLE heads (
    model INTEGER NOT NULL, spec TEXT NOT NULL, epoch INTEGER NOT NULL, snapshot TEXT,
    changed INTEGER NOT NULL, PRIMARY KEY (model, spec)) WITHOUT ROWID;
"""
# AUTOINCREMENT: a number is never given twice, also after its row was deleted.

_MODEL = "(SELECT id FROM models WHERE name = ?)"
_ROW = 'seq, partition, "offset", key, event_id, source, verdict, factor, payload, at'
_INSERT = (
    'INSERT INTO rows (model, partition, "offset", key, event_id, source, verdict, factor,'
    " payload, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_BY_KEY = f"SELECT {_ROW} FROM rows WHERE model = ? AND key = ?"
_FIND = f"SELECT {_ROW} FROM rows WHERE model = {_MODEL} AND key = ?"
_READ = (
    f'SELECT {_ROW} FROM rows WHERE partition = ? AND "offset" >= ? AND "offset" < ?'
    ' ORDER BY "offset"'
)
_ADMIT = (
    'SELECT p.model, p."end", p.sealed,'
    " (SELECT max(epoch) FROM heads h WHERE h.model = p.model) FROM partitions p WHERE p.id = ?"
)
_PARTITION = (
    'SELECT p.id, m.name, p.replica, p.spec, p."end", p.sealed'
    " FROM partitions p JOIN models m ON m.id = p.model"
)
_CONTROL = (
    "SELECT c.seq, m.name, c.kind, c.key, c.payload"
    " FROM control c JOIN models m ON m.id = c.model WHERE m.name = ?"
)
_HEAD = f"SELECT epoch, snapshot FROM heads WHERE model = {_MODEL} AND spec = ?"
_LINEAGES = f"SELECT spec FROM heads WHERE model = {_MODEL} ORDER BY changed"
_BEGIN_EPOCH = (
    "INSERT INTO heads (model, spec, epoch, changed)"
    " VALUES (?, ?, ?, (SELECT coalesce(max(changed), 0) + 1 FROM heads))"
    " ON CONFLICT (model, spec) DO UPDATE SET epoch = excluded.epoch, changed = excluded.changed"
)
_MOVE_HEAD = "UPDATE heads SET snapshot = ? WHERE model = ? AND spec = ?"
_WRITE_CONTROL = (
    "INSERT INTO control (model, seq, kind, key, payload) SELECT m, (SELECT coalesce(max(seq), 0)"
    " + 1 FROM control WHERE model = m), ?2, ?3, ?4 FROM (SELECT ?1 AS m) WHERE true"
    " ON CONFLICT (model, key) DO NOTHING"
)
_READ_PAGE = 1024


class SqliteJournal:
    """A :class:`replay.journal.base.Journal` in a SQLite file.

    Safe to call from several threads, and from several processes on the same file (each with its
    own object; an object does not survive ``fork``).  Writes go through one connection and wait
    for each other; reads go through another one and wait for no write.

    Parameters
    ----------
    path
        The file; ``<path>.lock``, ``<path>.queue``, ``<path>-wal`` and ``<path>-shm`` appear
        beside it.  The folder is made if it is missing.  It must be on a local disk.
    disk_low_mb
        With less free space than this (MB of 2^20 bytes), new rows are refused.
    synchronous
        ``"FULL"``: a commit is on disk.  ``"OFF"``: it survives the process, not the machine.
    free_mb
        Free space in MB; by default that of the file's disk.
    batch_rows_max
        Most rows of one append, ≥ 1.
    wal_mb_max
        Size of the log above which :meth:`checkpoint` also cuts the file, in MB.
    busy_ms
        How long to wait for a foreign program that holds SQLite's own lock.

    Raises
    ------
    JournalFormat
        The file was written by a newer version or is another program's.
    JournalUnavailable
        The file can't be opened.
    """

    _file_type: type[SqliteFile] = SqliteFile

    def __init__(
        self,
        path: Path,
        *,
        disk_low_mb: int = 256,
        synchronous: Synchronous = "FULL",
        free_mb: Callable[[], float] | None = None,
        batch_rows_max: int = 1024,
        wal_mb_max: int = 64,
        busy_ms: int = 5000,
    ) -> None:
        if synchronous not in ("FULL", "OFF"):
            raise ValueError(f"synchronous is {synchronous!r}; give FULL or OFF")
        self._path = Path(path).absolute()
        self._disk_low_mb = disk_low_mb
        self._free_mb = free_mb or self._disk_free_mb
        self._batch_rows_max = batch_rows_max
        self._file = self._file_type(
            self._path,
            schema=_SCHEMA,
            format=FORMAT,
            synchronous=synchronous,
            wal_max=wal_mb_max << 20,
            busy_ms=busy_ms,
        )

    @property
    def batch_rows_max(self) -> int:
        """Most rows of one append."""
        return self._batch_rows_max

    def _disk_free_mb(self) -> float:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize / (1 << 20)

    def checkpoint(self) -> int:
        """Move committed pages out of the log; bytes that a reader still keeps there.

        The step is as large as what was committed since the last one: call it often.  A log file
        above ``wal_mb_max`` is cut when all of it was moved and nobody reads.
        """
        return self._file.checkpoint()

    def close(self) -> None:
        """Release the file; later calls raise JournalUnavailable.  Idempotent."""
        self._file.close()

    # -- partitions and rows -------------------------------------------------------------------

    def register(self, model: str, replica: str, spec: str, at: float) -> Partition:
        """Open a new, empty partition; its number is given by the store, never twice."""
        if not math.isfinite(at):
            raise RowInvalid("at", repr(at), "give POSIX seconds")
        with self._file.write() as db:
            number = db.execute(
                "INSERT INTO partitions (model, replica, spec, at) VALUES (?, ?, ?, ?)",
                (_model_id(db, model), replica, spec, at),
            ).lastrowid
            assert number is not None
        return Partition(number, model, replica, spec, 0, False)

    def append(self, partition: int, known: int, rows: Sequence[NewRow]) -> Appended:
        """Write ``rows`` durably, in order, in one step: see :class:`replay.journal.base.Journal`.

        Raises
        ------
        BatchSize, RowInvalid, PartitionUnknown, PartitionSealed, JournalBehind
            Definite: nothing was written.
        JournalFull
            Definite, and only if a row is new: a batch that stands already is answered.
        JournalUnavailable
            Indefinite: send the same batch again.
        """
        check_batch(rows, self._batch_rows_max)
        free = self._free_mb()
        with self._file.write() as db:
            model, start, epoch = self._admit(db, partition, known)
            outcomes, end = self._insert(db, model, partition, known, start, rows)
            if end != start:
                if free < self._disk_low_mb:
                    raise JournalFull(free, self._disk_low_mb)
                db.execute('UPDATE partitions SET "end" = ? WHERE id = ?', (end, partition))
        return Appended(tuple(outcomes), end, epoch)

    def _admit(self, db: sqlite3.Connection, partition: int, known: int) -> tuple[int, int, int]:
        """Model number, end and newest epoch of a partition that takes rows."""
        found = db.execute(_ADMIT, (partition,)).fetchone()
        if found is None:
            raise PartitionUnknown(partition)
        model, end, sealed, epoch = found
        if sealed:
            raise PartitionSealed(partition, end)
        if end < known:
            raise JournalBehind(partition, end, known)
        return model, end, epoch or 0

    def _insert(
        self,
        db: sqlite3.Connection,
        model: int,
        partition: int,
        known: int,
        end: int,
        rows: Sequence[NewRow],
    ) -> tuple[list[Outcome], int]:
        """Outcome of each row and the partition's new end; only rows that are new get offsets."""
        outcomes: list[Outcome] = []
        seen: set[bytes] = set()
        for row in rows:
            key = bytes(row.key)
            found = db.execute(_BY_KEY, (model, key)).fetchone()
            if found is None:
                end += 1
                kept = (key, row.event_id, row.source, row.verdict, float(row.factor))
                rest = (bytes(row.payload), float(row.at))
                seq = db.execute(_INSERT, (model, partition, end, *kept, *rest)).lastrowid or 0
                outcomes.append(Outcome(True, Row(seq, partition, end, *kept, *rest)))
            else:
                stored = _row(found)
                own = stored.partition == partition and stored.offset > known
                outcomes.append(Outcome(own and key not in seen, stored))
            seen.add(key)
        return outcomes, end

    def seal(self, partition: int) -> int:
        """Close the partition for writing and return its end.  Idempotent.

        Raises PartitionUnknown (definite) or JournalUnavailable (seal again).
        """
        with self._file.write() as db:
            found = db.execute(
                'UPDATE partitions SET sealed = 1 WHERE id = ? RETURNING "end"', (partition,)
            ).fetchone()
            if found is None:
                raise PartitionUnknown(partition)
        return int(found[0])

    def partition(self, partition: int) -> Partition | None:
        """The partition, or None if it is unknown."""
        found = self._file.query(f"{_PARTITION} WHERE p.id = ?", (partition,))
        return _partition(found[0]) if found else None

    def partitions(self, model: str) -> tuple[Partition, ...]:
        """All partitions of the model, by id."""
        found = self._file.query(f"{_PARTITION} WHERE m.name = ? ORDER BY p.id", (model,))
        return tuple(map(_partition, found))

    def read(self, partition: int, first: int, n: int) -> tuple[Row, ...]:
        """Rows ``first … first + n - 1`` as far as they exist.

        Many rows are read in several transactions, so that no read keeps the log from shrinking.
        """
        rows: list[Row] = []
        for start in range(first, first + n, _READ_PAGE):
            stop = min(start + _READ_PAGE, first + n)
            page = self._file.query(_READ, (partition, start, stop))
            if not page:
                break
            rows += map(_row, page)
        return tuple(rows)

    def find(self, model: str, key: bytes) -> Row | None:
        """The row that has the key, or None."""
        found = self._file.query(_FIND, (model, key))
        return _row(found[0]) if found else None

    # -- epochs, heads and control rows --------------------------------------------------------

    def head(self, model: str, spec: str) -> Head:
        """Epoch and newest snapshot of the lineage (epoch 0 and None before its first server)."""
        found = self._file.query(_HEAD, (model, spec))
        return Head(*found[0]) if found else Head(0, None)

    def lineages(self, model: str) -> tuple[str, ...]:
        """Spec hashes that have ever had a server, newest epoch change last."""
        found = self._file.query(_LINEAGES, (model,))
        return tuple(spec for (spec,) in found)

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        """Compare-and-set the epoch from ``expected`` to ``expected + 1``; return the new one.

        Raises EpochLost (definite) if another server was faster.
        """
        with self._file.write() as db:
            number = _model_id(db, model)
            found = db.execute(_HEAD, (model, spec)).fetchone()
            epoch = int(found[0]) if found else 0
            if epoch != expected:
                raise EpochLost(model, expected, epoch)
            db.execute(_BEGIN_EPOCH, (number, spec, expected + 1))
        return expected + 1

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        """Point the head at a published snapshot; EpochLost unless ``epoch`` is the newest."""
        with self._file.write() as db:
            found = db.execute(_HEAD, (model, spec)).fetchone()
            if found is None or found[0] != epoch:
                raise EpochLost(model, epoch, found[0] if found else 0)
            db.execute(_MOVE_HEAD, (snapshot, _model_id(db, model), spec))

    def write_control(
        self, model: str, kind: str, key: str, payload: bytes
    ) -> tuple[Control, bool]:
        """Append a control row; the first with a (model, key) wins.

        Returns the row that stands and whether this call wrote it (after JournalUnavailable,
        compare the row: it may be the one of the lost call).
        """
        with self._file.write() as db:
            number = _model_id(db, model)
            written = db.execute(_WRITE_CONTROL, (number, kind, key, bytes(payload))).rowcount == 1
            row = db.execute(f"{_CONTROL} AND c.key = ?", (model, key)).fetchone()
        return Control(*row), written

    def controls(self, model: str, after: int) -> tuple[Control, ...]:
        """Control rows of the model with ``seq > after``, in order."""
        found = self._file.query(f"{_CONTROL} AND c.seq > ? ORDER BY c.seq", (model, after))
        return tuple(Control(*row) for row in found)


def _model_id(db: sqlite3.Connection, model: str) -> int:
    """The model's small number, given at its first use."""
    db.execute("INSERT INTO models (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (model,))
    return int(db.execute("SELECT id FROM models WHERE name = ?", (model,)).fetchone()[0])


def _row(found: tuple[Any, ...]) -> Row:
    seq, partition, offset, key, event_id, source, verdict, factor, payload, at = found
    return Row(seq, partition, offset, key, event_id, source, Verdict(verdict), factor, payload, at)


def _partition(found: tuple[Any, ...]) -> Partition:
    number, model, replica, spec, end, sealed = found
    return Partition(number, model, replica, spec, end, bool(sealed))
