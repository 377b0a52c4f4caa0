"""Rows of float32 by 64-bit id: what a table of ids holds, and what has been added to some of them.

It is to a block of kind ``rows`` what a dict is to one of names: ``update``, ``copy`` and ``len``
do the same.  Rows stand in the order in which their ids came, to the table or to a copy: they share
the numbers of ids, so that no table ever has to number all of its own anew.  What a copy has and
the table has not is a gap in its order.  A part of a table that was read is as it was but for what
was touched since, rows that came into gaps among it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from paramserver.errors import BlockError
from paramserver.ids import IdArray, Ids, Numbers
from paramserver.pages import PAGE_ROWS, Floats32, Pages, Pool, located, page_of, pages_for

WIDTH_MAX: Final = 1024
"""Numbers of a row."""

_PACKED_LEAST: Final = 1024  # gaps
_PIECE_ROWS: Final = 64 * PAGE_ROWS  # what fits into a processor's cache
_Flags = npt.NDArray[np.bool_]
Marks = npt.NDArray[np.uint8]
_GONE: Final = np.uint8(1)
_CHANGED: Final = np.uint8(2)
_MARKS_LEAST: Final = 1024
_NO_IDS: Final[IdArray] = np.zeros(0, dtype=np.uint64)
_ID: Final = np.dtype("<u8")
_NUMBER: Final = np.dtype("<f4")


class Rows:
    """A table, or a part of one.

    Parameters:
        ids: Each once, in the order in which they stand from now on.  Not to be changed afterwards.
        numbers: Their rows: [ids, width]; they are copied.

    Attributes:
        width: Numbers of a row.
        gone: Of a message: ids that there is no row of, whoever has one.
    """

    def __init__(self, ids: IdArray, numbers: Floats32) -> None:
        self.width: int = numbers.shape[1]
        self.gone: IdArray = _NO_IDS
        self._begin = 0  # where its order begins
        self._hold(ids, numbers)

    def _hold(self, ids: IdArray, numbers: Floats32) -> None:
        """Have these rows, and memory of its own for them."""
        held = np.empty((pages_for(len(ids)) * PAGE_ROWS, self.width), dtype=np.float32)
        held[: len(ids)] = numbers
        self._ids, self._n, self._pool = Ids(ids), len(ids), Pool(held)
        self._pages: Pages = np.arange(pages_for(self._n))
        self._marks: Marks | None = None  # by number; None: it has rows of all, and nobody asks
        self._gone, self._tracked = 0, False

    @classmethod
    def empty(cls, width: int) -> Self:
        """A table without rows."""
        return cls(np.empty(0, dtype=np.uint64), np.empty((0, width), dtype=np.float32))

    @classmethod
    def in_place(cls, ids: IdArray, numbers: Floats32) -> Self:
        """A table of arrays that nobody else changes, and that it keeps if it can write there."""
        n, whole = len(ids), len(ids) // PAGE_ROWS
        if not (numbers.flags.writeable and numbers.flags.aligned and ids.flags.aligned):
            return cls(ids.astype(np.uint64), numbers)
        made = cls(ids[:0], numbers[:0])
        made._ids, made._n, made._pool = Ids(ids), n, Pool(numbers[: whole * PAGE_ROWS])
        rest = np.arange(whole * PAGE_ROWS, n)
        made._pages = np.append(np.arange(whole), made._pool.take(pages_for(n) - whole))
        made._pool.write(located(made._pages, rest), numbers[rest])
        return made

    def __len__(self) -> int:
        return self._n - self._gone

    @property
    def begin(self) -> int:
        """Where its order begins: behind where it ended before it was packed."""
        return self._begin

    @property
    def end(self) -> int:
        """Where its order ends: with gaps it has fewer rows."""
        return self._begin + self._n

    def lay_out(self) -> None:
        """Make ready to be asked, which takes a second for ten million rows; done once for all."""
        self._ids.lay_out()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rows):
            return NotImplemented
        if self.width != other.width or len(self) != len(other):
            return False
        numbers, known = other.get(self.ids)
        return bool(known.all() and np.array_equal(numbers, self.numbers))

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __del__(self) -> None:
        self._pool.release(self._pages)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.ids.copy(), self.numbers)

    @property
    def size_bytes(self) -> int:
        """Bytes that the rows take in a message, without its frame."""
        gone = _ID.itemsize * len(self.gone)
        return len(self) * (_ID.itemsize + _NUMBER.itemsize * self.width) + gone

    def told(self) -> dict[str, Any]:
        """The rows as a message holds them."""
        numbers = self.numbers.astype(_NUMBER, copy=False)
        ids = self.ids.astype(_ID, copy=False)
        told = {"width": self.width, "ids": ids.tobytes(), "numbers": numbers.tobytes()}
        return told | {"gone": self.gone.astype(_ID).tobytes()} if len(self.gone) else told

    @property
    def ids(self) -> IdArray:
        """All ids in their order, not to be changed."""
        ids = self._ids.first(self._n)
        return ids[self._there(0, self._n)] if self._gone else ids

    @property
    def numbers(self) -> Floats32:
        """All rows in their order, as an array of their own."""
        return self._between(0, self._n)

    def pieces(self) -> Iterator[Floats32]:
        """All rows in their order, some thousands at a time."""
        for begin in range(0, self._n, _PIECE_ROWS):
            yield self._between(begin, min(begin + _PIECE_ROWS, self._n))

    def _between(self, begin: int, end: int) -> Floats32:
        """Rows from the beginning of a page to before a place."""
        rows = self._pool.read_pages(self._pages[pages_for(begin) : pages_for(end)])[: end - begin]
        return rows[self._there(begin, end)] if self._gone else rows

    def get(self, ids: IdArray) -> tuple[Floats32, _Flags]:
        """Return the rows of these ids, 0 for those that there are none of, and which there are."""
        at = self._places(ids)
        known = at >= 0
        if known.all():
            return self._read(at), known
        out = np.zeros((len(ids), self.width), dtype=np.float32)
        out[known] = self._read(at[known])
        return out, known

    def select(self, ids: Sequence[IdArray]) -> Rows:
        """Those of the ids, which may stand there more than once; the others are gone."""
        some = np.unique(np.concatenate(ids)) if ids else np.empty(0, dtype=np.uint64)
        at = self._places(some)
        known = at >= 0
        selected = Rows(some[known], self._read(at[known]))
        selected.gone = some[~known]
        return selected

    def has(self, ids: IdArray) -> _Flags:
        """Tell which of the ids there are rows of."""
        return self._places(ids) >= 0

    def part(self, begin: int, end: int) -> Rows:
        """Rows from one place of the order to before another."""
        begin, end = max(begin - self._begin, 0), min(end - self._begin, self._n)
        at = np.arange(begin, end)
        if self._gone:
            at = at[self._there(begin, end)]
        return Rows(self._ids.first(self._n)[at], self._read(at))

    def update(self, new: Rows) -> None:
        """Take these rows in place of those with their ids; and what is gone leaves."""
        self.drop(new.gone)
        self.put(new.ids, new.numbers)

    def drop(self, ids: IdArray) -> None:
        """Have no row of these ids, each once; when half of all have left, the rest are packed."""
        if not len(ids):
            return
        at = self._places(ids)
        at = at[at >= 0]
        if not len(at):
            return
        self._marked()[at] = _GONE | _CHANGED if self._tracked else _GONE
        self._gone += len(at)
        if self._gone > max(len(self), _PACKED_LEAST):
            kept, numbers, pages, pool = self.ids.copy(), self.numbers, self._pages, self._pool
            self._begin = self.end  # whoever has read up to somewhere reads all of it again
            self._hold(kept, numbers)
            pool.release(pages)

    def put(self, ids: IdArray, numbers: Floats32) -> None:
        """Take the rows in place of those with these ids, which stand there once each."""
        if len(self.gone):
            self.gone = np.setdiff1d(self.gone, ids)
        at = self._ids.find(ids, self._ids.count)
        new = at < 0
        if fresh := int(new.sum()):
            begin = self._ids.count
            self._ids.add(ids[new])
            at[new] = np.arange(begin, begin + fresh)
        self._have(at)
        self._pool.own(self._pages, np.unique(page_of(at)))
        self._pool.write(located(self._pages, at), numbers)

    def track(self) -> None:
        """Know from now on which rows are written or leave, until all are packed."""
        marks = self._marked()
        marks &= _GONE
        self._tracked = True

    @property
    def changes(self) -> int | None:
        """How many rows were written or have left since it began to know; None: it does not."""
        if not self._tracked:
            return None
        return int(np.count_nonzero(self._marked()[: self._n] & _CHANGED))

    def changed(self) -> tuple[IdArray, IdArray, Callable[[], Iterator[Floats32]]]:
        """Ids that were written, those that have left, and what makes the rows of the first."""
        marks = self._marked()[: self._n]
        ids = self._ids.first(self._n)
        at, gone = np.flatnonzero(marks == _CHANGED), np.flatnonzero(marks == _GONE | _CHANGED)
        some = range(0, len(at), _PIECE_ROWS)
        return ids[at], ids[gone], lambda: (self._read(at[i : i + _PIECE_ROWS]) for i in some)

    def _marked(self) -> Marks:
        """The marks, with room for one of each number."""
        if self._marks is None or len(self._marks) < self._n:
            marks = np.zeros(max(2 * self._n, _MARKS_LEAST), dtype=np.uint8)
            if self._marks is not None:
                marks[: len(self._marks)] = self._marks
            self._marks = marks
        return self._marks

    def _there(self, begin: int, end: int) -> _Flags:
        """Which of these numbers it has a row of."""
        there: _Flags = (self._marked()[begin:end] & _GONE) == 0
        return there

    def _places(self, ids: IdArray) -> Numbers:
        """The number of each, -1 if there is no row of it."""
        at = self._ids.find(ids, self._n)
        if self._gone:
            at[(self._marked()[at] & _GONE != 0) & (at >= 0)] = -1
        return at

    def _have(self, at: Numbers) -> None:
        """Have a row for each of these numbers, that is written now."""
        begin, end = self._n, int(at.max(initial=-1)) + 1
        if self._gone:
            known = at[at < begin]
            self._gone -= int(np.count_nonzero(self._marked()[known] & _GONE))
        if end > begin:
            self._n = end
            missing = pages_for(end) - len(self._pages)
            if missing > 0:
                self._pages = np.append(self._pages, self._pool.take(max(missing, end >> 12)))
            fresh = int(np.count_nonzero(at >= begin))
            if fresh < end - begin:
                self._gone += end - begin - fresh
                self._marked()[begin:end] = _GONE
        if self._tracked:
            self._marked()[at] = _CHANGED
        elif self._marks is not None:
            self._marked()[at] = 0

    def copy(self) -> Rows:
        """The same rows; what is written to one is not in the other."""
        made: Rows = object.__new__(type(self))
        made.width, made._n, made._ids, made._pool = self.width, self._n, self._ids, self._pool
        made._pages = self._pages.copy()
        made._begin, made.gone = self._begin, self.gone
        made._gone, made._tracked = self._gone, self._tracked
        made._marks = None if self._marks is None else self._marks.copy()
        self._pool.share(self._pages)
        return made

    def _read(self, at: Numbers) -> Floats32:
        return self._pool.read(located(self._pages, at))


def read_rows(name: str, data: dict[Any, Any]) -> Rows:
    """The rows of a message, checked.  Raises BlockError, with the block's name."""
    width, ids, numbers = (data.get(part) for part in ("width", "ids", "numbers"))
    gone = data.get("gone", b"")
    if type(width) is not int or not 1 <= width <= WIDTH_MAX:
        raise BlockError(name, "width", f"{width!r:.80} is no number from 1 to {WIDTH_MAX}")
    if not isinstance(ids, bytes) or not isinstance(numbers, bytes) or len(data) > 4:
        raise BlockError(name, None, "rows are 'width', 'ids' and 'numbers', the last two bytes")
    n = len(ids) // _ID.itemsize
    if len(ids) != n * _ID.itemsize or len(numbers) != n * width * _NUMBER.itemsize:
        sizes = f"{len(ids)} bytes of ids and {len(numbers)} of numbers"
        raise BlockError(name, None, f"{sizes} are no rows of {width} numbers")
    each = np.frombuffer(ids, dtype=_ID)
    if len(np.unique(each)) != n:
        raise BlockError(name, "ids", "an id stands there twice")
    rows = np.frombuffer(numbers, dtype=_NUMBER).reshape(n, width)
    if not np.isfinite(rows).all():
        raise BlockError(name, "numbers", "a number is not finite")
    made = Rows(each.astype(np.uint64), rows)
    made.gone = _read_gone(name, gone)
    return made


def _read_gone(name: str, gone: object) -> IdArray:
    if not isinstance(gone, bytes) or len(gone) % _ID.itemsize:
        raise BlockError(name, "gone", "what is gone is ids of eight bytes each")
    return np.frombuffer(gone, dtype=_ID).astype(np.uint64)
