"""Supervises the processes that a service has started, from the process that started them.

A stopped process is treated as a dead one.  A Ray worker or HAProxy that has been stopped (SIGSTOP,
a debugger) for ``limits.standstill_s`` of the supervisor's own running time is ended, provided that
the supervisor's writes reach the disk; Ray or Serve then starts it again.  Other processes are only
reported, because nothing would start them again: `raylet`, `gcs_server`, the placeholders of
raylet's agents (raylet ends with them), and processes that a model has started.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import psutil

from online.service import processes
from online.service.state.stalled_process import LOOK_MAX_S, STOPPED, Process, writes

_FIND_S: Final = 5.0  # between two searches for new processes
_WORKER: Final = "ray::"  # how the command line of a Ray worker begins
_BALANCER: Final = "haproxy"
_REPLICA: Final = "ServeReplica"


class Children:
    """The processes of a service, which are polled for stopped ones.

    Parameters:
        progress: Is called with a line for each process that was ended, or only reported.
        find: Returns all running processes of the service.
        monotonic_s: Clock of the supervisor.
    """

    def __init__(
        self,
        progress: Callable[[str], None],
        find: Callable[[], Sequence[psutil.Process]] = processes.own_processes,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._progress = progress
        self._find, self._monotonic_s = find, monotonic_s
        self._found: Sequence[psutil.Process] = ()
        self._replicas: list[psutil.Process] = []
        self._found_s = self._looked_s = monotonic_s()
        self._stood: dict[Process, tuple[float, int]] = {}  # seconds stopped, context switches
        self._named: set[Process] = set()

    def once(self, folder: Path, replicas: int, bound_s: float | None) -> bool:
        """Poll each process, and end at most one that has been stopped for ``bound_s``; None: none.

        Returns whether a replica has gone since the last call and fewer than ``replicas`` run.  A
        process is ended only while writes to ``folder`` succeed.
        """
        gone = not all(processes.runs(one) for one in self._replicas)
        now_s = self._monotonic_s()
        if gone or not self._found or now_s >= self._found_s + _FIND_S:
            self._found, self._found_s = self._find(), now_s
            self._replicas = [one for one in self._found if _REPLICA in _command(one)]
        if bound_s is None:
            self._stood, self._looked_s = {}, now_s
        else:
            self._end_stopped(bound_s, folder, now_s)
        return gone and len(self._replicas) < replicas

    def _end_stopped(self, bound_s: float, folder: Path, now_s: float) -> None:
        passed_s, self._looked_s = min(now_s - self._looked_s, LOOK_MAX_S), now_s
        stood, self._stood = self._stood, {}
        for one in self._found:
            with contextlib.suppress(psutil.Error):
                if one.status() not in STOPPED:
                    continue
                who, turns = (one.pid, one.create_time()), sum(one.num_ctx_switches())
                so_far_s, before = stood.get(who, (0.0, None))
                # If it has been switched in since, it runs in between: a tracer or a CPU limiter
                # stops a process often, but never for long.
                so_far_s = so_far_s + passed_s if turns == before else 0.0
                self._stood[who] = so_far_s, turns
                if so_far_s >= bound_s and who not in self._named and writes(folder):
                    self._end(one, who, bound_s)
                    return  # one at a time: the end of one may let others go on

    def _end(self, one: psutil.Process, who: Process, bound_s: float) -> None:
        self._named.add(who)
        line = f"process {one.pid} ({one.name()})"
        if not _begins_again(one):
            self._progress(
                f"{line} has been stopped for {bound_s:g} s, and nothing would restart it: it is "
                f"left alone; `kill -CONT {one.pid}` resumes it"
            )
            return
        processes.end([one])
        self._progress(f"ended {line}: it stood still for {bound_s:g} s; it is started again")


def _begins_again(process: psutil.Process) -> bool:
    """Whether Ray or Serve starts it again; not so for a worker's fork, which has its name."""
    if process.name() == _BALANCER:
        return True
    parent = process.parent()
    forked = parent is not None and _command(parent).startswith(_WORKER)
    return _command(process).startswith(_WORKER) and not forked


def _command(process: psutil.Process) -> str:
    """Return the command line of a process; empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip() or process.name()
    return ""
