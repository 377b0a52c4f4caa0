"""A journal in one SQLite file, for all models of a ``state_dir``."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from replay.errors import (
    EpochLost,
    JournalDamaged,
    JournalFull,
    JournalUnavailable,
    PartitionUnknown,
    RowInvalid,
    SizeFull,
)
from replay.journal.base import (
    Appended,
    Control,
    Examined,
    Followed,
    Half,
    Head,
    Journal,
    Line,
    NewRow,
    Partition,
    Predicted,
    Row,
    Usage,
)
from replay.journal.batch import BOUNDS, Bounds, check_batch
from replay.journal.checksum import checksum
from replay.journal.sqlite import lines, proof
from replay.journal.sqlite import schema as sql
from replay.journal.sqlite.append import Batch, stand_in, stored_half
from replay.journal.sqlite.check import examine
from replay.journal.sqlite.erase import SqliteErasing
from replay.journal.sqlite.file import SqliteFile, Synchronous, Tables
from replay.journal.sqlite.trim import trim

_READ_PAGE = 1024
_MB = 1 << 20


class SqliteJournal(Journal):
    """A journal in a SQLite file.

    It may be used by several threads, and by several processes on the same file (each with its own
    object; an object must not be used after ``fork``).  Writes share one connection and wait for
    each other; reads use another connection and do not wait for writes.

    Parameters:
        path: The file; ``<path>.lock``, ``<path>.queue``, ``<path>-wal`` and ``<path>-shm`` are
            made beside it.  A missing folder is created.  It must be on a local disk.
        disk_low_mb: With less free space than this (MB of 2^20 bytes), new rows are refused.
        size_mb_max: Size of the journal's files in MB, for all models together, above which new
            rows and halves are refused; all other writes go on.  None: only free space counts.
        bounds: Greatest number of rows in one append, and of halves for each model.
        free_mb: Returns the free space in MB; by default that of the file's disk.
        synchronous, lock_wait_s, busy_ms: As in :class:`replay.journal.sqlite.file.SqliteFile`.

    Raises:
        JournalFormat, JournalDamaged: It is another program's or newer version's, or is damaged.
        JournalUnavailable: The file cannot be opened.
    """

    _file_type: type[SqliteFile] = SqliteFile
    _log_mb_max = 64  # a larger write-ahead log is truncated at a checkpoint

    def __init__(
        self,
        path: Path,
        *,
        disk_low_mb: int = 256,
        size_mb_max: int | None = None,
        bounds: Bounds = BOUNDS,
        synchronous: Synchronous = "FULL",
        free_mb: Callable[[], float] | None = None,
        lock_wait_s: float = 5.0,
        busy_ms: int = 5000,
    ) -> None:
        if synchronous not in ("FULL", "OFF"):
            raise ValueError(f"synchronous is {synchronous!r}; give FULL or OFF")
        self._path = Path(path).absolute()
        self._disk_low_mb = disk_low_mb
        self._size_max = None if size_mb_max is None else size_mb_max * _MB
        self._free_mb = free_mb or partial(_free_mb, self._path.parent)
        self._bounds = bounds
        self._file = self._file_type(
            self._path,
            Tables(sql.SCHEMA, sql.FORMAT, sql.UPGRADES, sql.PROVE_SCHEMA, sql.NEWEST_SEQ),
            synchronous=synchronous,
            wal_max=self._log_mb_max << 20,
            lock_wait_s=lock_wait_s,
            busy_ms=busy_ms,
        )
        self._unchecked = _unchecked(self._file)
        self.near_keys = _has_near_keys(self._file, self._path)

    def _row(self, record: proof.Record) -> Row:
        return proof.as_row(record, self._unchecked)

    @property
    def batch_rows_max(self) -> int:
        return self._bounds.batch_rows

    @property
    def lost(self) -> int:
        return self._file.lost()

    def accept_lost(self) -> None:
        self._file.accept()

    def checkpoint(self) -> int:
        """Move committed pages out of the log; the more were committed, the longer it takes."""
        bounded = self._size_max is not None and self._file.size() >= self._size_max
        return self._file.checkpoint(0 if bounded else None)

    def close(self) -> None:
        self._file.close()

    # -- partitions and rows -------------------------------------------------------------------

    def register(self, model: str, replica: str, spec: str, at: float) -> Partition:
        if not math.isfinite(at):
            raise RowInvalid("at", repr(at), "give POSIX seconds")
        with self._file.write() as db:
            values = (_model_id(db, model), replica, spec, at)
            number = db.execute(sql.OPEN_PARTITION, values).lastrowid
            assert number is not None
            db.execute(sql.PROVE_PARTITION, (number,))
        return Partition(number, model, replica, spec, 0, False)

    def register_lost(self, model: str, spec: str, number: int, end: int, seq: int) -> None:
        with self._file.write() as db:
            values = (number, _model_id(db, model), spec, end, end)
            if db.execute(sql.OPEN_LOST, values).rowcount:
                db.execute(sql.PROVE_PARTITION, (number,))
            if db.execute(sql.LIFT_SEQ, (seq,)).rowcount == 0:
                db.execute(sql.FIRST_SEQ, (seq,))

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        check_batch(rows, self._bounds.batch_rows)
        free = self._free_mb()
        with self._file.write() as db:
            batch = Batch(db, partition, known, self._bounds.halves, epoch)
            outcomes = batch.write(rows)
            if batch.wrote:
                _check_room(free, self._disk_low_mb, self._file, db, self._size_max)
        return Appended(outcomes, batch.end, batch.epoch)

    def seal(self, partition: int) -> int:
        with self._file.write() as db:
            record = db.execute(f"{sql.PARTITION} WHERE p.id = ?", (partition,)).fetchone()
            if record is None:
                raise PartitionUnknown(partition)
            end = proof.as_partition(record).end
            db.execute(sql.SEAL, (partition,))
            db.execute(sql.PROVE_PARTITION, (partition,))
        return end

    def partition(self, partition: int) -> Partition | None:
        records = self._file.query(f"{sql.PARTITION} WHERE p.id = ?", (partition,))
        return proof.as_partition(records[0]) if records else None

    def partitions(self, model: str) -> tuple[Partition, ...]:
        where = f"WHERE p.model = {sql.MODEL} ORDER BY p.id"
        records = self._file.query(f"{sql.PARTITION} {where}", (model,))
        return tuple(map(proof.as_partition, records))

    def read(self, partition: int, first: int, n: int) -> tuple[Row, ...]:
        """Read rows in several transactions, so that none keeps the log from shrinking."""
        rows: list[Row] = []
        for start in range(first, first + n, _READ_PAGE):
            stop = min(start + _READ_PAGE, first + n)
            page = self._file.query(sql.READ, (partition, start, stop))
            if not page or page[0][2] != first + len(rows):
                break  # trimmed rows are missing: stop at the gap
            rows += map(self._row, page)
        return tuple(rows)

    def follow(self, model: str, after: int, n: int) -> Followed:
        """Return rows in commit order; continue from ``upto`` to skip other models' rows."""
        newest = self._file.query(sql.NEWEST_SEQ, ())
        upto = int(newest[0][0]) if newest else 0
        rows: list[Row] = []
        while len(rows) < n and after < upto:  # short transactions, so that the log can shrink
            size = min(_READ_PAGE, n - len(rows))
            page = self._file.query(sql.FOLLOW, (model, after, upto, size))
            rows += map(self._row, page)
            after = rows[-1].seq if len(page) == size else upto
        state = self._file.query(sql.NAMED, (model,))  # after the rows were read
        last = rows[-1].seq if len(rows) == n else upto
        return Followed(tuple(rows), last, proof.as_model(state[0]).trimmed if state else 0)

    def find(self, model: str, key: bytes) -> Row | None:
        records = self._file.query(sql.FIND, (model, key))
        return self._row(records[0]) if records else None

    # -- epochs, heads and control rows --------------------------------------------------------

    def head(self, model: str, spec: str) -> Head:
        heads = proof.as_heads(model, self._file.query(sql.HEADS, (model,)))
        return heads[spec][0] if spec in heads else Head(0, None)

    def lineages(self, model: str) -> tuple[str, ...]:
        return tuple(proof.as_heads(model, self._file.query(sql.HEADS, (model,))))

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        with self._file.write() as db:
            number, heads = _model_id(db, model), _heads(db, model)
            head = heads[spec][0] if spec in heads else Head(0, None)
            if head.epoch != expected:
                raise EpochLost(model, expected, head.epoch)
            change = int(db.execute(sql.NEXT_CHANGE).fetchone()[0])
            columns = (number, spec, expected + 1, head.snapshot, change)
            db.execute(sql.WRITE_HEAD, (*columns, checksum(*columns)))
        return expected + 1

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        with self._file.write() as db:
            change = _check_epoch(db, model, spec, epoch)[spec][1]
            columns = (_model_id(db, model), spec, epoch, snapshot, change)
            db.execute(sql.WRITE_HEAD, (*columns, checksum(*columns)))

    def write_control(
        self,
        model: str,
        kind: str,
        key: str,
        payload: bytes,
        fence: tuple[str, int] | None = None,
        line: Line | None = None,
    ) -> tuple[Control, bool]:
        with self._file.write() as db:
            if fence is not None:
                _check_epoch(db, model, *fence)
            number = _model_id(db, model)
            row = db.execute(f"{sql.CONTROL} AND c.key = ?", (model, key)).fetchone()
            if written := row is None:
                if line is not None:
                    lines.append(db, line)
                seq = int(db.execute(sql.NEXT_CONTROL, (number,)).fetchone()[0])
                columns = (number, seq, kind, key, bytes(payload))
                row = (*columns, checksum(*columns))
                db.execute(sql.WRITE_CONTROL, row)
        return proof.as_control(model, row), written

    def controls(self, model: str, after: int) -> tuple[Control, ...]:
        records = self._file.query(f"{sql.CONTROL} AND c.seq > ? ORDER BY c.seq", (model, after))
        return tuple(proof.as_control(model, row) for row in records)

    def write_line(self, line: Line) -> None:
        with self._file.write() as db:
            lines.append(db, line)

    def newest_line(self) -> Line | None:
        records = self._file.query(sql.LAST_LINE, ())
        return lines.as_line(records[0]) if records else None

    def lines(self, after: int, n: int) -> tuple[Line, ...]:
        return tuple(map(lines.as_line, self._file.query(sql.LINES, (after, n))))

    def trim_lines(self, anchor: Line) -> None:
        with self._file.write() as db:
            lines.trim(db, anchor)

    # -- claims and retention ------------------------------------------------------------------

    def claim(self, partition: int, offset: int) -> int:
        """Record a claim; a damaged count restarts at 0, so that no good row is given up for it."""
        with self._file.write() as db:
            if db.execute("SELECT 1 FROM partitions WHERE id = ?", (partition,)).fetchone() is None:
                raise PartitionUnknown(partition)
            before = _claims(db.execute(sql.CLAIMED, (partition, offset)).fetchall())
            columns = (partition, offset, before + 1)
            db.execute(sql.CLAIM, (*columns, checksum(*columns)))
            return before

    def claims(self, partition: int, offset: int) -> int:
        return _claims(self._file.query(sql.CLAIMED, (partition, offset)))

    def run(self, model: str, spec: str, epoch: int, ms: int) -> int:
        with self._file.write() as db:
            newest = list(_check_epoch(db, model, spec, epoch))[-1] == spec
            number = _model_id(db, model)
            running = proof.model_of(db, number).running
            if newest:
                db.execute(sql.RUN, (ms, number))
                db.execute(sql.PROVE_MODEL, (number,))
        return running + ms if newest else running

    def trim(
        self,
        model: str,
        spec: str,
        epoch: int,
        upto: Mapping[int, int],
        before: float,
        n: int,
        *,
        ahead: float = math.inf,
        ran: float = math.inf,
    ) -> int:
        """Trim rows in one transaction, which blocks other writers: call it with a small ``n``."""
        with self._file.write() as db:
            if list(_check_epoch(db, model, spec, epoch))[-1] != spec:
                return 0
            is_old = partial(_is_old, before, ahead, ran)
            return trim(db, _model_id(db, model), upto, n, is_old, self._unchecked)

    def expire(
        self, model: str, before: float, n: int, *, ahead: float = math.inf, ran: float = math.inf
    ) -> int:
        with self._file.write() as db:
            number = _model_id(db, model)
            proof.model_of(db, number)
            removed = db.execute(sql.EXPIRE, (number, before, ahead, ran, n)).rowcount
            db.execute(sql.COUNT_HALVES, (-removed, number))
            db.execute(sql.PROVE_MODEL, (number,))
        return removed

    def predicted(self, model: str, after: float, before: float, n: int) -> Predicted:
        records = self._file.query(sql.TAKEN_BETWEEN, (model, after, before, n))
        return _predicted(records, self._file.query(sql.NAMED, (model,)))

    def stand_in(self, partition: int, offset: int, row: NewRow) -> bool:
        with self._file.write() as db:
            return stand_in(db, partition, offset, row, self._unchecked)

    def examine(self, progress: Callable[[int, int], None]) -> Examined:
        return examine(self._file.examine, self._unchecked, progress)

    def erasing(self) -> SqliteErasing:
        return SqliteErasing(self._file, self._unchecked)

    def usage(self, model: str) -> Usage:
        size = self._file.size()
        rows, halves = self._file.query(sql.ROWS_AND_HALVES, (model,))[0]
        return Usage(size, self._size_max, rows, halves)


