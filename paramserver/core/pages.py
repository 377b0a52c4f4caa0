"""Pages of rows of float32 that several tables share until one of them writes.

A copy of a table is a list of pages.  Whoever writes to a page that somebody else has, too, takes
a new one for what was in it.  So a snapshot of ten million rows costs no more than its list, and
what is pushed meanwhile the pages that it touches.

A pool only grows, in pieces that cost nothing before they are touched; what nobody has any more is
taken again.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import Final

import numpy as np
import numpy.typing as npt

from paramserver.core.ids import distinct

Floats32 = npt.NDArray[np.float32]
Pages = npt.NDArray[np.int64]
_Pieces = list[tuple[int, Floats32]]
"""Where each begins, and its numbers."""

PAGE_ROWS: Final = 32
"""Rows of a page: a push touches rows all over a table, and each may cost a page."""

_SHIFT: Final = 5
_WITHIN: Final = PAGE_ROWS - 1
_LEAST: Final = 128  # pages of a further piece
_TIMES: Final = 3  # as many as there are


class Pool:
    """The pages of one table and its copies.

    Parameters:
        numbers: Rows that the first pages hold: [rows, width], whole pages.
    """

    def __init__(self, numbers: Floats32) -> None:
        self.width = numbers.shape[1]
        pages = len(numbers) >> _SHIFT
        self._pieces: _Pieces = []  # by row, and the same by page
        self._sheets: _Pieces = []
        self._piece(0, numbers)
        self._held = np.ones(pages, dtype=np.int32)  # how many tables have each page
        self._free: list[int] = []
        self._used = pages  # pages that somebody had once
        self._returned: deque[Pages] = deque()
        self._lock = Lock()

    def share(self, pages: Pages) -> None:
        """One more table has these pages."""
        with self._lock:
            self._held[pages] += 1

    def release(self, pages: Pages) -> None:
        """A table that had these pages is gone.

        It is told by whatever thread and wherever garbage is collected, so here nothing is locked.
        """
        self._returned.append(pages)

    def _take_back(self) -> None:
        while self._returned:
            pages = self._returned.popleft()
            self._held[pages] -= 1
            self._free += pages[self._held[pages] == 0].tolist()

    def take(self, n: int) -> Pages:
        """Return pages for one table, of whatever content."""
        with self._lock:
            self._take_back()
            again = min(n, len(self._free))
            pages = self._free[len(self._free) - again :]
            del self._free[len(self._free) - again :]
            end = self._used + n - again
            if end > len(self._held):
                more = max(end - len(self._held), _TIMES * len(self._held), _LEAST)
                rows = np.empty((more * PAGE_ROWS, self.width), dtype=np.float32)
                self._piece(len(self._held), rows)
                self._held = np.append(self._held, np.zeros(more, dtype=np.int32))
            pages += range(self._used, end)
            self._used = end
            taken = np.array(pages, dtype=np.int64)
            self._held[taken] = 1
            return taken

    def _piece(self, page: int, numbers: Floats32) -> None:
        self._pieces.append((page << _SHIFT, numbers))
        self._sheets.append((page, numbers.reshape(-1, PAGE_ROWS * self.width)))

    def own(self, pages: Pages, places: Pages) -> None:
        """Make a table the only one that has the pages at these places of its list."""
        with self._lock:
            self._take_back()
        shared = places[self._held.take(pages.take(places)) > 1]
        if not len(shared):
            return
        shared = distinct(shared)
        old, new = pages[shared], self.take(len(shared))
        _write(self._sheets, new, _read(self._sheets, old))
        pages[shared] = new
        self.release(old)

    def read(self, at: Pages) -> Floats32:
        """Return the rows at these numbers of the pool."""
        return _read(self._pieces, at)

    def read_pages(self, pages: Pages) -> Floats32:
        """Return all rows of these pages."""
        return _read(self._sheets, pages).reshape(-1, self.width)

    def write(self, at: Pages, rows: Floats32) -> None:
        """Replace the rows at these numbers of the pool."""
        _write(self._pieces, at, rows)


def located(pages: Pages, numbers: Pages) -> Pages:
    """Return where in the pool a table with these pages has its rows."""
    at: Pages = pages.take(numbers >> _SHIFT)
    at <<= _SHIFT
    at |= numbers & _WITHIN
    return at


def page_of(numbers: Pages) -> Pages:
    """Return in which of its pages a table has each row."""
    return numbers >> _SHIFT


def pages_for(rows: int) -> int:
    """Return how many pages so many rows take."""
    return (rows + _WITHIN) >> _SHIFT


def _read(pieces: _Pieces, at: Pages) -> Floats32:
    start, last = pieces[-1]
    if at.min(initial=start) >= start:
        return last.take(at - start if start else at, axis=0)
    out = np.empty((len(at), last.shape[1]), dtype=np.float32)
    for start, numbers in pieces:
        mine = np.flatnonzero((at >= start) & (at < start + len(numbers)))
        if len(mine):
            out[mine] = numbers.take(at[mine] - start, axis=0)
    return out


def _write(pieces: _Pieces, at: Pages, rows: Floats32) -> None:
    start, last = pieces[-1]
    if at.min(initial=start) >= start:
        last[at - start if start else at] = rows
        return
    for start, numbers in pieces:
        mine = np.flatnonzero((at >= start) & (at < start + len(numbers)))
        if len(mine):
            numbers[at[mine] - start] = rows[mine]
