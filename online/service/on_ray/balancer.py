"""When HAProxy has every replica and will not be exchanged any more: a service may say ready.

Serve exchanges HAProxy's process whenever a replica comes or goes, and the process before closes
the connections that have not asked anything yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

_TAKEN_OVER_S: Final = 1.0  # a new process has its listeners, and the one before was told to stop
_SETTLED_S: Final = 10.0  # whatever is missing by then does not come
_CLOCKS_S: Final = 0.05  # the kernel counts starts in hundredths of a second


def balanced(private: Path, replicas: int) -> bool:
    """Whether HAProxy has so many replicas, and its last reload is over.

    Serve writes its configuration right before each reload.  Before the replicas are in it, what
    answers is Serve's own proxy, and a reload is still to come.
    """
    found = (*private.glob("haproxy.cfg"), *private.glob("*/haproxy.cfg"))  # a folder a node
    return all(_reloaded(file, replicas) for file in found)


def _reloaded(file: Path, replicas: int) -> bool:
    try:
        text, written_at_s = file.read_text(), file.stat().st_mtime
    except OSError:  # it is being written
        return False
    written_s = time.time() - written_at_s
    if text.count("server SERVE_REPLICA_") < replicas:
        return False
    if written_s > _SETTLED_S:
        return True
    if "server SERVE_PROXY_" not in text:  # what answers if no replica can: one more reload
        return False
    ages_s = _ages_s(str(file))
    if not ages_s:  # it runs where its processes can't be seen
        return written_s > _TAKEN_OVER_S
    newest_s = min(ages_s)
    if newest_s > written_s + _CLOCKS_S:  # the one that reads this configuration is still to come
        return False
    return newest_s > (_TAKEN_OVER_S if len(ages_s) > 1 else _CLOCKS_S)


def _ages_s(file: str) -> list[float]:
    """Seconds for which each process with the file on its command line has run."""
    return [
        age_s
        for process in psutil.process_iter(["cmdline"])
        if file in (process.info["cmdline"] or ())
        for age_s in _age_s(process)
    ]


def _age_s(process: psutil.Process) -> Iterable[float]:
    """One number; none of a process that has ended.

    On Linux psutil knows the boot to a second, so that a start's time may be wrong by one.
    """
    try:
        if hasattr(time, "CLOCK_BOOTTIME"):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
            return (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s,)
        return (time.time() - process.create_time(),)
    except (OSError, psutil.Error):
        return ()