def _predicted(records: Sequence[proof.Record], named: Sequence[proof.Record]) -> Predicted:
    """Return the predictions among halves; ``named`` is the entry of their model."""
    running = proof.as_model(named[0]).running if named and proof.good(named[0]) else 0
    halves = [(one, stored_half(one)) for one in records if proof.good(one)]
    waiting = [(one, half) for one, half in halves if half.half is Half.PREDICTION]
    ran = [one[sql.HALF_RAN] for one, _ in waiting]
    return Predicted(
        tuple([(bytes(one[1]), half) for one, half in waiting]),
        float(records[-1][sql.TAKEN_AT]) if records else None,
        tuple([0 if ms is None else max(running - ms, 0) for ms in ran]),
    )


def _free_mb(folder: Path) -> float:
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        raise JournalUnavailable(str(error)) from error
    return disk.f_bavail * disk.f_frsize / _MB


def _check_room(
    free_mb: float, low_mb: int, file: SqliteFile, db: sqlite3.Connection, most: int | None
) -> None:
    """Raise JournalFull or SizeFull if disk space or size limit do not admit the transaction."""
    if free_mb < low_mb:
        raise JournalFull(free_mb, low_mb)
    if most is not None and (size := file.size(db)) > most:
        raise SizeFull(size / _MB, most / _MB)


