"""Writes one batch of rows and halves in a transaction, and replaces a row that is damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from replay.errors import (
    EpochBehind,
    JournalBehind,
    JournalDamaged,
    PartitionSealed,
    PartitionUnknown,
)
from replay.journal.base import Half, NewRow, Only, Outcome, Row, Stored, Verdict
from replay.journal.checksum import checksum
from replay.journal.sqlite import proof
from replay.journal.sqlite import schema as sql

_AS_TEXT: Final = {verdict: verdict.value for verdict in Verdict}
"""Verdicts as plain ``str``: for a subclass of ``str``, sqlite3 searches for an adapter."""
_TOGETHER: Final = 1_024
"""Greatest number of rows in one statement.  Each statement releases the GIL, and with a busy
learning thread gets it back only after the switch interval of some milliseconds, so fewer
statements are faster."""
_FEW: Final = 64
"""Up to this, each number of rows has its own statement; above it, only multiples of it have."""
_PARTITION, _MODEL = slice(0, 9), slice(9, 15)  # columns of ADMIT
_END: Final = 4  # index of "end" in a partition's columns
_KEY: Final = 3  # index of the key in a row's columns
_GIVEN: Final = slice(3, 10)  # columns that differ from row to row; the rest is computed in SQL
_EACH: Final = 8  # values bound per row: those columns and the checksum


class Batch:
    """The rows and halves that one append writes into a partition.

    Parameters:
        db: A connection within a write transaction.
        partition, known: The partition's number, and the last offset that the writer got a reply
            for.
        halves_max: Greatest number of halves stored for the model.
        seen: Newest epoch of the model that the writer has seen.

    Raises:
        PartitionUnknown, PartitionSealed, JournalBehind, EpochBehind: The partition accepts no
            rows, or none from this writer.
        JournalDamaged: The entry of the partition or its model is damaged.
    """

    def __init__(
        self, db: sqlite3.Connection, partition: int, known: int, halves_max: int, seen: int
    ) -> None:
        admitted = db.execute(sql.ADMIT, (partition,)).fetchone()
        if admitted is None:
            raise PartitionUnknown(partition)
        state = proof.as_partition((*admitted[_PARTITION], admitted[_MODEL][1]))
        model = proof.as_model(admitted[_MODEL])
        self._model, self._halves, self._ran = model.id, model.halves, model.running
        self.end = state.end
        if state.sealed:
            raise PartitionSealed(partition, self.end)
        if self.end < known:
            raise JournalBehind(partition, self.end, known)
        heads = proof.as_heads(model.name, db.execute(sql.HEADS_OF, (model.id,)).fetchall())
        self.epoch = max((head.epoch for head, _ in heads.values()), default=0)
        if self.epoch < seen:
            raise EpochBehind(model.name, self.epoch, seen)
        self._unchecked, self._seq = int(admitted[-2] or 0), int(admitted[-1])
        self._db = db
        self._partition, self._entry = partition, admitted[_PARTITION][:-1]
        self._known = known
        self._halves_max = halves_max
        self._answered: set[bytes] = set()
        self._before = (self.end, self._halves)
        self.wrote = False

    def write(self, rows: Sequence[NewRow]) -> tuple[Outcome, ...]:
        """Write the rows and return the outcome of each; only new rows get offsets."""
        outcomes: list[Outcome] = []
        for some in _pieces(rows):
            outcomes += self._write_some(some)
        end, halves = self._before
        if self.end != end:  # checksum computed here, since SQLite would wait for the GIL
            columns = (*self._entry[:_END], self.end, *self._entry[_END + 1 :])
            self._db.execute(sql.SET_END, (self.end, checksum(*columns), self._partition))
        if self._halves != halves:
            self._db.execute(sql.COUNT_HALVES, (self._halves - halves, self._model))
            self._db.execute(sql.PROVE_MODEL, (self._model,))
        return tuple(outcomes)

    def _write_some(self, rows: Sequence[NewRow]) -> list[Outcome]:
        """Write rows in one statement if all are new; otherwise write runs of new rows together.

        Rows whose keys exist are written one by one.  Existing keys are looked up once, and no row
        is built more than twice.
        """
        halves = {key for (key,) in self._by_keys(sql.HALVES_OF, rows)} if self._halves else set()
        ordinary = not halves and not any(map(_is_special, rows))
        if ordinary and (written := self._insert_all(rows)) is not None:
            return written
        stands = {record[_KEY]: record for record in self._by_keys(sql.BY_KEYS, rows)}
        out: list[Outcome] = []
        stretch: list[NewRow] = []
        seen: set[bytes] = set()
        for row in rows:
            key = bytes(row.key)
            if key in stands or key in halves or key in seen or _is_special(row):
                out += self._write_new(stretch)
                stretch = []
                out.append(self._write(row, stands.get(key)))
            else:
                stretch.append(row)
            seen.add(key)
        return out + self._write_new(stretch)

    def _by_keys(self, statement: str, rows: Sequence[NewRow]) -> list[tuple[Any, ...]]:
        """Return the result of the statement for the keys of these rows."""
        keys = [bytes(row.key) for row in rows]
        keys += keys[-1:] * (_places(len(rows)) - len(rows))
        return self._db.execute(_with_keys(statement, len(keys)), (self._model, *keys)).fetchall()

    def _write_new(self, rows: Sequence[NewRow]) -> list[Outcome]:
        out: list[Outcome] = []
        for some in _pieces(rows):
            written = self._insert_all(some)
            out += [self._write(row) for row in some] if written is None else written
        return out

    def _insert_all(self, rows: Sequence[NewRow]) -> list[Outcome] | None:
        """Write ordinary rows in one statement, or none and return None if a key exists.

        To save a statement (each releases the GIL), keys are not looked up before: SQLite skips
        rows whose keys exist.  If it skipped any, the rows written are deleted again.
        """
        before = self.end, self._seq, self.wrote
        made = [self._next(row, bytes(row.key)) for row in rows]
        values: list[Any] = [before[1], self._partition, before[0], self._model, self._ran]
        for row in made:
            columns = self._columns(row)
            values += columns[_GIVEN]
            values.append(checksum(*columns))
        places = _places(len(rows))
        values += [None] * (places - len(rows)) * _EACH
        if self._db.execute(_with_rows(sql.INSERT_NEW, places), values).rowcount < len(rows):
            self.end, self._seq, self.wrote = before
            self._db.execute(sql.DROP_AFTER, (self._seq,))
            self._db.execute(sql.SET_SEQ, (self._seq,))
            return None
        self._answered.update(row.key for row in made)
        return [Outcome(True, row) for row in made]

    def _next(self, row: NewRow, key: bytes) -> Row:
        """Build the row with the partition's next offset and the store's next seq."""
        self.end += 1
        self._seq += 1
        self.wrote = True
        return Row(
            self._seq, self._partition, self.end, key, row.event_id, row.source, row.verdict,
            float(row.factor), bytes(row.payload), float(row.at),
        )  # fmt: skip

    def _columns(self, row: Row) -> tuple[Any, ...]:
        """Return the row's columns without the checksum."""
        return (
            row.seq, row.partition, row.offset, row.key, row.event_id, row.source,
            _AS_TEXT[row.verdict], row.factor, row.payload, row.at, self._model, None, None,
            self._ran,
        )  # fmt: skip

    def _write(self, row: NewRow, record: tuple[Any, ...] | None = None) -> Outcome:
        """Write one row; ``record``: the existing row with its key, if it was looked up."""
        key = bytes(row.key)
        if record is None:
            record = self._db.execute(sql.BY_KEY, (self._model, key)).fetchone()
        if record is None:
            return self._new(key, row)
        if not proof.good_row(record, self._unchecked):
            return Outcome(False, None, damaged=JournalDamaged(proof.place(record)))
        stored = proof.as_row(record, self._unchecked)
        if stored.partition != self._partition or stored.offset <= self._known:
            return Outcome(False, stored)
        if key in self._answered or row.half is not None:
            return Outcome(False, stored)
        self._answered.add(key)
        return Outcome(True, stored)

    def _new(self, key: bytes, row: NewRow) -> Outcome:
        """Write a row or half whose key has no row, if preconditions and stored half admit it."""
        if row.only is not None and not self._is_met(row.only):
            return Outcome(False, None, gone=True)
        half = self._stored_half(key)
        if half is not None and (row.half or row.over is not None) and not proof.good(half):
            what = f"the half that was stored for id {row.event_id!a}"
            return Outcome(False, None, damaged=JournalDamaged(what))
        stored, given = None if half is None else stored_half(half), bytes(row.payload)
        if stored is None and row.over is not None and given:
            return Outcome(False, None, gone=True)
        replaced = row.over if row.half is None or row.over is not None else b""
        if stored is not None and replaced is not None and bytes(replaced) != stored.payload:
            resent = (stored.half, stored.payload) == (row.half, given)  # after a lost reply
            return Outcome(False, None, stored.at, None if resent else stored)
        if stored is not None:
            self._db.execute(sql.DROP_HALF, (self._model, key))
            self._halves -= 1
            self.wrote = True
        return self._insert(key, row) if row.half is None else self._store_half(key, row)

    def _is_met(self, only: Only) -> bool:
        if only.absent and self._db.execute(sql.BY_KEY, (self._model, only.absent)).fetchone():
            return False
        newer = self._db.execute(sql.KINDS_AFTER, (self._model, only.control))
        return all(kind not in only.kinds for (kind,) in newer)

    def _stored_half(self, key: bytes) -> tuple[Any, ...] | None:
        if not self._halves:
            return None
        record: tuple[Any, ...] | None = self._db.execute(
            sql.KEPT_HALF, (self._model, key)
        ).fetchone()
        return record

    def _store_half(self, key: bytes, row: NewRow) -> Outcome:
        at = float(row.at)
        if not row.payload:  # it only removes the stored half
            return Outcome(False, None, at)
        if self._halves >= self._halves_max:
            return Outcome(False, None)
        values = (row.half, row.event_id, row.source, bytes(row.payload), at, self._ran)
        columns = (self._model, key, *values)
        self._db.execute(sql.KEEP_HALF, (*columns, checksum(*columns)))
        self._halves += 1
        self.wrote = True
        return Outcome(False, None, at)

    def _insert(self, key: bytes, row: NewRow) -> Outcome:
        made = self._next(row, key)
        columns = self._columns(made)
        self._db.execute(sql.INSERT, (*columns, checksum(*columns)))
        self._answered.add(key)
        return Outcome(True, made)


