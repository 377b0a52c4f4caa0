"""The whole service in one process without Ray: journal, parameter server, one replica and HTTP.

It is put together from the same parts as a replica of Ray Serve (:mod:`online.service.assembly`),
on the same state folder: a start takes a folder over from the one form to the other.  Everything
runs on threads of its own, HTTP and learning on an event loop there, so that a program or a
notebook that starts it goes on, whatever loop it runs itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path
from typing import Any, Final, Self

import uvicorn

from evaluation.metrics import Task
from online import processes
from online.challenger import promotion
from online.client import Client
from online.errors import ConfigError, StartRefused
from online.models import handed_over
from online.models.from_settings import merge_rule
from online.models.load import Loaded
from online.rows.prediction_ids import Keys
from online.service.assembly import Around, Assembly, nobody
from online.service.check_state import Models
from online.service.parameter_servers import settings_of
from online.service.patience import Patience
from online.settings import config
from online.settings import file_modes as modes
from online.settings.config import EMBEDDED, Settings
from online.settings.places import (
    cut_log,
    journal_opener,
    open_journal,
    run_path,
    server_name,
    snapshots_path,
)
from paramserver.errors import ParamServerError
from paramserver.in_process import InProcess, InProcessClient
from paramserver.lineage import Lineage
from replay.errors import ReplayError

log = logging.getLogger("online.service.embedded")

Progress = Callable[[str], None]

_TEND_S: Final = 0.25
_TEND_WAIT_S: Final = 0.5  # for the journal's lock, when a part of its log is moved
_LOOK_S: Final = 0.002  # between two looks whether something has started
_DRAIN_S: Final = 1  # that requests may still take when it stops
_LAST_SNAPSHOT_S: Final = 2.0
_STOP_S: Final = 5.0
_KEEP_ALIVE_S: Final = 75  # longer than clients keep a connection that is idle

_numbers = itertools.count()


class Embedded:
    """A service in this process; as a context manager it stops at the end.

    Parameters
    ----------
    settings
        With ``cluster: embedded``.
    progress
        Is called with lines about the start and the end.

    Attributes
    ----------
    url
        As ``http://host:port``, once it is started.
    """

    def __init__(self, settings: Settings, progress: Progress = print) -> None:
        self._given = self._settings = settings
        self._progress = progress
        self._process = processes.replica_name()
        self._name = f"{self._process}:{next(_numbers)}"  # this process may serve again
        self._owner: processes.Owner | None = None
        self._loaded: Mapping[str, Loaded] = {}
        self._servers: dict[str, InProcess] = {}
        self._socket: socket.socket | None = None
        self._http: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._stopping = threading.Event()
        self._tending: threading.Thread | None = None
        self._lock = threading.RLock()  # a start or a stop at a time
        self._client: Client | None = None
        self.url = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        names = ", ".join(model.name for model in self._settings.models)
        return f"<online service of {names}: {self.url if self.alive() else 'stopped'}>"

    @property
    def state_dir(self) -> Path:
        """The folder of what it has learned."""
        return self._settings.state_dir

    @property
    def client(self) -> Client:
        """A client of this service.  Use from one thread."""
        if self._client is None:
            token = config.own_token(self._settings, {})
            self._client = Client(self.url, token=token)
        return self._client

    def alive(self) -> bool:
        """Tell whether the service answers."""
        return self._thread is not None and self._thread.is_alive()

    # -- start -------------------------------------------------------------------------------

    def start(
        self, *, fresh: bool = False, relearn: bool = False, accept_loss: bool = False
    ) -> None:
        """Start everything; returns when HTTP answers.

        Raises
        ------
        StartRefused, LearnerUnusable, ConfigError
            With the remedy; nothing runs then.
        """
        with self._lock, self._masked():
            begun_s = time.monotonic()
            self._owner = processes.Owner(self._settings.state_dir)
            try:
                self._take_over()
                if accept_loss and (why := cut_log(self._settings)) is not None:
                    self._progress(f"the journal's log is damaged and was cut there: {why}")
                models = self._check(fresh=fresh, relearn=relearn, accept_loss=accept_loss)
                self._listen()
                patience = Patience(self._settings.start_wait_s)
                self._start_servers(patience)
                self._start_replica(patience)
            except BaseException:
                self._release()
                raise
            processes.note(run_path(self._settings), {"url": self.url}, children=False)
            self._progress(f"ready after {time.monotonic() - begun_s:.1f} s")
        models.follow(self.url)

    @contextlib.contextmanager
    def _masked(self) -> Iterator[None]:
        """Give what a start makes the permissions of `state_mode`; the program keeps its own."""
        before = os.umask(self._settings.umask)
        try:
            yield
        finally:
            os.umask(before)

    def _take_over(self) -> None:
        """End what a crash of the other form has left behind."""
        settings = self._settings
        for place in {settings.state_dir, Path(snapshots_path(settings))}:
            if (loose := modes.looser(place, settings.umask)) is not None:
                self._progress(loose)
        private = processes.private_dir(settings.state_dir)
        if left := list(processes.leftovers(run_path(settings), private)):
            self._progress(f"ended {processes.end(left)} processes that a crash had left behind")
        shutil.rmtree(private, ignore_errors=True)

    def _check(self, *, fresh: bool, relearn: bool, accept_loss: bool) -> Models:
        given = self._given
        with contextlib.closing(open_journal(given)) as journal:
            lines = promotion.follow_file(given, journal) if fresh or relearn else []
            settings, said = promotion.as_served(given, journal)
        for line in [*lines, *said]:
            self._progress(line)
        models = Models(settings, self._progress)
        self._loaded = models.check(fresh=fresh, relearn=relearn, accept_loss=accept_loss)
        self._settings = settings
        return models

    def _listen(self) -> None:
        host, port = self._settings.host, self._settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            raise StartRefused(
                f"port {port} of {host} can't be listened on: {error.strerror}",
                "Stop what listens there, or choose another: port 0 for any",
            ) from error
        at = f"[{host}]" if family == socket.AF_INET6 else host
        self.url = f"http://{at}:{self._socket.getsockname()[1]}"

    def _start_servers(self, patience: Patience) -> None:
        settings = self._settings
        for model in settings.models:
            one = self._loaded[model.name]
            lineage = Lineage(
                model.name, one.spec_hash, one.spec_text, merge_rule(model, one.model)
            )
            self._servers[model.name] = InProcess(
                server_name(model.name, one.spec_hash),
                lineage,
                journal_opener(settings),
                snapshots_path(settings),
                dataclasses.replace(settings_of(model, settings), umask=None),
                self._gone,
            )
            self._servers[model.name].start()
        learners = {model.name: model.learner for model in settings.models}
        for name, server in self._servers.items():
            status = server.status()
            while status["state"] != "serving":
                if status["state"] == "refused":
                    raise StartRefused(f"model {name}: {status['reason']}", "Nothing was started")
                patience.check(f"model {name}: its state is not restored ({status['reason']})")
                time.sleep(_LOOK_S)
                status = server.status()
            text = f"model {name}: version {status['epoch']}.{status['count']}"
            if status["count"]:
                text += f", the state stored in {settings.state_dir} serves"
                if learners[name].startswith(f"{handed_over.PLACE}:"):
                    text += ", not what the object that was given had learned"
            if status["refused"]:
                text += f", after refusing {status['refused']}"
            self._progress(text)

    def _gone(self, partitions: Sequence[Any]) -> list[int]:
        """Partitions of services that do not run any more: of those in this process, all others."""
        mine, own = self._name, f"{self._process}:"
        here = [p.id for p in partitions if p.replica.startswith(own) and p.replica != mine]
        other = [p for p in partitions if not p.replica.startswith(own)]
        return [*here, *processes.gone(other)]

    def _start_replica(self, patience: Patience) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="online", daemon=True)
        self._thread.start()
        while not ready.wait(0.1):
            if not self._thread.is_alive():
                break
            patience.check("its replica has not begun to answer")
        if self._failed is not None:
            raise self._failed
        self._tending = threading.Thread(target=self._tend, name="online-journal", daemon=True)
        self._tending.start()

    def _run(self, ready: threading.Event) -> None:
        loops = uvicorn.Config(_nothing, log_config=None).get_loop_factory()
        try:
            with asyncio.Runner(loop_factory=loops) as runner:
                runner.run(self._serve(ready))
        except BaseException as error:
            self._failed = error
            if ready.is_set():
                log.exception("the service has ended")
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        settings = self._settings
        keys = Keys.from_file(settings.key_path)
        around = Around(
            self._name,
            lambda name, _: InProcessClient(self._servers[name]),
            lambda name, _: nobody(name),
        )
        assembly = Assembly(settings, keys, lambda model: self._loaded[model.name], around)
        await assembly.start()
        try:
            if self._stopping.is_set():  # the start was given up
                return
            made = uvicorn.Config(
                assembly.app(), lifespan="off", log_config=None, access_log=False,
                timeout_keep_alive=_KEEP_ALIVE_S, timeout_graceful_shutdown=_DRAIN_S,
                server_header=False,
            )  # fmt: skip
            self._http = uvicorn.Server(made)
            assert self._socket is not None
            serving = asyncio.create_task(self._http.serve([self._socket]))
            while not self._http.started and not serving.done():
                await asyncio.sleep(_LOOK_S)
            ready.set()
            await serving
        finally:
            await assembly.stop()

    # -- while it runs -----------------------------------------------------------------------

    def _tend(self) -> None:
        """Move small parts of the journal's log into its file, until the service stops."""
        try:
            journal = journal_opener(self._settings, lock_wait_s=_TEND_WAIT_S)()
        except ReplayError as error:
            log.warning("journal: %s", error)
            return
        with contextlib.closing(journal):
            while not self._stopping.wait(_TEND_S):
                try:
                    journal.checkpoint()
                except ReplayError as error:
                    log.warning("journal: %s", error)

    # -- stop --------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let requests end, push and seal, publish a last snapshot.  A second time: nothing."""
        with self._lock:
            if self._owner is None:
                return
            self._end_replica()
            for name, server in self._servers.items():
                try:
                    snapshot = server.last_snapshot(_LAST_SNAPSHOT_S)
                    self._progress(f"model {name}: its state is in snapshot {snapshot}")
                except (ParamServerError, OSError, TooLate) as error:
                    self._progress(
                        f"model {name}: no last snapshot ({error}); the next start learns the "
                        "rest of the journal"
                    )
            self._release()

    def kill(self) -> None:
        """Leave everything as it is: this process ends now, and the next start takes over."""
        run_path(self._settings).unlink(missing_ok=True)

    def _end_replica(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._http is not None:
            self._http.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                log.warning("the service did not stop in %g s", _STOP_S)

    def _release(self) -> None:
        """End whatever is left, and let others have the folder."""
        self._stopping.set()
        self._end_replica()
        if self._tending is not None:
            self._tending.join(_STOP_S)
        for server in self._servers.values():
            server.stop()
        if self._socket is not None:
            self._socket.close()
        if self._owner is not None:
            run_path(self._settings).unlink(missing_ok=True)
            self._owner.release()
            self._owner = None


async def _nothing(*_: object) -> None:
    """An application that is never asked."""


_served: dict[str, Embedded] = {}
_serving = threading.Lock()


def serve(
    model: Any,
    *,
    task: Task | None = None,
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
    """Serve a model in this process until :meth:`Embedded.stop`; what it has learned stays.

    A second call with the same name stops the service of the first.

    Parameters
    ----------
    model
        A river estimator, a :class:`~online.models.network.Network`, an
        :class:`~online.models.estimator.Estimator` or an object of your own class, which is
        copied; a function or class that makes one; or a ``learner`` as in a settings file.
    task
        ``binary``, ``multiclass`` or ``regression``; None: as the model says, if it does.
    name
        By which it is asked.
    state_dir
        Folder of what is learned; None: ``online-state/NAME``.  What is stored there wins over
        what the object had learned, if it is built alike; else the start is refused.
    port
        0 takes a free one.
    settings
        Others of the service, as in a settings file: ``{"limits": {…}, "tokens": {…}}``.
    fresh, relearn
        Begin without what was learned; learn the whole journal again.
    say
        Is called with lines about the start and the end; None: they are printed.
    of_model
        Others of the model, as ``classes`` or ``filters``.

    Raises
    ------
    ConfigError, LearnerUnusable, StartRefused
        With the remedy; nothing is served then.
    """
    if task is None and (task := handed_over.task_of(model)) is None:
        what = model if isinstance(model, str) else type(model).__name__
        raise ConfigError(
            "task", f"{what} may be for several", "Give task: binary, multiclass or regression"
        )
    print_it = _print if say is None else say
    with _serving:
        if (before := _served.pop(name, None)) is not None:
            before.stop()
            print_it(f"the service of {name} before this one was stopped")
        learner = model if isinstance(model, str) else handed_over.hand_over(name, model)
        given: dict[str, Any] = {
            **(settings or {}),
            "cluster": EMBEDDED, "host": host, "port": port,
            "state_dir": Path("online-state") / name if state_dir is None else state_dir,
            "models": [{"name": name, "task": task, "learner": learner, **of_model}],
        }  # fmt: skip
        service = Embedded(config.load(None, given, {}), print_it)
        service.start(fresh=fresh, relearn=relearn)
        _served[name] = service
    print_it(f"{name} ({task}) is served at {service.url}, state in {service.state_dir}")
    return service


def _print(line: str) -> None:
    print(f"online: {line}", flush=True)
