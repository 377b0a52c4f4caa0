"""A disk in memory that tells written from synced, fails when it is told to, and can lose power.

A file is what is read back (``content``), what the platter holds (``synced``) and the writes that
lie between them.  A power cut keeps, drops or tears each unsynced sector by the dice.  A sync
that fails is the cruel kind: some sectors have reached the platter, the rest never will, and the
next sync says that all is well.
"""

from __future__ import annotations

import errno
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paramserver.snapshots.pieces import Pieces
from paramserver.snapshots.store import Disk

SECTOR = 512


class DeadProcess(BaseException):
    """The process that wanted something of the disk is no more."""


class Inode:
    """One file's bytes, whatever it is called."""

    __slots__ = ("content", "pending", "synced")

    def __init__(self) -> None:
        self.content = bytearray()
        self.synced = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # None: cut to this size

    def write(self, offset: int, data: bytes) -> None:
        _apply(self.content, offset, data)
        self.pending.append((offset, data))

    def truncate(self, size: int) -> None:
        _apply(self.content, size, None)
        self.pending.append((size, None))

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.synced, offset, data)
        self.pending.clear()

    def settle(self, r: random.Random, counts: Counter[str]) -> None:
        """Some of what was not synced reaches the platter, the rest never does."""
        for offset, data in self.pending:
            if data is None:
                if r.random() < 0.5:
                    _apply(self.synced, offset, None)
                continue
            start = offset
            while start < offset + len(data):
                stop = min((start // SECTOR + 1) * SECTOR, offset + len(data))
                piece = data[start - offset : stop - offset]
                dice = r.random()
                if dice < 0.45:
                    _apply(self.synced, start, piece)
                elif dice < 0.55:
                    _apply(self.synced, start, piece[: r.randrange(len(piece))])
                    counts["torn write"] += 1
                else:
                    counts["unsynced forgotten"] += 1
                start = stop
        self.pending.clear()


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data


class SimDisk:
    """Files by path.

    Attributes:
        steps_left: Changing steps until the process that is at work is killed (None: it lives on).
        dead: True while somebody closes what a killed process had open: nothing has any effect.
        error_rate, full: Chance of EIO at a write or sync, and whether there is no room.
        lying: A mutant of the disk: syncs do nothing.
        worker: The process at work.
        between: Called before a snapshot's files are changed: others go on meanwhile.
        encoding: Called with the state that a snapshot is made of.
    """

    def __init__(self, r: random.Random, counts: Counter[str]) -> None:
        self.r, self.counts = r, counts
        self.names: dict[str, Inode] = {}
        self.synced_names: dict[str, Inode] = {}
        self.steps_left: int | None = None
        self.dead = self.full = self.lying = False
        self.error_rate = 0.0
        self.worker: object = None
        self.between: Callable[[], None] = lambda: None
        self.encoding: Callable[[Any], None] = lambda state: None

    def step(self, kind: str) -> None:
        """Before each changing step.  Raises DeadProcess, or OSError as the mood is."""
        if self.steps_left is not None and not self.dead:
            self.steps_left -= 1
            self.dead = self.steps_left < 0
        if self.dead:
            raise DeadProcess
        if self.full and kind == "write":
            self.counts["full disk"] += 1
            raise OSError(errno.ENOSPC, "no room")
        if self.error_rate and kind in ("write", "sync") and self.r.random() < self.error_rate:
            self.counts["EIO"] += 1
            raise OSError(errno.EIO, "input/output error")

    def read(self, inode: Inode, offset: int, n: int) -> bytes:
        """Bytes as they were written.  Raises OSError as the mood is."""
        if self.dead:
            raise DeadProcess
        if self.error_rate and self.r.random() < self.error_rate / 4:
            self.counts["EIO"] += 1
            raise OSError(errno.EIO, "input/output error")
        return bytes(inode.content[offset : offset + n])

    def create(self, path: str) -> Inode:
        self.step("create")
        self.names[path] = inode = Inode()
        return inode

    def write(self, inode: Inode, offset: int, data: bytes) -> None:
        self.step("write")
        inode.write(offset, data)

    def truncate(self, inode: Inode, size: int) -> None:
        self.step("truncate")
        inode.truncate(size)

    def sync(self, inode: Inode) -> None:
        """Make the file's bytes durable, not its name."""
        try:
            self.step("sync")
        except OSError:
            inode.settle(self.r, self.counts)
            raise
        if not self.lying:
            inode.sync()

    def sync_directory(self, directory: str) -> None:
        """Make the names in a directory durable."""
        self.step("sync")
        if not self.lying:
            start = f"{directory}/"
            elsewhere = {n: i for n, i in self.synced_names.items() if not n.startswith(start)}
            here = {n: i for n, i in self.names.items() if n.startswith(start)}
            self.synced_names = elsewhere | here

    def delete(self, path: str) -> None:
        self.step("delete")
        del self.names[path]

    def power_cut(self) -> None:
        """Forget what was not synced."""
        inodes = {id(i): i for i in (*self.names.values(), *self.synced_names.values())}
        for inode in inodes.values():
            inode.settle(self.r, self.counts)
            inode.content = bytearray(inode.synced)
        names: dict[str, Inode] = {}
        for path in sorted({*self.names, *self.synced_names}):
            old, new = self.synced_names.get(path), self.names.get(path)
            if old is not new:
                self.counts["unsynced forgotten"] += 1
            chosen = new if self.r.random() < 0.5 else old
            if chosen is not None:
                names[path] = chosen
        self.names, self.synced_names = names, dict(names)


class SnapshotDisk(Disk):
    """The files of snapshots on the simulated disk."""

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk

    def make_directory(self, path: Path) -> None:
        """Directories are always there."""

    def list(self, path: Path) -> list[str]:
        start = f"{path}/"
        return [name.removeprefix(start) for name in self._disk.names if name.startswith(start)]

    def read(self, path: Path, limit: int = -1) -> bytes:
        inode = self._disk.names.get(str(path))
        if inode is None:
            raise FileNotFoundError(path)
        return self._disk.read(inode, 0, len(inode.content) if limit < 0 else limit)

    def take(self, path: Path) -> memoryview:
        return memoryview(bytearray(self.read(path)))

    def write(self, path: Path, data: bytes | Pieces) -> None:
        self._disk.between()
        inode = self._disk.create(str(path))
        self._disk.write(inode, 0, bytes(data))

    def fsync(self, path: Path) -> None:
        self._disk.between()
        self._disk.sync(self._disk.names[str(path)])

    def rename(self, source: Path, target: Path) -> None:
        self._disk.between()
        self._disk.step("rename")
        self._disk.names[str(target)] = self._disk.names.pop(str(source))

    def fsync_directory(self, path: Path) -> None:
        self._disk.between()
        self._disk.sync_directory(str(path))

    def remove(self, path: Path) -> None:
        if str(path) not in self._disk.names:
            raise FileNotFoundError(path)
        self._disk.delete(str(path))
