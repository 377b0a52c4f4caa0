"""This module gives a state folder one owner, and ends what `online serve` left on the machine.

Only processes that this state folder's service started are ended: they are found by pid and start
time as noted in ``run.json``, and by the private folder that they have on their command line.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import socket
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil

from online.errors import StartRefused

_KILL_WAIT_S = 3.0
_FIRST, _RANGES = 20_000, 93  # of 128 ports each, up to 31904


class Owner:
    """Lock of a state folder; freed by the kernel when the process ends.

    The folder itself is locked beside the file in it: whoever tidies up may remove that one.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "owner.lock"
        try:
            if not state_dir.exists():
                state_dir.mkdir(parents=True, exist_ok=True)
                # The signing key and what callers sent lie here: git is to leave them out.
                (state_dir / ".gitignore").write_text("*\n")
            self._file = self._path.open("a+")
        except OSError as error:
            raise _unusable(state_dir, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise StartRefused(
                f"{state_dir} is in use by another service ({holder})",
                "Stop that one, or give this one its own --state-dir",
            ) from None
        try:
            self._unlock = _lock(self, state_dir)
        except BlockingIOError:
            self._file.close()
            raise StartRefused(
                f"something holds a lock on the folder {state_dir} itself: another program, such "
                "as `flock` of a backup, or a service whose owner.lock was removed",
                f"`lsof {state_dir}` or `fuser -v {state_dir}` names it: wait for its end, or stop "
                "it; a backup is to lock a file of its own",
            ) from None
        try:
            self._file.truncate(0)
            self._file.write(f"pid {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        except OSError as error:
            raise _unusable(state_dir, error) from error

    def release(self) -> None:
        """Let the next service have the folder."""
        self._file.close()
        self._unlock()


def _lock(owner: Owner, folder: Path) -> Callable[[], Any]:
    """Lock the folder for as long as the owner is there, where its file system has such locks.

    Returns what unlocks it.  Raises BlockingIOError: another owner has locked it.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(opened)
        if isinstance(error, BlockingIOError):
            raise
        return lambda: None
    return weakref.finalize(owner, os.close, opened)


def _unusable(state_dir: Path, error: OSError) -> StartRefused:
    why = "it is no folder" if state_dir.is_file() else error.strerror
    return StartRefused(
        f"the state folder {state_dir} can't be used: {why}",
        "Give a folder that can be made and written, with room: --state-dir, or state_dir",
    )


def private_dir(state_dir: Path) -> Path:
    """Short private folder of this state folder's processes: sockets have length limits."""
    name = hashlib.sha256(str(state_dir).encode()).hexdigest()[
        :8
    ]  # HAProxy's socket is in it: 97 letters
    path = Path(tempfile.gettempdir()) / f"online-{os.getuid()}-{name}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise StartRefused(f"{path} belongs to another user", "Remove it, or set TMPDIR")
    path.chmod(0o700)
    return path


def free_port() -> int:
    """A port that was free a moment ago, outside the range the kernel gives out.

    Those may be the ends of connections, and those from 10000 on of Ray's workers, by the time it
    is wanted.
    """
    while not is_free("127.0.0.1", port := 5_000 + secrets.randbelow(5_000)):
        pass
    return port


class PortRange:
    """``n`` ports in a row that nobody listens on, from ``first`` on; outside the kernel's range.

    Whoever takes them so later, in another process too, gets others until :meth:`close` or the end
    of this process: it holds the port after them.  Some ports are listened on ten seconds later
    only, and two services that were started side by side met on them.

    Raises StartRefused.
    """

    def __init__(self, n: int, seed: int) -> None:
        for i in range(_RANGES):
            first = _FIRST + (seed + i) % _RANGES * 128
            self._held = socket.socket()
            try:
                self._held.bind(("127.0.0.1", first + 127))  # not to be shared: no SO_REUSEADDR
            except OSError:
                self._held.close()
                continue
            if all(is_free("127.0.0.1", port) for port in range(first, first + n)):
                self.first = first
                return
            self._held.close()
        raise StartRefused("no free range of ports in 20000-32000", "Stop what listens there")

    def close(self) -> None:
        """Others may have them."""
        self._held.close()


def is_free(host: str, port: int) -> bool:
    """Whether nothing listens there."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # old connections do not count
        try:
            s.bind((host, port))
        except OSError:
            return False
        return True


def own_processes() -> list[psutil.Process]:
    """Everything this process has started, and what that started."""
    return psutil.Process().children(recursive=True)


def listening(ports: Sequence[int]) -> list[psutil.Process]:
    """Processes of this machine that listen on one of these TCP ports, as far as we may know."""
    found = {}
    for connection in psutil.net_connections("tcp"):
        local = connection.laddr
        pid = connection.pid
        listens = connection.status == psutil.CONN_LISTEN and local and local.port in ports
        if listens and pid is not None:
            found[pid] = psutil.Process(pid)
    return list(found.values())


def note(path: Path, facts: dict[str, Any], *, children: bool = True) -> None:
    """Write ``run.json`` whole: facts for the other commands and pids for cleaning up.

    ``children``: whether what this process has started is the service's.
    """
    processes = []
    for process in own_processes() if children else ():
        with contextlib.suppress(psutil.Error):
            processes.append({"pid": process.pid, "started": process.create_time()})
    data = {**facts, "pid": os.getpid(), "processes": processes}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1))
    temporary.replace(path)


def leftovers(run: Path, private: Path) -> Iterator[psutil.Process]:
    """Processes of a service on this state folder that is gone."""
    noted: dict[int, float] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # whatever is in it
        for entry in json.loads(run.read_text())["processes"]:
            noted[entry["pid"]] = entry["started"]
    mine = os.getpid()
    for process in psutil.process_iter(["pid", "create_time", "cmdline"]):
        info = process.info
        same = noted.get(info["pid"]) == info["create_time"]
        if info["pid"] != mine and (same or any(str(private) in a for a in info["cmdline"] or ())):
            yield process


def end(processes: list[psutil.Process], wait_s: float = _KILL_WAIT_S) -> int:
    """SIGKILL each, wait for them; how many there were."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + wait_s
    while any(runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(processes)


def runs(process: psutil.Process) -> bool:
    """Whether it still runs; one that only waits for its parent to notice its end does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def replica_name() -> str:
    """Name of this process among replicas: host, pid and start time tell whether it still lives."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


class _Owned(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def replica(self) -> str: ...


def gone(partitions: Sequence[_Owned]) -> list[int]:
    """Partitions whose replica was a process of this host that does not live any more."""
    out = []
    alive: dict[str, bool] = {}
    for partition in partitions:
        host, _, process = partition.replica.partition(":")
        if host != socket.gethostname():
            continue
        if process not in alive:
            pid, _, started = process.partition(":")
            try:
                alive[process] = f"{psutil.Process(int(pid)).create_time():.2f}" == started
            except (psutil.Error, ValueError):
                alive[process] = False
        if not alive[process]:
            out.append(partition.id)
    return out
