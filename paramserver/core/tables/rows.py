"""A table of float32 rows keyed by 64-bit id: the data of a block of kind ``rows``.

``update``, ``copy`` and ``len`` behave as those of a dict.

A row's position is the number of its id.  A table and its copies share the numbering, so that
nothing has to be renumbered; a number for which only another copy has a row is a gap.  Between two
reads of a range of positions, its content changes only by rows that were written meanwhile, some of
them into gaps.

When half of a table is gaps, it is packed step by step: the present rows become an older table, and
every later write moves some of them to new positions after the end.  A reader that goes through the
positions in order misses no row; it may read a row that has moved twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Thread
from typing import Any, Final, Self

import numpy as np

from paramserver.core.tables.flags import Flags, RowFlags
from paramserver.core.tables.ids import IdArray, Ids, Numbers, distinct
from paramserver.core.tables.pages import (
    PAGE_ROWS,
    Floats32,
    Pages,
    Pool,
    located,
    page_of,
    pages_for,
)
from paramserver.core.tables.row_message import HALF, ID, NUMBER, RowMessage
from paramserver.errors import BlockError

WIDTH_MAX: Final = 1024
"""Greatest width of a row, in numbers."""

_PACKED_LEAST: Final = 1024  # with fewer gaps a table is not packed
_PIECE_ROWS: Final = 64 * PAGE_ROWS  # fits into the CPU cache
_MOVED: Final = 8  # rows that are packed for each row written
_MOVED_LEAST: Final = 256
_NO_IDS: Final[IdArray] = np.zeros(0, dtype=np.uint64)
_MESSAGE: Final = frozenset({"width", "ids", "numbers", "halves", "gone"})


class Rows(RowMessage):
    """A table of rows by id, or a part of one.

    Parameters:
        ids: Ids in the order of their positions, each once.
        numbers: Their rows, shape [ids, width].  The caller must not change the two arrays.
    """

    _holder: object = None  # is alive as long as the table is
    _found: tuple[IdArray, Ids, Numbers] | None = None  # ids of the last look-up, and their numbers

    def __init__(self, ids: IdArray, numbers: Floats32) -> None:
        self.width: int = numbers.shape[1]
        self.gone: IdArray = _NO_IDS
        self._begin = 0  # position of the first row that is not in _older
        self._older: Rows | None = None  # table being packed: rows before _place have moved
        self._place = 0
        self._given = ids, numbers

    def _hold(self, ids: IdArray, numbers: Floats32) -> None:
        """Store the rows in newly allocated memory."""
        held = np.empty((pages_for(len(ids)) * PAGE_ROWS, self.width), dtype=np.float32)
        held[: len(ids)] = numbers
        self._ids, self._n, self._pool = Ids(ids), len(ids), Pool(held)
        self._pages: Pages = np.arange(pages_for(self._n))
        self._marks, self._given = RowFlags(), None

    @classmethod
    def empty(cls, width: int) -> Self:
        """Return a table without rows."""
        return cls(np.empty(0, dtype=np.uint64), np.empty((0, width), dtype=np.float32))

    @classmethod
    def in_place(cls, ids: Ids, numbers: Floats32) -> Self:
        """Return a table that uses what is given without a copy, if the arrays are writeable.

        The caller must not change the arrays afterwards.
        """
        n, every = ids.count, ids.first(ids.count)
        if not (numbers.flags.writeable and numbers.flags.aligned and every.flags.aligned):
            return cls(every.astype(np.uint64), numbers)
        made, whole = cls.empty(numbers.shape[1]), n // PAGE_ROWS
        made._marks, made._given = RowFlags(), None
        made._ids, made._n, made._pool = ids, n, Pool(numbers[: whole * PAGE_ROWS])
        rest = np.arange(whole * PAGE_ROWS, n)
        made._pages = np.append(np.arange(whole), made._pool.take(pages_for(n) - whole))
        made._pool.write(located(made._pages, rest), numbers[rest])
        return made

    def __len__(self) -> int:
        if self._given is not None:
            return len(self._given[0])
        return self._n - self._marks.gone + (len(self._older) if self._older else 0)

    @property
    def begin(self) -> int:
        """The first position; packing moves it to where the table ended before."""
        return self._begin if self._older is None else self._older.begin

    @property
    def end(self) -> int:
        """The position after the last row; with gaps there are fewer rows than positions."""
        return self._begin + self._n

    def detach(self) -> None:
        """Copy rows that are in a mapped file into memory, in a thread; they can be used meanwhile.

        Call it before anybody else knows the table.
        """
        self._pool.begin_copy()
        Thread(target=_detach, args=(self._ids, self._pool), name="rows", daemon=True).start()

    def lay_out(self) -> None:
        """Build the index of ids now (a second for ten million rows); copies share it."""
        self._ids.lay_out()
        if self._older is not None:
            self._older.lay_out()

    def __del__(self) -> None:
        if self._given is None:
            self._pool.release(self._pages)

    @property
    def ids(self) -> IdArray:
        if self._given is not None:
            return self._given[0]
        ids = self._ids.first(self._n)
        if self._marks.gone:
            ids = ids[self._marks.there(slice(0, self._n), self._n)]
        return ids if self._older is None else np.concatenate((self._older.ids, ids))

    @property
    def numbers(self) -> Floats32:
        if self._given is not None:
            return np.array(self._given[1], dtype=np.float32)
        numbers = self._between(0, self._n)
        return numbers if self._older is None else np.concatenate((self._older.numbers, numbers))

    def pieces(self) -> Iterator[Floats32]:
        """Yield all rows by position, some thousands at a time."""
        if self._older is not None:
            yield from self._older.pieces()
        for begin in range(0, self._n, _PIECE_ROWS):
            yield self._between(begin, min(begin + _PIECE_ROWS, self._n))

    def _between(self, begin: int, end: int) -> Floats32:
        """Return the rows with numbers ``begin … end - 1``; ``begin`` is the start of a page."""
        rows = self._pool.read_pages(self._pages[pages_for(begin) : pages_for(end)])[: end - begin]
        gone = self._marks.gone
        return rows[self._marks.there(slice(begin, end), self._n)] if gone else rows

    def get(self, ids: IdArray) -> tuple[Floats32, Flags]:
        return self._get(ids, self._places(ids))

    def _get(self, ids: IdArray, at: Numbers) -> tuple[Floats32, Flags]:
        known = at >= 0
        if at.min(initial=0) >= 0:
            return self._read(at), known
        out = np.zeros((len(ids), self.width), dtype=np.float32)
        out[known] = self._read(at[known])
        if self._older is not None:
            left = np.flatnonzero(~known)
            out[left], known[left] = self._older.get(ids[left])
        return out, known

    def look_up(self, ids: IdArray) -> tuple[Floats32, Flags]:
        """Return as :meth:`get`, and remember where these ids are, if all have rows.

        So a :meth:`put` or a further look-up of the same array, which must never be changed, does
        not search again; nor does a look-up of an array that was just put.
        """
        if (at := self._remembered(ids)) is not None:
            return self._read(at), np.ones(len(at), dtype=np.bool_)
        at = self._places(ids)
        self._found = None if at.min(initial=0) < 0 else (ids, self._ids, at)
        return self._get(ids, at)

    def _remembered(self, ids: IdArray) -> Numbers | None:
        """Return the numbers of the ids if the last look-up was of the same array, else None."""
        last = self._found
        return last[2] if last and last[0] is ids and last[1] is self._ids else None

    def has(self, ids: IdArray) -> Flags:
        """Return for each id whether there is a row."""
        known: Flags = self._places(ids) >= 0
        if self._older is not None:
            left = np.flatnonzero(~known)
            known[left] = self._older.has(ids[left])
        return known

    def next_part(self, begin: int, n: int) -> tuple[Rows, int]:
        """Return the rows at the first ``n`` positions from ``begin`` on, and the next position."""
        begin = max(begin, self.begin)
        end = min(begin + n, self.end)
        return self.part(begin, end), end

    def part(self, begin: int, end: int) -> Rows:
        """Return the rows at positions ``begin … end - 1``."""
        return self.at(np.arange(max(begin, self.begin), min(end, self.end)))

    def at(self, places: Numbers) -> Rows:
        """Return the rows at these positions (each given once), skipping gaps."""
        mine = self._mine(places)
        ids, numbers = self._ids.first(self._n)[mine], self._read(mine)
        if self._older is None or len(mine) == len(places):
            return Rows(ids, numbers)
        older = self._older.at(places[places < self._begin])
        return Rows(np.append(older.ids, ids), np.append(older.numbers, numbers, axis=0))

    def ids_at(self, places: Numbers) -> IdArray:
        """Return the ids of the rows at these positions (each given once), skipping gaps."""
        ids = self._ids.first(self._n)[self._mine(places)]
        if self._older is None:
            return ids
        return np.append(self._older.ids_at(places[places < self._begin]), ids)

    def _mine(self, places: Numbers) -> Numbers:
        """Return the numbers of the rows at these positions that are not in the older table."""
        mine = places[places >= self._begin] - self._begin
        return mine[self._marks.there(mine, self._n)] if self._marks.gone else mine

    def update(self, new: Rows) -> None:
        """Insert or replace the rows of ``new``, and remove those of the ids in its ``gone``."""
        self.drop(new.gone)
        self.put(new.ids, new.numbers if new._given is None else new._given[1])

    def drop(self, ids: IdArray) -> None:
        """Remove the rows of these ids (each given once); pack when half of all are gaps."""
        if not len(ids):
            return
        self._let_go(ids)
        if self._older is not None:
            self._older._let_go(ids)
        elif self._marks.gone > max(len(self), _PACKED_LEAST):
            self._set_apart()
        self._pack(len(ids))

    def _let_go(self, ids: IdArray) -> None:
        self._found = None
        at = self._places(ids)
        self._marks.let_go(at[at >= 0])

    def _set_apart(self) -> None:
        """Start packing: move all rows into the older table."""
        older: Rows = object.__new__(type(self))
        older.__dict__.update(self.__dict__)
        begin, nothing = self.end, np.empty((0, self.width), dtype=np.float32)
        self._hold(_NO_IDS, nothing)
        self._begin, self._older, self._place = begin, older, 0

    def _pack(self, n: int) -> None:
        """Move some rows out of the older table, a multiple of the ``n`` rows written."""
        older = self._older
        if older is None:
            return
        end = min(self._place + max(_MOVED * n, _MOVED_LEAST), older._n)
        part = older.part(older._begin + self._place, older._begin + end)
        older._let_go(part.ids)
        self._write(part.ids, part.numbers)
        self._place = end
        if end == older._n:
            self._older = None

    def put(self, ids: IdArray, numbers: Floats32) -> None:
        """Insert or replace the rows of these ids, each given once."""
        if len(self.gone):
            self.gone = np.setdiff1d(self.gone, ids)
        if self._older is not None:
            self._older._let_go(ids)
        self._write(ids, numbers)
        self._pack(len(ids))

    def _write(self, ids: IdArray, numbers: Floats32) -> None:
        at = self._remembered(ids)
        if at is None:
            at = self._ids.find(ids, self._ids.count)
        if at.min(initial=0) < 0:
            new, begin = at < 0, self._ids.count
            self._ids.add(ids[new])
            at[new] = np.arange(begin, self._ids.count)
        self._have(at)
        self._pool.own(self._pages, page_of(at))
        self._pool.write(located(self._pages, at), numbers)
        self._found = (ids, self._ids, at)  # what was written is often read next

    def track(self) -> None:
        """Start to record which rows are written or removed, unless packing is under way."""
        if self._older is None:
            self._marks.track()

    @property
    def changes(self) -> int | None:
        """The number of rows written or removed since :meth:`track`; None if not recorded."""
        known = self._marks.tracked and self._older is None
        return self._marks.changes(self._n) if known else None

    def changed(self) -> tuple[IdArray, IdArray, Callable[[], Iterator[Floats32]]]:
        """Return the ids written, the ids removed, and an iterator factory for the rows written."""
        ids = self._ids.first(self._n)
        at, gone = self._marks.changed(self._n)
        some = range(0, len(at), _PIECE_ROWS)
        return ids[at], ids[gone], lambda: (self._read(at[i : i + _PIECE_ROWS]) for i in some)

    def _places(self, ids: IdArray) -> Numbers:
        """Return the number of each id, or -1 if it has no row outside the older table."""
        at = self._ids.find(ids, self._n)
        if self._marks.gone:
            at[~self._marks.there(at, self._n) & (at >= 0)] = -1
        return at

    def _have(self, at: Numbers) -> None:
        """Extend the table so that these numbers have rows, which the caller writes next."""
        begin, end = self._n, int(at.max(initial=-1)) + 1
        self._marks.have(at, begin, max(begin, end))
        if end > begin:
            self._n = end
            missing = pages_for(end) - len(self._pages)
            if missing > 0:
                self._pages = np.append(self._pages, self._pool.take(max(missing, end >> 12)))

    def copy(self) -> Rows:
        """Return an independent copy that shares pages until one of the two writes to them."""
        made: Rows = object.__new__(type(self))
        made.width, made._n, made._ids, made._pool = self.width, self._n, self._ids, self._pool
        made._pages = self._pages.copy()
        made._begin, made.gone, made._place = self._begin, self.gone, self._place
        made._older = None if self._older is None else self._older.copy()
        made._marks = self._marks.copy()
        self._pool.share(self._pages)
        return made

    def _read(self, at: Numbers) -> Floats32:
        return self._pool.read(located(self._pages, at))


def _detach(ids: Ids, pool: Pool) -> None:
    ids.detach()
    pool.copy_first()


def select_rows(table: Rows, ids: Sequence[IdArray]) -> Rows:
    """Return the rows of these ids; those without a row are in ``gone``.

    Parameters:
        ids: Arrays that have each id once; several of them may have the same one.
    """
    if len(ids) == 1:  # of one push
        some = ids[0]
    else:
        some = distinct(np.concatenate(ids)) if ids else _NO_IDS
    numbers, known = table.look_up(some)
    if known.all():
        return Rows(some, numbers)
    selected = Rows(some[known], numbers[known])
    selected.gone = some[~known]
    return selected


def read_rows(name: str, data: dict[Any, Any]) -> Rows:
    """Return the rows of a message.  Raises BlockError, with the block's name, if invalid."""
    width, ids, numbers = (data.get(part) for part in ("width", "ids", "numbers"))
    halves, gone = data.get("halves", b""), data.get("gone", b"")
    if type(width) is not int or not 1 <= width <= WIDTH_MAX:
        raise BlockError(name, "width", f"{width!r:.80} is no number from 1 to {WIDTH_MAX}")
    if not (isinstance(ids, bytes) and isinstance(numbers, bytes) and isinstance(halves, bytes)):
        raise BlockError(name, None, "rows are 'width', 'ids' and 'numbers', the last two bytes")
    if unknown := data.keys() - _MESSAGE:
        raise BlockError(name, None, f"a message of rows has no {sorted(map(repr, unknown))[0]}")
    n = len(ids) // ID.itemsize
    rounded = len(halves) // (n * HALF.itemsize) if n else 0
    exact = width - rounded
    sizes = (n * ID.itemsize, n * exact * NUMBER.itemsize, n * rounded * HALF.itemsize)
    if (len(ids), len(numbers), len(halves)) != sizes:
        found = f"{len(ids)} bytes of ids and {len(numbers)} + {len(halves)} of numbers"
        raise BlockError(name, None, f"{found} are no rows of {width} numbers")
    each = np.frombuffer(ids, dtype=ID)
    if not (each[1:] > each[:-1]).all() and len(distinct(each)) != n:
        raise BlockError(name, "ids", "an id stands there twice")
    rows = np.frombuffer(numbers, dtype=NUMBER).reshape(n, exact)
    if rounded:
        rows = np.hstack((rows, np.frombuffer(halves, dtype=HALF).reshape(n, rounded)))
    if not np.isfinite(rows).all():
        raise BlockError(name, "numbers", "a number is not finite")
    made = Rows(each.astype(np.uint64), rows)
    made.gone = _read_gone(name, gone)
    return made


def _read_gone(name: str, gone: object) -> IdArray:
    if not isinstance(gone, bytes) or len(gone) % ID.itemsize:
        raise BlockError(name, "gone", "what is gone is ids of eight bytes each")
    return np.frombuffer(gone, dtype=ID).astype(np.uint64)