def _is_special(row: NewRow) -> bool:
    return bool(row.half) or row.over is not None or row.only is not None


def _pieces(rows: Sequence[NewRow]) -> Iterator[Sequence[NewRow]]:
    """Split rows into those of one statement each."""
    for start in range(0, len(rows), _TOGETHER):
        yield rows[start : start + _TOGETHER]


def _places(n: int) -> int:
    """Return the number of placeholders in the statement for ``n`` rows; the excess is NULL.

    Rounding it up keeps the number of different statements small, so that SQLite's cache of
    compiled statements has nearly all of them.
    """
    return n if n < _FEW else -(-n // _FEW) * _FEW


@lru_cache(maxsize=128)
def _with_rows(statement: str, n: int) -> str:
    """Return the statement for ``n`` rows; cached, so that the text's hash is cached, too."""
    return statement.format(", ".join([sql.INSERT_ROW.format(i) for i in range(1, n + 1)]))


@lru_cache(maxsize=256)
def _with_keys(statement: str, n: int) -> str:
    return statement.format(", ".join("?" * n))


def stored_half(record: Sequence[Any]) -> Stored:
    """Return a half from the columns of :data:`replay.journal.sqlite.schema.KEPT_HALF`."""
    _, _, half, event_id, source, payload, at, _, _ = record
    return Stored(Half(half), event_id, source, payload, at)


def stand_in(
    db: sqlite3.Connection, partition: int, offset: int, row: NewRow, unchecked: int
) -> bool:
    """Replace a damaged row within a write transaction, see ``stand_in`` of ``Journal``."""
    record = db.execute(sql.READ, (partition, offset, offset + 1)).fetchone()
    if record is None:
        raise JournalDamaged(f"row {offset} of partition {partition}", "nothing stands there")
    if proof.good_row(record, unchecked):
        return False
    model_of = "SELECT model FROM partitions WHERE id = ?"
    seq, (number,) = record[0], db.execute(model_of, (partition,)).fetchone()
    db.execute("REINDEX rows")  # SQLite cannot delete a row whose index entries do not match it
    db.execute("DELETE FROM rows WHERE seq = ?", (seq,))
    columns = (
        seq, partition, offset, bytes(row.key), row.event_id, row.source, row.verdict,
        float(row.factor), bytes(row.payload), float(row.at), number, None, None,
        proof.model_of(db, number).running,
    )  # fmt: skip
    db.execute(sql.INSERT, (*columns, checksum(*columns)))
    return True
