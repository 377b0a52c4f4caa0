"""Learning in a process of its own, beside a replica whose model is slow to learn.

The replica writes feedback into its partition and answers; an actor of Ray, which it owns, follows
the partition, learns and pushes.  The actor holds nothing that is not in the journal or at the
parameter server: if it dies, another goes on from the server's clock.  If the replica dies, the
actor ends with it, and the partition is adopted as any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError

from online import processes, telemetry
from online.learning.merged import Learner
from online.learning.ordered import OrderedLearner
from online.learning.overlay import OverlayLearner
from online.models.from_settings import load_model, merge_rule
from online.models.load import Loaded
from online.replica.exchange import ParameterServerClient
from online.replica.memory_settings import memory_for
from online.replica.replica import ModelReplica
from online.rows.prediction_ids import Keys
from online.service.relearn_task import fresh_of
from online.service.trigger_task import Looked, looking
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import journal_opener, server_name
from online.trust.filtering import filtering_for
from online.trust.root_set import RootSet, root_rows
from online.watch.canary import Canary
from paramserver.ray_client import ParameterClient
from paramserver.server import MergeRule
from replay.journal.base import Journal

log = logging.getLogger("online.background")

_LOOK_S: Final = 0.5  # between two looks at the actor
_STOP_S: Final = 1.0
_DECIDE_S: Final = 30.0  # a server that writes down what it decides
_NICENESS: Final = 5  # predictions first, where cores are few


def model_replica(
    model: ModelSettings,
    settings: Settings,
    loaded: Loaded,
    journal: Journal,
    replica: str,
    *,
    for_others: bool = False,
    peers: ParameterServerClient | None = None,
) -> tuple[ModelReplica, ParameterClient]:
    """One model of the settings in this process, and its way to the parameter server.

    ``for_others``: it learns what other processes write.  ``peers``: of whom a new one takes values
    while the server can't be reached.
    """
    limits = settings.limits
    client = ParameterClient(server_name(model.name, loaded.spec_hash))
    rows_max = max(model.sync.updates * 16, 1024)
    rule = merge_rule(model, loaded.model)
    learns = for_others or learns_here(model, rule)
    learner: Learner | OrderedLearner
    whole: dict[str, Any] = {"task": model.task, "spec": loaded.spec_hash, "rows_max": rows_max}
    if rule == "ordered" or (rule in ("overlay", "lagging") and for_others):
        learner = OrderedLearner(loaded.build, **whole)
    elif rule in ("overlay", "lagging"):
        learner = OverlayLearner(loaded.build, own_rows=rule == "overlay", **whole)
    else:
        learner = Learner(
            loaded.build,
            task=model.task,
            spec=loaded.spec_hash,
            retain_bytes=limits.retain_mb << 20,
            rows_max=rows_max,
            compensates=settings.replicas_max > 1 and rule == "compensated",
            memory=memory_for(model, loaded.model, rule) if learns else None,
        )

    rows, root = root_rows(model, settings, numeric_only=loaded.model.numeric_only), None
    if rows and model.root_set is not None:
        root = RootSet(model.root_set, rows, lambda: learner.serving)
    filters = filtering_for(
        model, learner, root, sources_max=limits.sources_max, vouched=settings.tokens.vouched
    )
    learner.evidence.sources_max = limits.sources_max
    learner.bounds.on = model.filters != "none"
    learner.vocabulary.most = limits.names_max
    learner.vocabulary.share = limits.names_share
    learner.vocabulary.a_second = limits.names_s

    async def ask(question: str, *args: object) -> Any:
        return await client.call(question, _DECIDE_S, *args)

    async def relearned(rewrite: int, since: float) -> str:
        data = settings.model_dump(mode="json", context=WITH_SECRETS)
        return str(await fresh_of(data, model.name, rewrite, since))

    async def searched() -> Looked:
        data = settings.model_dump(mode="json", context=WITH_SECRETS)
        looked: Looked = await looking(data, model.name)
        return looked

    made = ModelReplica(
        model, limits, learner, journal, client,
        replica=replica, spec=loaded.spec_hash, learns=learns,
        cpu_s=time.thread_time,
        ask=ask if learns else None,
        filters=filters,
        canary=Canary(rows, lambda: learner.serving) if rows else None,
        peers=peers,
        relearn=relearned,
        search=searched if learns else None,
    )  # fmt: skip
    return made, client


def learns_here(model: ModelSettings, rule: MergeRule) -> bool:
    """Whether a replica learns what is written to it."""
    if rule in ("overlay", "lagging"):
        return rule == "overlay"
    return model.learn == "inline"


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
        self._replica, _ = model_replica(
            model, settings, loaded, journal_opener(settings)(), processes.replica_name(),
            for_others=True,
        )  # fmt: skip
        self._starting: asyncio.Task[None] | None = None

    async def follow(self, partition: int) -> None:
        """Learn what is written there from now on."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._replica.start())
            gc.freeze()
        await asyncio.shield(self._starting)
        self._replica.follow(partition)

    async def stop(self) -> None:
        """Push what is learned and give up the own partition, which is empty."""
        await self._replica.stop(_STOP_S)


class Background:
    """Keeps the learner process of one model alive, and tells it what to follow.

    Parameters
    ----------
    start
        Makes the actor (:func:`actor_of`).
    replica
        What writes the rows; ``learner_restarts`` is counted there.
    """

    def __init__(self, start: Callable[[], Any], replica: ModelReplica) -> None:
        self._model, self._start, self._replica = replica.settings.name, start, replica
        self._actor: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once, rows wait in the journal until the process is there."""
        self._task = asyncio.create_task(self._tend())

    @property
    def _needed(self) -> bool:
        """Whether this replica has the process: of those that share one, the server names it."""
        learner = self._replica.learner
        return learner.keeper if isinstance(learner, OverlayLearner) else True

    async def _tend(self) -> None:
        while True:
            try:
                if not self._needed:
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
