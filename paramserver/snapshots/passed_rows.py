"""Rows that a server passes to the replicas of its host in files, once for all of them.

Each file has the rows that changed from one version to a later one, which is its name.  A reply
names those that lead from the replica's version to the reply's, in place of the rows.  A file is
written before a reply names it, and never again.  If one is gone by then, or its server is, the
replica takes the reply as lost, and asks for the rows themselves.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from paramserver.core.blocks import Blocks, from_wire, put, to_wire
from paramserver.core.wire import decode_piece, encode_piece
from paramserver.snapshots.shared_memory import check_owner

BYTES_MAX: Final = 16 * 2**20
"""Greatest size of a server's files, in bytes; the oldest go first."""

_PAGE: Final = 4_096  # bytes that the smallest file takes


class PassedRows:
    """The files of one server; the caller guards every method with the server's lock.

    Parameters:
        folder: The server's folder in a memory file system.

    Attributes:
        bytes: Size of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ends: deque[tuple[int, int]] = deque()  # version count, bytes of the file before it
        self.bytes = 0

    @property
    def newest(self) -> int | None:
        """Version count up to which there are files; None: there are none."""
        return self._ends[-1][0] if self._ends else None

    def add(self, count: int, rows: Blocks | None) -> None:
        """Write what changed from the newest version to this one; None begins anew with this one.

        Raises OSError; then the files begin anew with the next one.
        """
        size = 0
        if rows is None:
            self._drop(0)
        elif rows:
            data = encode_piece(to_wire(rows))
            size = -(-len(data) // _PAGE) * _PAGE
            self._drop(max(BYTES_MAX - size, 0))
            try:
                _path(self.folder, count).write_bytes(data)
            except OSError:
                self._drop(0)
                raise
        self._ends.append((count, size))
        self.bytes += size + _PAGE

    def since(self, count: int) -> list[int] | None:
        """Return the files that lead from this version to the newest; None: none do.

        The first of them may have begun at an earlier version: its rows are newer than both.
        """
        files: list[int] = []
        for end, size in reversed(self._ends):
            if end <= count:
                return files[::-1]
            files += [end] if size else []
        return None  # the oldest file begins later

    def _drop(self, left: int) -> None:
        """Remove the oldest files until at most so many bytes are left."""
        while self._ends and (not left or self.bytes > left):
            count, size = self._ends.popleft()
            self.bytes -= size + _PAGE
            _path(self.folder, count).unlink(missing_ok=True)


def read_passed(folder: Path, files: Iterable[int]) -> Blocks:
    """Return the rows of these files, the newest ones.  Raises OSError and DecodeError."""
    rows: Blocks = {}
    for path in (_path(folder, count) for count in files):
        with path.open("rb") as file:
            check_owner(os.fstat(file.fileno()), path)
            put(rows, from_wire(decode_piece(file.read())))
    return rows


def _path(folder: Path, count: int) -> Path:
    return folder / f"rows-{count}"
