"""Decodes rows of the SQLite journal's tables, verifying each against its checksum."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from replay.errors import JournalDamaged
from replay.journal.base import Control, Head, Partition, Row, Verdict
from replay.journal.checksum import proves
from replay.journal.sqlite import schema as sql

Record = Sequence[Any]

_COLUMNS: Final = 9  # columns of a partition, including its checksum


@dataclass(frozen=True, slots=True)
class Model:
    """One model's row in the journal.

    Attributes:
        id, name: Number and name of the model.
        halves: Number of halves stored.
        trimmed: seq of the newest trimmed row.
        running: Total running time of its servers in ms.
    """

    id: int
    name: str
    halves: int
    trimmed: int
    running: int


def good(record: Record) -> bool:
    """Return whether the last column is the checksum of the others."""
    return proves(record[-1], tuple(record[:-1]))


def checked(what: str, record: Record) -> Record:
    """Return the columns without the checksum.  Raises JournalDamaged if it does not match."""
    if not good(record):
        raise JournalDamaged(what)
    return record[:-1]


def good_row(record: Record, unchecked: int) -> bool:
    """Return whether the columns of :data:`sqliteschema.ROW` match their checksum.

    Rows with a seq up to ``unchecked`` may lack one, because their format had none.
    """
    return good(record) or (record[-1] is None and record[0] <= unchecked)


def as_row(record: Record, unchecked: int) -> Row:
    """Return a row from the columns of :data:`sqliteschema.ROW`.  Raises JournalDamaged."""
    if not good_row(record, unchecked):
        raise JournalDamaged(place(record))
    seq, partition, offset, key, event_id, source, verdict, factor, payload, at = record[:10]
    try:
        judged = Verdict(verdict)
    except ValueError as error:  # possible in a row without a checksum
        raise JournalDamaged(place(record), str(error)) from error
    return Row(seq, partition, offset, key, event_id, source, judged, factor, payload, at)


def place(record: Record) -> str:
    """Return a text naming the row's partition and offset, for errors."""
    return f"row {record[2]} of partition {record[1]}"


def as_partition(record: Record) -> Partition:
    """Return a partition from the columns of :data:`sqliteschema.PARTITION`.

    Raises JournalDamaged.
    """
    name = record[_COLUMNS]
    number, _, replica, spec, end, sealed, _, trimmed = checked(
        f"partition {record[0]}", record[:_COLUMNS]
    )
    if name is None:
        raise JournalDamaged(f"partition {number}", "its model is missing")
    return Partition(number, name, replica, spec, end, bool(sealed), trimmed)


def as_model(record: Record) -> Model:
    """Return a model from the columns of :data:`sqliteschema.OWNER`.  Raises JournalDamaged."""
    return Model(*checked(f"the entry of model {record[1]!a}", record))


def model_of(db: sqlite3.Connection, number: int) -> Model:
    """Return the model of this number, within a transaction.  Raises JournalDamaged."""
    return as_model(db.execute(sql.OWNED, (number,)).fetchone())


def as_heads(model: str, records: Iterable[Record]) -> dict[str, tuple[Head, int]]:
    """Return by spec the head and the number of its last change of epoch.

    All heads of a model are read each time, because a damaged spec would otherwise look like one
    without a head.  Raises JournalDamaged.
    """
    heads = {}
    for columns in records:
        _, spec, epoch, snapshot, changed = checked(f"a head of model {model}", columns)
        heads[spec] = (Head(epoch, snapshot), changed)
    return heads


def as_control(model: str, record: Record) -> Control:
    """Return a control row from its columns.  Raises JournalDamaged."""
    _, seq, kind, key, payload = checked(f"control row {record[1]} of model {model}", record)
    return Control(seq, model, kind, key, payload)
