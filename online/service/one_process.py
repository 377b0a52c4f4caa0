"""Journal, parameter servers and one replica in this process, without Ray.

The parts are those of a replica of Ray Serve (:mod:`online.service.parts.assembly`), on the same
kind of state folder, so either form can continue the other's state.  Everything runs on its own
threads, with an event loop for learning, so it can be started from a program or a notebook that
runs a loop itself.  Requests come through a *front*: HTTP (:mod:`online.service.embedded`) or
direct calls (:mod:`online.service.library`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as TooLate
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from online.challenger import promotion
from online.errors import ConfigError, StartRefused
from online.models.loaded import Loaded
from online.models.loading import objects
from online.models.loading.from_settings import merge_rule
from online.models.loading.load import made_by
from online.rows.prediction_ids import Keys
from online.service import processes
from online.service.parts.assembly import Assembly, ProcessContext, nobody
from online.service.replica_names import gone, replica_name
from online.service.state import server_count
from online.service.state.changes import AT_ONCE, other_specs
from online.service.state.check_state import Models
from online.service.state.deadline import StartDeadline
from online.service.state.journal_upkeep import JournalUpkeep
from online.service.state.parameter_servers import settings_of, shard_of
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

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
Ready = Callable[[], None]
T = TypeVar("T")

_TEND_S: Final = 0.25
_LOOK_S: Final = 0.002  # between two polls whether something has started
_LAST_SNAPSHOT_S: Final = 2.0
_STOP_S: Final = 5.0

_numbers = itertools.count()


class Front(Protocol):
    """Passes requests to the parts of this process and returns their answers."""

    url: str
    """Its address; empty if it does not use HTTP."""

    waits_s: float | None
    """Seconds that a start waits for pending journal rows to be learned; None: without a bound."""

    def open(self) -> None:
        """Acquire its resources, such as a port.  Raises StartRefused."""

    def loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        """Return the factory of the event loop for learning; None: asyncio's default."""

    async def serve(self, assembly: Assembly, ready: Ready) -> None:
        """Call ``ready`` once requests are accepted; return some time after :meth:`end`."""

    def end(self) -> None:
        """Accept no more requests; may be called from any thread, at any time, and repeatedly."""

    def close(self) -> None:
        """Release the resources that :meth:`open` acquired."""


