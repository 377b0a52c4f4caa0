"""Swaps a promoted model into a running replica, which answers with the previous model meanwhile.

Replacing the processes of all replicas takes Ray Serve more than ten seconds, mostly to start
interpreters and to update its load balancer.  A replica whose model has a challenger therefore
watches the journal for promotions itself.  It builds the promoted model beside the serving one,
waits until it has pulled parameters, and serves it from the next request on.  Requests in progress
on the previous model are finished; then that model pushes, seals its partition and stops.  The
process that started the service waits for this seal
(:func:`online.service.on_ray.rollout.wait_swapped`), and replaces the replicas' processes if it
does not come.

A promotion that is reverted before the promoted model answers is abandoned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from online.errors import OnlineError
from online.models.loaded import Loaded
from online.models.loading.from_settings import merge_rule
from online.replica.replica import ModelReplica
from online.service.parts.composition import swappable
from online.serving.choices.choosing import Choosing
from online.serving.defaults import Defaults
from online.serving.device_pushes import Pushes
from online.serving.serving import Serving
from online.settings.config import Settings
from online.settings.model import ModelSettings
from paramserver.clients.client import Client
from paramserver.core.resharding import RESHARD
from paramserver.core.rewrites import PROMOTE
from replay.errors import ReplayError
from replay.journal.base import Journal


class LearnerProcess(Protocol):
    """A separate process that learns the rows which a replica writes."""

    def start(self) -> None:
        """Start the process; returns at once."""

    async def stop(self) -> None:
        """End the process of the learner."""


@dataclass(frozen=True, slots=True)
class Part:
    """Everything that serves one model in this process: replica, journal, front ends and clients.

    Attributes:
        control: Client of the model's parameter server, for questions and commands.
        facts: Constant entries of the model's status.
        pushes: Accepts updates from devices; None: devices may not send any.
        learner: The process that learns this one's rows; None: this process learns them itself.
        swappable: Whether a promotion can swap the part without a restart of the process.
        choosing: Chooses among actions; None: the model's task is another one.
        defaults: Assigns default labels or rewards after their deadline; None: there are none.
    """

    replica: ModelReplica
    journal: Journal
    serving: Serving
    control: Client
    facts: dict[str, Any]
    pushes: Pushes | None
    learner: LearnerProcess | None
    swappable: bool
    choosing: Choosing | None = None
    defaults: Defaults | None = None


log = logging.getLogger(__name__)

_LOOK_S: Final = 0.25  # between two polls for a promotion
_QUIET_S, _QUIET_LOOKS = 0.05, 10  # polls without feedback in progress before the old part stops
_LEAVE_S: Final = 30.0  # bound for requests in progress, uploads included
_STOP_S: Final = 5.0  # bound for its pushes
_FAILED_S: Final = 2.0  # pause after an unexpected error


class ModelSwap:
    """Watches the promotions of one model, and swaps its part of this process.

    Parameters:
        parts: The part that serves each model now, by name.
        put: Makes a part serve a model.
        make: Builds a part without starting it.
        load: Loads the untrained model for a model's settings.
        as_served: The settings with all promotions so far applied; called on a thread.
    """

    def __init__(
        self,
        model: str,
        parts: Mapping[str, Part],
        put: Callable[[str, Part], None],
        make: Callable[[Settings, ModelSettings, Loaded], Part],
        load: Callable[[ModelSettings], Loaded],
        as_served: Callable[[], Settings],
    ) -> None:
        self._model, self._parts, self._put = model, parts, put
        self._make, self._load, self._as_served = make, load, as_served
        self._seen = 0  # sequence number of the newest control row that was read
        self._task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to poll; returns at once."""
        self._task = asyncio.create_task(self._watch())

    async def stop(self, timeout_s: float) -> None:
        """Stop polling, and stop parts that still leave; they have ``timeout_s`` to push."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=timeout_s)
        for task in self._leaving:
            task.cancel()

    @property
    def _part(self) -> Part:
        return self._parts[self._model]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                again = await self._decided()
                while again:
                    again = await self._swap()
            except (
                Exception
            ) as error:  # whatever a model's code raises: the one that serves goes on
                self._seen = 0  # read the promotion again
                if isinstance(error, (ReplayError, OnlineError)):
                    log.warning("model %s: it does not go over: %s", self._model, error)
                else:
                    log.exception("model %s: it does not go over", self._model)
                await asyncio.sleep(_FAILED_S)

    async def _decided(self) -> bool:
        """Whether there is a promotion that was not handled yet.  Raises ReplayError."""
        part = self._part
        controls = await part.replica.store.read(part.journal.controls, self._model, self._seen)
        if controls:
            self._seen = controls[-1].seq
        return any(control.kind in (PROMOTE, RESHARD) for control in controls)

    async def _swap(self) -> bool:
        """Swap to the promoted model; returns whether there is another promotion meanwhile."""
        settings = await asyncio.to_thread(self._as_served)
        model = next(model for model in settings.models if model.name == self._model)
        loaded = await asyncio.to_thread(self._load, model)
        before, rule = self._part, merge_rule(model, loaded.model)
        if loaded.spec_hash == before.replica.spec:
            return False
        if not (before.swappable and swappable(model, rule)):
            return False  # the service replaces this process
        # Building it opens the journal, which may wait for a lock: not on the event loop.
        after, left = await self._made(settings, model, loaded), before
        try:
            if not await self._ready(after):
                left = after
                return True
            self._put(self._model, after)
            log.info("model %s: %s answers now", self._model, model.learner)
            return False
        except BaseException:
            left = after
            raise
        finally:
            self._let_go(self._leave(left))

    async def _made(self, settings: Settings, model: ModelSettings, loaded: Loaded) -> Part:
        """Build a part on a thread; on cancellation it is stopped as soon as it is built.

        A thread can't be cancelled, and what it builds has opened the journal.
        """
        making = asyncio.ensure_future(asyncio.to_thread(self._make, settings, model, loaded))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            self._let_go(_stopped(making))
            raise

    def _let_go(self, leaving: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(leaving)
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _ready(self, part: Part) -> bool:
        """Wait until the part can answer; False if another promotion came first."""
        starting = asyncio.create_task(part.replica.start())
        try:
            while not starting.done():
                await asyncio.wait([starting], timeout=_LOOK_S)
                if await self._decided():
                    return False
            starting.result()
            return True
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)

    async def _leave(self, part: Part) -> None:
        """Let a part that no longer serves finish its requests, push, seal and stop."""
        loop = asyncio.get_running_loop()
        begun_s, quiet = loop.time(), 0
        while quiet < _QUIET_LOOKS and loop.time() - begun_s < _LEAVE_S:
            await asyncio.sleep(_QUIET_S)
            quiet = quiet + 1 if part.replica.writer.idle else 0
        await part.replica.stop(_STOP_S)


async def _stopped(making: asyncio.Future[Part]) -> None:
    """Stop a part once it is built."""
    with contextlib.suppress(Exception):  # the build failed: there is nothing to stop
        part = await making
        await part.replica.stop(_STOP_S)
