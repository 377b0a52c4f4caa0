"""SQLite's files on the simulated disk: a VFS in memory, given to the library that Python uses.

Only one process of the operating system is at work, so shared memory is plain memory and a lock
is an entry in a table.  Each handle belongs to whoever opened it; a killed process's handles are
closed while the disk is ``dead``, so that closing changes nothing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import random
import sqlite3
from collections import Counter
from collections.abc import Callable
from typing import Any

from sim_disk import DeadProcess, Inode, SimDisk

OK, ERROR, BUSY, CANTOPEN, NOTFOUND = 0, 1, 5, 14, 12
IOERR, FULL, SHORT_READ = 10, 13, 522
SHARED, RESERVED, PENDING, EXCLUSIVE = 1, 2, 3, 4
POWERSAFE_OVERWRITE = 0x1000  # as SQLite's own VFS says of every disk
_OPEN_CREATE = 0x4
_OPEN_LOGS = 0x800 | 0x4000 | 0x80000  # rollback journals and write-ahead logs
_SHM_UNLOCK, _SHM_SHARED = 1, 4

_P, _I, _L = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
_METHODS: list[tuple[str, tuple[Any, ...]]] = [
    ("xClose", (_P,)),
    ("xRead", (_P, _P, _I, _L)),
    ("xWrite", (_P, _P, _I, _L)),
    ("xTruncate", (_P, _L)),
    ("xSync", (_P, _I)),
    ("xFileSize", (_P, _P)),
    ("xLock", (_P, _I)),
    ("xUnlock", (_P, _I)),
    ("xCheckReservedLock", (_P, _P)),
    ("xFileControl", (_P, _I, _P)),
    ("xSectorSize", (_P,)),
    ("xDeviceCharacteristics", (_P,)),
    ("xShmMap", (_P, _I, _I, _I, _P)),
    ("xShmLock", (_P, _I, _I, _I)),
    ("xShmBarrier", (_P,)),
    ("xShmUnmap", (_P, _I)),
]


class _IoMethods(ctypes.Structure):
    _fields_ = [("iVersion", _I), *((name, _P) for name, _ in _METHODS)]


class _File(ctypes.Structure):
    _fields_ = [("pMethods", _P)]


class _Vfs(ctypes.Structure):
    _fields_ = [
        ("iVersion", _I),
        ("szOsFile", _I),
        ("mxPathname", _I),
        ("pNext", _P),
        ("zName", ctypes.c_char_p),
        ("pAppData", _P),
        *(
            (name, _P)
            for name in (
                "xOpen", "xDelete", "xAccess", "xFullPathname", "xDlOpen", "xDlError", "xDlSym",
                "xDlClose", "xRandomness", "xSleep", "xCurrentTime", "xGetLastError",
            )
        ),
    ]  # fmt: skip


class _Handle:
    __slots__ = ("inode", "level", "owner", "path", "unnamed")

    def __init__(self, inode: Inode, path: str, owner: object, *, unnamed: bool) -> None:
        self.inode, self.path, self.owner, self.level = inode, path, owner, 0
        self.unnamed = unnamed  # the first sync is to make its name durable, too


class _Shared:
    """The log's index of one file: memory, its users, and its locks."""

    def __init__(self) -> None:
        self.regions: list[Any] = []
        self.users: set[int] = set()
        self.shared: list[set[int]] = [set() for _ in range(8)]
        self.exclusive: list[int | None] = [None] * 8


