"""Reads and writes the log of decisions within a transaction of the SQLite journal."""

from __future__ import annotations

import sqlite3

from replay.errors import LineTaken
from replay.journal.base import Line
from replay.journal.checksum import checksum
from replay.journal.sqlite import proof
from replay.journal.sqlite import schema as sql


def as_line(record: proof.Record) -> Line:
    """Return a line from its columns.  Raises JournalDamaged."""
    return Line(*proof.checked(f"line {record[0]} of the log of decisions", record))


def append(db: sqlite3.Connection, line: Line) -> None:
    """Append a line.  Raises LineTaken unless its number is the next."""
    newest = _newest(db)
    if line.number != newest + 1:
        raise LineTaken(line.number, newest)
    _write(db, line)


def trim(db: sqlite3.Connection, anchor: Line) -> None:
    """Replace all lines up to the anchor's number by the anchor.  Raises LineTaken."""
    newest, oldest = _newest(db), db.execute("SELECT min(number) FROM lines").fetchone()[0]
    if newest < anchor.number or oldest == anchor.number:
        raise LineTaken(anchor.number, newest)
    db.execute(sql.DROP_LINES, (anchor.number,))
    _write(db, anchor)


def _newest(db: sqlite3.Connection) -> int:
    record = db.execute(sql.LAST_LINE).fetchone()
    return 0 if record is None else int(record[0])


def _write(db: sqlite3.Connection, line: Line) -> None:
    columns = (line.number, bytes(line.text))
    db.execute(sql.WRITE_LINE, (*columns, checksum(*columns)))
