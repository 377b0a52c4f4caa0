"""A parameter server inside the process of its only replica, and its client.

It runs the same class as the Ray actor, on its own threads.  Where the actor would exit and be
restarted (for example after a decision whose outcome is unknown), here the object is replaced by a
new one, which restores its state from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Protocol

from paramserver.clients.client import Client
from paramserver.errors import ParamServerError, ServerUnavailable
from paramserver.process.actor import FindGone, Host, ParameterServer, ServerSettings
from paramserver.process.attempts import Attempts
from paramserver.process.lineage import Lineage
from paramserver.process.running import SERVING
from paramserver.process.settings import again_s
from paramserver.process.sharing import Shard
from paramserver.snapshots.store import Disk
from paramserver.store import Store

_log: Final = logging.getLogger(__name__)

_THREADS: Final = 4  # concurrent requests
_STOP_S: Final = 5.0
_LATE_S: Final = 1.0  # by which a snapshot is late at most


class Closable(Protocol):
    """A store that holds a file or a connection."""

    def close(self) -> None:
        """Release the file or connection."""


class InProcess:
    """A parameter server that lives as long as its replica; call :meth:`start` and :meth:`stop`.

    Parameters:
        name: Name for messages.
        lineage, open_store, directory, settings, find_gone, shard: As for
            :class:`paramserver.process.actor.ParameterServer`.
    """

    def __init__(
        self,
        name: str,
        lineage: Lineage,
        open_store: Callable[[], Any],
        directory: str,
        settings: ServerSettings,
        find_gone: FindGone | None,
        shard: Shard | None = None,
    ) -> None:
        self.name = name
        self._settings, self._open_store = settings, open_store
        self._stores: list[Closable] = []
        self._make = partial(
            ParameterServer, lineage, self._opened, directory, settings, find_gone,
            host=Host(die=self._end, disk=Disk(settings.stall_s)), background=False, shard=shard,
        )  # fmt: skip
        self._ended = threading.Event()
        self._stopped = threading.Event()
        self._server = self._make()
        self._threads = [
            threading.Thread(target=target, name=f"parameter-server-{what}", daemon=True)
            for what, target in (("looks", self._live), ("snapshots", self._publish))
        ]
        self._asking = ThreadPoolExecutor(_THREADS, "parameter-server")

    def start(self) -> None:
        """Start to restore the state; returns at once."""
        for thread in self._threads:
            thread.start()

    def status(self) -> dict[str, Any]:
        """Return the server's status, see :class:`paramserver.process.actor.ParameterServer`."""
        return self._server.status()

    def shared(self, method: str, *args: object) -> Any:
        """Answer another shard's call; may raise anything."""
        return self._server.shared(method, *args)

    def do(self, method: str, *args: object) -> Any:
        """Call a method of the server in this thread; may raise anything."""
        return getattr(self._server, method)(*args)

    async def ask(self, method: str, args: tuple[object, ...]) -> Any:
        """Call a method of the server on a thread.  Raises ParamServerError."""
        call = partial(self.do, method, *args)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._asking, call)
        except ParamServerError:
            raise
        except Exception as error:  # whatever it is, the caller may retry
            raise ServerUnavailable(self.name, f"it failed: {error!r}") from error

    def last_snapshot(self, timeout_s: float) -> str:
        """Publish the present state if necessary; return the name of its snapshot.

        Raises ParamServerError or OSError if that fails, TimeoutError if it takes longer.
        """
        return str(self._asking.submit(self._server.snapshot).result(timeout_s)["name"])

    def stop(self) -> None:
        """Stop the threads and close the store.  Unpublished state can be replayed later."""
        self._stopped.set()
        # in a thread, to bound the wait: a request may hang in the store
        ending = partial(self._asking.shutdown, wait=True, cancel_futures=True)
        asked = threading.Thread(target=ending, name="parameter-server-ends", daemon=True)
        asked.start()
        for thread in (*self._threads, asked):
            if thread.is_alive():
                thread.join(_STOP_S)
        self._server.local_socket.close()
        self._close()

    def _opened(self) -> Store:
        store = self._open_store()
        self._stores.append(store)
        made: Store = store
        return made

    def _close(self) -> None:
        while self._stores:
            with contextlib.suppress(Exception):  # it is discarded in any case
                self._stores.pop().close()

    def _end(self) -> None:
        """Request that the server, which has ended, is replaced."""
        self._ended.set()

    def _live(self) -> None:
        """Restore the state, confirm the epoch periodically, and replace an ended server."""
        looks = Attempts("ParameterServer.confirm")
        while True:
            while not self._server.restore():
                if self._stopped.wait(again_s(self._settings, self._server.ping())):
                    return
            while not self._ended.is_set():
                if self._stopped.wait(self._settings.confirm_s):
                    return
                self._step(ParameterServer.confirm, looks)
            _log.warning("the server of %s begins anew: %s", self.name, self._server.ping())
            if self._stopped.wait(self._settings.retry_s):
                return
            self._ended.clear()
            self._server.local_socket.close()
            self._close()
            self._server = self._make()

    def _publish(self) -> None:
        published = Attempts("ParameterServer.snapshot_if_due")
        settings = self._settings
        pause_s = max(settings.confirm_s, min(_LATE_S, settings.interval_s / 10))
        while not self._stopped.wait(pause_s):
            self._step(ParameterServer.snapshot_if_due, published)

    def _step(self, step: Callable[[ParameterServer], None], attempts: Attempts) -> None:
        server = self._server
        if server.ping() == SERVING:
            attempts(partial(step, server), lambda: server.ping() == SERVING)


class InProcessClient(Client):
    """A client of the server in the replica's own process."""

    def __init__(self, server: InProcess) -> None:
        super().__init__(server.name)
        self._server = server

    async def _call(self, method: str, args: tuple[object, ...]) -> Any:
        return await self._server.ask(method, args)
