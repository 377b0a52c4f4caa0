"""Moves a table into memory that processes share, and reads one that another process changes.

A table at one moment is a count of ids, a list of pages, and arrays.  Who holds these three reads
it as it was then, whatever its owner does meanwhile, if the owner holds a copy of the table as it
was: ids, slots and pages are only added, and pages that a copy uses are not written.
"""

from __future__ import annotations

from typing import NamedTuple

from paramserver.core.tables.flags import RowFlags
from paramserver.core.tables.ids import IdArrays, Ids
from paramserver.core.tables.memory import Memory
from paramserver.core.tables.pages import Floats32, Pages, Pool
from paramserver.core.tables.rows import Rows


class TableArrays(NamedTuple):
    """The arrays of a table at one moment, from which another process can read it.

    Attributes:
        ids: The numbering.
        n: Count of rows.
        pages: The pool's pages that hold them.
        pieces: Index of the first row of each piece of the pool, and its array.
        width: Numbers of a row.
    """

    ids: IdArrays
    n: int
    pages: Pages
    pieces: list[tuple[int, Floats32]]
    width: int


def move(table: Rows, memory: Memory) -> None:
    """Continue in another memory, with all copies of this table; nobody may write meanwhile."""
    table._ids.move(memory)
    table._pool.move(memory)


def arrays_of(table: Rows) -> TableArrays | None:
    """Return the arrays of a table, or None if it has gaps.

    Nobody writes to this object any more; its copies may go on changing.
    """
    if table._older is not None or table._marks.gone:
        return None
    ids = table._ids.arrays()
    ids = ids._replace(ids=ids.ids[: table._n])
    return TableArrays(ids, table._n, table._pages, table._pool.arrays(), table.width)


def read_only(arrays: TableArrays, holder: object = None) -> Rows:
    """Return a table that is only read; it keeps ``holder`` alive."""
    made = Rows.empty(arrays.width)
    made._ids, made._n = Ids.read_only(arrays.ids, arrays.n), arrays.n
    made._pool, made._pages = Pool.read_only(arrays.width, arrays.pieces), arrays.pages
    made._marks, made._given, made._holder = RowFlags(), None, holder
    return made
