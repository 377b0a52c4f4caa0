"""Rows that a server passes to the replicas of its host in shared memory, once for all of them.

A ring of bytes has the newest *pieces*: the rows that changed from one version to a later one.  A
reply says where those are that lead from the replica's version to its own, in place of the rows.
They are written before; what the server has overwritten when a replica reads it differs from its
checksum.  Then the replica takes the reply as lost, and asks for the rows themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final
from zlib import crc32

import numpy as np

from paramserver.core.blocks import ROWS, Blocks, to_wire
from paramserver.core.tables.memory import Array
from paramserver.core.tables.rows import Rows, read_rows
from paramserver.core.wire import Passed, WireBlock, decode_piece, encode_piece
from paramserver.snapshots.shared_memory import SharedMemory

BYTES_MAX: Final = 4 * 2**20
"""Size of the ring in bytes; one piece takes at most half of it."""

PIECES_MAX: Final = 4_096
"""Greatest number of pieces."""


class PassedRows:
    """The ring of one server; the caller guards every method with the server's lock.

    Parameters:
        memory: Has the ring, unless there is no room; then no view names it.

    Attributes:
        host: Name of the server's folder.
        ring: The ring, which others map by its name in the folder.
    """

    def __init__(self, memory: SharedMemory) -> None:
        self.host, self.ring = memory.folder.name, memory.zeros(BYTES_MAX, np.uint8)
        self._end = 0  # bytes written since the beginning
        self._pieces: deque[tuple[int, int, Passed]] = deque(maxlen=PIECES_MAX)
        """Version count, bytes before the piece, and the piece; oldest first."""

    @property
    def newest(self) -> int | None:
        """Version count up to which there are pieces; None: there are none."""
        return self._pieces[-1][0] if self._pieces else None

    def add(self, count: int, rows: Blocks | None) -> None:
        """Write what changed from the newest version to this one; None begins anew with this one.

        If there is not enough room for them, the pieces begin anew, too.
        """
        if rows == {} and self._pieces:
            self._pieces[-1] = (count, *self._pieces[-1][1:])
            return
        data, most = encode_piece(to_wire(rows or {})), len(self.ring)
        removes = any(len(block.data.gone) for block in (rows or {}).values())
        if rows is None or removes or len(data) > most // 2:
            self._pieces.clear()
            data = b""
        at = self._end % most
        if at + len(data) > most:
            self._end, at = self._end + most - at, 0
        self.ring[at : at + len(data)] = np.frombuffer(data, np.uint8)
        self._pieces.append((count, self._end, (at, len(data), crc32(data))))
        self._end += len(data)
        while self._pieces[0][1] < self._end - most:
            self._pieces.popleft()

    def since(self, count: int) -> list[Passed] | None:
        """Return the pieces that lead from this version to the newest; None: none do.

        The first of them may have begun at an earlier version: its rows are newer than both.
        """
        found: list[Passed] = []
        for end, _, piece in reversed(self._pieces):
            if end <= count:
                return found[::-1]
            found.append(piece)
        return None  # the oldest piece begins later


def read_passed(ring: Array, pieces: Iterable[Passed]) -> dict[str, WireBlock]:
    """Return the newest rows of these pieces.  Raises ValueError if one is overwritten."""
    tables: dict[str, list[WireBlock]] = {}
    for at, size, checksum in pieces:
        data = ring[at : at + size].tobytes()
        if crc32(data) != checksum:
            raise ValueError("the rows that the parameter server passed are overwritten")
        for name, block in decode_piece(data).items():
            tables.setdefault(name, []).append(block)
    return {name: _newest(name, parts) for name, parts in tables.items()}


def _newest(name: str, parts: list[WireBlock]) -> WireBlock:
    """Return the last row of each id."""
    if len(parts) == 1:
        return parts[0]
    tables = [read_rows(name, part.data) for part in reversed(parts)]
    ids, first = np.unique(np.concatenate([table.ids for table in tables]), return_index=True)
    numbers = np.concatenate([table.numbers for table in tables])[first]
    return WireBlock(ROWS, Rows(ids, numbers).as_message())
