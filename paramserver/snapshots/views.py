"""Views: the values of a server at one version, published to the replicas of its host.

Tables stay where the server has them, in shared memory (:mod:`.shared_memory`).  A view is a file
that names the version, the arrays, and the pages of them that hold the rows.  It gets its name when
it is complete, so a reader finds a whole view or none, wherever its writer was killed.  The server
does not write to the pages of a view that it has not removed.

Whoever reads a view holds a shared lock of its file, which the kernel releases when the process
ends, however it ends.  The server removes a view only with an exclusive lock, and waits for none.
A prediction takes no lock: it reads the view that its replica opened last.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, get_args
from weakref import WeakValueDictionary

import msgspec
import numpy as np
import numpy.typing as npt

from paramserver.core.tables.memory import Array
from paramserver.core.tables.pages import Pages
from paramserver.core.tables.rows import Rows
from paramserver.core.tables.shared import TableArrays, read_only
from paramserver.core.wire import Version
from paramserver.snapshots.places import lineage_place
from paramserver.snapshots.shared_memory import SharedMemory

_FORMAT: Final = 2
_VIEW: Final = "view-"
_BEGUN: Final = "begun-"
_HEAD: Final = 8  # bytes before the description: its length
_PAGES_AT: Final = 8  # the pages after it begin at a multiple of this
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ of Linux 5.14, which Python does not name
_Fresh = tuple[mmap.mmap, int]
_STEP: Final = 4 * 2**20  # bytes that are made resident at a time: below a millisecond


def lineage_folder(shared: str, model: str, spec: str) -> Path:
    """Return the folder of a lineage's views below that of a service's shared memory.

    It has the host's name, because containers with equal paths may share a memory file system.
    """
    return Path(lineage_place(str(Path(shared) / socket.gethostname()), model, spec))


class _Description(msgspec.Struct, frozen=True, array_like=True):
    """The content of a view but for the pages of its tables.

    An array is described by the name of its file and its shape; pages, which are in no file, by
    where they begin and end among those of all tables.
    """

    format: int
    spec: str
    version: Version
    tables: Mapping[str, TableArrays]
    others: list[bytes]
    passed: npt.NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class View:
    """A published view, opened for reading.

    Attributes:
        version: The version of the values.
        tables: Tables by block name, which are only read.
        others: The other blocks, each piece encoded for :func:`paramserver.core.wire.decode_piece`.
        fresh: Arrays that were mapped for this view, with the number of bytes that are used.
        host: Name of its server's folder.
        passed: The ring of rows that this server passes; None: it passes none.
    """

    version: Version
    tables: Mapping[str, Rows]
    others: Sequence[bytes]
    fresh: Sequence[tuple[mmap.mmap, int]]
    host: str = ""
    passed: Array | None = None

    def resident(self) -> Iterator[None]:
        """Map the pages of the arrays into this process, some megabytes per step."""
        for mapping, used in self.fresh:
            for begin in range(0, used, _STEP):
                length = min(_STEP, used - begin)
                with contextlib.suppress(OSError, ValueError):  # an older kernel maps them later
                    mapping.madvise(_POPULATE_READ, begin, length)
                yield


# -- the server's side ---------------------------------------------------------------------------


class _Pin:
    """An open file, with a lock of it, for as long as this object lives."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


class Published(_Pin):
    """A view that its server can remove when nobody reads it."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor)
        self._path = path

    def remove_unread(self) -> bool:
        """Remove the view unless somebody reads it; return whether it was removed."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._path.unlink(missing_ok=True)  # a later server may have done that
        return True