def _unchecked(file: SqliteFile) -> int:
    """Return the number of the last row of an earlier format, which had no checksums; 0: none."""
    known = file.query(sql.UNCHECKED, ())
    return int(known[0][0]) if known else 0


def _has_near_keys(file: SqliteFile, path: Path) -> bool:
    """Read the form of the keys; raise JournalDamaged if it is none of those that exist."""
    keys = file.query(sql.KEYS, ())
    if keys not in ([(sql.NEAR_KEYS,)], [(sql.FAR_KEYS,)]):  # in another form, repeats are new
        file.close()
        raise JournalDamaged(str(path), f"the form of its keys is {keys}")
    return keys == [(sql.NEAR_KEYS,)]


def _model_id(db: sqlite3.Connection, model: str) -> int:
    """Return the model's number, assigning one at its first use."""
    record = db.execute("SELECT id FROM models WHERE name = ?", (model,)).fetchone()
    if record is None:
        made = db.execute("INSERT INTO models (name) VALUES (?)", (model,)).lastrowid
        db.execute(sql.PROVE_MODEL, (made,))
        record = (made,)
    return int(record[0])


def _is_old(before: float, ahead: float, ran: float, row: Row, written: int) -> bool:
    return written < ran and (row.at < before or row.at > ahead)


def _claims(records: Sequence[tuple[int, ...]]) -> int:
    return int(records[0][2]) if records and proof.good(records[0]) else 0


def _heads(db: sqlite3.Connection, model: str) -> dict[str, tuple[Head, int]]:
    return proof.as_heads(model, db.execute(sql.HEADS, (model,)).fetchall())


def _check_epoch(
    db: sqlite3.Connection, model: str, spec: str, epoch: int
) -> dict[str, tuple[Head, int]]:
    """Return the model's heads.  Raises EpochLost unless ``epoch`` is the lineage's newest."""
    heads = _heads(db, model)
    newest = heads[spec][0].epoch if spec in heads else 0
    if spec not in heads or newest != epoch:
        raise EpochLost(model, epoch, newest)
    return heads