class OneProcess:
    """All parts of a service in this process, except for the front.

    Parameters:
        settings: With ``cluster: embedded``.
        progress: Is called with lines about the start and the end.
    """

    def __init__(self, settings: Settings, front: Front, progress: Progress) -> None:
        self.given = self.settings = settings
        self._front, self._progress = front, progress
        self._process = replica_name()
        self._name = f"{self._process}:{next(_numbers)}"  # unique if this process serves again
        self._owner: processes.Owner | None = None
        self._loaded: Mapping[str, Loaded] = {}
        self._servers: dict[str, InProcess] = {}
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None
        self._running: tuple[asyncio.AbstractEventLoop, Assembly] | None = None
        self._stopping = threading.Event()
        self._upkeep: threading.Thread | None = None
        self._lock = threading.RLock()  # one start or stop at a time

    def alive(self) -> bool:
        """Return whether requests are answered."""
        return self._thread is not None and self._thread.is_alive()

    # -- start -------------------------------------------------------------------------------

    def start(
        self, *, fresh: bool = False, relearn: bool = False, accept_loss: bool = False
    ) -> None:
        """Start everything; returns when the front accepts requests.

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
                deadline = StartDeadline(self.settings.start_wait_s)
                self._start_servers(deadline)
                self._start_replica(deadline)
            except BaseException:
                self._release()
                raise
            models.catch_up(self.status, self._front.waits_s)
            processes.note(run_path(self.settings), {"url": self._front.url}, children=False)
            self._progress(f"ready after {time.monotonic() - begun_s:.1f} s")
        models.follow_by(self.status)

    def status(self, name: str) -> dict[str, Any]:
        """Return the status of one model; may be called from any thread."""
        return self.call(lambda assembly: assembly.status(name))

    def call(self, step: Callable[[Assembly], Coroutine[Any, Any, T]]) -> T:
        """Run a step on the loop for learning and return its result.

        Raises what the step raises, and StartRefused once the service is stopped.
        """
        if self._running is None or self._stopping.is_set():
            raise StartRefused("the service is stopped", "Start another one on the same folder")
        loop, assembly = self._running
        return asyncio.run_coroutine_threadsafe(step(assembly), loop).result()

    @contextlib.contextmanager
    def _masked(self) -> Iterator[None]:
        """Apply the umask of `state_mode` during a start; the program's own is restored after."""
        before = os.umask(self.settings.umask)
        try:
            yield
        finally:
            os.umask(before)

    def _take_over(self) -> None:
        """End the processes that a crashed service on Ray has left on this state folder."""
        settings = self.settings
        for place in {settings.state_dir, Path(snapshots_path(settings))}:
            if (loose := modes.looser(place, settings.umask)) is not None:
                self._progress(loose)
        private = processes.private_path(settings.state_dir)
        if left := list(processes.leftovers(run_path(settings), private)):
            self._progress(f"ended {processes.end(left)} processes left over from a crash")
        processes.remove_private(settings.state_dir)

    def _check(self, *, fresh: bool, relearn: bool, accept_loss: bool) -> Models:
        given = self.given
        with contextlib.closing(open_journal(given)) as journal:
            lines = promotion.follow_file(given, journal) if fresh or relearn else []
            settings, said = promotion.as_served(given, journal)
            server_count.record_given(given, settings, journal)
            server_count.reject_requests(settings, journal)
        for line in [*lines, *said]:
            self._progress(line)
        models = Models(settings, self._progress)
        self._loaded = models.check(fresh=fresh, relearn=relearn, accept_loss=accept_loss)
        self.settings = settings
        return models

    def _start_servers(self, deadline: StartDeadline) -> None:
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
                deadline.check(f"model {name}: its state is not restored ({status['reason']})")
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
        """Partitions whose replicas do not run; of this process, all but the current service's."""
        mine, own = self._name, f"{self._process}:"
        here = [p.id for p in partitions if p.replica.startswith(own) and p.replica != mine]
        other = [p for p in partitions if not p.replica.startswith(own)]
        return [*here, *gone(other)]

    def _start_replica(self, deadline: StartDeadline) -> None:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="online", daemon=True)
        self._thread.start()
        while not ready.wait(0.1):
            if not self._thread.is_alive():
                break
            deadline.check("its replica has not begun to answer")
        if self._failed is not None:
            raise self._failed
        self._upkeep = threading.Thread(target=self._tend, name="online-journal", daemon=True)
        self._upkeep.start()

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
        context = ProcessContext(
            self._name,
            lambda name, _: InProcessClient(self._servers[name]),
            lambda name, _: nobody(name),
        )
        assembly = Assembly(settings, keys, lambda model: self._loaded[model.name], context)
        try:
            await assembly.start()
            self._running = asyncio.get_running_loop(), assembly
            if self._stopping.is_set():  # the start was cancelled
                return
            await self._front.serve(assembly, ready.set)
        finally:
            self._running = None
            await assembly.stop()

    def other_code(self, settings: Settings) -> list[str]:
        """Models whose code on disk differs from what serves, as names of settings."""
        with contextlib.closing(open_journal(settings)) as journal:
            served, _ = promotion.as_served(settings, journal, running=True)
        return other_specs(self._loaded, Models(served, self._progress).load())

    def renew(self, settings: Settings) -> None:
        """Take the settings that a running service can take (:meth:`Embedded.reload`)."""

        async def step(assembly: Assembly) -> None:
            assembly.renew(settings.tokens)

        self.call(step)
        self.given = settings
        taken = {name: getattr(settings, name) for name in ("tokens", "limits", *AT_ONCE)}
        self.settings = self.settings.model_copy(update=taken)

    # -- while it runs -----------------------------------------------------------------------

    def _tend(self) -> None:
        """Checkpoint the journal's WAL in small steps until the service stops."""
        with contextlib.closing(JournalUpkeep(self._progress)) as upkeep:
            while not self._stopping.wait(_TEND_S):
                upkeep.once(self.settings, None)

    # -- stop --------------------------------------------------------------------------------

    def stop(self) -> None:
        """Finish requests, push and seal, publish a last snapshot.  Does nothing when repeated."""
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
        """Only remove the run file: this process ends now, and the next start recovers."""
        run_path(self.settings).unlink(missing_ok=True)

    def _end_replica(self) -> None:
        self._front.end()
        if self._thread is not None:
            self._thread.join(_STOP_S)
            if self._thread.is_alive():
                log.warning("the service did not stop in %g s", _STOP_S)

    def _release(self) -> None:
        """End whatever still runs, and release the state folder."""
        self._stopping.set()
        self._end_replica()
        if self._upkeep is not None:
            self._upkeep.join(_STOP_S)
        for server in self._servers.values():
            server.stop()
        self._front.close()
        if self._owner is not None:
            run_path(self.settings).unlink(missing_ok=True)
            processes.remove_private(self.settings.state_dir)
            self._owner.release()
            self._owner = None


starting = threading.Lock()
"""Held by whoever starts or replaces a service in this process."""


def settings_for(
    model: Any,
    task: TaskName | None,
    name: str,
    state_dir: str | Path | None,
    of_service: Mapping[str, Any],
    of_model: Mapping[str, Any],
) -> Settings:
    """Settings of one process that serves the model; an object is handed over in memory.

    Parameters:
        task: None: the task that the model itself declares.
        state_dir: None: ``online-state/NAME``.
        of_service, of_model: Further settings, named as in a settings file.

    Raises:
        ConfigError: With the remedy.
    """
    objects.check_recipe(name, model)
    made = model
    if task is None and objects.makes_models(model):
        made = made_by(name, model, of_model.get("params", {}))
    if task is None and (task := objects.task_of(made)) is None:
        what = model if isinstance(model, str) else type(made).__name__
        raise ConfigError(
            "task",
            f"{what} does not say which it is for",
            f"Give task: {' or '.join(objects.possible_tasks(made))} (or choose, or anomaly)",
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
    """Print a line about the start or the end on standard output."""
    print(f"online: {line}", flush=True)
