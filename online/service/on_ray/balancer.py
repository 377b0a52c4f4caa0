"""Tells when HAProxy knows every replica and will not be reloaded again, so a start is complete.

Serve replaces HAProxy's process whenever a replica starts or stops, and the old process closes
connections that have not sent a request yet.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import psutil

_TAKEN_OVER_S: Final = 1.0  # by then a new process listens, and the old one was told to stop
_SETTLED_S: Final = 10.0  # replicas that are missing by then do not come
_CLOCKS_S: Final = 0.05  # the kernel reports start times in hundredths of a second


def balanced(private: Path, replicas: int) -> bool:
    """Whether HAProxy knows this many replicas and its last reload is over.

    Serve writes the configuration right before each reload.  Until the replicas are in it, Serve's
    own proxy answers, and a reload is still to come.
    """
    # One per node.
    configurations = (*private.glob("haproxy.cfg"), *private.glob("*/haproxy.cfg"))
    return all(_reloaded(file, replicas) for file in configurations)


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
    if "server SERVE_PROXY_" not in text:  # the fallback is missing: one more reload will come
        return False
    ages_s = _ages_s(str(file))
    if not ages_s:  # HAProxy runs where its processes can't be seen
        return written_s > _TAKEN_OVER_S
    newest_s = min(ages_s)
    if newest_s > written_s + _CLOCKS_S:  # no process has read this configuration yet
        return False
    return newest_s > (_TAKEN_OVER_S if len(ages_s) > 1 else _CLOCKS_S)


def _ages_s(file: str) -> list[float]:
    """Running time in seconds of each process with the file on its command line."""
    return [
        age_s
        for process in psutil.process_iter(["cmdline"])
        if file in (process.info["cmdline"] or ())
        for age_s in _age_s(process)
    ]


def _age_s(process: psutil.Process) -> Iterable[float]:
    """Running time of a process as one number; empty if it has ended.

    On Linux psutil knows the boot time to a second only, so a start time may be off by one second.
    """
    try:
        if hasattr(time, "CLOCK_BOOTTIME"):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
            return (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s,)
        return (time.time() - process.create_time(),)
    except (OSError, psutil.Error):
        return ()
