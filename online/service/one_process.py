"""Journal, parameter server and one replica in this process, without Ray and without HTTP.

It is put together from the same parts as a replica of Ray Serve (:mod:`online.service.assembly`),
on the same state folder: a start takes a folder over from the one form to the other.  Everything
runs on threads of its own, learning on an event loop there, so that a program or a notebook that
starts it goes on, whatever loop it runs itself.  A *front* brings the requests: HTTP
(:mod:`online.service.embedded`) or calls of this program (:mod:`online.service.library`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as TooLate
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from online import processes
from online.challenger import promotion
from online.errors import ConfigError, StartRefused
from online.models.loaded import Loaded
from online.models.loading import objects
from online.models.loading.from_settings import merge_rule
from online.rows.prediction_ids import Keys
from online.service import handing_on
from online.service.assembly import Around, Assembly, nobody
from online.service.check_state import Models
from online.service.parameter_servers import settings_of, shard_of
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
from online.settings.purposes import TaskName
from paramserver.clients.in_process import InProcess, InProcessClient
from paramserver.core.shards import shard_name
from paramserver.errors import ParamServerError
from paramserver.process.lineage import Lineage
from replay.errors import ReplayError

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
Ready = Callable[[], None]
T = TypeVar("T")

_TEND_S: Final = 0.25
_TEND_WAIT_S: Final = 0.5  # for the journal's lock, when a part of its log is moved
_LOOK_S: Final = 0.002  # between two looks whether something has started
_LAST_SNAPSHOT_S: Final = 2.0
_STOP_S: Final = 5.0

_numbers = itertools.count()


class Front(Protocol):
    """A front brings requests to what runs here, and takes the answers back."""

    url: str
    """Where it answers; empty if it does not over HTTP."""

    waits_s: float | None
    """How long a start waits for what is left in the journal to be learned; None: until it is."""

    def open(self) -> None:
        """Take what it needs of the machine.  Raises StartRefused."""

    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """Return what makes the event loop of learning; None: any will do."""

    async def serve(self, assembly: Assembly, ready: Ready) -> None:
        """Call ``ready`` when requests are taken; return some time after :meth:`end`."""

    def end(self) -> None:
        """Take no more requests; from any thread, before or after the start, and twice."""

    def close(self) -> None:
        """Give back what was opened."""


class OneProcess:
    """The parts of a service in this process, but for the front that brings its requests.

    Parameters:
        settings: With ``cluster: embedded``.
        progress: Is called with lines about the start and the end.
    """

    def __init__(self, settings: Settings, front: Front, progress: Progress) -> None:
        self._given = self.settings = settings
        self._front, self._progress = front, progress
        self._process = processes.replica_name()
        self._name = f"{self._process}:{next(_numbers)}"  # this process may serve again
        self._owner: processes.Owner | None = None
        self._loaded: Mapping[str, Loaded] = {}
        self._servers: dict[str, InProcess] = {}
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._running: tuple[asyncio.AbstractEventLoop, Assembly] | None = None
        self._stopping = threading.Event()
        self._tending: threading.Thread | None = None
        self._lock = threading.RLock()  # a start or a stop at a time

    def alive(self) -> bool:
        """Tell whether requests are answered."""
        return self._thread is not None and self._thread.is_alive()

    # -- start -------------------------------------------------------------------------------

    def start(
        self, *, fresh: bool = False, relearn: bool = False, accept_loss: bool = False
    ) -> None:
        """Start everything; returns when the front answers.

        Raises:
            StartRefused, LearnerUnusable, ConfigError: With the remedy; nothing runs then.
        """
        with self._lock, self._masked():
            begun_s = time.monotonic()
            self._owner = processes.Owner(self.settings.state_dir)
            try:
                self._take_over()
                if accept_loss and (why := cut_log(self.settings)) is not None:
                    self._progress(f"the journal's log is damaged and was cut there: {why}")
                models = self._check(fresh=fresh, relearn=relearn, accept_loss=accept_loss)
                self._front.open()
                patience = Patience(self.settings.start_wait_s)
                self._start_servers(patience)
                self._start_replica(patience)
            except BaseException:
                self._release()
                raise
            models.catch_up(self.status, self._front.waits_s)
            processes.note(run_path(self.settings), {"url": self._front.url}, children=False)
            self._progress(f"ready after {time.monotonic() - begun_s:.1f} s")
        models.follow_by(self.status)

    def status(self, name: str) -> dict[str, Any]:
        """Everything about one model, from any thread."""
        return self.call(lambda assembly: assembly.status(name))

    def call(self, step: Callable[[Assembly], Coroutine[Any, Any, T]]) -> T:
        """Result of a step on the loop of learning.  Raises what it raises, and StartRefused."""
        if self._running is None or self._stopping.is_set():
            raise StartRefused("it is stopped", "Start another one on the same folder")
        loop, assembly = self._running
        return asyncio.run_coroutine_threadsafe(step(assembly), loop).result()

    @contextlib.contextmanager
    def _masked(self) -> Iterator[None]:
        """Give what a start makes the permissions of `state_mode`; the program keeps its own."""
        before = os.umask(self.settings.umask)
        try:
            yield
        finally:
            os.umask(before)

    def _take_over(self) -> None:
        """End what a crash of the other form has left behind."""
        settings = self.settings
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
            handing_on.note_given(given, settings, journal)
            handing_on.refuse_wishes(settings, journal)
        for line in [*lines, *said]:
            self._progress(line)
        models = Models(settings, self._progress)
        self._loaded = models.check(fresh=fresh, relearn=relearn, accept_loss=accept_loss)
        self.settings = settings
        return models

    def _start_servers(self, patience: Patience) -> None:
        settings = self.settings
        for model in settings.models:
            one = self._loaded[model.name]
            lineage = Lineage(
                model.name, one.spec_hash, one.spec_text, merge_rule(model, one.model)
            )
            names = [shard_name(model.name, shard) for shard in range(model.shards)]
            for shard, name in enumerate(names):
                self._servers[name] = InProcess(
                    server_name(name, one.spec_hash),
                    lineage,
                    journal_opener(settings),
                    snapshots_path(settings),
                    dataclasses.replace(settings_of(model, settings), umask=None),
                    self._gone,
                    shard_of(shard, partial(self._ask_shard, names), model.shards),
                )
            for name in names:
                self._servers[name].start()
        learners = {
            shard_name(model.name, shard): model.learner
            for model in settings.models
            for shard in range(model.shards)
        }
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
                if learners[name].startswith(f"{objects.PLACE}:"):
                    text += ", not what the object that was given had learned"
            if status["refused"]:
                text += f", after refusing {status['refused']}"
            self._progress(text)

    def _ask_shard(self, names: Sequence[str], shard: int, method: str, *args: object) -> Any:
        return self._servers[names[shard]].shared(method, *args)

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
        try:
            with asyncio.Runner(loop_factory=self._front.loop_factory()) as runner:
                runner.run(self._serve(ready))
        except BaseException as error:
            self._failed = error
            if ready.is_set():
                log.exception("the service has ended")
        finally:
            ready.set()

    async def _serve(self, ready: threading.Event) -> None:
        settings = self.settings
        keys = Keys.from_file(settings.key_path)
        around = Around(
            self._name,
            lambda name, _: InProcessClient(self._servers[name]),
            lambda name, _: nobody(name),
        )
        assembly = Assembly(settings, keys, lambda model: self._loaded[model.name], around)
        await assembly.start()
        self._running = asyncio.get_running_loop(), assembly
        try:
            if self._stopping.is_set():  # the start was given up
                return
            await self._front.serve(assembly, ready.set)
        finally:
            self._running = None
            await assembly.stop()

    # -- while it runs -----------------------------------------------------------------------

    def _tend(self) -> None:
        """Move small parts of the journal's log into its file, until the service stops."""
        try:
            journal = journal_opener(self.settings, lock_wait_s=_TEND_WAIT_S)()
        except ReplayError as error:
            log.warning("journal: %s", error)
            return
        said: str | None = None
        with contextlib.closing(journal):
            while not self._stopping.wait(_TEND_S):
                try:
                    journal.checkpoint()
                    said = None
                except ReplayError as error:
                    if str(error) != said:
                        log.warning("journal: %s", error)
                    said = str(error)

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
        run_path(self.settings).unlink(missing_ok=True)

    def _end_replica(self) -> None:
        self._front.end()
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
        self._front.close()
        if self._owner is not None:
            run_path(self.settings).unlink(missing_ok=True)
            self._owner.release()
            self._owner = None


