"""A directory of snapshots, each complete or absent after a crash at any point, and retention."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from paramserver.errors import (
    ParamServerError,
    SnapshotCorrupt,
    SnapshotMissing,
    SnapshotName,
    StartRefused,
)
from paramserver.snapshots.mapped import MAPPED_LEAST, STALL_S, MappedFile
from paramserver.snapshots.pieces import Pieces, pieces_of

SUFFIX: Final = ".snapshot"
_TEMPORARY: Final = ".tmp"
_PINS: Final = "pins.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}")

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
WEEK_S: Final = 7 * DAY_S
SPACED_S: Final = tuple(HOUR_S / 2**i for i in range(1, 6))
"""Spacings (s) within the last hour at which some of the recent snapshots are kept."""


class PlaceUnreachable(ParamServerError, OSError):
    """The place of the snapshots did not answer.  A write may have had its effect."""

    definite = False
    place: str
    reason: str
    text = (
        "{place}: {reason}; check that it can be reached, that the bucket is there, and that the "
        "credentials allow to list, read, write and delete"
    )


class Disk:
    """The file operations that publishing uses.  Tests replace it by one that crashes.

    Parameters:
        stall_s: Seconds without a byte after which a large file is given up (``TimeoutError``).
            A small one is read in one step, which only the disk ends.
    """

    _stall_s = STALL_S  # of disks that call no ``__init__``

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s

    def make_directory(self, path: Path) -> None:
        """Create the directory, with parents, if it is absent."""
        path.mkdir(parents=True, exist_ok=True)

    def list(self, path: Path) -> list[str]:
        """Return the names in a directory."""
        return os.listdir(path)

    def read(self, path: Path, limit: int = -1) -> bytes:
        """Return the file's first ``limit`` bytes, or all.  Raises FileNotFoundError."""
        with path.open("rb") as file:
            return file.read(limit)

    def take(self, path: Path) -> bytes | memoryview | MappedFile:
        """Return the whole file in memory that the caller may change.  FileNotFoundError."""
        file = path.open("rb")
        size = os.fstat(file.fileno()).st_size
        if size >= MAPPED_LEAST:
            with contextlib.suppress(OSError):  # a file system that can't map files
                return MappedFile(file, size, self._stall_s)
        with file:
            held = np.empty(size, dtype=np.uint8).data
            return held[: file.readinto(held)]

    def write(self, path: Path, data: bytes | Pieces) -> None:
        """Create or replace a file; it is not durable before :meth:`fsync`."""
        with path.open("wb") as file:
            for piece in pieces_of(data):
                file.write(piece)

    def fsync(self, path: Path) -> None:
        """Make the file's bytes durable (not its name)."""
        _sync(path, os.O_RDWR)  # a new descriptor still reports an unreported write error

    def rename(self, source: Path, target: Path) -> None:
        """Rename the file atomically, replacing any file of that name."""
        source.replace(target)

    def fsync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        _sync(path, os.O_RDONLY)

    def remove(self, path: Path) -> None:
        """Remove a file.  Raises FileNotFoundError."""
        path.unlink()


class ReadingDisk(Disk):
    """A disk for processes that only read: it does not create a missing directory."""

    def make_directory(self, path: Path) -> None:
        """Leave an absent directory absent."""


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _home(path: Path) -> Path:
    """Return the folder with the snapshots of all models and their other shards (``+1``)."""
    place = path.parent.parent
    return place.parent.parent if place.name.startswith("+") else place.parent


def _digest(data: bytes) -> bytes:
    return sha256(data).hexdigest().encode()


