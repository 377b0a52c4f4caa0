"""The journal as one SQLite file for all models of a ``state_dir``."""

from __future__ import annotations

import math
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from replay.errors import (
    EpochLost,
    JournalFull,
    JournalUnavailable,
    PartitionUnknown,
    RowInvalid,
    SizeFull,
)
from replay.journal import sqlitelines as lines
from replay.journal import sqliteproof as proof
from replay.journal import sqliteschema as sql
from replay.journal.base import (
    Appended,
    Control,
    Examined,
    Followed,
    Half,
    Head,
    Line,
    NewRow,
    Partition,
    Predicted,
    Row,
    Usage,
)
from replay.journal.batch import check_batch
from replay.journal.checksum import checksum
from replay.journal.sqliteappend import Batch, stored_half
from replay.journal.sqlitecheck import examine
from replay.journal.sqliteerase import SqliteErasing
from replay.journal.sqlitefile import SqliteFile, Synchronous, Tables
from replay.journal.sqlitestand import stand_in
from replay.journal.sqlitetrim import trim

_READ_PAGE = 1024
_MB = 1 << 20


class SqliteJournal:
    """A :class:`replay.journal.base.Journal` in a SQLite file.

    Safe to call from several threads, and from several processes on the same file (each with its
    own object; an object does not survive ``fork``).  Writes go through one connection and wait
    for each other; reads go through another one and wait for no write.

    Parameters:
        path: The file; ``<path>.lock``, ``<path>.queue``, ``<path>-wal`` and ``<path>-shm`` appear
            beside it.  The folder is made if it is missing.  It must be on a local disk.
        disk_low_mb: With less free space than this (MB of 2^20 bytes), new rows are refused.
        size_mb_max: Most use of the journal's files in MB, of all models together: above it new
            rows and halves are refused, and everything else goes on.  None: only free space counts.
        halves_max: Most halves kept of each model; above it a new half is not kept.
        synchronous: ``"FULL"``: a commit is on disk.  ``"OFF"``: it survives the process, not the
            machine.
        free_mb: Free space in MB; by default that of the file's disk.
        batch_rows_max: Most rows of one append, ≥ 1.
        wal_mb_max: Size of the log above which :meth:`checkpoint` also cuts the file, in MB.
        lock_wait_s: How long a write waits for another one, of this process or of another, in
            seconds; then JournalHeld says who holds the file.
        busy_ms: How long to wait for a foreign program that holds SQLite's own lock.

    Raises:
        JournalFormat: The file was written by a newer version or is another program's.
        JournalUnavailable: The file can't be opened.
    """

    _file_type: type[SqliteFile] = SqliteFile

    def __init__(
        self,
        path: Path,
        *,
        disk_low_mb: int = 256,
        size_mb_max: int | None = None,
        halves_max: int = 100_000,
        synchronous: Synchronous = "FULL",
        free_mb: Callable[[], float] | None = None,
        batch_rows_max: int = 1024,
        wal_mb_max: int = 64,
        lock_wait_s: float = 5.0,
        busy_ms: int = 5000,
    ) -> None:
        if synchronous not in ("FULL", "OFF"):
            raise ValueError(f"synchronous is {synchronous!r}; give FULL or OFF")
        self._path = Path(path).absolute()
        self._disk_low_mb = disk_low_mb
        self._size_max = None if size_mb_max is None else size_mb_max * _MB
        self._halves_max = halves_max
        self._free_mb = free_mb or self._disk_free_mb
        self._batch_rows_max = batch_rows_max
        self._file = self._file_type(
            self._path,
            Tables(sql.SCHEMA, sql.FORMAT, sql.UPGRADES, sql.PROVE_SCHEMA),
            synchronous=synchronous,
            wal_max=wal_mb_max << 20,
            lock_wait_s=lock_wait_s,
            busy_ms=busy_ms,
        )
        found = self._file.query(sql.UNCHECKED, ())
        self._unchecked = int(found[0][0]) if found else 0

    def _row(self, found: proof.Found) -> Row:
        return proof.as_row(found, self._unchecked)

    @property
    def batch_rows_max(self) -> int:
        """Most rows of one append."""
        return self._batch_rows_max

    def _disk_free_mb(self) -> float:
        try:
            disk = os.statvfs(self._path.parent)
        except OSError as error:
            raise JournalUnavailable(str(error)) from error
        return disk.f_bavail * disk.f_frsize / _MB

    def checkpoint(self) -> int:
        """Move committed pages out of the log; bytes that a reader still keeps there.

        The step is as large as what was committed since the last one: call it often.  A log file
        above ``wal_mb_max`` (any, if the journal is at its bound) is cut when all of it was moved
        and nobody reads.
        """
        bounded = self._size_max is not None and self._file.size() >= self._size_max
        return self._file.checkpoint(0 if bounded else None)

    def close(self) -> None:
        """Release the file; later calls raise JournalUnavailable.  Idempotent."""
        self._file.close()

    # -- partitions and rows -------------------------------------------------------------------

    def register(self, model: str, replica: str, spec: str, at: float) -> Partition:
        """Open a new, empty partition; its number is given by the store, never twice."""
        if not math.isfinite(at):
            raise RowInvalid("at", repr(at), "give POSIX seconds")
        with self._file.write() as db:
            values = (_model_id(db, model), replica, spec, at)
            number = db.execute(sql.OPEN_PARTITION, values).lastrowid
            assert number is not None
            db.execute(sql.PROVE_PARTITION, (number,))
        return Partition(number, model, replica, spec, 0, False)

    def register_lost(self, model: str, spec: str, number: int, end: int, seq: int) -> None:
        """Make the partition of this number, sealed at ``end``, of which all rows are gone.

        See :class:`replay.journal.base.Journal`.
        """
        with self._file.write() as db:
            values = (number, _model_id(db, model), spec, end, end)
            if db.execute(sql.OPEN_LOST, values).rowcount:
                db.execute(sql.PROVE_PARTITION, (number,))
            if db.execute(sql.LIFT_SEQ, (seq,)).rowcount == 0:
                db.execute(sql.FIRST_SEQ, (seq,))

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        """Write ``rows`` durably, in order, in one step: see :class:`replay.journal.base.Journal`.

        Raises:
            BatchSize, RowInvalid, PartitionUnknown, PartitionSealed, JournalBehind, EpochBehind:
                Definite: nothing was written.
            JournalFull, SizeFull: Definite, and only if a row or half is new: a batch that stands
                already is answered.
            JournalUnavailable: Indefinite: send the same batch again.
        """
        check_batch(rows, self._batch_rows_max)
        free = self._free_mb()
        with self._file.write() as db:
            batch = Batch(db, partition, known, self._halves_max, epoch)
            outcomes = batch.write(rows)
            if batch.wrote:
                self._check_room(db, free)
        return Appended(outcomes, batch.end, batch.epoch)

    def _check_room(self, db: sqlite3.Connection, free_mb: float) -> None:
        """Refuse what the transaction has written if the disk or the bound has no room for it."""
        if free_mb < self._disk_low_mb:
            raise JournalFull(free_mb, self._disk_low_mb)
        if self._size_max is not None and (size := self._file.size(db)) > self._size_max:
            raise SizeFull(size / _MB, self._size_max / _MB)

    def seal(self, partition: int) -> int:
        """Close the partition for writing and return its end.  Idempotent.

        Raises PartitionUnknown (definite) or JournalUnavailable (seal again).
        """
        with self._file.write() as db:
            found = db.execute(f"{sql.PARTITION} WHERE p.id = ?", (partition,)).fetchone()
            if found is None:
                raise PartitionUnknown(partition)
            end = proof.as_partition(found).end
            db.execute(sql.SEAL, (partition,))
            db.execute(sql.PROVE_PARTITION, (partition,))
        return end

    def partition(self, partition: int) -> Partition | None:
        """The partition, or None if it is unknown."""
        found = self._file.query(f"{sql.PARTITION} WHERE p.id = ?", (partition,))
        return proof.as_partition(found[0]) if found else None

    def partitions(self, model: str) -> tuple[Partition, ...]:
        """All partitions of the model, by id."""
        where = f"WHERE p.model = {sql.MODEL} ORDER BY p.id"
        return tuple(
            map(proof.as_partition, self._file.query(f"{sql.PARTITION} {where}", (model,)))
        )

    def read(self, partition: int, first: int, n: int) -> tuple[Row, ...]:
        """Rows ``first … first + n - 1`` as far as they exist.

        Many rows are read in several transactions, so that no read keeps the log from shrinking.
        """
        rows: list[Row] = []
        for start in range(first, first + n, _READ_PAGE):
            stop = min(start + _READ_PAGE, first + n)
            page = self._file.query(sql.READ, (partition, start, stop))
            if not page or page[0][2] != first + len(rows):
                break  # what was trimmed is missing: no hole is skipped
            rows += map(self._row, page)
        return tuple(rows)

    def follow(self, model: str, after: int, n: int) -> Followed:
        """Rows of the model in commit order: see :class:`replay.journal.base.Journal`.

        It passes over other models' rows after ``after``: go on from ``upto``.
        """
        newest = self._file.query(sql.NEWEST_SEQ, ())
        upto = int(newest[0][0]) if newest else 0
        rows: list[Row] = []
        while len(rows) < n and after < upto:  # several transactions: none keeps the log long
            size = min(_READ_PAGE, n - len(rows))
            page = self._file.query(sql.FOLLOW, (model, after, upto, size))
            rows += map(self._row, page)
            after = rows[-1].seq if len(page) == size else upto
        state = self._file.query(sql.NAMED, (model,))  # after the rows were read
        last = rows[-1].seq if len(rows) == n else upto
        return Followed(tuple(rows), last, proof.as_model(state[0]).trimmed if state else 0)

    def find(self, model: str, key: bytes) -> Row | None:
        """The row that has the key, or None."""
        found = self._file.query(sql.FIND, (model, key))
        return self._row(found[0]) if found else None

    # -- epochs, heads and control rows --------------------------------------------------------

    def head(self, model: str, spec: str) -> Head:
        """Epoch and newest snapshot of the lineage (epoch 0 and None before its first server)."""
        heads = proof.as_heads(model, self._file.query(sql.HEADS, (model,)))
        return heads[spec][0] if spec in heads else Head(0, None)

    def lineages(self, model: str) -> tuple[str, ...]:
        """Spec hashes that have ever had a server, newest epoch change last."""
        return tuple(proof.as_heads(model, self._file.query(sql.HEADS, (model,))))

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        """Compare-and-set the epoch from ``expected`` to ``expected + 1``; return the new one.

        Raises EpochLost (definite) if another server was faster.
        """
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
        """Point the head at a published snapshot; EpochLost unless ``epoch`` is the newest."""
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
        """Append a control row; the first with a (model, key) wins.

        Returns the row that stands and whether this call wrote it (after JournalUnavailable,
        compare the row: it may be the one of the lost call).  ``fence`` is a spec and an epoch:
        EpochLost (definite, nothing written) unless it is the lineage's newest epoch.  ``line``
        goes with a row that is new; LineTaken (definite, nothing written) if it is not the next.
        """
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
        """Control rows of the model with ``seq > after``, in order."""
        found = self._file.query(f"{sql.CONTROL} AND c.seq > ? ORDER BY c.seq", (model, after))
        return tuple(proof.as_control(model, row) for row in found)

    def write_line(self, line: Line) -> None:
        """Append a line to the log of decisions; LineTaken unless its number is the next."""
        with self._file.write() as db:
            lines.append(db, line)

    def newest_line(self) -> Line | None:
        """The last line of the log; None if there was never one."""
        found = self._file.query(sql.LAST_LINE, ())
        return lines.as_line(found[0]) if found else None

    def lines(self, after: int, n: int) -> tuple[Line, ...]:
        """The lines with a number above ``after``, in order; at most ``n``."""
        return tuple(map(lines.as_line, self._file.query(sql.LINES, (after, n))))

    def trim_lines(self, anchor: Line) -> None:
        """Put the anchor in the place of all lines up to its number."""
        with self._file.write() as db:
            lines.trim(db, anchor)

    # -- claims and retention ------------------------------------------------------------------

    def claim(self, partition: int, offset: int) -> int:
        """Count one more learner that is about to learn the row; how many there were before it.

        A damaged count is begun anew: a good row must not be given up for it.
        """
        with self._file.write() as db:
            if db.execute("SELECT 1 FROM partitions WHERE id = ?", (partition,)).fetchone() is None:
                raise PartitionUnknown(partition)
            before = _claims(db.execute(sql.CLAIMED, (partition, offset)).fetchall())
            columns = (partition, offset, before + 1)
            db.execute(sql.CLAIM, (*columns, checksum(*columns)))
            return before

    def claims(self, partition: int, offset: int) -> int:
        """How many claims of the row there are; a damaged count is none."""
        return _claims(self._file.query(sql.CLAIMED, (partition, offset)))

    def run(self, model: str, spec: str, epoch: int, ms: int) -> int:
        """Add to the model's running time: see :class:`replay.journal.base.Journal`."""
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
        """Remove at most ``n`` rows with their ids: see :class:`replay.journal.base.Journal`.

        One transaction, which other writers wait for: at least 10 ms for 1,000 rows, so give a
        small ``n`` often.  Its pages are used again; the file does not shrink.
        """
        with self._file.write() as db:
            if list(_check_epoch(db, model, spec, epoch))[-1] != spec:
                return 0
            is_old = partial(_is_old, before, ahead, ran)
            return trim(db, _model_id(db, model), upto, n, is_old, self._unchecked)

    def expire(
        self, model: str, before: float, n: int, *, ahead: float = math.inf, ran: float = math.inf
    ) -> int:
        """Remove at most ``n`` halves that both clocks call old; how many."""
        with self._file.write() as db:
            number = _model_id(db, model)
            proof.model_of(db, number)
            removed = db.execute(sql.EXPIRE, (number, before, ahead, ran, n)).rowcount
            db.execute(sql.COUNT_HALVES, (-removed, number))
            db.execute(sql.PROVE_MODEL, (number,))
        return removed

    def predicted(self, model: str, after: float, before: float, n: int) -> Predicted:
        """Predictions that wait for their label: see :class:`replay.journal.base.Journal`."""
        found = self._file.query(sql.TAKEN_BETWEEN, (model, after, before, n))
        halves = [(bytes(one[1]), stored_half(one)) for one in found if proof.good(one)]
        waiting = tuple(one for one in halves if one[1].half is Half.PREDICTION)
        return Predicted(waiting, float(found[-1][sql.TAKEN_AT]) if found else None)

    def stand_in(self, partition: int, offset: int, row: NewRow) -> bool:
        """Put ``row`` where a damaged one stands: see :class:`replay.journal.base.Journal`."""
        with self._file.write() as db:
            return stand_in(db, partition, offset, row, self._unchecked)

    def examine(self, progress: Callable[[int, int], None]) -> Examined:
        """Verify all that is stored: see :class:`replay.journal.base.Journal`."""
        return examine(self._file.examine, self._unchecked, progress)

    def erasing(self) -> SqliteErasing:
        """The steps by which payloads are removed for good."""
        return SqliteErasing(self._file, self._unchecked)

    def usage(self, model: str) -> Usage:
        """Bytes in use and their bound, and rows and halves of the model, without a walk."""
        size = self._file.size()
        rows, halves = self._file.query(sql.ROWS_AND_HALVES, (model,))[0]
        return Usage(size, self._size_max, rows, halves)


