"""Publishes a server's tables to the replicas of its host, which read them where they are.

The tables are moved into shared memory before the server answers.  From then on a view of all
values is published about once a second (:mod:`paramserver.snapshots.views`), if they have changed.
As with a snapshot, pages of a view are copied before the server writes to them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import stat
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any, Final

from paramserver.core.blocks import ROWS, Blocks, Touched, select
from paramserver.core.parts import PART_KEYS, Parts
from paramserver.core.server import Server, shared_values
from paramserver.core.tables.rows import Rows
from paramserver.core.tables.shared import arrays_of, move
from paramserver.core.wire import Passed, SyncRequest
from paramserver.snapshots.passed_rows import PassedRows
from paramserver.snapshots.shared_memory import SharedMemory, remove_left
from paramserver.snapshots.views import Published, write_view

_log: Final = logging.getLogger(__name__)

ROWS_LEAST: Final = 4_096
"""Smaller tables are not shared: each replica has them."""

VIEWS_MAX: Final = 8
"""Greatest number of views: none is published until a replica leaves the oldest."""

_PUBLISH_S: Final = 1.0  # between two views, at least
_SHARE: Final = 0.02  # of the time may go into publishing
_PIECES_MAX: Final = 32  # of all other blocks, which a starting replica decodes


class SharedTables:
    """The views of one server process.

    Parameters:
        folder: The lineage's folder in a memory file system, ``HOST/MODEL/SPEC`` in one of the
            service's own; it is made if it is not there.

    Attributes:
        reason: Why replicas have tables of their own or old views; empty: they do not.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # taken before the server's
        self._memory: SharedMemory | None = None
        self._server: Server | None = None
        self._passed: PassedRows | None = None
        self._replies = {"passed": 0, "in_messages": 0}
        self._views: list[
            tuple[Published, list[Rows]]
        ] = []  # oldest first, with the tables they show
        self._moved: set[str] = set()
        self._published: int | None = None
        self._due_s = 0.0
        self.reason = ""

    def status(self) -> dict[str, Any]:
        """Return the number of views, of replies by how changed rows went, and the reason."""
        return {"views": len(self._views), "reason": self.reason, **self._replies}

    def take(self, server: Server) -> None:
        """Publish the values of this server from now on, the first view at once.

        Nobody else uses the server yet.  The files of earlier servers are removed; replicas that
        have opened them go on reading.  Those of a living server of another lineage stay: it goes
        on if the model is not switched to this one after all.
        """
        with self._lock:
            self._remove_unread()
            if self._memory is not None:
                self._memory.close()
            self._memory, self._server, self._passed = None, server, None
            self._moved, self._published, self._due_s = set(), None, 0.0
            try:
                self._make_folder()
                name = f"{server.epoch}-{secrets.token_hex(4)}"
                self._memory = SharedMemory(self._folder / name)
            except OSError as error:
                self._note(f"{self._folder} can't be used: {error}")
                return
            self._passed = PassedRows(self._memory)
            self._publish(self._memory, server, threading.Lock())

    def passed(self, server: Server, request: SyncRequest) -> list[Passed] | None:
        """Return where the rows are that changed since the request's version; None: nowhere.

        What changed since the newest piece is written now.  The caller holds the lock that guards
        the server.
        """
        passed, count, since = self._passed, server.count, request.since
        if passed is None or server is not self._server or request.host != passed.host:
            return None
        if (newest := passed.newest) != count:
            touched = None if newest is None else server.changes_since((server.epoch, newest))
            passed.add(count, None if touched is None else _rows_of(server, touched))
        if not request.values or request.after or since is None or since[0] != server.epoch:
            return None
        found = passed.since(since[1]) if server.applied.reaches(since[1], count) else None
        self._replies["in_messages" if found is None else "passed"] += 1
        return found

    def _make_folder(self) -> None:
        """Make the lineage's folder, and remove earlier servers' ones in it.  Raises OSError."""
        for one in (*reversed(self._folder.parents[:3]), self._folder):
            one.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = one.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise PermissionError(f"{one} belongs to another user, or is a link")
        for earlier in self._folder.iterdir():
            shutil.rmtree(earlier, ignore_errors=True)
        self._remove_left()

    def _remove_left(self) -> None:
        """Remove what dead servers of other lineages have left, also under another host's name."""
        with contextlib.suppress(OSError):
            for folder in self._folder.parents[2].glob("*/*/*/*"):  # HOST/MODEL/SPEC/EPOCH
                if folder.parent != self._folder:
                    remove_left(folder)

    def publish_if_due(self, server: Server, lock: threading.Lock) -> None:
        """Publish a view if the values have changed, a second or more after the last one.

        Parameters:
            lock: Guards the server.
        """
        with self._lock:
            begun_s = time.monotonic()
            if self._memory is None or server is not self._server or begun_s < self._due_s:
                return
            self._remove_unread()
            self._remove_left()
            if server.count != self._published:
                self._publish(self._memory, server, lock)
                self._remove_unread()
            took_s = time.monotonic() - begun_s
            self._due_s = begun_s + max(_PUBLISH_S, took_s / _SHARE)

    def _publish(self, memory: SharedMemory, server: Server, lock: threading.Lock) -> None:
        if len(self._views) >= VIEWS_MAX:
            self._note(f"all of {VIEWS_MAX} older views are being read")
            return
        with lock:
            version = server.version
            tables = self._copied(memory, server.values)
            rest = shared_values(server, server.values.keys() - tables.keys())
            arrays = {name: arrays_of(table) for name, table in tables.items()}
        others = _encoded(rest)  # of a copy, because pushes and pulls wait for the lock
        whole = {name: one for name, one in arrays.items() if one is not None}
        self._published = version[1]
        if not tables:
            return
        if others is None or len(whole) < len(tables):
            self._note("other values are too many" if others is None else "a table has gaps")
            return
        try:
            ring = None if self._passed is None else self._passed.ring
            view = write_view(memory, server.spec, version, whole, others, ring)
        except OSError as error:
            self._note(f"a view can't be written: {error}")
            return
        if view is None:
            self._note(f"{self._folder} has no room")
            return
        self._views.append((view, list(tables.values())))
        self._note("")

    def _copied(self, memory: SharedMemory, values: Blocks) -> dict[str, Rows]:
        """Return copies of the tables, which share all pages; the caller holds the lock."""
        tables = {n: b.data for n, b in values.items() if b.kind == ROWS}
        tables = {n: table for n, table in tables.items() if len(table) >= ROWS_LEAST}
        for name, table in tables.items():
            if name not in self._moved:
                move(table, memory)
                self._moved.add(name)
        return {name: table.copy() for name, table in tables.items()}

    def _remove_unread(self) -> None:
        """Remove views that no replica reads, except the newest."""
        self._views[:-1] = [one for one in self._views[:-1] if not one[0].remove_unread()]

    def _note(self, reason: str) -> None:
        if reason and reason != self.reason:
            _log.warning("tables are not shared: %s", reason)
        self.reason = reason


def _rows_of(server: Server, touched: Touched) -> Blocks:
    return select({n: b for n, b in server.values.items() if b.kind == ROWS}, touched)


def _encoded(values: Blocks) -> list[bytes] | None:
    """Return the values in pieces, or None if they are too many."""
    if not values:
        return []
    pieces = list(islice(Parts(PART_KEYS).pieces(values), _PIECES_MAX + 1))
    return None if len(pieces) > _PIECES_MAX else pieces