def write_view(
    memory: SharedMemory,
    spec: str,
    version: Version,
    tables: Mapping[str, TableArrays],
    others: list[bytes],
    passed: Array | None = None,
) -> Published | None:
    """Publish a view; return it, or None if an array is not in shared memory.

    The rows have been written, and nobody writes to the pages of ``tables`` until the view is
    removed.  Raises OSError.
    """
    every = list[Pages]()
    private = list[Array]()

    def described(array: Array) -> tuple[str, tuple[int, ...]]:
        if array.dtype == np.int64:
            begin = sum(map(len, every))
            every.append(array)
            return "", (begin, begin + len(array))
        if (name := memory.name(array)) is None:
            private.append(array)
        return name or "", array.shape

    ring = None if passed is None or memory.name(passed) is None else passed
    description = _Description(_FORMAT, spec, version, tables, others, ring)
    head = msgspec.msgpack.encode(description, enc_hook=described)
    if private:
        return None
    name = f"{version[0]:012d}-{version[1]:016d}"
    begun, path = memory.folder / f"{_BEGUN}{name}", memory.folder / f"{_VIEW}{name}"
    try:
        with begun.open("xb") as file:
            file.write(len(head).to_bytes(_HEAD, "little"))
            file.write(head + bytes(-len(head) % _PAGES_AT))
            for pages in every:
                file.write(pages.astype("<i8", copy=False).data)
        published = Published(os.open(begun, os.O_RDONLY | os.O_CLOEXEC), path)
        begun.rename(path)
    finally:
        begun.unlink(missing_ok=True)
    return published


# -- the replica's side --------------------------------------------------------------------------


class Views:
    """The views that servers of one lineage publish on this host.

    Parameters:
        folder: The lineage's folder; each server has a folder of its own in it.
        spec: Views of another spec are not read.
    """

    def __init__(self, folder: Path, spec: str) -> None:
        self._folder, self._spec = folder, spec
        self._mapped: WeakValueDictionary[Path, mmap.mmap] = WeakValueDictionary()

    def newest(self, after: Version, upto: Version | None = None) -> View | None:
        """Open the newest view that is newer than ``after``, and at most ``upto``; None: none.

        One that is being removed counts as not there.
        """
        for version, path in sorted(self._listed(), reverse=True):
            if version <= after:
                return None
            if upto is None or version <= upto:
                with contextlib.suppress(OSError, ValueError, msgspec.DecodeError):
                    return self._open(path)
        return None

    def _listed(self) -> Iterator[tuple[Version, Path]]:
        try:
            folders = [one for one in os.scandir(self._folder) if one.is_dir()]
            for name, folder in ((n, f) for f in folders for n in os.listdir(f)):
                if name.startswith(_VIEW):
                    epoch, count = name.removeprefix(_VIEW).split("-")
                    yield (int(epoch), int(count)), Path(folder.path, name)
        except (OSError, ValueError):
            return

    def _open(self, path: Path) -> View:
        """Open a view.  Raises OSError if it is being removed, ValueError if it is none."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        pin = _Pin(descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        found = os.fstat(descriptor)
        if not found.st_nlink:
            raise FileNotFoundError(path)
        _check_owner(found, path)
        data = memoryview(mmap.mmap(descriptor, found.st_size, access=mmap.ACCESS_READ))
        end = _HEAD + int.from_bytes(data[:_HEAD], "little")
        pages = np.frombuffer(data, dtype="<i8", offset=end + -end % _PAGES_AT)
        fresh = list[_Fresh]()

        def array(kind: Any, where: tuple[str, Sequence[int]]) -> Array:
            name, shape = where
            if not name:
                return pages[slice(*shape)]
            return self._array(path.with_name(name), get_args(get_args(kind)[1])[0], shape, fresh)

        said = msgspec.msgpack.decode(data[_HEAD:end], type=_Description, dec_hook=array)
        if said.format != _FORMAT or said.spec != self._spec:
            raise ValueError(f"{path} is of another spec or format")
        tables = {block: read_only(one, pin) for block, one in said.tables.items()}
        return View(said.version, tables, said.others, fresh, path.parent.name, said.passed)

    def _array(
        self, path: Path, kind: npt.DTypeLike, shape: Sequence[int], fresh: list[_Fresh]
    ) -> Array:
        """Return an array in a file, which is mapped once."""
        mapping, n = self._mapped.get(path), prod(shape)
        if mapping is None:
            with path.open("rb") as file:
                _check_owner(os.fstat(file.fileno()), path)
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._mapped[path] = mapping
            fresh.append((mapping, n * np.dtype(kind).itemsize))
        return np.frombuffer(mapping, dtype=kind, count=n).reshape(shape)


def _check_owner(found: os.stat_result, path: Path) -> None:
    """Raise PermissionError if the file was made by another user, who may change it."""
    if found.st_uid != os.getuid():
        raise PermissionError(f"{path} belongs to another user")
