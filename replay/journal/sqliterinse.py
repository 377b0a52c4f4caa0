"""Overwriting what a SQLite file holds and does not use: remains of rows that were there before.

SQLite's own ways to be rid of them don't do.  ``VACUUM`` keeps writers waiting for as long as the
whole file takes.  ``secure_delete`` overwrites what is deleted from then on, and not the copies
that lie where a cell was before a page was balanced, nor what was deleted by a version without it.

So the unused bytes are overwritten in place, some pages at a time, while no writer is there and
all of the log has been moved into the file (:meth:`~replay.journal.sqlitefile.SqliteFile.still`).
By the file format (https://sqlite.org/fileformat2.html) they are: pages of the freelist; within a
page of a b-tree what lies between its pointers and its cells, and its free blocks; the end of an
overflow chain's last page.  No byte that SQLite reads is changed, so an end at any instant, a torn
page and a reader in the middle of it do no harm.  Up to three bytes between two cells stay.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

from replay.errors import JournalDamaged
from replay.journal.sqlitefile import SqliteFile

_HEAD: Final = 100  # bytes before the first page's b-tree
_POINTERS: Final = {2: 12, 5: 12, 10: 8, 13: 8}
"""Where the pointers to cells begin, by the kind of b-tree page.

A page that begins with another byte is none, or one of an overflow chain: these begin with the
number of the next page, of which the first byte is 0 in a file below 2^24 pages.
"""
_TABLE_LEAF: Final = 13
_PAGES_MAX: Final = 2**24
_Span = tuple[int, int]


class Rinsing:
    """One walk over the pages of a file, from the first to the last."""

    def __init__(self, file: SqliteFile) -> None:
        self._file, self._next = file, 1

    def step(self, n: int) -> int | None:
        """Rinse the next ``n`` pages; how many are left.  None: a reader is in the way.

        Raises JournalDamaged (a page that makes no sense), JournalUnavailable, JournalHeld.
        """
        with self._file.still() as descriptor:
            if descriptor is None:
                return None
            pages = Pages(descriptor)
            end = min(self._next + n, pages.count + 1)
            for number in range(self._next, end):
                pages.rinse(number)
            os.fdatasync(descriptor)
            self._next = end
            return pages.count + 1 - end


class Pages:
    """The pages of a file of which all is in place, read and written without SQLite."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        head = os.pread(descriptor, _HEAD, 0)
        (size,) = struct.unpack_from(">H", head, 16)
        self._size = 65536 if size == 1 else size
        self._usable = self._size - head[20]
        self.count = os.fstat(descriptor).st_size // self._size
        if self.count >= _PAGES_MAX or head[52:56] != bytes(4):
            raise JournalDamaged("the file", "it is too large to be rinsed, or of another layout")
        self._free: dict[int, int] = dict(self._freelist(*struct.unpack_from(">I", head, 32)))

    def _freelist(self, trunk: int) -> Iterator[_Span]:
        """Each free page, with how many of its bytes are used."""
        for _ in range(self.count):
            if not trunk:
                return
            page = self._read(trunk)
            following, n = struct.unpack_from(">II", page)
            if n > self._usable // 4 - 2:
                raise JournalDamaged(f"page {trunk}", "the list of free pages makes no sense")
            yield trunk, 8 + 4 * n
            yield from ((leaf, 0) for leaf in struct.unpack_from(f">{n}I", page, 8))
            trunk = following

    def _read(self, number: int) -> bytes:
        return os.pread(self._descriptor, self._size, (number - 1) * self._size)

    def rinse(self, number: int) -> None:
        """Overwrite what the page does not use."""
        page = self._read(number)
        if (used := self._free.get(number)) is not None:
            self._overwrite(number, page, [(used, self._size)])
            return
        base = _HEAD if number == 1 else 0
        if (pointers := _POINTERS.get(page[base])) is None:
            return
        n, begin = struct.unpack_from(">HH", page, base + 3)
        end, begin = base + pointers + 2 * n, begin or 65536
        if not end <= begin <= self._usable:
            raise JournalDamaged(f"page {number}", "its cells begin among their pointers")
        self._overwrite(number, page, [(end, begin), *self._blocks(number, page, base)])
        if page[base] == _TABLE_LEAF:
            for cell in struct.unpack_from(f">{n}H", page, base + pointers):
                self._tail(page, cell)

    def _blocks(self, number: int, page: bytes, base: int) -> Iterator[_Span]:
        (at,) = struct.unpack_from(">H", page, base + 1)
        while at:
            following, size = struct.unpack_from(">HH", page, at)
            if size < 4 or at + size > self._usable or 0 < following < at + size:
                raise JournalDamaged(f"page {number}", "its free blocks make no sense")
            yield at + 4, at + size
            at = following

    def _tail(self, page: bytes, cell: int) -> None:
        """Overwrite what the last page of a cell's overflow chain does not use."""
        length, at = _varint(page, cell)
        _, at = _varint(page, at)
        most = self._usable - 35
        if length <= most:
            return
        least = (self._usable - 12) * 32 // 255 - 23
        here = least + (length - least) % (self._usable - 4)
        here = here if here <= most else least
        (number,) = struct.unpack_from(">I", page, at + here)
        left = length - here
        while left > self._usable - 4:
            number, left = struct.unpack(">I", self._read(number)[:4])[0], left - self._usable + 4
        self._overwrite(number, self._read(number), [(4 + left, self._usable)])

    def _overwrite(self, number: int, page: bytes, spans: list[_Span]) -> None:
        out = bytearray(page)
        for first, last in spans:
            out[first:last] = bytes(last - first)
        if out != page:
            os.pwrite(self._descriptor, out, (number - 1) * self._size)


def _varint(page: bytes, at: int) -> tuple[int, int]:
    """A number of SQLite's, and where the next thing begins."""
    value = 0
    for i in range(8):
        value = value << 7 | page[at + i] & 127
        if page[at + i] < 128:
            return value, at + i + 1
    return value << 8 | page[at + 8], at + 9
