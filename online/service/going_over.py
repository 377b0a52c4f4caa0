"""A replica goes over to a model that was promoted, while it answers with the one before.

Replacing the processes of all replicas takes Ray Serve more than ten seconds, most of it for
starting interpreters and for its balancer.  A replica of a model with a challenger therefore looks
for promotions in the journal itself.  At one it builds the promoted model beside the one that
answers, waits until its parameter server has given it values, and lets it answer from the next
request on.  What is under way with the model before is finished; then that pushes, seals its
partition and stops.  Whoever started the service waits for that seal
(:func:`online.service.rollout.gone_over`), and replaces the processes if it does not come.

A promotion that is taken back before the promoted model answers is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from online.errors import OnlineError
from online.models.loaded import Loaded
from online.models.loading.from_settings import merge_rule
from online.service.composition import exchangeable
from online.service.model_part import Part
from online.settings.config import Settings
from online.settings.model import ModelSettings
from paramserver.core.resharding import RESHARD
from paramserver.core.rewrites import PROMOTE
from replay.errors import ReplayError

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.25  # between two looks for a promotion
_QUIET_S, _QUIET_LOOKS = 0.05, 10  # without feedback under way, before what was left stops
_LEAVE_S: Final = 30.0  # for what is under way with it, an upload as well
_STOP_S: Final = 5.0  # for its pushes
_FAILED_S: Final = 2.0  # after an error that nobody expected


class GoingOver:
    """Watches the promotions of one model, and exchanges its part of this process.

    Parameters:
        parts: By model: what answers now.
        put: Lets a part answer for a model.
        make, load: Build a part that has not begun; and the untrained model of settings.
        as_served: The settings with the models that were promoted by now; called on a thread.
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
        self._seen = 0  # newest control row
        self._task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to look; returns at once."""
        self._task = asyncio.create_task(self._watch())

    async def stop(self, timeout_s: float) -> None:
        """End, and what was left with it: it has so long to push."""
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
                    again = await self._go_over()
            except (
                Exception
            ) as error:  # whatever a model's code raises: the one that serves goes on
                self._seen = 0  # the promotion still stands
                if isinstance(error, (ReplayError, OnlineError)):
                    log.warning("model %s: it does not go over: %s", self._model, error)
                else:
                    log.exception("model %s: it does not go over", self._model)
                await asyncio.sleep(_FAILED_S)

    async def _decided(self) -> bool:
        """Whether there is a promotion that was not looked at.  Raises ReplayError."""
        part = self._part
        controls = await part.replica.store.read(part.journal.controls, self._model, self._seen)
        if controls:
            self._seen = controls[-1].seq
        return any(control.kind in (PROMOTE, RESHARD) for control in controls)

    async def _go_over(self) -> bool:
        """Go over to the model that the journal says; whether it says another one meanwhile."""
        settings = await asyncio.to_thread(self._as_served)
        model = next(model for model in settings.models if model.name == self._model)
        loaded = await asyncio.to_thread(self._load, model)
        before, rule = self._part, merge_rule(model, loaded.model)
        if loaded.spec_hash == before.replica.spec:
            return False
        if not (before.exchangeable and exchangeable(model, rule)):
            return False  # the process is replaced
        # It opens the journal, which may wait for a lock; whoever asks here must not.
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
        """A part, made on a thread; one that nobody waits for any more is stopped when it is there.

        A thread can't be stopped, and what it makes has opened the journal.
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
        """Wait until the part can answer; False: another promotion came first."""
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
        """Let a part that answers no more finish what is under way, push, seal and stop."""
        loop = asyncio.get_running_loop()
        begun_s, quiet = loop.time(), 0
        while quiet < _QUIET_LOOKS and loop.time() - begun_s < _LEAVE_S:
            await asyncio.sleep(_QUIET_S)
            quiet = quiet + 1 if part.replica.writer.idle else 0
        await part.replica.stop(_STOP_S)


async def _stopped(making: asyncio.Future[Part]) -> None:
    """Stop what is made, once it is there."""
    with contextlib.suppress(Exception):  # then nothing was made
        part = await making
        await part.replica.stop(_STOP_S)
