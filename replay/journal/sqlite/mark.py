"""The mark file records how the service left the database file, and its newest row.

SQLite does not notice that another program has changed the database in use (for example copied a
backup over it, or truncated it), nor that a log with commits was removed: it mixes pages of two
files, or opens an older state.  So the database's size and modification time and the number of its
newest row are stored in a small file beside it, written under the write lock.

The mark never causes a false alarm: it is written after the commit that it records, and a mark that
is missing, torn or unreadable is ignored.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import quote

from replay.errors import JournalDamaged, JournalUnavailable

_LAYOUT: Final = struct.Struct("<4sqqqq")
_SUM: Final = struct.Struct("<I")
_NAME: Final = b"OLM2"
_CHANGING: Final = (-1, -1)
"""Takes the place of size and time while the service itself changes the file."""
_NUMBERED: Final = "SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'"


@dataclass(frozen=True, slots=True)
class Marked:
    """Size and modification time (ns) of the database file, and the number of its newest row.

    ``looks`` counts how often a change by another program was verified and the file reopened.
    """

    file: tuple[int, int]
    newest: int
    looks: int = 0


class Mark:
    """The mark file of a database; its methods are called with the write lock held.

    Parameters:
        path: The database; ``<path>.mark`` is made beside it with the same permissions.
        newest: Query for the greatest row number ever assigned.
    """

    def __init__(self, path: Path, newest: str) -> None:
        self._path, self._query, self._fd, self._looks = path, newest, -1, 0
        self._spoilt: tuple[tuple[int, int] | None, str | None] | None = None
        self._known: tuple[bytes, Marked | None] = (b"", None)  # last content read or written
        with suppress(OSError):
            mode = path.stat().st_mode & 0o666
            self._fd = os.open(f"{path}.mark", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)

    def read(self) -> Marked | None:
        """Return the mark, or None if it is missing or invalid."""
        try:
            data = os.pread(self._fd, _LAYOUT.size + _SUM.size, 0)
        except OSError:
            return None
        if data != self._known[0]:
            self._known = (data, _parsed(data))
        return self._known[1]

    def _write(self, marked: Marked) -> None:
        body = _LAYOUT.pack(_NAME, *marked.file, marked.newest, marked.looks)
        self._known = (body + _SUM.pack(zlib.crc32(body)), marked)
        with suppress(OSError):
            os.pwrite(self._fd, self._known[0], 0)

    def _note_file(self, file: tuple[int, int] | None, looks: int = 0) -> None:
        if file is not None:
            marked = self.read() or Marked(file, 0)
            self._write(replace(marked, file=file, looks=marked.looks + looks))

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Run a block that opens the database; verify changes by other programs first.

        Processes that already have the database open notice the verification and reopen it, too.
        Raises JournalDamaged, or sqlite3.Error.
        """
        if foreign := self.foreign:
            self.look_through()
        with self.changing(looks=int(foreign)):
            yield
        marked = self.read()
        self._looks = 0 if marked is None else marked.looks

    @contextmanager
    def changing(self, looks: int = 0) -> Iterator[None]:
        """Run a block in which the service itself changes the database file.

        If the process dies in it, the mark says nothing about the file.  An unverified change by
        another program stays recorded until the block has succeeded.
        """
        if not self.foreign:
            self._note_file(_CHANGING)
        yield
        self._note_file(self._now(), looks)

    def note_newest(self, db: sqlite3.Connection) -> None:
        """Record that this connection's rows are committed; call it after :meth:`check`."""
        newest, known = self._newest(db), self._known[1]
        if known is not None and newest > known.newest:
            self._write(replace(known, newest=newest))

    def _newest(self, db: sqlite3.Connection) -> int:
        record = db.execute(self._query).fetchone()
        return int(record[0]) if record else 0

    def _now(self) -> tuple[int, int] | None:
        """Return size and modification time of the file, or None if it cannot be read."""
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    @property
    def foreign(self) -> bool:
        """Whether another program has changed the file since it was marked."""
        marked, now = self.read(), self._now()
        return marked is not None and now is not None and marked.file not in (now, _CHANGING)

    def look_through(self) -> int:
        """Verify a database that another program has changed; return its newest row's number.

        It uses a new, read-only connection, so that no cached page is used.  Raises JournalDamaged,
        or sqlite3.Error.
        """
        place, newest = f"file:{quote(str(self._path))}?mode=ro", 0
        try:
            with closing(sqlite3.connect(place, uri=True)) as db:
                problem = " ".join(db.execute("PRAGMA integrity_check(1)").fetchone()[0].split())
                if db.execute(_NUMBERED).fetchone():
                    newest = self._newest(db)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            problem = str(error)
        if problem != "ok":
            why = f"another program has changed the file, which is damaged now: {problem}"
            raise JournalDamaged(str(self._path), why)
        return newest

    def check(self) -> bool:
        """Return whether the database must be reopened because another program has changed it.

        A program that only moved pages out of the log did no harm.  Raises JournalDamaged if the
        change did harm (also if another process has reopened the file since), or
        JournalUnavailable.
        """
        marked = self.read()
        if not self.foreign and (marked is None or marked.looks == self._looks):
            return False
        now = self._now()
        if self._spoilt is None or self._spoilt[0] != now:
            try:
                newest, why = self.look_through(), None
                if marked is not None and newest < marked.newest:
                    lost = marked.newest - newest
                    why = f"an older one lies in its place, which lacks the newest {lost:,} rows"
            except JournalDamaged as error:
                why = error.why
            except sqlite3.Error as error:
                raise JournalUnavailable(f"{self._path}: {error}") from error
            self._spoilt = (now, why)
        if (why := self._spoilt[1]) is not None:
            raise JournalDamaged(str(self._path), why)
        return True

    def lost(self, db: sqlite3.Connection) -> int:
        """Return the number of committed rows that the database does not have."""
        marked = self.read()
        return 0 if marked is None else max(marked.newest - self._newest(db), 0)

    def accept(self, db: sqlite3.Connection) -> None:
        """Set the mark's newest row to the database's, which accepts the loss of later ones."""
        if (marked := self.read()) is not None:
            self._write(replace(marked, newest=self._newest(db)))

    def close(self) -> None:
        """Close the mark file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _parsed(data: bytes) -> Marked | None:
    body, check = data[: _LAYOUT.size], data[_LAYOUT.size :]
    if check != _SUM.pack(zlib.crc32(body)):
        return None
    name, size, time_ns, newest, looks = _LAYOUT.unpack(body)
    return Marked((size, time_ns), newest, looks) if name == _NAME else None
