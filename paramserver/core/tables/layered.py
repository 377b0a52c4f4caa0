"""A table of rows on top of another one that never changes, which many processes may share.

The parameter server publishes its table from time to time; replicas of its host read that
publication where it is, and have in memory of their own only the rows that changed since, or that
they changed themselves.  A row of their own is always the right one, whatever the table below says.
So a newer publication can take the place of the older one in one assignment, and the own rows that
equal it are dropped afterwards, a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from paramserver.core.tables.flags import Flags
from paramserver.core.tables.ids import IdArray
from paramserver.core.tables.pages import Floats32
from paramserver.core.tables.row_message import RowMessage
from paramserver.core.tables.rows import Rows

_COMPARED: Final = 512  # own rows that are compared in one step
_BELOW: Final = 2**40  # position of the first row of the table below; own rows have smaller ones


class LayeredRows(RowMessage):
    """A table whose rows are its own ones and, for other ids, those of the table below.

    It has the methods of :class:`Rows` that a replica needs.  The two tables must have equal rows
    wherever there is no own one.

    Parameters:
        below: A table that is only read.
        own: Rows that replace those below; None: none yet.
    """

    def __init__(self, below: Rows, own: Rows | None = None) -> None:
        self.width, self.gone = below.width, below.gone
        self._below, self._own = below, Rows.empty(below.width) if own is None else own

    @property
    def own_rows(self) -> int:
        """Number of rows that are not read from the table below."""
        return len(self._own)

    def get(self, ids: IdArray) -> tuple[Floats32, Flags]:
        if not len(self._own):
            return self._below.get(ids)
        numbers, known = self._own.get(ids)
        left = np.flatnonzero(~known)
        if len(left):
            numbers[left], known[left] = self._below.get(ids[left])
        return numbers, known

    look_up = get

    def has(self, ids: IdArray) -> Flags:
        """Return for each id whether there is a row."""
        flags: Flags = self._own.has(ids) | self._below.has(ids)
        return flags

    def put(self, ids: IdArray, numbers: Floats32) -> None:
        """Insert or replace the rows of these ids, each given once."""
        self._own.put(ids, numbers)

    def update(self, new: Rows) -> None:
        """Insert or replace the rows of ``new``; those of its ``gone`` become zeros.

        The server removes rows of bounded tables only, and does not publish these.
        """
        if len(new.gone):
            zeros = np.zeros((len(new.gone), self.width), dtype=np.float32)
            self._own.put(new.gone, zeros)
        self._own.put(new.ids, new.numbers)

    def copy(self) -> LayeredRows:
        """Return an independent copy on the same table."""
        return LayeredRows(self._below, self._own.copy())

    def rest_on(self, below: Rows) -> Iterator[None]:
        """Take a newer table below, at once; then drop own rows that equal its, in steps.

        All rows without an own one must be equal in both tables.
        """
        self._below = below
        return self._dropping(below)

    def _dropping(self, below: Rows) -> Iterator[None]:
        own = self._own
        place, last = own.begin, own.end + len(own)
        # Rows that are packed come to the end, once, and rows may be written for ever.
        while place < min(own.end, last) and self._below is below:
            part = own.part(place, place + _COMPARED)
            if len(part):
                self._own.drop(part.ids[_same(part.numbers, *below.get(part.ids))])
            place += _COMPARED
            yield

    @property
    def end(self) -> int:
        """The position after the last row: own rows are before those of the table below.

        So who goes through the positions meets a row before or after it is dropped from the own
        ones, whatever tables are taken meanwhile.
        """
        return _BELOW + self._below.end

    def next_part(self, begin: int, n: int) -> tuple[Rows, int]:
        """Return the rows at the first ``n`` positions from ``begin`` on, and the next position."""
        if begin < self._own.end:
            part, end = self._own.next_part(begin, n)
            return part, end if end < self._own.end else _BELOW
        begin = max(begin, _BELOW)
        end = min(begin + n, self.end)
        ids = self._below.ids_at(np.arange(begin - _BELOW, end - _BELOW))
        return Rows(ids, self.get(ids)[0]), end

    @property
    def ids(self) -> IdArray:
        """All ids, in no particular order."""
        own = self._own.ids
        return np.concatenate((self._below.ids, own[~self._below.has(own)]))

    @property
    def numbers(self) -> Floats32:
        """The rows of all ids, in their order."""
        return self.get(self.ids)[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.ids, self.numbers)

    def __len__(self) -> int:
        return len(self._below) + int(np.count_nonzero(~self._below.has(self._own.ids)))


def _same(mine: Floats32, theirs: Floats32, known: Flags) -> Flags:
    """Return which rows are known below, and equal to the last bit."""
    bits = mine.view(np.uint32) == theirs.view(np.uint32)
    same: Flags = bits.all(axis=1) & known
    return same


def on_top_of(below: Rows, table: Rows | LayeredRows) -> tuple[LayeredRows, Iterator[None]]:
    """Return the table as one that rests on ``below``, and the steps that drop equal rows."""
    made = table if isinstance(table, LayeredRows) else LayeredRows(below, table)
    return made, made.rest_on(below)
