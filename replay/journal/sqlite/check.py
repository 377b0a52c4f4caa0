"""Verifies everything that a SQLite journal stores: pages, indexes, checksums, consistency."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from replay.journal.base import Examined
from replay.journal.sqlite import proof
from replay.journal.sqlite import schema as sql

Query = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
"""Returns all rows of one SELECT.  Raises sqlite3.Error."""

_PAGE: Final = 1000  # rows per SELECT, so that none keeps the log from shrinking for long
_SHOWN: Final = 100

_TABLES: Final = (
    ("model", sql.OWNER, "models m", "m.id"),
    ("partition", sql.ENTRY, "partitions p", "p.id"),
    ("head", sql.HEAD_COLUMNS, "heads", "model || ' ' || spec"),
    ("decision", sql.CONTROL_COLUMNS, "control c", "c.model || ' ' || c.seq"),
    ("half", sql.HALF_COLUMNS, "halves", "id"),
    ("line", sql.LINE_COLUMNS, "lines", "number"),
    ("claim", 'partition, "offset", n, checksum', "claims", "partition || ' ' || \"offset\""),
)
"""Name for a table's rows, their columns with the checksum, the table, the key of a row."""


def examine(query: Query, unchecked: int, progress: Callable[[int, int], None]) -> Examined:
    """Verify everything, of all models; rows with a seq up to ``unchecked`` may lack a checksum.

    It uses ``integrity_check``, because ``quick_check`` does not notice a changed key in an index,
    with which the same key could be written twice.
    """
    damage: list[str] = []
    good = old = 0
    for step in (_pages, _schema, _together):
        damage += _guarded(step, query)
    for name, columns, table, key in _TABLES:
        try:
            for record in query(f"SELECT {key}, {columns} FROM {table} NOT INDEXED", ()):
                if proof.good(record[1:]):
                    good += 1
                else:
                    damage.append(f"{name} {record[0]}: it does not match its checksum")
        except sqlite3.Error as error:
            damage.append(f"the table of each {name} can't be read: {error}")
    try:
        for record in _rows(query, progress):
            if proof.good(record):
                good += 1
            elif proof.good_row(record, unchecked):
                old += 1
            else:
                damage.append(f"{proof.place(record)}: it does not match its checksum")
    except sqlite3.Error as error:
        damage.append(f"rows can't be read: {error}")
    if len(damage) > _SHOWN:
        damage[_SHOWN:] = [f"and {len(damage) - _SHOWN:,} more"]
    return Examined(tuple(damage), good, old)


def _guarded(step: Callable[[Query], Iterator[str]], query: Query) -> list[str]:
    try:
        return list(step(query))
    except sqlite3.Error as error:
        return [f"{(step.__doc__ or '').rstrip('.')}: {error}"]


def _pages(query: Query) -> Iterator[str]:
    """SQLite verifies its pages and indexes."""
    for (line,) in query(f"PRAGMA integrity_check({_SHOWN})", ()):
        if line != "ok":
            yield " ".join(str(line).split())


def _schema(query: Query) -> Iterator[str]:
    """The definition of the tables."""
    known = query("SELECT value FROM meta WHERE name = 'schema'", ())
    ((schema_sum,),) = query(f"SELECT ({sql.SCHEMA_SUM})", ())
    if known != [(schema_sum,)]:
        yield "the definition of the tables does not match its checksum"
    if query("SELECT value FROM meta WHERE name = 'format'", ()) != [(sql.FORMAT,)]:
        yield "the number of the format is not the one of this version"
    if query(sql.KEYS, ()) not in ([(sql.NEAR_KEYS,)], [(sql.FAR_KEYS,)]):
        yield "the form of the keys is none of those that exist"


def _together(query: Query) -> Iterator[str]:
    """The counts and numbers in the tables must fit together."""
    for name, counted, actual in query(
        "SELECT name, halves, (SELECT count(*) FROM halves h WHERE h.model = m.id) FROM models m",
        (),
    ):
        if counted != actual:
            yield f"model {name!a} counts {counted} halves, {actual} are there"
    for name, n, last in query(
        "SELECT m.name, count(c.seq), coalesce(max(c.seq), 0) FROM models m"
        " JOIN control c ON c.model = m.id GROUP BY m.id",
        (),
    ):
        if n != last:
            yield f"{last - n} decisions of model {name!a} are missing"
    for table, key in (("rows", "seq"), ("partitions", "id")):
        ((given, newest),) = query(
            f"SELECT (SELECT seq FROM sqlite_sequence WHERE name = '{table}'),"
            f" (SELECT max({key}) FROM {table})",
            (),
        )
        if newest is not None and (given is None or not newest <= given < 2**53):
            yield f"the number given last to {table} is {given}, {newest} is there"
    for number, n, left in query(
        'SELECT p.id, (SELECT count(*) FROM rows r WHERE r.partition = p.id), p."end" - p.trimmed'
        " FROM partitions p",
        (),
    ):
        if n != left:
            yield f"partition {number} has {n:,} rows, {left:,} are counted"


def _rows(query: Query, progress: Callable[[int, int], None]) -> Iterator[tuple[Any, ...]]:
    ((total,),) = query("SELECT count(*) FROM rows", ())
    after, done = -(2**63), 0
    while page := query(
        f"SELECT {sql.ROW} FROM rows NOT INDEXED WHERE seq > ? ORDER BY seq LIMIT ?", (after, _PAGE)
    ):
        yield from page
        after, done = page[-1][0], done + len(page)
        progress(done, max(total, done))
