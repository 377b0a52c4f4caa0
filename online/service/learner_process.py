"""Learning in a process of its own, beside a replica whose model is slow to learn.

The replica writes feedback into its partition and answers; an actor of Ray, which it owns, follows
the partition, learns and pushes.  The actor holds nothing that is not in the journal or at the
parameter server: if it dies, another goes on from the server's clock.  If the replica dies, the
actor ends with it, and the partition is adopted as any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError

from online import processes, telemetry
from online.models.loading.from_settings import load_model
from online.replica.replica import ModelReplica
from online.rows.prediction_ids import Keys
from online.service.composition import model_replica
from online.service.garbage import collect_seldom
from online.service.relearn_task import fresh_of
from online.service.trigger_task import SearchResult, looking
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings
from online.settings.places import journal_opener, server_name
from online.watch.on_rise import Relearn
from paramserver.clients.ray_client import ParameterClient

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.5  # between two looks at the actor
_STOP_S: Final = 1.0
_NICENESS: Final = 5  # predictions first, where cores are few


def relearning(settings: Settings, model: str) -> Relearn:
    """Has a fresh model taught by a task of Ray."""

    async def relearned(rewrite: int, since: float) -> str:
        data = settings.model_dump(mode="json", context=WITH_SECRETS)
        return str(await fresh_of(data, model, rewrite, since))

    return relearned


def searching(settings: Settings, model: str) -> Callable[[], Awaitable[SearchResult]]:
    """Has triggers searched for by a task of Ray."""

    async def searched() -> SearchResult:
        data = settings.model_dump(mode="json", context=WITH_SECRETS)
        looked: SearchResult = await looking(data, model)
        return looked

    return searched


class Learning:
    """The actor's class: learns one model's rows of one partition after the other."""

    def __init__(self, data: dict[str, Any], name: str) -> None:
        telemetry.log_to_stderr(logging.INFO)
        with contextlib.suppress(OSError):
            os.nice(_NICENESS)
        settings = Settings.model_validate(data)
        os.umask(settings.umask)
        model = next(model for model in settings.models if model.name == name)
        keys = Keys.from_file(settings.key_path)
        loaded = load_model(model, settings, keys.secret, keys.old_secrets)
        self._replica = model_replica(
            model, settings, loaded, journal_opener(settings)(), processes.replica_name(),
            ParameterClient(server_name(name, loaded.spec_hash)),
            for_others=True,
            relearn=relearning(settings, name),
            search=searching(settings, name),
        )  # fmt: skip
        self._starting: asyncio.Task[None] | None = None

    async def follow(self, partition: int) -> None:
        """Learn what is written there from now on."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._replica.start())
            collect_seldom()
        await asyncio.shield(self._starting)
        self._replica.follow(partition)

    async def stop(self) -> None:
        """Push what is learned and give up the own partition, which is empty."""
        await self._replica.stop(_STOP_S)


class Background:
    """Keeps the learner process of one model alive, and tells it what to follow.

    Parameters:
        start: Makes the actor (:func:`actor_of`).
        replica: What writes the rows; ``learner_restarts`` is counted there.
    """

    def __init__(self, start: Callable[[], Any], replica: ModelReplica) -> None:
        self._model, self._start, self._replica = replica.settings.name, start, replica
        self._actor: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once, rows wait in the journal until the process is there."""
        self._task = asyncio.create_task(self._tend())

    async def _tend(self) -> None:
        while True:
            try:
                if not self._replica.learner.needs_process:
                    await self._end()
                elif self._actor is None:
                    self._actor = self._start()
                else:
                    await self._actor.follow.remote(self._replica.writer.partition)
            except RayActorError as error:
                self._replica.counts["learner_restarts"] += 1
                log.warning("model %s: its learner process ended: %s", self._model, _line(error))
                self._actor = None
            except Exception as error:  # of Ray or its node: this has to go on
                log.error("model %s: its learner process: %s", self._model, _line(error))
            await asyncio.sleep(_LOOK_S)  # not at once: it may end at each start

    async def stop(self) -> None:
        """End the process.  What it has not learned is another replica's to adopt."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._end()

    async def _end(self) -> None:
        actor, self._actor = self._actor, None
        if actor is None:
            return
        try:
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(2 * _STOP_S):
                    await actor.stop.remote()
        finally:
            ray.kill(actor)


def actor_of(data: dict[str, Any], model: str) -> Any:
    """A new learner process; it ends with this one."""
    return ray.remote(Learning).options(num_cpus=0, max_restarts=0).remote(data, model)


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error) else type(error).__name__
