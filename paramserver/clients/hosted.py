"""The parameter servers of several small models, in one process.

A process costs tens of megabytes before it holds a single value.  Each server here has the threads,
locks, epoch and snapshots of its own; if one has to end (another server has taken its epoch), a new
one takes its place, and its neighbours go on.  The class does not depend on Ray.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from paramserver.clients.in_process import InProcess
from paramserver.errors import ParamServerError, ServerUnavailable
from paramserver.process.actor import FindGone, ServerSettings, identity
from paramserver.process.lineage import Lineage
from paramserver.process.settings import code_on_disk
from paramserver.store import Store

_log: Final = logging.getLogger(__name__)

_AGAIN_S: Final = 0.5  # between two attempts to read what has to run
_LAST_S: Final = 10.0  # for the last snapshot of a server that is replaced


class Given(NamedTuple):
    """Arguments of one server, see :class:`paramserver.process.actor.ParameterServer`."""

    lineage: Lineage
    open_store: Callable[[], Store]
    directory: str
    settings: ServerSettings
    find_gone: FindGone | None = None

    def identity(self, code: str | None = None) -> str:
        """Return the hash by which a server is replaced; ``code`` None: that of the disk now."""
        return identity(self.lineage, self.directory, self.settings, code)


class ParameterServers:
    """Runs the servers that a list names, which is read again after a crash.

    The constructor neither raises nor blocks, as a restart of a Ray actor requires.

    Parameters:
        read: Returns the servers that have to run, by name; may raise anything.
    """

    def __init__(self, read: Callable[[], Mapping[str, Given]]) -> None:
        self._read = read
        self._code = ""  # hash of the sources when this process began
        self._changing = threading.Lock()
        self._servers = dict[str, InProcess]()  # replaced as a whole, so no lock is needed to read
        self._identities = dict[str, str]()
        threading.Thread(target=self._begin, name="parameter-servers", daemon=True).start()

    def _begin(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.take()
            except Exception as error:  # whatever it is, a later attempt may succeed
                _log.warning("what servers have to run can't be read yet: %r", error)
                pause.wait(_AGAIN_S)
            else:
                return

    def take(self) -> dict[str, str]:
        """Start, replace and end servers as the list says; return their identities by name.

        A server that is replaced or ended publishes its state first, if it can within ten seconds.
        """
        with self._changing:
            self._code = self._code or code_on_disk()  # not in the constructor: it reads files
            wanted = dict(self._read())
            identities = {name: given.identity(self._code) for name, given in wanted.items()}
            for name, server in list(self._servers.items()):
                if self._identities.get(name) != identities.get(name):  # None: its start failed
                    _publish(server)
                    self._servers = {n: s for n, s in self._servers.items() if n != name}
                    server.stop()
            for name in wanted.keys() - self._servers.keys():
                self._servers = {**self._servers, name: (server := InProcess(name, *wanted[name]))}
                server.start()
            self._identities = identities
            return dict(identities)

    def publish(self) -> None:
        """Have all servers publish their states, as far as they can; this process will end."""
        for server in list(self._servers.values()):
            _publish(server)

    def ask(self, name: str, method: str, *args: object) -> Any:
        """Call a method of the server of that name; raises what it raises.

        Raises ServerUnavailable if it does not run here.
        """
        server = self._servers.get(name)
        if server is None:
            raise ServerUnavailable(name, "it does not run in the shared process")
        return server.do(method, *args)


def _publish(server: InProcess) -> None:
    with contextlib.suppress(ParamServerError, OSError):  # includes TimeoutError
        server.last_snapshot(_LAST_S)
