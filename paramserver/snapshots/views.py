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
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import msgspec
import numpy as np

from paramserver.core.tables.ids import IdArrays
from paramserver.core.tables.memory import Array
from paramserver.core.tables.pages import Pages
from paramserver.core.tables.rows import Rows
from paramserver.core.tables.shared import TableArrays, read_only
from paramserver.core.wire import Version
from paramserver.snapshots.places import lineage_place
from paramserver.snapshots.shared_memory import SharedMemory, check_owner

_FORMAT: Final = 1
_VIEW: Final = "view-"
_BEGUN: Final = "begun-"
_HEAD: Final = 8  # bytes before the description: its length
_PAGES_AT: Final = 8  # the pages after it begin at a multiple of this
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ of Linux 5.14, which Python does not name
_STEP: Final = 4 * 2**20  # bytes that are made resident at a time: below a millisecond


def lineage_folder(shared: str, model: str, spec: str) -> Path:
    """Return the folder of a lineage's views below that of a service's shared memory.

    It has the host's name, because containers with equal paths may share a memory file system.
    """
    return Path(lineage_place(str(Path(shared) / socket.gethostname()), model, spec))


class _Table(msgspec.Struct, frozen=True, array_like=True):
    """A table of a view: names of its files, numbers of elements, and where its pages stand."""

    n: int
    width: int
    ids: str
    slots: tuple[str, int]
    coming: tuple[str, int] | None
    moved: int
    factor: int
    pieces: list[tuple[int, str, int]]
    pages: tuple[int, int]


class _Description(msgspec.Struct, frozen=True, array_like=True):
    """The content of a view but for the pages of its tables."""

    format: int
    spec: str
    version: Version
    tables: dict[str, _Table]
    others: list[bytes]


@dataclass(frozen=True, slots=True)
class View:
    """A view as it is read.

    Attributes:
        version: The version of the values.
        tables: Tables by block name, which are only read.
        others: The other blocks, each piece encoded for :func:`paramserver.core.wire.decode_piece`.
        fresh: Arrays that were mapped for this view, with the number of bytes that are used.
        folder: The folder of its server.
    """

    version: Version
    tables: Mapping[str, Rows]
    others: Sequence[bytes]
    fresh: Sequence[tuple[mmap.mmap, int]]
    folder: Path

    def resident(self) -> Iterator[None]:
        """Map the pages of the arrays into this process, some megabytes per step."""
        for mapping, used in self.fresh:
            for begin in range(0, used, _STEP):
                length = min(_STEP, used - begin)
                with contextlib.suppress(OSError, ValueError):  # an older kernel maps them later
                    mapping.madvise(_POPULATE_READ, begin, length)
                yield


# -- the server's side ---------------------------------------------------------------------------


class Published:
    """A view that its server can remove when nobody reads it."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor, self._path = descriptor, path

    def remove_unread(self) -> bool:
        """Remove the view unless somebody reads it; return whether it was removed."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self._path.unlink(missing_ok=True)  # a later server may have done that
        return True

    def __del__(self) -> None:
        os.close(self._descriptor)


def write_view(
    memory: SharedMemory,
    spec: str,
    version: Version,
    tables: Mapping[str, TableArrays],
    others: list[bytes],
) -> Published | None:
    """Publish a view; return it, or None if an array is not in shared memory.

    The rows have been written, and nobody writes to the pages of ``tables`` until the view is
    removed.  Raises OSError.
    """
    described: dict[str, _Table] = {}
    at = 0
    for block, table in tables.items():
        if (one := _described(memory, table, at)) is None:
            return None
        described[block] = one
        at += len(table.pages)
    head = msgspec.msgpack.encode(_Description(_FORMAT, spec, version, described, others))
    name = f"{version[0]:012d}-{version[1]:016d}"
    begun, path = memory.folder / f"{_BEGUN}{name}", memory.folder / f"{_VIEW}{name}"
    try:
        with begun.open("xb") as file:
            file.write(len(head).to_bytes(_HEAD, "little"))
            file.write(head + bytes(-len(head) % _PAGES_AT))
            for table in tables.values():
                file.write(table.pages.astype("<i8", copy=False).data)
        published = Published(os.open(begun, os.O_RDONLY | os.O_CLOEXEC), path)
        begun.rename(path)
    finally:
        begun.unlink(missing_ok=True)
    return published


def _described(memory: SharedMemory, table: TableArrays, at: int) -> _Table | None:
    ids, slots = memory.name(table.ids.ids), memory.name(table.ids.slots)
    coming = None if table.ids.coming is None else memory.name(table.ids.coming)
    pieces = [(row, memory.name(rows), len(rows)) for row, rows in table.pieces]
    named = [(row, name, n) for row, name, n in pieces if name is not None]
    if ids is None or slots is None or len(named) < len(pieces):
        return None
    if coming is None and table.ids.coming is not None:
        return None
    return _Table(
        table.n,
        table.width,
        ids,
        (slots, len(table.ids.slots)),
        None if coming is None or table.ids.coming is None else (coming, len(table.ids.coming)),
        table.ids.moved,
        table.ids.factor,
        named,
        (at, len(table.pages)),
    )


# -- the replica's side --------------------------------------------------------------------------


class _Pin:
    """A shared lock of a view's file, for as long as this object lives."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __del__(self) -> None:
        os.close(self._descriptor)


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
        check_owner(found, path)
        data = memoryview(mmap.mmap(descriptor, found.st_size, access=mmap.ACCESS_READ))
        end = _HEAD + int.from_bytes(data[:_HEAD], "little")
        said = msgspec.msgpack.decode(data[_HEAD:end], type=_Description)
        if said.format != _FORMAT or said.spec != self._spec:
            raise ValueError(f"{path} is of another spec or format")
        pages = np.frombuffer(data, dtype="<i8", offset=end + -end % _PAGES_AT)
        fresh: list[tuple[mmap.mmap, int]] = []
        tables = {
            block: read_only(self._arrays(one, path.parent, pages, fresh), pin)
            for block, one in said.tables.items()
        }
        return View(said.version, tables, said.others, fresh, path.parent)

    def _arrays(
        self, table: _Table, folder: Path, pages: Pages, fresh: list[tuple[mmap.mmap, int]]
    ) -> TableArrays:
        def array(name: str, kind: str, n: int) -> Array:
            mapping = self._mapped.get(folder / name)
            size = n * np.dtype(kind).itemsize
            if mapping is None:
                with (folder / name).open("rb") as file:
                    check_owner(os.fstat(file.fileno()), folder / name)
                    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._mapped[folder / name] = mapping
                fresh.append((mapping, size))
            return np.frombuffer(mapping, dtype=kind, count=n)

        coming = None if table.coming is None else array(table.coming[0], "<i4", table.coming[1])
        slots = array(table.slots[0], "<i4", table.slots[1])
        ids = IdArrays(array(table.ids, "<u8", table.n), slots, coming, table.moved, table.factor)
        pieces = [
            (row, array(name, "<f4", n * table.width).reshape(n, table.width))
            for row, name, n in table.pieces
        ]
        begin, n = table.pages
        return TableArrays(ids, table.n, pages[begin : begin + n], pieces, table.width)
