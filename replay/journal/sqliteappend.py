"""One batch of rows and halves, written within one transaction of the SQLite journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from typing import Any, Final

from replay.errors import EpochBehind, JournalBehind, PartitionSealed, PartitionUnknown
from replay.journal import sqliteschema as sql
from replay.journal.base import Half, NewRow, Outcome, Row, Stored, Verdict

_TOGETHER: Final = 64  # rows of one statement


class Batch:
    """What an append writes into one partition.

    Parameters
    ----------
    db
        A connection within a write transaction.
    partition, known
        The partition's number, and the last offset that the writer had an answer for.
    halves_max
        Most halves that are kept of the model.
    seen
        Newest epoch of the model that the writer has seen.

    Raises
    ------
    PartitionUnknown, PartitionSealed, JournalBehind, EpochBehind
        The partition takes no rows, or not from this writer.
    """

    def __init__(
        self, db: sqlite3.Connection, partition: int, known: int, halves_max: int, seen: int
    ) -> None:
        found = db.execute(sql.ADMIT, (partition,)).fetchone()
        if found is None:
            raise PartitionUnknown(partition)
        self._model, self.end, sealed, epoch, self._halves, name = found
        if sealed:
            raise PartitionSealed(partition, self.end)
        if self.end < known:
            raise JournalBehind(partition, self.end, known)
        self.epoch = int(epoch or 0)
        if self.epoch < seen:
            raise EpochBehind(name, self.epoch, seen)
        self._db = db
        self._partition = partition
        self._known = known
        self._halves_max = halves_max
        self._answered: set[bytes] = set()
        self._before = (self.end, self._halves)
        self.wrote = False

    def write(self, rows: Sequence[NewRow]) -> tuple[Outcome, ...]:
        """Outcome of each row; only rows that are new get offsets."""
        outcomes: list[Outcome] = []
        for start in range(0, len(rows), _TOGETHER):
            some = rows[start : start + _TOGETHER]
            if self._all_new(some):
                outcomes += self._insert_all(some)
            else:
                outcomes += [self._write(row) for row in some]
        end, halves = self._before
        if self.end != end:
            self._db.execute(sql.SET_END, (self.end, self._partition))
        if self._halves != halves:
            self._db.execute(sql.COUNT_HALVES, (self._halves - halves, self._model))
        return tuple(outcomes)

    def _all_new(self, rows: Sequence[NewRow]) -> bool:
        """Whether they are ordinary rows of which nothing stands: one statement writes them."""
        keys = {bytes(row.key) for row in rows}
        if len(keys) < len(rows) or any(row.half or row.over is not None for row in rows):
            return False
        if self._halves and self._any(sql.ANY_HALF, keys):
            return False
        return not self._any(sql.ANY_ROW, keys)

    def _any(self, statement: str, keys: Collection[bytes]) -> bool:
        found = self._db.execute(
            statement.format(", ".join("?" * len(keys))), (self._model, *keys)
        ).fetchone()
        return found is not None

    def _insert_all(self, rows: Sequence[NewRow]) -> list[Outcome]:
        """Write rows in one statement: each statement hands the interpreter over and back."""
        made: list[tuple[Any, ...]] = []
        values: list[Any] = []
        for offset, row in enumerate(rows, self.end + 1):
            made.append(self._columns(offset, bytes(row.key), row))
            values += (self._model, *made[-1], None, None)
        statement = f"{sql.INSERT_COLUMNS} VALUES {', '.join([sql.INSERT_ROW] * len(rows))}"
        first = (self._db.execute(statement, values).lastrowid or 0) - len(rows) + 1
        self.end += len(rows)
        self.wrote = True
        self._answered.update(row[2] for row in made)
        return [Outcome(True, Row(first + i, *row)) for i, row in enumerate(made)]

    def _columns(self, offset: int, key: bytes, row: NewRow) -> tuple[Any, ...]:
        """The row as it is stored, from its partition on."""
        return (
            self._partition, offset, key, row.event_id, row.source, row.verdict, float(row.factor),
            bytes(row.payload), float(row.at),
        )  # fmt: skip

    def _write(self, row: NewRow) -> Outcome:
        key = bytes(row.key)
        found = self._db.execute(sql.BY_KEY, (self._model, key)).fetchone()
        if found is None:
            return self._new(key, row)
        stored = as_row(found)
        if stored.partition != self._partition or stored.offset <= self._known:
            return Outcome(False, stored)
        if key in self._answered or row.half is not None:
            return Outcome(False, stored)
        self._answered.add(key)
        return Outcome(True, stored)

    def _new(self, key: bytes, row: NewRow) -> Outcome:
        """A key without a row: write the row, or keep the half, if what stands there lets it."""
        kept, given = self._kept(key), bytes(row.payload)
        if kept is None and row.over is not None and given:
            return Outcome(False, None, gone=True)
        wanted = row.over if row.half is None or row.over is not None else b""
        if kept is not None and wanted is not None and bytes(wanted) != kept.payload:
            again = (kept.half, kept.payload) == (row.half, given)  # of an answer that was lost
            return Outcome(False, None, kept.at, None if again else kept)
        if kept is not None:
            self._db.execute(sql.DROP_HALF, (self._model, key))
            self._halves -= 1
            self.wrote = True
        return self._insert(key, row) if row.half is None else self._keep(key, row)

    def _kept(self, key: bytes) -> Stored | None:
        if not self._halves:
            return None
        found = self._db.execute(sql.KEPT_HALF, (self._model, key)).fetchone()
        return Stored(Half(found[0]), *found[1:]) if found else None

    def _keep(self, key: bytes, row: NewRow) -> Outcome:
        at = float(row.at)
        if not row.payload:  # it only removes what stood
            return Outcome(False, None, at)
        if self._halves >= self._halves_max:
            return Outcome(False, None)
        values = (row.half, row.event_id, row.source, bytes(row.payload), at)
        self._db.execute(sql.KEEP_HALF, (self._model, key, *values))
        self._halves += 1
        self.wrote = True
        return Outcome(False, None, at)

    def _insert(self, key: bytes, row: NewRow) -> Outcome:
        self.end += 1
        self.wrote = True
        values = self._columns(self.end, key, row)
        seq = self._db.execute(sql.INSERT, (self._model, *values, None, None)).lastrowid or 0
        self._answered.add(key)
        return Outcome(True, Row(seq, *values))


def as_row(found: Sequence[Any]) -> Row:
    """A row from the columns of :data:`replay.journal.sqliteschema.ROW`."""
    seq, partition, offset, key, event_id, source, verdict, factor, payload, at = found
    return Row(seq, partition, offset, key, event_id, source, Verdict(verdict), factor, payload, at)
