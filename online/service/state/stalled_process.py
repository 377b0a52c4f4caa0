"""Ends a process of this service that is stalled while it holds the journal's lock.

A replica that is stopped (SIGSTOP, a debugger, a frozen container) inside a commit keeps the
journal's lock, and no feedback is accepted until it runs again.  Whenever the service's main
process can't get the lock it inspects the holder.  It ends the holder if all of this has been true
for ``limits.standstill_s``, counted in the main process's own running time:

* it is the same process, and one that this service has started;
* it is stopped, or it is a replica whose HTTP does not answer, and which does not wait for a disk;
* nothing was written to the journal: else it is slow, and has had the lock more than once;
* the main process can write to the same disk, so a stalled disk is not the cause.

Any other holder, such as a backup program, is named in the refusals of feedback and never ended.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from online.client.simple_client import NoAnswer, SimpleClient
from online.service import processes

LOOK_MAX_S: Final = 2.0  # counted at most per interval: this process may have been suspended too
_ANSWER_S: Final = 2.0  # for a replica's HTTP, and for a write to the disk
STOPPED: Final = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)

Process = tuple[int, float]
"""Identity of a process: its pid, and when it was started (POSIX seconds)."""


@dataclass(frozen=True, slots=True)
class Look:
    """One observation of the process that holds the journal's lock.

    Attributes:
        holder: The process; None: not known.
        ours: Whether this service has started it.
        stands: Whether it is stopped or does not answer.
        disk: Whether this process can write to the journal's disk.
        written: Size and time of the last change of the journal's log.
    """

    holder: Process | None
    ours: bool
    stands: bool
    disk: bool
    written: tuple[int, int] | None = None


class Standstill:
    """Measures how long one process of this service has been stalled while holding the journal."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._written: tuple[int, int] | None = None
        self._stood_s = self._looked_s = 0.0

    def moved(self) -> None:
        """Reset the measurement: the lock is free."""
        self._process = None

    def saw(self, look: Look, now_s: float, bound_s: float) -> Process | None:
        """Count one observation at ``now_s`` (monotonic seconds); return the process to end.

        ``bound_s``: seconds after which it is to be ended.
        """
        if look.holder is None or not (look.ours and look.stands and look.disk):
            self._process = None
            return None
        if (look.holder, look.written) != (self._process, self._written):
            self._process, self._written, self._stood_s = look.holder, look.written, 0.0
        else:
            self._stood_s += min(now_s - self._looked_s, LOOK_MAX_S)
        self._looked_s = now_s
        if self._stood_s < bound_s:
            return None
        self._process = None  # the next process is measured from zero
        return look.holder

    def end(self, look: Look, now_s: float, bound_s: float) -> str | None:
        """End the process if its time is over, and return a line about it."""
        process = self.saw(look, now_s, bound_s)
        if process is None:
            return None
        own = processes.own_processes()
        processes.end([one for one in own if (one.pid, one.create_time()) == process])
        return (
            f"ended process {process[0]}: it was stopped for {bound_s:g} s and held the "
            "journal; what it had written is learned by another replica"
        )


def look(
    pid: int | None, ports: range, folder: Path, clock_s: Callable[[], float] = time.monotonic
) -> Look:
    """Inspect the process that holds the journal's lock.

    Parameters:
        pid: Its process id, None if it is not known.
        ports: Ports on loopback where replicas listen.
        folder: A folder on the journal's disk, where a file may be written and removed.
        clock_s: Monotonic seconds.
    """
    process = next((own for own in processes.own_processes() if own.pid == pid), None)
    if pid is None or process is None:
        return Look(None, False, False, False)
    with contextlib.suppress(psutil.NoSuchProcess):
        written, status = _written(folder), process.status()
        waits = status == psutil.STATUS_DISK_SLEEP  # for this disk or another, as that of swap
        stands = status in STOPPED or (not waits and _silent(process, ports))
        disk = stands and writes(folder, clock_s)
        return Look((pid, process.create_time()), True, stands, disk, written)
    return Look(None, True, False, False)  # it has ended meanwhile


def _silent(process: psutil.Process, ports: range) -> bool:
    """Whether it is a replica whose HTTP does not answer."""
    for connection in process.net_connections("tcp"):
        local = connection.laddr
        if connection.status == psutil.CONN_LISTEN and local and local.port in ports:
            try:
                SimpleClient(f"http://127.0.0.1:{local.port}", timeout_s=_ANSWER_S).get("/livez")
            except NoAnswer:
                return True
            return False
    return False


def _written(folder: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        log = (folder / "journal.db-wal").stat()
        return log.st_size, log.st_mtime_ns
    return None


def writes(folder: Path, clock_s: Callable[[], float] = time.monotonic) -> bool:
    """Whether a small file can be written in time; blocks as long as the disk does."""
    begun_s, path = clock_s(), folder / f"standstill-{os.getpid()}.tmp"
    try:
        with path.open("wb") as file:
            file.write(b"0")
            file.flush()
            os.fdatasync(file.fileno())
        path.unlink()
    except OSError:
        return False
    return clock_s() - begun_s < _ANSWER_S
