"""A fair file lock between processes, with a timeout for every wait.

The kernel releases the lock when its holder dies, but not while the holder is stopped (SIGSTOP, a
frozen container), so a blocking wait in the kernel could last for ever.  Therefore the lock is
polled, at first every 50 µs, until a deadline.  Then the error names the holder, which Linux lists
in ``/proc/locks``.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replay.errors import JournalHeld

_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_FIRST_PAUSE_S: Final = 50e-6
_BRISK_S: Final = 0.02  # another process's commit usually takes less than this
_LAST_PAUSE_S: Final = 5e-3
_NAME_MAX: Final = 80  # characters of a command line in an error


@dataclass(frozen=True, slots=True)
class Holder:
    """A process of this machine that holds a lock; ``name`` is the start of its command line."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})"


def _mode(path: Path) -> int:
    """Return the mode of the lock files: writable by those who can write the locked file.

    Nobody else may take the lock, because its holder blocks all others.
    """
    try:
        shared = path.stat().st_mode & 0o020
    except FileNotFoundError:
        shared = 0
    return 0o660 if shared else 0o600


class FairLock:
    """An exclusive lock on a file, with a second lock (the queue) for the next in line.

    The process that waits for the lock holds the queue, so a process that has just released the
    lock cannot take it again before the waiting one polls.  A process that has waited long for the
    queue takes a third lock (the elder); while that is held, newcomers do not try to take the queue
    until they have waited long themselves.  Otherwise newcomers, which poll more often, would
    always be next.  An object may be used by one thread at a time.

    Parameters:
        path: The lock files ``<path>.lock``, ``<path>.queue`` and ``<path>.elder`` are made.
        wait_s: Timeout for queue and lock together, in seconds.
    """

    def __init__(self, path: Path, wait_s: float) -> None:
        self._wait_s = wait_s
        mode = _mode(path)
        opened: list[int] = []
        try:
            for name in ("lock", "queue", "elder"):
                opened.append(os.open(f"{path}.{name}", _LOCK_FLAGS, mode))
        except OSError:
            for fd in opened:
                os.close(fd)
            raise
        self.lock_fd, self.queue_fd, self._elder_fd = opened

    def take(self, waited_s: float = 0.0) -> None:
        """Take the lock.  Raises JournalHeld (definite) after the timeout.

        Parameters:
            waited_s: Time that the caller has waited before, which counts toward the timeout.
        """
        begun_s = time.monotonic() - waited_s
        self._take_queue(begun_s)
        try:
            pause_s = _FIRST_PAUSE_S
            while not _taken(self.lock_fd):
                pause_s = self._pause(begun_s, pause_s)
        finally:
            fcntl.flock(self.queue_fd, fcntl.LOCK_UN)

    def _take_queue(self, begun_s: float) -> None:
        """Take the queue, that is, become the next in line."""
        elder, pause_s = False, _FIRST_PAUSE_S
        try:
            while True:
                old = time.monotonic() - begun_s > _BRISK_S
                free = elder or _taken(self._elder_fd)
                if free and not elder:
                    elder = old
                    if not old:
                        fcntl.flock(self._elder_fd, fcntl.LOCK_UN)  # no one has waited long
                if (free or old) and _taken(self.queue_fd):
                    return
                pause_s = self._pause(begun_s, _FIRST_PAUSE_S if elder else pause_s)
        finally:
            if elder:
                fcntl.flock(self._elder_fd, fcntl.LOCK_UN)

    def _pause(self, begun_s: float, pause_s: float) -> float:
        """Sleep for a while; return the next pause.  Raises JournalHeld at the deadline."""
        waited_s = time.monotonic() - begun_s
        if waited_s >= self._wait_s:
            # If nobody holds the lock, a stopped process may hold the queue.
            process = flock_holder(self.lock_fd) or flock_holder(self.queue_fd)
            holder = "another process" if process is None else str(process)
            raise JournalHeld(holder, self._wait_s, None if process is None else process.pid)
        time.sleep(min(pause_s, self._wait_s - waited_s))
        return min(2 * pause_s, _LAST_PAUSE_S) if waited_s > _BRISK_S else pause_s

    def release(self) -> None:
        """Release the lock for the next process."""
        fcntl.flock(self.lock_fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the three files of the lock."""
        for fd in (self.lock_fd, self.queue_fd, self._elder_fd):
            os.close(fd)


def _taken(fd: int) -> bool:
    """Try to lock the open file; return whether it succeeded."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def flock_holder(fd: int, locks: Callable[[], str] | None = None) -> Holder | None:
    """Return the holder of this open file's ``flock``, or None if unknown."""
    return _holder(os.fstat(fd).st_ino, "FLOCK", locks)


def posix_holder(path: str, locks: Callable[[], str] | None = None) -> Holder | None:
    """Return the holder of a POSIX write lock (SQLite's kind) on this file, or None if unknown."""
    try:
        return _holder(os.stat(path).st_ino, "POSIX", locks)
    except OSError:
        return None


def _holder(inode: int, kind: str, locks: Callable[[], str] | None) -> Holder | None:
    try:
        text = (locks or Path("/proc/locks").read_text)()
    except OSError:
        return None
    for line in text.splitlines():
        # "7: FLOCK  ADVISORY  WRITE 812 fe:00:131081 0 EOF"; waiters have "->" after the number
        words = line.split()
        if len(words) < 6 or words[1] != kind or words[3] != "WRITE":
            continue
        pid, file = int(words[4]), words[5]
        if pid > 0 and file.rpartition(":")[2] == str(inode):
            return Holder(pid, _command(pid))
    return None


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return "gone"
    return b" ".join(words).decode(errors="replace").strip()[:_NAME_MAX] or "no command line"