@contextlib.contextmanager
def _there(name: str) -> Iterator[None]:
    """Convert errors of a missing file, or of a folder in its place, to this package's errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise SnapshotMissing(name) from error
    except IsADirectoryError as error:  # permanent, unlike an error of the disk
        raise SnapshotCorrupt("a folder has the name of its file") from error


def check_name(name: str) -> None:
    """Raise SnapshotName if the name is not allowed for a snapshot."""
    if not _NAME.fullmatch(name):
        raise SnapshotName(name)


class DirectorySnapshots:
    """Snapshots of one lineage as files of a directory, with pins.

    One server owns the directory.  Opening it changes no file, so other processes may read it.
    """

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self._path = path
        self._disk = Disk() if disk is None else disk
        self._disk.make_directory(path)
        self._pins = self._read_pins()

    def remove_leftovers(self) -> None:
        """Remove unfinished files of an earlier owner; only the owner may call it."""
        for name in self._disk.list(self._path):
            if name.endswith(_TEMPORARY):
                self._disk.remove(self._path / name)

    def _read_pins(self) -> frozenset[str]:
        """Read the pins: a JSON list and its SHA-256 (not needed in a list written by hand)."""
        try:
            data = self._disk.read(self._path / _PINS)
        except FileNotFoundError:
            return frozenset()
        names, mark, digest = data.partition(b"\n")
        try:
            if mark and digest != _digest(names):
                raise ValueError("its checksum does not match")
            return frozenset(msgspec.json.decode(names, type=list[str]))
        except (msgspec.DecodeError, ValueError) as error:
            raise StartRefused(
                f"{self._path / _PINS} is damaged: {error}",
                "write the names again (a JSON list, nothing else) or remove the file, "
                "then no snapshot is pinned",
            ) from error

    def publish(self, name: str, data: bytes | Pieces) -> None:
        """Write a snapshot durably; if this fails, the snapshot is complete or absent."""
        self._write_whole(self._file(name), data)

    def _write_whole(self, target: Path, data: bytes | Pieces) -> None:
        temporary = target.with_name(target.name + _TEMPORARY)
        try:
            try:
                self._disk.write(temporary, data)
            except FileNotFoundError:  # the folder was removed
                self._disk.list(_home(self._path))  # raises if the whole state folder was moved
                self._disk.make_directory(self._path)
                self._disk.write(temporary, data)
            self._disk.fsync(temporary)
            self._disk.rename(temporary, target)
        except OSError:  # on a full disk the partial file would use space that is needed
            with contextlib.suppress(OSError):
                self._disk.remove(temporary)
            raise
        self._disk.fsync_directory(self._path)

    def load(self, name: str, limit: int = -1) -> bytes:
        """Return the snapshot's first ``limit`` bytes, or all of it.

        Raises SnapshotMissing, SnapshotCorrupt.
        """
        with _there(name):
            return self._disk.read(self._file(name), limit)

    def take(self, name: str) -> bytes | memoryview | MappedFile:
        """Return the whole snapshot in memory that the caller may change.

        Raises SnapshotMissing, SnapshotCorrupt.
        """
        with _there(name):
            return self._disk.take(self._file(name))

    def names(self) -> list[str]:
        """Return the names of all snapshots in arbitrary order."""
        try:
            files = self._disk.list(self._path)
        except FileNotFoundError:  # the folder was removed
            return []
        return sorted(f.removesuffix(SUFFIX) for f in files if f.endswith(SUFFIX))

    def largest(self) -> int:
        """Return the size of the largest snapshot in bytes; 0 if there is none."""
        return max((self._file(name).stat().st_size for name in self.names()), default=0)

    def delete(self, name: str) -> None:
        """Remove a snapshot.  After a crash it may exist again, complete.

        Raises SnapshotMissing, also if there is a folder in its place, which is left alone.
        """
        try:
            self._disk.remove(self._file(name))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise SnapshotMissing(name) from error

    def pins(self) -> frozenset[str]:
        """Return the names of pinned snapshots, which retention keeps."""
        return self._pins

    def pin(self, name: str, on: bool) -> None:
        """Pin or unpin a snapshot.  Raises SnapshotMissing if there is none to pin."""
        if on and name not in self.names():
            raise SnapshotMissing(name)
        pins = self._pins | {name} if on else self._pins - {name}
        data = msgspec.json.encode(sorted(pins))
        self._write_whole(self._path / _PINS, data + b"\n" + _digest(data))
        self._pins = pins

    def _file(self, name: str) -> Path:
        check_name(name)
        return self._path / (name + SUFFIX)


@dataclass(frozen=True, slots=True)
class Retention:
    """Numbers of snapshots to keep: ``keep`` (≥ 1) recent ones, and hourly, daily, weekly ones.

    One snapshot in ``full_every`` is whole; the others may be incremental to it.
    """

    keep: int = 24
    hourly: int = 24
    daily: int = 7
    weekly: int = 4
    full_every: int = 24


def retained(
    created_at: dict[str, float],
    retention: Retention,
    *,
    pinned: Iterable[str] = (),
    birth: bool = True,
) -> set[str]:
    """Return the names that retention keeps.

    These are ``keep`` recent ones; the newest of each of the last ``hourly`` hours, ``daily`` days
    and ``weekly`` weeks that have one; the first of all (unless ``birth`` is False); and the pinned
    ones.

    A third of the recent ones are the newest; the others are spaced by age.  With a snapshot every
    ten seconds the newest 24 would cover only four minutes, and within the first hour there would
    be none between those and the first of all.

    Parameters:
        created_at: POSIX seconds by name.  If times are equal, the later in order is newer.
    """
    newest = sorted(reversed(created_at), key=created_at.__getitem__, reverse=True)
    names = _new_ones(created_at, newest, max(1, retention.keep))
    names |= set(pinned) & created_at.keys()
    if birth:
        names.update(newest[-1:])
    for width, periods in (
        (HOUR_S, retention.hourly),
        (DAY_S, retention.daily),
        (WEEK_S, retention.weekly),
    ):
        names.update(_newest_of_each(created_at, newest, width)[:periods])
    return names


def _new_ones(created_at: Mapping[str, float], newest: Sequence[str], keep: int) -> set[str]:
    """Return ``keep`` names: the newest, some of each spacing, and then more of the newest.

    Time is divided at multiples of a spacing, and each spacing is twice the next smaller one.  So
    the newest snapshot of a longer interval was also the newest of a shorter one, and still exists.
    """
    dense = max(2, keep // 3)
    names = set(newest[: min(dense, keep)])
    each = max(keep - dense, 0) // len(SPACED_S)
    for width in SPACED_S:
        names.update(_newest_of_each(created_at, newest, width)[:each])
    for name in newest:
        if len(names) >= keep:
            break
        names.add(name)
    return names


def _newest_of_each(
    created_at: Mapping[str, float], newest: Sequence[str], width: float
) -> list[str]:
    """Return the newest name of each interval of that width, newest interval first."""
    names: dict[int, str] = {}
    for name in newest:
        names.setdefault(int(created_at[name] // width), name)
    return list(names.values())
