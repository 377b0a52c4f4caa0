"""A process of ours that stands still while it holds the journal is ended; nobody else is.

A replica that is stopped (SIGSTOP, a debugger, a frozen container) inside a commit goes on holding
the journal's lock, and then no feedback is taken until it moves again.  The service's own process
looks who holds the lock whenever it can't have it.  It ends that process if all of this holds for
``limits.standstill_s``, counted in its own running time:

* it is the same process, and one that this service has started;
* it is stopped, or it is a replica whose HTTP does not answer;
* a write of our own to the same disk succeeds: a disk that stalls is nobody's fault.

Whoever else holds it, such as a program that makes a backup, is named in the refusals of feedback
and is never ended.
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

from online import processes
from online.client.asking import Asking, NoAnswer

LOOK_MAX_S: Final = 2.0  # counted at most between two looks: the time between may not be ours
_ANSWER_S: Final = 2.0  # for a replica's HTTP, and for a write to the disk
STOPPED: Final = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)

Process = tuple[int, float]
"""A process for sure: its number, and when it was started (POSIX seconds)."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look at who holds the journal.

    Attributes:
        holder: Who it is; None: not known.
        ours: Whether this service has started it.
        stands: Whether it is stopped or does not answer.
        disk: Whether a write of our own to the journal's disk succeeds.
    """

    holder: Process | None
    ours: bool
    stands: bool
    disk: bool


class Standstill:
    """Counts for how long one process of ours has stood still while it holds the journal.

    ``bound_s``: after how many seconds it is to be ended.
    """

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._process: Process | None = None
        self._stood_s = self._looked_s = 0.0

    def moved(self) -> None:
        """Nobody holds the journal any more."""
        self._process = None

    def saw(self, look: Look, now_s: float) -> Process | None:
        """Count one look at ``now_s`` (monotonic seconds); the process to end, if it is time."""
        if look.holder is None or not (look.ours and look.stands and look.disk):
            self._process = None
            return None
        if look.holder != self._process:
            self._process, self._stood_s = look.holder, 0.0
        else:
            self._stood_s += min(now_s - self._looked_s, LOOK_MAX_S)
        self._looked_s = now_s
        if self._stood_s < self._bound_s:
            return None
        self._process = None  # one at a time: the next one is counted anew
        return look.holder

    def end(self, look: Look, now_s: float) -> str | None:
        """End the process if it is time, and say so."""
        process = self.saw(look, now_s)
        if process is None:
            return None
        own = processes.own_processes()
        processes.end([one for one in own if (one.pid, one.create_time()) == process])
        return (
            f"ended process {process[0]}: it stood still for {self._bound_s:g} s and held the "
            "journal; what it had written is learned by another replica"
        )


def look(
    pid: int | None,
    ports: range,
    folder: Path,
    clock_s: Callable[[], float] = time.monotonic,
) -> Look:
    """Look at the process that holds the journal.

    Parameters:
        pid: Its number, None if it is not known.
        ports: Where replicas listen on loopback.
        folder: A folder on the journal's disk, where a file may be written and removed.
        clock_s: Monotonic seconds.
    """
    found = next((own for own in processes.own_processes() if own.pid == pid), None)
    if pid is None or found is None:
        return Look(None, False, False, False)
    with contextlib.suppress(psutil.NoSuchProcess):
        stands = found.status() in STOPPED or _silent(found, ports)
        disk = stands and writes(folder, clock_s)
        return Look((pid, found.create_time()), True, stands, disk)
    return Look(None, True, False, False)  # it has ended since


def _silent(process: psutil.Process, ports: range) -> bool:
    """Whether it is a replica whose HTTP does not answer."""
    for connection in process.net_connections("tcp"):
        local = connection.laddr
        if connection.status == psutil.CONN_LISTEN and local and local.port in ports:
            try:
                Asking(f"http://127.0.0.1:{local.port}", timeout_s=_ANSWER_S).get("/livez")
            except NoAnswer:
                return True
            return False
    return False


def writes(folder: Path, clock_s: Callable[[], float] = time.monotonic) -> bool:
    """Whether a small file reaches the disk in time.  A disk that never answers is waited for."""
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
