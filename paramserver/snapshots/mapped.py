"""Reads large snapshots through a mapping of the file, so that a start does not wait for a copy.

New memory is what costs a start most: a virtual machine takes seconds to hand out gigabytes.  The
pages of a mapping are the system's cache of the file.  A second thread reads the file through and
finds errors of the disk; a page of the mapping is touched only once it has been read, because an
error there would end the process.  A third one follows it with the checksum, which takes several
times as long as reading what is in the cache; it reads the file, too, because it may still do so
when the file was given up and is replaced.  A disk that delivers nothing is waited for as long as
the reader says, and no longer: whoever restores tries again.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from hashlib import sha256
from io import BufferedReader
from typing import Final

MAPPED_LEAST: Final = 64 * 2**20
"""Size in bytes from which on a file is mapped."""

STALL_S: Final = 180.0
"""Seconds without a byte after which a reader without a setting gives up."""

DIGEST_BYTES: Final = sha256().digest_size
_PIECE: Final = 2**20


class InMemory:
    """The bytes of a snapshot that are in memory as a whole."""

    mapped = False

    def __init__(self, data: bytes | memoryview) -> None:
        self.view = memoryview(data)

    def until(self, end: int) -> None:
        """Return at once, because all bytes are there."""

    def tail(self) -> bytes:
        """Return the last bytes, which contain the checksum."""
        return bytes(self.view[-DIGEST_BYTES:])

    def digest(self) -> bytes:
        """Return the SHA-256 of all bytes before the tail."""
        return sha256(self.view[:-DIGEST_BYTES]).digest()


class MappedFile:
    """A mapped file of at least ``MAPPED_LEAST`` bytes, which a thread reads through once.

    Parameters:
        stall_s: Seconds without a byte after which the file is given up.

    Attributes:
        view: Its bytes.  Whoever changes them does not change the file.
    """

    mapped = True

    def __init__(self, file: BufferedReader, size: int, stall_s: float = STALL_S) -> None:
        self.view = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY))
        self._file, self._size, self._stall_s = file, size, stall_s
        self._sum, self._tail, self._again = sha256(), b"", os.dup(file.fileno())
        self._read, self._summed = 0, 0
        self._error: OSError | None = None
        self._more = threading.Condition()
        threading.Thread(target=self._read_through, name="snapshot-read", daemon=True).start()
        threading.Thread(target=self._add, name="snapshot-checksum", daemon=True).start()

    def _read_through(self) -> None:
        held = memoryview(bytearray(_PIECE))
        try:
            with self._file:
                while self._read < self._size and self._error is None:
                    self._note(self._file.readinto(held[: self._size - self._read]))
        except OSError as error:
            self._fail(error)

    def _check(self, n: int) -> None:
        if not n:
            raise OSError(f"the file has become shorter than {self._size} bytes")

    def _fail(self, error: OSError) -> None:
        with self._more:
            self._error = error
            self._more.notify_all()

    def _note(self, n: int) -> None:
        self._check(n)
        with self._more:
            self._read += n
            self._more.notify_all()

    def _add(self) -> None:
        """Compute the checksum of what has been read, until all or nothing more is."""
        last = max(self._size - DIGEST_BYTES, 0)
        held, begin = memoryview(bytearray(_PIECE)), 0
        try:
            while begin < last:
                self.until(min(begin + _PIECE, last))
                n = os.preadv(self._again, [held[: last - begin]], begin)
                self._check(n)
                self._sum.update(held[:n])
                begin += n
                self._note_summed(begin)
            self.until(self._size)
            self._tail = os.pread(self._again, DIGEST_BYTES, last)
            self._note_summed(self._size)
        except OSError as error:
            self._fail(error)
        finally:
            os.close(self._again)

    def _note_summed(self, end: int) -> None:
        with self._more:
            self._summed = end
            self._more.notify_all()

    def until(self, end: int) -> None:
        """Wait until so many bytes, or all, have been read.

        Raises:
            TimeoutError: The disk has delivered nothing for too long.  The thread that reads may
                hang until the disk goes on, and ends then.
            OSError: The disk fails.
        """
        end = min(end, self._size)
        with self._more:
            while self._read < end and self._error is None:
                self._wait_for_more(lambda: self._read)
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _wait_for_more(self, done: Callable[[], int]) -> None:
        """Wait until more bytes are done, or give the file up; the caller holds the lock."""
        before = done()
        if not self._more.wait_for(
            lambda: done() > before or self._error is not None, self._stall_s
        ):
            self._error = TimeoutError(
                f"the disk has delivered nothing for {self._stall_s:g} s, after {before:,} of "
                f"{self._size:,} bytes of a snapshot"
            )

    def tail(self) -> bytes:
        """Return the last bytes, which contain the checksum.  Raises OSError."""
        self._sum_all()
        return self._tail

    def digest(self) -> bytes:
        """Return the SHA-256 of all bytes before the tail.  Raises OSError."""
        self._sum_all()
        return self._sum.digest()

    def _sum_all(self) -> None:
        self.until(self._size)
        with self._more:  # the second reading may stand still, too: the cache may have lost a page
            while self._summed < self._size and self._error is None:
                self._wait_for_more(lambda: self._summed)
        self._raise()


Source = InMemory | MappedFile


def source_of(data: bytes | memoryview | MappedFile) -> Source:
    """Return the bytes as a source to be decoded."""
    return data if isinstance(data, MappedFile) else InMemory(data)
