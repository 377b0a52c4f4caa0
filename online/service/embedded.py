"""The whole service in one process without Ray: :mod:`online.service.one_process` behind HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import uvicorn

from online.client import Client, Model
from online.errors import StartRefused
from online.monitoring.recording import Recording
from online.monitoring.sending import ALERTS_FILE, Sending
from online.service import processes
from online.service.one_process import OneProcess, Progress, Ready, printed, settings_for, starting
from online.service.parts.assembly import Assembly
from online.service.state.changes import UNCHANGED, changes, needs_restart
from online.settings import config
from online.settings.config import Settings
from online.settings.purposes import TaskName

if TYPE_CHECKING:
    from evaluation.report.values import Report

_LOOK_S: Final = 0.002  # between two polls whether the server listens
_CATCH_UP_S: Final = 5.0  # a start waits this long; the rest is learned while it answers
_DRAIN_S: Final = 1  # granted to requests in progress at a stop
_FILES_MIN: Final = 128  # thirty are its own, and 64 are left for journal and snapshots
_KEEP_ALIVE_S: Final = 75  # longer than common clients keep an idle connection


class _Http:
    """Front that answers HTTP on one port."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self.url = ""
        self.waits_s: float | None = _CATCH_UP_S

    def open(self) -> None:
        """Bind the port.  Raises StartRefused if it is taken, or few files may be open."""
        host, port = self._host, self._port
        processes.check_files(0, _FILES_MIN)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio sets TCP_NODELAY, which small answers need, only if the protocol is given here.
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            by = processes.listener(port) if taken else ""
            raise StartRefused(
                f"port {port} of {host} can't be listened on: {error.strerror}{by}",
                "Stop what listens there, or choose another: port 0 for any",
            ) from error
        at = f"[{host}]" if family == socket.AF_INET6 else host
        self.url = f"http://{at}:{self._socket.getsockname()[1]}"

    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """Return the factory of the event loop that uvicorn would use."""
        return uvicorn.Config(_nothing, log_config=None).get_loop_factory()

    async def serve(self, assembly: Assembly, ready: Ready) -> None:
        """Answer requests until :meth:`end`."""
        made = uvicorn.Config(
            assembly.app(), lifespan="off", log_config=None, access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=_DRAIN_S,
            server_header=False, http=_protocol(),
        )  # fmt: skip
        self._server = uvicorn.Server(made)
        assert self._socket is not None
        serving = asyncio.create_task(self._server.serve([self._socket]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(_LOOK_S)
        ready()
        await serving

    def end(self) -> None:
        """Let requests in progress finish, then stop."""
        if self._server is not None:
            self._server.should_exit = True

    def close(self) -> None:
        """Release the reserved port again."""
        if self._socket is not None:
            self._socket.close()


def _protocol() -> Any:
    """Return the protocol class that uvicorn reads requests with: it bounds request heads."""
    try:
        from online.service.parts.request_heads import BoundedHeads
    except ModuleNotFoundError:  # without httptools uvicorn uses h11, which has bounds itself
        return "auto"
    return BoundedHeads


class Embedded:
    """A service in this process; as a context manager it stops at the end of the block.

    Parameters:
        settings: With ``cluster: embedded``.
        progress: Is called with lines about the start and the end.
    """

    def __init__(self, settings: Settings, progress: Progress = print) -> None:
        self._http = _Http(settings.host, settings.port)
        self._parts = OneProcess(settings, self._http, progress)
        self._client: Client | None = None
        sending = Sending(
            lambda: self._parts.settings.alerts, file=settings.state_dir / ALERTS_FILE
        )
        self._recording = Recording(settings.state_dir, sending)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        names = ", ".join(model.name for model in self._parts.settings.models)
        return f"<online service of {names}: {self.url if self.alive() else 'stopped'}>"

    @property
    def url(self) -> str:
        """The address, as ``http://host:port``, once the service has started."""
        return self._http.url

    @property
    def state_dir(self) -> Path:
        """The state folder of the service."""
        return self._parts.settings.state_dir

    @property
    def client(self) -> Client:
        """A client of this service.  Use it from one thread only."""
        if self._client is None:
            token = config.own_token(self._parts.settings, {})
            self._client = Client(self.url, token=token)
        return self._client

    @property
    def model(self) -> Model:
        """Client of the first model of this service.  Use it from one thread only."""
        return self.client.model(self._parts.settings.models[0].name)

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows: the model's status while the service runs."""
        return self.model._repr_html_() if self.alive() else repr(self)

    def alive(self) -> bool:
        """Return whether the service answers."""
        return self._parts.alive()

    def report(self) -> Report:
        """Report on the first model from its journal (docs/report.md); a notebook shows the page.

        Needs the extra ``report``.  For other models and time spans use `online report`.
        """
        from evaluation.report.build import report_on
        from online.rows.journal_rows import JournalRows, open_for_report, origin
        from online.sure.conformal import held

        settings = self._parts.settings
        with contextlib.closing(open_for_report(settings)) as journal:
            rows = JournalRows(journal, settings.models[0], held=held)
            made_at, first = time.time(), origin(settings.models[0])
            return report_on(first, rows, made_at=made_at, version=lambda: rows.version)

    def start(
        self, *, fresh: bool = False, relearn: bool = False, accept_loss: bool = False
    ) -> None:
        """Start everything; returns when HTTP answers.

        Raises:
            StartRefused, LearnerUnusable, ConfigError: With the remedy; nothing runs then.
        """
        self._parts.start(fresh=fresh, relearn=relearn, accept_loss=accept_loss)
        self._recording.of(self.url, lambda: config.own_token(self._parts.settings, {}))

    def reload(self, settings: Settings) -> list[str]:
        """Take new access tokens and alerts; return what was done, as lines.

        Any other change of the settings needs a restart, and then nothing is changed.
        """
        found = changes(self._parts.given, settings)
        names = [*found.restart, *found.rolling, *(f"models.{name}" for name in found.models)]
        names += ["replicas"] if found.scaled else []
        if names := names or self._parts.other_code(settings):
            return needs_restart(names, challenged=False)
        self._parts.renew(settings)
        return found.lines() or [UNCHANGED]

    def stop(self) -> None:
        """Finish requests, push and seal, publish a last snapshot.  Does nothing when repeated."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._recording.stop()
        self._parts.stop()

    def kill(self) -> None:
        """Only remove the run file: this process ends now, and the next start recovers."""
        self._parts.kill()


async def _nothing(*_: object) -> None:
    """An application that is never called."""


_served: dict[str, Embedded] = {}


def serve(
    model: Any,
    *,
    task: TaskName | None = None,
    name: str = "model",
    state_dir: str | Path | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
    relearn: bool = False,
    say: Progress | None = None,
    **of_model: Any,
) -> Embedded:
    """Serve a model in this process until :meth:`Embedded.stop`; its learned state is kept.

    A second call with the same name stops the service of the first.

    Parameters:
        model: A river estimator, a :class:`~online.models.network.Network`, an
            :class:`~online.models.estimator.Estimator` or an object of your own class, which is
            copied; a function or class that makes one; or a ``learner`` as in a settings file.
        task: ``binary``, ``multiclass``, ``regression``, ``choose`` or ``anomaly``; None: the task
            that the model itself declares.
        name: The model's name in requests.
        state_dir: State folder; None: ``online-state/NAME``.  State that is stored there replaces
            what the object has learned if both have the same structure; else the start is refused.
        port: 0 chooses a free one.
        settings: Further settings of the service, named as in a settings file:
            ``{"limits": {…}, "tokens": {…}}``.
        fresh, relearn: Begin without the stored state; learn the whole journal again.
        say: Is called with lines about the start and the end; None: they are printed.
        of_model: Further settings of the model, such as ``classes`` or ``filters``.

    Raises:
        ConfigError, LearnerUnusable, StartRefused: With the remedy; nothing is served then.
    """
    print_it = printed if say is None else say
    with starting:
        if (before := _served.pop(name, None)) is not None:
            running = before.alive()
            before.stop()
            if running:
                print_it(f"the service of {name} before this one was stopped")
        of_service = {**(settings or {}), "host": host, "port": port}
        resolved = settings_for(model, task, name, state_dir, of_service, of_model)
        service = Embedded(resolved, print_it)
        service.start(fresh=fresh, relearn=relearn)
        _served[name] = service
    (one,) = resolved.models
    print_it(
        f"{name} ({one.purpose.name}) is served at {service.url}, state in {service.state_dir}"
    )
    return service
