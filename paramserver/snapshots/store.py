"""A directory of snapshots in which a name is whole or absent, whatever stops and whenever."""

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
from paramserver.snapshots.pieces import Pieces, pieces_of

SUFFIX: Final = ".snapshot"
_TEMPORARY: Final = ".tmp"
_PINS: Final = "pins.json"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,127}")

HOUR_S: Final = 3600
DAY_S: Final = 24 * HOUR_S
WEEK_S: Final = 7 * DAY_S
SPACED_S: Final = tuple(HOUR_S / 2**i for i in range(1, 6))
"""Within the last hour: each of these lengths of time has some of the newest snapshots."""


class PlaceUnreachable(ParamServerError, OSError):
    """The place of the snapshots did not answer, which says nothing about what is in it.

    A write may have had its effect.
    """

    definite = False
    place: str
    reason: str
    text = (
        "{place}: {reason}; check that it can be reached, that the bucket is there, and that the "
        "credentials allow to list, read, write and delete"
    )


class Disk:
    """The steps on files that publishing is made of.  Tests replace it by one that crashes."""

    def make_directory(self, path: Path) -> None:
        """Create it, with parents, if it is absent."""
        path.mkdir(parents=True, exist_ok=True)

    def list(self, path: Path) -> list[str]:
        """Names in a directory."""
        return os.listdir(path)

    def read(self, path: Path, limit: int = -1) -> bytes:
        """The file's first ``limit`` bytes, or all; FileNotFoundError."""
        with path.open("rb") as file:
            return file.read(limit)

    def take(self, path: Path) -> bytes | memoryview:
        """The whole file, in memory that is the caller's to change; FileNotFoundError."""
        with path.open("rb") as file:
            held = np.empty(os.fstat(file.fileno()).st_size, dtype=np.uint8).data
            return held[: file.readinto(held)]

    def write(self, path: Path, data: bytes | Pieces) -> None:
        """Create or replace a file; not durable before :meth:`fsync`."""
        with path.open("wb") as file:
            for piece in pieces_of(data):
                file.write(piece)

    def fsync(self, path: Path) -> None:
        """Make the file's bytes durable (not its name)."""
        _sync(path, os.O_RDWR)  # a write error that nobody has seen yet is reported here

    def rename(self, source: Path, target: Path) -> None:
        """Give the file another name in one step, replacing what had it."""
        source.replace(target)

    def fsync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        _sync(path, os.O_RDONLY)

    def remove(self, path: Path) -> None:
        """Remove a file; FileNotFoundError."""
        path.unlink()


class ReadingDisk(Disk):
    """For whoever only reads: a directory that is absent stays so, and has no names."""

    def make_directory(self, path: Path) -> None:
        """Leave an absent directory absent."""


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _home(path: Path) -> Path:
    """The folder in which the snapshots of all models and their other servers (``+1``) lie."""
    place = path.parent.parent
    return place.parent.parent if place.name.startswith("+") else place.parent


def _digest(data: bytes) -> bytes:
    return sha256(data).hexdigest().encode()


@contextlib.contextmanager
def _there(name: str) -> Iterator[None]:
    """Say what is wrong with a snapshot whose file is gone, or which is a folder now."""
    try:
        yield
    except FileNotFoundError as error:
        raise SnapshotMissing(name) from error
    except IsADirectoryError as error:  # no later attempt reads it, unlike a disk that fails
        raise SnapshotCorrupt("a folder stands where its file was") from error


def check_name(name: str) -> None:
    """SnapshotName if no snapshot can have the name."""
    if not _NAME.fullmatch(name):
        raise SnapshotName(name)


class DirectorySnapshots:
    """Snapshots of one lineage as files of a directory, with pins.

    One server owns the directory.  Opening it changes nothing that is there, so others may read.
    """

    def __init__(self, path: Path, disk: Disk | None = None) -> None:
        self._path = path
        self._disk = Disk() if disk is None else disk
        self._disk.make_directory(path)
        self._pins = self._read_pins()

    def remove_leftovers(self) -> None:
        """Remove what an earlier owner left unfinished.  For the owner, before it publishes."""
        for name in self._disk.list(self._path):
            if name.endswith(_TEMPORARY):
                self._disk.remove(self._path / name)

    def _read_pins(self) -> frozenset[str]:
        """The pins: a JSON list and its SHA-256 (which a list written by hand does without)."""
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
        """Write a snapshot.  It is durable when this returns, and else whole or absent."""
        self._write_whole(self._file(name), data)

    def _write_whole(self, target: Path, data: bytes | Pieces) -> None:
        temporary = target.with_name(target.name + _TEMPORARY)
        try:
            try:
                self._disk.write(temporary, data)
            except FileNotFoundError:  # somebody has removed the whole folder
                self._disk.list(_home(self._path))  # a moved one is not made anew in its old place
                self._disk.make_directory(self._path)
                self._disk.write(temporary, data)
            self._disk.fsync(temporary)
            self._disk.rename(temporary, target)
        except OSError:  # on a full disk half a file is in the way of everything else
            with contextlib.suppress(OSError):
                self._disk.remove(temporary)
            raise
        self._disk.fsync_directory(self._path)

    def load(self, name: str, limit: int = -1) -> bytes:
        """The snapshot's first ``limit`` bytes, or all of it; SnapshotMissing, SnapshotCorrupt."""
        with _there(name):
            return self._disk.read(self._file(name), limit)

    def take(self, name: str) -> bytes | memoryview:
        """The whole snapshot, in memory that is the caller's to change.

        Raises SnapshotMissing, SnapshotCorrupt.
        """
        with _there(name):
            return self._disk.take(self._file(name))

    def names(self) -> list[str]:
        """Names of all snapshots, in no order that means anything."""
        try:
            files = self._disk.list(self._path)
        except FileNotFoundError:  # somebody has removed the folder
            return []
        return sorted(f.removesuffix(SUFFIX) for f in files if f.endswith(SUFFIX))

    def delete(self, name: str) -> None:
        """Remove a snapshot; SnapshotMissing.  A crash may bring it back, whole.

        A folder in its place is none, and whoever put it there removes it.
        """
        try:
            self._disk.remove(self._file(name))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise SnapshotMissing(name) from error

    def pins(self) -> frozenset[str]:
        """Snapshots that retention leaves alone."""
        return self._pins

    def pin(self, name: str, on: bool) -> None:
        """Pin or unpin a snapshot; SnapshotMissing if there is none to pin."""
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
    """How many snapshots are kept: ``keep`` (≥ 1) new ones, one an hour, a day, a week.

    One of ``full_every`` is whole; the others may lean on it.
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
    """Names that retention keeps.

    These are ``keep`` new ones; the newest of each of the last ``hourly`` hours, ``daily``
    days and ``weekly`` weeks that have one; the first of all (unless ``birth`` is False); and
    the pinned.

    A third of the new ones are the newest, the others are spaced by their age: with one every ten
    seconds the newest 24 would reach back four minutes, and with the first hour not over there
    would be nothing between those and the first of all.

    Parameters:
        created_at: POSIX seconds by name.  Of equal ones the later in order is the newer.
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
    """So many, or all: the newest, and some of each spacing, filled up with the newest.

    Times are cut at multiples of a spacing, each of which is two of the next smaller one: what is
    the newest of the longer time was that of the shorter one, so it is still there.
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
    """The newest of each time of that width that has one; the newest time first."""
    found: dict[int, str] = {}
    for name in newest:
        found.setdefault(int(created_at[name] // width), name)
    return list(found.values())