class Vfs:
    """The library's default VFS from :meth:`install` on; :attr:`disk` is where files are."""

    def __init__(self) -> None:
        self.disk = SimDisk(random.Random(0), Counter())
        self._handles: dict[int, _Handle] = {}
        self._shared: dict[str, _Shared] = {}
        self._pool: list[Any] = []
        self._random = random.Random(0)
        self._kept: list[Any] = []  # what the library points to
        self._io = _IoMethods(iVersion=2)
        for name, arguments in _METHODS:
            setattr(self._io, name, self._callback(getattr(self, name), arguments))
        self._vfs = _Vfs(
            iVersion=1, szOsFile=ctypes.sizeof(_File), mxPathname=512, zName=b"simulated"
        )
        for name, arguments in (
            ("xOpen", (_P, ctypes.c_char_p, _P, _I, _P)),
            ("xDelete", (_P, ctypes.c_char_p, _I)),
            ("xAccess", (_P, ctypes.c_char_p, _I, _P)),
            ("xFullPathname", (_P, ctypes.c_char_p, _I, _P)),
            ("xRandomness", (_P, _I, _P)),
            ("xSleep", (_P, _I)),
            ("xCurrentTime", (_P, _P)),
            ("xGetLastError", (_P, _I, _P)),
        ):
            setattr(self._vfs, name, self._callback(getattr(self, name), arguments))

    def _callback(self, method: Callable[..., int], arguments: tuple[Any, ...]) -> Any:
        def guarded(*values: Any) -> int:
            try:
                return method(*values)
            except DeadProcess:
                return IOERR
            except OSError as error:
                return FULL if error.errno == errno.ENOSPC else IOERR

        made = ctypes.CFUNCTYPE(_I, *arguments)(guarded)
        self._kept.append(made)
        return ctypes.cast(made, _P).value

    def install(self) -> str | None:
        """Make it the default; the reason if this Python's SQLite can't be reached."""
        try:
            library = ctypes.CDLL(ctypes.util.find_library("sqlite3") or "libsqlite3.so.0")
            library.sqlite3_vfs_register.argtypes = [_P, _I]
            library.sqlite3_vfs_register(ctypes.byref(self._vfs), 1)
        except (OSError, AttributeError) as error:
            return f"SQLite is no shared library here: {error}"
        opened = sqlite3.connect("/simulated/probe")
        opened.execute("CREATE TABLE probe (x)")
        opened.close()
        if not self.disk.names:
            return "Python has an SQLite of its own, built in"
        return None

    def begin(self, disk: SimDisk, seed: int) -> None:
        """A new disk; nothing of the old one may be open."""
        assert not self._shared, "files are open"
        self.disk, self._random = disk, random.Random(seed)

    def release(self, owner: object) -> None:
        """A process has ended: locks on what it has left open are free, whoever frees the rest."""
        for file, handle in self._handles.items():
            if handle.owner is owner:
                self.xShmUnmap(file, 0)
                handle.level = 0

    # -- the library's calls: files -------------------------------------------------------------

    def xOpen(self, _: Any, name: bytes | None, file: int, flags: int, out: int | None) -> int:
        """Open or create; without a name: a file of its own that nobody else sees."""
        pointer = ctypes.cast(file, ctypes.POINTER(_File))
        pointer.contents.pMethods = None
        path = (name or b"").decode()
        inode = self.disk.names.get(path) if name else Inode()
        if inode is None:
            if not flags & _OPEN_CREATE:
                return CANTOPEN
            inode = self.disk.create(path)
        elif self.disk.dead:
            return CANTOPEN
        self._handles[file] = _Handle(
            inode,
            path,
            self.disk.worker,
            # whoever opens a log that it might have had to make, as SQLite's own VFS
            unnamed=bool(flags & _OPEN_CREATE) and bool(flags & _OPEN_LOGS),
        )
        pointer.contents.pMethods = ctypes.addressof(self._io)
        if out:
            ctypes.cast(out, ctypes.POINTER(_I))[0] = flags
        return OK

    def xClose(self, file: int) -> int:
        if file in self._handles:
            self.xShmUnmap(file, 0)
            del self._handles[file]
        return OK

    def xRead(self, file: int, buffer: int, amount: int, offset: int) -> int:
        data = self.disk.read(self._handles[file].inode, offset, amount)
        ctypes.memmove(buffer, data, len(data))
        if len(data) < amount:
            ctypes.memset(buffer + len(data), 0, amount - len(data))
            return SHORT_READ
        return OK

    def xWrite(self, file: int, buffer: int, amount: int, offset: int) -> int:
        self.disk.write(self._handles[file].inode, offset, ctypes.string_at(buffer, amount))
        return OK

    def xTruncate(self, file: int, size: int) -> int:
        self.disk.truncate(self._handles[file].inode, size)
        return OK

    def xSync(self, file: int, flags: int) -> int:
        handle = self._handles[file]
        self.disk.sync(handle.inode)
        if handle.unnamed:  # as SQLite's own VFS does
            self.disk.sync_directory(handle.path.rpartition("/")[0])
            handle.unnamed = False
        return OK

    def xFileSize(self, file: int, out: int) -> int:
        size = len(self._handles[file].inode.content)
        ctypes.cast(out, ctypes.POINTER(_L))[0] = size
        return OK

    def xDelete(self, _: Any, name: bytes, sync: int) -> int:
        if name.decode() in self.disk.names:
            self.disk.delete(name.decode())
            if sync:
                self.disk.sync_directory(name.decode().rpartition("/")[0])
        return OK

    def xAccess(self, _: Any, name: bytes, flags: int, out: int) -> int:
        inode = self.disk.names.get(name.decode())
        there = inode is not None and (flags != 0 or bool(inode.content))
        ctypes.cast(out, ctypes.POINTER(_I))[0] = int(there)
        return OK

    def xFullPathname(self, _: Any, name: bytes, size: int, out: int) -> int:
        ctypes.memmove(out, name + b"\0", len(name) + 1)
        return OK

    def xFileControl(self, file: int, operation: int, argument: int | None) -> int:
        return NOTFOUND

    def xSectorSize(self, file: int) -> int:
        return 512

    def xDeviceCharacteristics(self, file: int) -> int:
        return POWERSAFE_OVERWRITE

    # -- locks and shared memory ----------------------------------------------------------------

    def xLock(self, file: int, level: int) -> int:
        mine = self._handles[file]
        if self.disk.dead:
            return BUSY
        others = [h.level for h in self._handles.values() if h.path == mine.path and h is not mine]
        highest = max(others, default=0)
        if level == SHARED:
            refused = highest >= PENDING
        elif level == RESERVED:
            refused = highest >= RESERVED
        else:
            refused = highest >= SHARED
        if refused:
            return BUSY
        mine.level = max(mine.level, level)
        return OK

    def xUnlock(self, file: int, level: int) -> int:
        self._handles[file].level = min(self._handles[file].level, level)
        return OK

    def xCheckReservedLock(self, file: int, out: int) -> int:
        path = self._handles[file].path
        held = any(h.path == path and h.level >= RESERVED for h in self._handles.values())
        ctypes.cast(out, ctypes.POINTER(_I))[0] = int(held)
        return OK

    def xShmMap(self, file: int, region: int, size: int, extend: int, out: int) -> int:
        shared = self._shared.setdefault(self._handles[file].path, _Shared())
        shared.users.add(file)
        pointer = ctypes.cast(out, ctypes.POINTER(_P))
        while len(shared.regions) <= region:
            if not extend:
                pointer[0] = None
                return OK
            memory = self._pool.pop() if self._pool else ctypes.create_string_buffer(size)
            ctypes.memset(memory, 0, size)
            shared.regions.append(memory)
        pointer[0] = ctypes.addressof(shared.regions[region])
        return OK

    def xShmLock(self, file: int, offset: int, n: int, flags: int) -> int:
        shared = self._shared[self._handles[file].path]
        slots = range(offset, offset + n)
        if flags & _SHM_UNLOCK:
            for slot in slots:
                shared.shared[slot].discard(file)
                if shared.exclusive[slot] == file:
                    shared.exclusive[slot] = None
            return OK
        for slot in slots:
            if shared.exclusive[slot] not in (None, file):
                return BUSY
            if not flags & _SHM_SHARED and shared.shared[slot] - {file}:
                return BUSY
        for slot in slots:
            if flags & _SHM_SHARED:
                shared.shared[slot].add(file)
            else:
                shared.exclusive[slot] = file
        return OK

    def xShmBarrier(self, file: int) -> int:
        return OK

    def xShmUnmap(self, file: int, delete: int) -> int:
        shared = self._shared.get(self._handles[file].path)
        if shared is None or file not in shared.users:
            return OK
        self.xShmLock(file, 0, 8, _SHM_UNLOCK)
        shared.users.discard(file)
        if not shared.users:
            self._pool.extend(shared.regions)
            del self._shared[self._handles[file].path]
        return OK

    # -- the rest of the machine ------------------------------------------------------------------

    def xRandomness(self, _: Any, n: int, out: int) -> int:
        ctypes.memmove(out, self._random.randbytes(n), n)
        return n

    def xSleep(self, _: Any, microseconds: int) -> int:
        return microseconds

    def xCurrentTime(self, _: Any, out: int) -> int:
        ctypes.cast(out, ctypes.POINTER(ctypes.c_double))[0] = 2_460_000.5
        return OK

    def xGetLastError(self, _: Any, n: int, out: int | None) -> int:
        return OK
