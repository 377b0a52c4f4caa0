"""Arrays in files of a memory file system, which processes of one host can map.

A page of such a file that is touched while the file system is full ends the process.  So memory is
reserved before it is used, and an array for which there is no room is one of this process's own
memory, which no other process can map.

Whoever has made a folder holds a lock of it, which the kernel releases when the process ends,
however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import shutil
import weakref
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from paramserver.core.tables.memory import Array, Memory

_BEGUN: Final = "begun-"  # of a folder that is not locked yet
_STEP: Final = 2**20  # bytes reserved at a time, at least
_LEFT: Final = 8  # an eighth of the file system stays free, for others that use it


@dataclass(slots=True)
class _File:
    """A file that an array is in, and the bytes of it that are reserved."""

    name: str
    descriptor: int
    size: int
    reserved: int = 0

    def reserve(self, upto: int) -> bool:
        """Reserve the first bytes; False if the file system has no room."""
        if upto <= self.reserved:
            return True
        step = max(upto - self.reserved, self.reserved >> 3, _STEP)
        for more in (step, upto - self.reserved):
            more = min(more, self.size - self.reserved)
            found = os.fstatvfs(self.descriptor)
            if found.f_bavail * found.f_frsize - more < found.f_blocks * found.f_frsize // _LEFT:
                continue
            with contextlib.suppress(OSError):
                os.posix_fallocate(self.descriptor, self.reserved, more)
                self.reserved += more
                return True
        return False


class SharedMemory(Memory):
    """Provides arrays in files of a folder; a file is removed when nothing uses its array here.

    Parameters:
        folder: A folder in a memory file system, which is made.  Its parent exists.
    """

    def __init__(self, folder: Path) -> None:
        begun = folder.with_name(f"{_BEGUN}{folder.name}")
        begun.mkdir(mode=0o700)
        descriptor = os.open(begun, os.O_RDONLY | os.O_CLOEXEC)
        self._unlock = weakref.finalize(self, os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        self.folder = begun.rename(folder)
        self._files: dict[int, _File] = {}  # by the address of the array
        self._made = 0

    def close(self) -> None:
        """Let anybody remove the folder, although arrays in it may be in use."""
        self._unlock()

    def empty(self, shape: tuple[int, ...], kind: npt.DTypeLike, n: int) -> Array:
        """Return an array of zeros, of which the first ``n`` rows may be used."""
        size = prod(shape) * np.dtype(kind).itemsize
        made = self._array(size, size // shape[0] * n)
        return super().empty(shape, kind, n) if made is None else made.view(kind).reshape(shape)

    def zeros(self, n: int, kind: npt.DTypeLike) -> Array:
        """Return an array of zeros, all of which may be used."""
        size = n * np.dtype(kind).itemsize
        made = self._array(size, size)
        return super().zeros(n, kind) if made is None else made.view(kind)

    def reserve(self, array: Array, n: int) -> bool:
        """Allow the use of the first ``n`` rows of an array; False if there is no room for them."""
        file = self._files.get(_address(array))
        return file is None or not len(array) or file.reserve(array.nbytes // len(array) * n)

    def name(self, array: Array) -> str | None:
        """Return the name of the file that holds the array; None: it is not shared."""
        file = self._files.get(_address(array))
        return None if file is None else file.name

    def _array(self, size: int, used: int) -> Array | None:
        """Return the bytes of a new file; None if there is no room for the used ones."""
        self._made += 1
        name = f"array-{self._made}"
        path = self.folder / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        file = _File(name, descriptor, size)
        try:
            os.truncate(descriptor, size)
            mapping = mmap.mmap(descriptor, size) if file.reserve(used) else None
        except OSError:
            mapping = None
        if mapping is None:
            _remove(path, descriptor)
            return None
        made = np.frombuffer(mapping, dtype=np.uint8)
        self._files[_address(made)] = file
        weakref.finalize(mapping, self._drop, _address(made), path)
        return made

    def _drop(self, address: int, path: Path) -> None:
        _remove(path, self._files.pop(address).descriptor)


def remove_left(folder: Path) -> None:
    """Remove a folder for shared memory whose process has ended."""
    if folder.name.startswith(_BEGUN):
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


def _remove(path: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)
    with contextlib.suppress(OSError):
        path.unlink()


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
