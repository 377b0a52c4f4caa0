"""Runs learning in a process of its own, beside a replica whose model is slow to learn.

The replica appends feedback to its partition and answers; a Ray actor that it owns follows the
partition, learns and pushes.  The actor keeps no state that is not in the journal or at the
parameter server: if it dies, its successor continues from the server's clock.  If the replica dies,
the actor ends with it, and the partition is adopted like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError

from online.models.loading.from_settings import load_model
from online.replica.replica import ModelReplica
from online.rows.prediction_ids import Keys
from online.service import processes
from online.service.on_ray.relearn_task import fresh_of
from online.service.on_ray.trigger_task import SearchResult, search_task
from online.service.parts.composition import model_replica
from online.service.parts.garbage import collect_seldom
from online.service.replica_names import replica_name
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings
from online.settings.places import journal_opener, server_name
from online.telemetry.logs import log_to_stderr
from online.watch.on_rise import Relearn
from paramserver.clients.ray_client import ParameterClient

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.5  # between two calls of the actor
_STOP_S: Final = 1.0
_NICENESS: Final = 5  # predictions have priority where cores are scarce


def relearning(settings: Settings, model: str) -> Relearn:
    """Return a function that trains a fresh model in a Ray task."""

    async def relearned(rewrite: int, since: float) -> str:
        data = settings.model_dump(mode="json", context=WITH_SECRETS)
        return str(await fresh_of(data, model, rewrite, since))

    return relearned


def searching(settings: Settings, model: str) -> Callable[[], Awaitable[SearchResult]]:
    """Return a function that searches for triggers in a Ray task."""

    async def searched() -> SearchResult:
        data = settings.model_dump(mode="json", context=WITH_SECRETS)
        looked: SearchResult = await search_task(data, model)
        return looked

    return searched


class LearnerActor:
    """The actor's class: learns one model's rows, one partition after the other."""

    def __init__(self, data: dict[str, Any], name: str) -> None:
        log_to_stderr(logging.INFO)
        settings, model = processes.begun(data, name, _NICENESS)
        keys = Keys.from_file(settings.key_path)
        loaded = load_model(model, settings, keys.secret, keys.old_secrets)
        self._replica = model_replica(
            model, settings, loaded, journal_opener(settings)(), replica_name(),
            ParameterClient(server_name(name, loaded.spec_hash)),
            for_others=True,
            relearn=relearning(settings, name),
            search=searching(settings, name),
        )  # fmt: skip
        self._starting: asyncio.Task[None] | None = None

    async def follow(self, partition: int) -> None:
        """Learn the rows of this partition from now on."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._replica.start())
            collect_seldom()
        starting = self._starting
        try:
            await asyncio.shield(starting)
        except Exception:
            self._starting = None  # the next call begins again
            raise
        self._replica.follow(partition)

    async def stop(self) -> None:
        """Push what is learned and seal the actor's own partition, which is empty."""
        await self._replica.stop(_STOP_S)


class LearnerSupervisor:
    """Keeps the learner process of one model alive, and has it follow the replica's partition.

    Parameters:
        start: Creates the actor (:func:`actor_of`).
        replica: The replica that writes the rows; its ``learner_restarts`` counts restarts.
    """

    def __init__(self, start: Callable[[], Any], replica: ModelReplica) -> None:
        self._model, self._start, self._replica = replica.settings.name, start, replica
        self._actor: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to supervise; returns at once.  Rows wait in the journal until it runs."""
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
            except Exception as error:  # of Ray or its node: keep supervising
                log.error("model %s: its learner process: %s", self._model, _line(error))
            await asyncio.sleep(_LOOK_S)  # also after a failure, as it may fail at each start

    async def stop(self) -> None:
        """End the process.  Rows that it has not learned are left for adoption."""
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
    """Create a learner process; it ends with this process."""
    return ray.remote(LearnerActor).options(num_cpus=0, max_restarts=0).remote(data, model)


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error) else type(error).__name__