starting = threading.Lock()
"""Whoever starts or replaces something in this process holds it."""


def settings_for(
    model: Any,
    task: TaskName | None,
    name: str,
    state_dir: str | Path | None,
    of_service: Mapping[str, Any],
    of_model: Mapping[str, Any],
) -> Settings:
    """Settings of one process that serves the model, which is handed over if it is an object.

    Parameters:
        task: None: as the model says, if it does.
        state_dir: None: ``online-state/NAME``.
        of_service, of_model: Others, as in a settings file.

    Raises:
        ConfigError: With the remedy.
    """
    if task is None and (task := objects.task_of(model)) is None:
        what = model if isinstance(model, str) else type(model).__name__
        raise ConfigError(
            "task",
            f"{what} does not say which it is for",
            "Give task: binary, multiclass or regression (or choose, or anomaly)",
        )
    learner = model if isinstance(model, str) else objects.hand_over(name, model)
    given: dict[str, Any] = {
        **of_service,
        "cluster": EMBEDDED,
        "state_dir": Path("online-state") / name if state_dir is None else state_dir,
        "models": [{"name": name, "task": task, "learner": learner, **of_model}],
    }
    return config.load(None, given, {})


def printed(line: str) -> None:
    """Say a line about the start or the end on standard output."""
    print(f"online: {line}", flush=True)
