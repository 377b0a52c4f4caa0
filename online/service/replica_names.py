"""Names of replicas, and which of them have ended.

Imported by parameter servers, so it imports neither settings nor models.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Final, Protocol

import psutil

_HUNDREDTH_S: Final = 0.01


def replica_name() -> str:
    """Name of this process among replicas: host, pid and start time identify it uniquely."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


class _Owned(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def replica(self) -> str: ...


def gone(partitions: Sequence[_Owned]) -> list[int]:
    """Partitions whose replica was a process of this host that no longer runs.

    A process's start is given in time since boot plus the boot's time, in whole seconds, which
    moves when the clock is set.  So only hundredths are compared: of a hundred dead processes whose
    number another one has got, one is waited for until its lease ends.
    """
    out = []
    alive: dict[str, bool] = {}
    for partition in partitions:
        host, _, process = partition.replica.partition(":")
        if host != socket.gethostname():
            continue
        if process not in alive:
            pid, _, started = process.partition(":")
            try:
                off_s = psutil.Process(int(pid)).create_time() - float(started)
                alive[process] = abs(off_s - round(off_s)) < _HUNDREDTH_S / 2
            except (psutil.Error, ValueError):
                alive[process] = False
        if not alive[process]:
            out.append(partition.id)
    return out
