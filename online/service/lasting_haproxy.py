"""Keeps HAProxy alive inside Ray Serve's `HAProxyManager`, which starts it.

Serve notices only by three failed health checks that HAProxy has died, and then replaces the
manager, which takes a process's start.  A manager that dies takes HAProxy with it.  Meanwhile
nobody listens on the service's port.  With the changes made here

* a manager starts a HAProxy that has died again at once, with the newest configuration;
* HAProxy is in a session of its own, so it outlives its manager, and the next manager adopts it
  instead of starting another one beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any, Final

log = logging.getLogger("ray.serve")  # which the manager writes to its file

MODULE: Final = "ray.serve._private.haproxy"
_NEEDED: Final = (
    "start", "stop", "_graceful_reload", "_start_and_wait_for_haproxy", "_get_running_pid",
    "_is_our_haproxy",
)  # fmt: skip
_LIVED_S: Final = 1.0  # one that dies sooner is left to Serve, which tries again more slowly


class Finder:
    """An import finder that changes Serve's module of HAProxy when a process imports it.

    ``outlives``: whether HAProxy goes on when its manager dies.
    """

    def __init__(self, *, outlives: bool = True) -> None:
        self._outlives = outlives

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's spec with a changing loader; None for all other modules."""
        if name != MODULE:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
            spec.loader.outlives = self._outlives
        return spec


class _Loader(SourceFileLoader):
    outlives = True

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        change(module, outlives=self.outlives)


def change(module: Any, *, outlives: bool = True) -> bool:
    """Change Serve's class; returns whether it has all methods that this relies on.

    Another version of Ray is left as it is: then HAProxy is restarted by Serve alone.
    """
    was = getattr(module, "HAProxyApi", None)
    if was is None or not all(hasattr(was, name) for name in _NEEDED):
        return False
    module.HAProxyApi = lasting(was)
    if outlives:
        module.asyncio = _Alone()
    return True


class _Alone:
    """The functions of asyncio for one module, with child processes in sessions of their own.

    Raylet ends the process group of a worker that has died.
    """

    create_subprocess_exec = partial(asyncio.create_subprocess_exec, start_new_session=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


def lasting(was: type[Any]) -> type[Any]:
    """Derive a class from Serve's `HAProxyApi` whose HAProxy is restarted, and adopted."""

    class LastingHAProxy(was):  # type: ignore[misc]
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._changing = asyncio.Lock()  # one start or reload at a time
            self._ended = False
            self._watching: set[asyncio.Task[None]] = set()

        async def start(self) -> None:
            """Adopt the HAProxy of a manager that has died, or start one."""
            self._ended = False
            found = await self._get_running_pid()
            if found is not None and self._is_our_haproxy(found):
                with contextlib.suppress(OSError):  # it has ended, or the kernel has no pidfd
                    adopted = Adopted(found, f"{self.cfg.socket_path}.{found}")
                    self._proc = self._watched(adopted, lived=True)
                    return
            for pid in _balancers(self._is_our_haproxy):  # they hold the port, and do not answer
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await super().start()

        async def stop(self) -> None:
            """End HAProxy, and do not start it again."""
            self._ended = True
            await super().stop()

        async def _graceful_reload(self) -> None:
            async with self._changing:
                await super()._graceful_reload()

        async def _start_and_wait_for_haproxy(self, *arguments: Any, **named: Any) -> Any:
            return self._watched(await super()._start_and_wait_for_haproxy(*arguments, **named))

        def _watched(self, process: Any, *, lived: bool = False) -> Any:
            task = asyncio.get_running_loop().create_task(self._restart(process, lived))
            self._watching.add(task)
            task.add_done_callback(self._watching.discard)
            return process

        async def _restart(self, process: Any, lived: bool) -> None:
            """Start HAProxy again if this process ends and nothing has replaced it."""
            begun_s = time.monotonic()
            await process.wait()
            async with self._changing:  # a reload may be replacing it
                if self._ended or self._proc is not process:
                    return
                if lived or time.monotonic() - begun_s > _LIVED_S:
                    log.warning("HAProxy (pid %s) has ended: it is started again", process.pid)
                    self._proc = await self._start_and_wait_for_haproxy()

    return LastingHAProxy


class Adopted:
    """A HAProxy that another process has started, with what Serve uses of a child process.

    Raises OSError if it has ended, or if the kernel does not allow to wait for it.

    Parameters:
        logs: How the names of its log files begin, which do not exist.
    """

    def __init__(self, pid: int, logs: str) -> None:
        self.pid, self._file = pid, os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._file)
        self._stdout_path, self._stderr_path = f"{logs}.stdout.log", f"{logs}.stderr.log"

    @property
    def returncode(self) -> int | None:
        """None while it runs; its real exit code is known only to its parent."""
        ended = select.poll()  # select knows no file beyond the 1,024th
        ended.register(self._file, select.POLLIN)
        return -1 if ended.poll(0) else None

    def kill(self) -> None:
        """Send it SIGKILL, unless it has ended."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._file, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        file = os.dup(self._file)  # a file can have one reader
        loop.add_reader(file, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(file)
            os.close(file)
        return -1


def _balancers(ours: Callable[[int], bool]) -> list[int]:
    """Pids of running HAProxies for which ``ours`` is true, and of no reader of their files."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and ours(int(entry.name)) and _name(entry) == "haproxy"
    ]


def _name(entry: Path) -> str:
    try:
        return (entry / "comm").read_text().strip()
    except OSError:  # it has ended
        return ""
