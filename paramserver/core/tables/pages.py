"""Copy-on-write pages of float32 rows, shared by a table and its copies.

A table is a list of page numbers in a pool.  A copy shares the pages; a table that writes to a
shared page first replaces it by a copy of its own.  So a snapshot of ten million rows costs its
list of pages, plus one page for each that is written meanwhile.

A pool only grows, in pieces whose memory costs nothing until it is touched.  Pages that no table
uses any more are reused.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from threading import Lock
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from paramserver.core.tables.ids import distinct
from paramserver.core.tables.memory import OF_PROCESS, Memory

Floats32 = npt.NDArray[np.float32]
Pages = npt.NDArray[np.int64]
_Pieces = list[tuple[int, Floats32]]
"""Index of the first row (or page) of each piece, and its array."""

PAGE_ROWS: Final = 32
"""Rows of a page: small, because each row that a push touches may cost a copy of its page."""

_SHIFT: Final = 5
_WITHIN: Final = PAGE_ROWS - 1
_LEAST: Final = 128  # pages of a new piece, at least
_COPIED: Final = 64 * PAGE_ROWS  # rows copied at a time while writers wait
_TIMES: Final = 3  # a new piece has 3 times as many pages as there are


@dataclass(slots=True)
class _Copy:
    """A copy of a pool's first piece that is being made, and the row up to which it is there."""

    rows: Floats32
    end: int = 0

    def of(self, shift: int) -> Floats32:
        """Return the copy by rows (``shift`` 0) or by pages."""
        return self.rows.reshape(-1, PAGE_ROWS * self.rows.shape[1]) if shift else self.rows


