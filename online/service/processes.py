"""Locks a state folder for one owner, and ends processes that `online serve` left behind.

Only processes started by this state folder's service are ended: they are found by pid and start
time in ``run.json``, and by their private folder on the command line.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import resource
import secrets
import shutil
import socket
import stat
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from online.errors import StartRefused
from online.settings.config import Settings
from online.settings.model import ModelSettings

_KILL_WAIT_S = 3.0
_REMOVALS = 20  # at most, of a folder that something makes anew
_REMOVAL_S = 0.05
_STARTED = re.compile(r"python[\d.]*|raylet|gcs_server|haproxy")  # programs that a service starts
_FIRST, _RANGES = 20_000, 93  # first port, and ranges of 128 ports each, up to 31904


class Owner:
    """The lock of a state folder; the kernel releases it when the process ends.

    The folder itself is locked beside the lock file, because that may be deleted by hand.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "owner.lock"
        try:
            if not state_dir.exists():
                state_dir.mkdir(parents=True, exist_ok=True)
                # It will contain the signing key and callers' data: keep it out of git.
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

    def hold(self, folder: Path) -> None:
        """Lock another folder, too, so that `systemd-tmpfiles` leaves alone what is in it.

        It deletes from temporary folders what is ten days old, such as HAProxy's configuration.
        """
        with contextlib.suppress(BlockingIOError):
            _lock(self, folder)

    def release(self) -> None:
        """Release the folder for the next service."""
        self._file.close()
        self._unlock()


def _lock(owner: Owner, folder: Path) -> Callable[[], Any]:
    """Lock the folder for the life of the owner, if its file system supports that.

    Returns a function that unlocks it.  Raises BlockingIOError if it is locked already.
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


def private_path(state_dir: Path) -> Path:
    """Return the short private folder of this service's processes; it may not exist."""
    return Path(tempfile.gettempdir()) / _private_name(state_dir)


def private_dir(state_dir: Path) -> Path:
    """Make the short private folder of this service's processes: socket paths are limited."""
    path = private_path(state_dir)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StartRefused(
            f"{path} belongs to another user, or is a link", "Remove it, or set TMPDIR"
        )
    path.chmod(0o700)
    return path


def shared_dir(state_dir: Path) -> Path:
    """Return the folder for memory that this service's processes share; it may not exist."""
    return Path("/dev/shm") / _private_name(state_dir)


def remove_private(state_dir: Path) -> None:
    """Remove the private folders of this service's processes, which have ended.

    Ray may make its folder anew while it is removed: then it is removed again.
    """
    shared = shared_dir(state_dir)
    for path in (private_path(state_dir), shared / socket.gethostname()):
        for _ in range(_REMOVALS):
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                break
            time.sleep(_REMOVAL_S)
    with contextlib.suppress(OSError):  # another container may have its own there
        shared.rmdir()


def _private_name(state_dir: Path) -> str:
    digest = hashlib.sha256(str(state_dir).encode()).hexdigest()
    return f"online-{os.getuid()}-{digest[:8]}"  # HAProxy's socket is in it: 97 letters


def free_port() -> int:
    """Return a port that was free a moment ago, below the kernel's ephemeral range.

    Ephemeral ports may be taken by connections, and ports from 10000 on by Ray's workers, before
    the port is used.
    """
    while not is_free("127.0.0.1", port := 5_000 + secrets.randbelow(5_000)):
        pass
    return port


class PortRange:
    """Reserves ``n`` consecutive free ports from ``first`` on, outside the kernel's range.

    Other users of this class, also in other processes, get different ports until :meth:`close` or
    the end of this process, which holds the last port of the range.  Some ports are listened on
    only ten seconds later, and two services started side by side took the same ones.

    Raises StartRefused.
    """

    def __init__(self, n: int, seed: int) -> None:
        for i in range(_RANGES):
            first = _FIRST + (seed + i) % _RANGES * 128
            self._held = socket.socket()
            try:
                self._held.bind(("127.0.0.1", first + 127))  # exclusive: no SO_REUSEADDR
            except OSError:
                self._held.close()
                continue
            if all(is_free("127.0.0.1", port) for port in range(first, first + n)):
                self.first = first
                return
            self._held.close()
        raise StartRefused("no free range of ports in 20000-32000", "Stop what listens there")

    def close(self) -> None:
        """Release the ports for others."""
        self._held.close()


def is_free(host: str, port: int) -> bool:
    """Whether nothing listens on the port.  Raises OSError if this machine has no such host."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore closed connections
        try:
            s.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True


def check_files(limit: int, least: int) -> None:
    """Check that this process may open enough files.  Raises StartRefused.

    ``limit``: which of the two limits counts: 0 the soft one, 1 the hard one.
    """
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[limit]
    if most != resource.RLIM_INFINITY and most < least:
        raise StartRefused(
            f"this process may open {most} files, and needs {least} or more",
            "Raise the limit: ulimit -n 1024, or LimitNOFILE in a unit of systemd",
        )


def own_processes() -> list[psutil.Process]:
    """Return all descendants of this process."""
    return psutil.Process().children(recursive=True)


def listening(ports: Sequence[int]) -> list[psutil.Process]:
    """Processes of this machine that listen on one of these TCP ports, as far as visible."""
    listeners = {}
    for connection in psutil.net_connections("tcp"):
        local = connection.laddr
        pid = connection.pid
        listens = connection.status == psutil.CONN_LISTEN and local and local.port in ports
        if listens and pid is not None:
            listeners[pid] = psutil.Process(pid)
    return list(listeners.values())


def listener(port: int) -> str:
    """Name who listens on a TCP port, as " by process 7 (haproxy)"; empty if it is not visible."""
    names = [f"process {one.pid} ({one.name()})" for one in listening([port])]
    return f" by {', '.join(names)}" if names else ""


def note(path: Path, facts: dict[str, Any], *, children: bool = True) -> None:
    """Write ``run.json`` atomically: facts for other commands, and pids for cleaning up.

    ``children``: whether the descendants of this process belong to the service.
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
    """Yield processes left behind by a dead service on this state folder.

    Whoever reads its logs (``tail -f``, ``less``) has the folder on the command line, too.
    """
    noted: dict[int, float] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # unreadable content
        for entry in json.loads(run.read_text())["processes"]:
            noted[entry["pid"]] = entry["started"]
    mine = os.getpid()
    for process in psutil.process_iter(["pid", "create_time", "cmdline"]):
        info = process.info
        words = info["cmdline"] or [""]
        same = noted.get(info["pid"]) == info["create_time"]
        ours = _STARTED.fullmatch(Path(words[0]).name) and any(str(private) in a for a in words)
        if info["pid"] != mine and (same or ours):
            yield process


def end(processes: list[psutil.Process], wait_s: float = _KILL_WAIT_S) -> int:
    """Send SIGKILL to each process and wait; return how many there were."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    deadline = time.monotonic() + wait_s
    while any(runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(processes)


def runs(process: psutil.Process) -> bool:
    """Whether the process still runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def begun(data: Mapping[str, Any], name: str, nice: int = 10) -> tuple[Settings, ModelSettings]:
    """Initialise a process that runs beside the replicas; return the settings, and the model's."""
    with contextlib.suppress(OSError):
        os.nice(nice)
    settings = Settings.model_validate(data)
    os.umask(settings.umask)
    return settings, next(model for model in settings.models if model.name == name)
