"""Replaces a damaged row of the SQLite journal."""

from __future__ import annotations

import sqlite3
from typing import Final

from replay.errors import JournalDamaged
from replay.journal.base import NewRow
from replay.journal.checksum import checksum
from replay.journal.sqlite import proof
from replay.journal.sqlite import schema as sql

_OF: Final = "SELECT model FROM partitions WHERE id = ?"


def stand_in(
    db: sqlite3.Connection, partition: int, offset: int, row: NewRow, unchecked: int
) -> bool:
    """Replace a damaged row within a write transaction, see ``stand_in`` of ``Journal``."""
    record = db.execute(sql.READ, (partition, offset, offset + 1)).fetchone()
    if record is None:
        raise JournalDamaged(f"row {offset} of partition {partition}", "nothing stands there")
    if proof.good_row(record, unchecked):
        return False
    seq, (number,) = record[0], db.execute(_OF, (partition,)).fetchone()
    db.execute("REINDEX rows")  # SQLite cannot delete a row whose index entries do not match it
    db.execute("DELETE FROM rows WHERE seq = ?", (seq,))
    columns = (
        seq, partition, offset, bytes(row.key), row.event_id, row.source, row.verdict,
        float(row.factor), bytes(row.payload), float(row.at), number, None, None,
        proof.model_of(db, number).running,
    )  # fmt: skip
    db.execute(sql.INSERT, (*columns, checksum(*columns)))
    return True