def _model_id(db: sqlite3.Connection, model: str) -> int:
    """The model's small number, given at its first use."""
    found = db.execute("SELECT id FROM models WHERE name = ?", (model,)).fetchone()
    if found is None:
        made = db.execute("INSERT INTO models (name) VALUES (?)", (model,)).lastrowid
        db.execute(sql.PROVE_MODEL, (made,))
        found = (made,)
    return int(found[0])


def _is_old(before: float, ahead: float, ran: float, row: Row, written: int) -> bool:
    return written < ran and (row.at < before or row.at > ahead)


def _claims(found: Sequence[tuple[int, ...]]) -> int:
    return int(found[0][2]) if found and proof.good(found[0]) else 0


def _heads(db: sqlite3.Connection, model: str) -> dict[str, tuple[Head, int]]:
    return proof.as_heads(model, db.execute(sql.HEADS, (model,)).fetchall())


def _check_epoch(
    db: sqlite3.Connection, model: str, spec: str, epoch: int
) -> dict[str, tuple[Head, int]]:
    """The model's heads; EpochLost unless ``epoch`` is the newest of the lineage."""
    heads = _heads(db, model)
    found = heads[spec][0].epoch if spec in heads else 0
    if spec not in heads or found != epoch:
        raise EpochLost(model, epoch, found)
    return heads
