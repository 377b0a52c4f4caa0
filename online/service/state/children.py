"""The processes that a service has started are looked after by the process that started them.

A process that stands still is a process that died: one that is stopped (SIGSTOP, a debugger) for
``limits.standstill_s``, counted in our own running time, is ended while our own writes reach the
disk, and Ray or Serve starts it again.  What they can't start again, Ray's own, is only named.

When a replica has gone, it is found out at once whether the next one can start.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil

from online import processes
from online.service.state.stalled_process import LOOK_MAX_S, STOPPED, Process, writes

_FIND_S: Final = 5.0  # between two searches for processes that have begun
_VITAL: Final = ("raylet", "gcs_server")
_REPLICA: Final = "ServeReplica"


class Children:
    """The processes of a service, looked at in turn.

    Parameters:
        bound_s: One that is stopped for so long is ended; None: never.
        progress: Is given a line for each that was ended, or stands and can't be.
        find: All that run.
        monotonic_s: Our own clock.
    """

    def __init__(
        self,
        bound_s: float | None,
        progress: Callable[[str], None],
        find: Callable[[], Sequence[psutil.Process]] = processes.own_processes,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bound_s, self._progress = bound_s, progress
        self._find, self._monotonic_s = find, monotonic_s
        self._found: Sequence[psutil.Process] = ()
        self._replicas: list[psutil.Process] = []
        self._found_s = self._looked_s = monotonic_s()
        self._stood_s: dict[Process, float] = {}
        self._named: set[Process] = set()

    def once(self, folder: Path, replicas: int) -> bool:
        """Look at each, and end one that stands still.

        Returns whether a replica has gone since, and fewer than ``replicas`` run.  ``folder`` is on
        the disk whose writes have to go on.
        """
        gone = not all(processes.runs(one) for one in self._replicas)
        now_s = self._monotonic_s()
        if gone or not self._found or now_s >= self._found_s + _FIND_S:
            self._found, self._found_s = self._find(), now_s
            self._replicas = [one for one in self._found if _REPLICA in _command(one)]
        if self._bound_s is not None:
            self._end_stopped(self._bound_s, folder, now_s)
        return gone and len(self._replicas) < replicas

    def _end_stopped(self, bound_s: float, folder: Path, now_s: float) -> None:
        passed_s, self._looked_s = min(now_s - self._looked_s, LOOK_MAX_S), now_s
        stood, self._stood_s = self._stood_s, {}
        for one in self._found:
            with contextlib.suppress(psutil.NoSuchProcess):
                if one.status() not in STOPPED:
                    continue
                who = one.pid, one.create_time()
                so_far_s = stood[who] + passed_s if who in stood else 0.0
                self._stood_s[who] = so_far_s
                if so_far_s >= bound_s and who not in self._named and writes(folder):
                    self._end(one, who, bound_s)
                    return  # one at a time: the end of one may let others go on

    def _end(self, one: psutil.Process, who: Process, bound_s: float) -> None:
        self._named.add(who)
        name = f"process {one.pid} ({one.name()})"
        if one.name() in _VITAL:
            self._progress(f"{name} stands still for {bound_s:g} s, and the service needs it")
            return
        processes.end([one])
        self._progress(f"ended {name}: it stood still for {bound_s:g} s; it is started again")


def _command(process: psutil.Process) -> str:
    """Its command line; empty: it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip() or process.name()
    return ""