class Pool:
    """The pages of one table and its copies.

    Parameters:
        numbers: Rows of the first pages, shape [rows, width]; only whole pages.
    """

    def __init__(self, numbers: Floats32) -> None:
        self.width = numbers.shape[1]
        pages = len(numbers) >> _SHIFT
        self._pieces: _Pieces = []  # shaped [row, number]; _sheets has the same as [page, …]
        self._sheets: _Pieces = []
        self._piece(0, numbers)
        self._held = np.ones(pages, dtype=np.int32)  # number of tables that use each page
        self._free: list[int] = []
        self._used = pages  # pages from here on were never used
        self._returned: deque[Pages] = deque()
        self._lock = Lock()
        self._copy: _Copy | None = None
        self._memory = OF_PROCESS

    def arrays(self) -> list[tuple[int, Floats32]]:
        """Return index of the first row and array of each piece, as far as it was ever used."""
        end = self._used << _SHIFT
        return [(start, rows[: end - start]) for start, rows in self._pieces if start < end]

    @classmethod
    def read_only(cls, width: int, pieces: list[tuple[int, Floats32]]) -> Self:
        """Return a pool of pages that are only read, in pieces as :meth:`arrays` returns them."""
        made = cls(np.empty((0, width), dtype=np.float32))
        made._pieces, made._sheets = [], []
        for row, numbers in pieces:
            made._piece(row >> _SHIFT, numbers)
        return made

    def move(self, memory: Memory) -> None:
        """Continue in one array of another memory; nobody may write meanwhile."""
        with self._lock:
            self._copy, self._memory = None, memory
            old, used = self._pieces, self._used << _SHIFT
            pages = max((1 + _TIMES) * self._used, _LEAST)
            rows = memory.empty((pages * PAGE_ROWS, self.width), np.float32, used)
            for start, numbers in old:
                for begin in range(start, min(start + len(numbers), used), _COPIED):
                    end = min(begin + _COPIED, start + len(numbers), used)
                    rows[begin:end] = numbers[begin - start : end - start]
            held = np.zeros(pages, dtype=np.int32)
            held[: self._used] = self._held[: self._used]
            self._held = held
            self._sheets = [(0, rows.reshape(-1, PAGE_ROWS * self.width))]
            self._pieces = [(0, rows)]  # threads that write a snapshot go on reading the old ones

    def share(self, pages: Pages) -> None:
        """Note that one more table uses these pages."""
        with self._lock:
            self._held[pages] += 1

    def release(self, pages: Pages) -> None:
        """Note that one table no longer uses these pages.

        The garbage collector may call this in any thread at any point, so it takes no lock.
        """
        self._returned.append(pages)

    def _take_back(self) -> None:
        while self._returned:
            pages = self._returned.popleft()
            self._held[pages] -= 1
            self._free += pages[self._held[pages] == 0].tolist()

    def take(self, n: int) -> Pages:
        """Return ``n`` pages for one table; their content is undefined."""
        with self._lock:
            self._take_back()
            again = min(n, len(self._free))
            pages = self._free[len(self._free) - again :]
            del self._free[len(self._free) - again :]
            end = self._used + n - again
            self._reach(end)
            pages += range(self._used, end)
            self._used = end
            taken = np.array(pages, dtype=np.int64)
            self._held[taken] = 1
            return taken

    def _reach(self, end: int) -> None:
        """Provide the pages before ``end``, in a new piece if the last one has no room."""
        (start, rows), here = self._pieces[-1], len(self._held)
        if not self._memory.reserve(rows, (min(end, here) << _SHIFT) - start):
            here = self._used  # the last piece ends here
            del self._pieces[-1], self._sheets[-1]
            self._held = self._held[:here]
            self._piece(start >> _SHIFT, rows[: (here << _SHIFT) - start])
        if end > here:
            more = max(end - here, _TIMES * here, _LEAST)
            room = (end - here) << _SHIFT
            rows = self._memory.empty((more * PAGE_ROWS, self.width), np.float32, room)
            self._piece(here, rows)
            self._held = np.append(self._held, np.zeros(more, dtype=np.int32))

    def _piece(self, page: int, numbers: Floats32) -> None:
        self._pieces.append((page << _SHIFT, numbers))
        self._sheets.append((page, numbers.reshape(-1, PAGE_ROWS * self.width)))

    def own(self, pages: Pages, places: Pages) -> None:
        """Replace shared pages at these positions of a table's list by copies, in place."""
        with self._lock:
            self._take_back()
        shared = places[self._held.take(pages.take(places)) > 1]
        if not len(shared):
            return
        shared = distinct(shared)
        old, new = pages[shared], self.take(len(shared))
        self._write(_SHIFT, new, _read(self._sheets, old))
        pages[shared] = new
        self.release(old)

    def read(self, at: Pages) -> Floats32:
        """Return the rows at these row indices of the pool."""
        return _read(self._pieces, at)

    def read_pages(self, pages: Pages) -> Floats32:
        """Return all rows of these pages."""
        return _read(self._sheets, pages).reshape(-1, self.width)

    def write(self, at: Pages, rows: Floats32) -> None:
        """Replace the rows at these row indices of the pool."""
        self._write(0, at, rows)

    def _write(self, shift: int, at: Pages, rows: Floats32) -> None:
        """Replace rows (``shift`` 0) or pages, also in a copy that is being made."""
        pieces = self._sheets if shift else self._pieces
        if self._copy is None:
            _write(pieces, at, rows)
            return
        with self._lock:
            _write(pieces, at, rows)
            if self._copy is not None:
                copied = at < self._copy.end >> shift
                self._copy.of(shift)[at[copied]] = rows[copied]

    def begin_copy(self) -> None:
        """Begin a copy of the first piece: from now on writes go to both, as far as it is there.

        Call it before anybody else knows the pool.
        """
        self._copy = _Copy(np.empty_like(self._pieces[0][1]))

    def copy_first(self) -> None:
        """Make the copy that was begun, while others use the pool, and replace the piece by it."""
        copy, rows = self._copy, self._pieces[0][1]
        if copy is None:  # the pages have been moved
            return
        into = copy.rows
        for begin in range(0, len(rows), _COPIED):
            end = min(begin + _COPIED, len(rows))
            into[begin:end:PAGE_ROWS] = 0.0  # new memory takes long, and writers would wait
            with self._lock:
                if self._copy is None:
                    return
                into[begin:end] = rows[begin:end]
                copy.end = end
        with self._lock:
            if self._copy is None:
                return
            self._pieces[0], self._sheets[0] = (0, into), (0, copy.of(_SHIFT))
            self._copy = None


def located(pages: Pages, numbers: Pages) -> Pages:
    """Return the pool's row indices of a table's row numbers, given the table's pages."""
    at: Pages = pages.take(numbers >> _SHIFT)
    at <<= _SHIFT
    at |= numbers & _WITHIN
    return at


def page_of(numbers: Pages) -> Pages:
    """Return for each row number of a table the position of its page in the table's list."""
    return numbers >> _SHIFT


def pages_for(rows: int) -> int:
    """Return how many pages hold that many rows."""
    return (rows + _WITHIN) >> _SHIFT


def _read(pieces: _Pieces, at: Pages) -> Floats32:
    start, last = pieces[-1]
    if not start or at.min(initial=start) >= start:
        return last.take(at - start if start else at, axis=0)
    out = np.empty((len(at), last.shape[1]), dtype=np.float32)
    for start, numbers in pieces:
        mine = np.flatnonzero((at >= start) & (at < start + len(numbers)))
        if len(mine):
            out[mine] = numbers.take(at[mine] - start, axis=0)
    return out


def _write(pieces: _Pieces, at: Pages, rows: Floats32) -> None:
    start, last = pieces[-1]
    if not start or at.min(initial=start) >= start:
        last[at - start if start else at] = rows
        return
    for start, numbers in pieces:
        mine = np.flatnonzero((at >= start) & (at < start + len(numbers)))
        if len(mine):
            numbers[at[mine] - start] = rows[mine]
