"""Overwrites the unused bytes of a SQLite file, which contain remains of deleted rows.

SQLite's own means do not suffice.  ``VACUUM`` blocks writers while it rewrites the whole file.
``secure_delete`` overwrites only rows deleted from then on, and not the copies that are left where
a cell was before its page was balanced, nor rows deleted by a version without it.

So the unused bytes are overwritten in place, some pages at a time, while writers are blocked and
the whole log has been moved into the file (:meth:`~replay.journal.sqlite.file.SqliteFile.still`).
By the file format (https://sqlite.org/fileformat2.html) they are: pages of the freelist; in a
b-tree page, the space between its cell pointers and its cells, and its free blocks; the end of an
overflow chain's last page.  No byte that SQLite reads is changed, so crashes, torn pages and
concurrent readers do no harm.  Fragments of up to three bytes between two cells remain.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

from replay.errors import JournalDamaged
from replay.journal.sqlite.file import SqliteFile

_HEAD: Final = 100  # bytes before the first page's b-tree
_POINTERS: Final = {2: 12, 5: 12, 10: 8, 13: 8}
"""Offset of the cell pointers, by the type byte of a b-tree page.

A page with another first byte is not a b-tree page.  Overflow pages begin with the number of the
next page, whose first byte is 0 in a file of less than 2^24 pages.
"""
_TABLE_LEAF: Final = 13
_PAGES_MAX: Final = 2**24
_Span = tuple[int, int]


class Rinsing:
    """One walk over the pages of a file, from the first to the last."""

    def __init__(self, file: SqliteFile) -> None:
        self._file, self._next = file, 1

    def step(self, n: int) -> int | None:
        """Rinse the next ``n`` pages; return the number left, or None if a reader prevents it.

        Raises JournalDamaged (an invalid page), JournalUnavailable, JournalHeld.
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
    """The pages of a database file without a log, read and written without SQLite."""

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
        """Yield each page of the freelist with the number of its bytes that are used."""
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
        """Overwrite the unused bytes of the page."""
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
        """Overwrite the unused end of the last page of a cell's overflow chain."""
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
    """Decode a SQLite varint; return its value and the position after it."""
    value = 0
    for i in range(8):
        value = value << 7 | page[at + i] & 127
        if page[at + i] < 128:
            return value, at + i + 1
    return value << 8 | page[at + 8], at + 9
