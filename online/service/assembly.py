"""Everything that one process of the service answers with, put together from the settings.

A replica of Ray Serve and the embedded service are both shells of this; what differs between them
(:class:`Around`) is handed in, and nothing here imports Ray.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from online.models.from_settings import merge_rule
from online.models.load import Loaded
from online.replica.exchange import ParameterServerClient
from online.replica.replica import ModelReplica
from online.rescore.stores import RedisReads, SqliteScores
from online.rows.door import Door
from online.rows.prediction_ids import Keys, Nonces, Tokens
from online.service.composition import learns_here, model_replica
from online.serving.device_pushes import Pushes, pushes_for
from online.serving.journal_room import journal_room
from online.serving.scores import Reader, threaded
from online.serving.serving import Serving
from online.serving.status import Cluster, ParameterServerControl
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import journal_opener
from online.settings.tokens import ROLES
from online.trust.trigger_watch import Looked
from online.watch.on_rise import Relearn
from paramserver.client import Client
from replay.journal.base import Journal

if TYPE_CHECKING:
    from online.http.app import App

_STOP_S: Final = 1.5


class LearnerProcess(Protocol):
    """Learns in a process of its own what a replica writes."""

    def start(self) -> None:
        """Begin; returns at once."""

    async def stop(self) -> None:
        """End the process of the learner."""


def nobody(_: str) -> None:
    """There is none of what was asked for, whatever the model."""


@dataclass(frozen=True, slots=True)
class Around:
    """The surroundings of the models of one process, as the shell that runs it knows them.

    Attributes
    ----------
    replica
        Name of this process among replicas; a new one a start.
    server
        The way to the parameter server of a model (its name, its spec's hash).
    relearn, search
        By model's name, as of :class:`online.replica.replica.ModelReplica`.
    peers
        By model's name: other replicas, asked for values; None: there are none.
    learner_process
        Of a model that this process does not learn itself.
    challenger
        The way to a model's challenger.
    absent
        Why another replica does not start, None if nothing is wrong; called on a thread.
    """

    replica: str
    server: Callable[[str, str], Client]
    learner_process: Callable[[str, ModelReplica], LearnerProcess | None]
    relearn: Callable[[str], Relearn | None] = nobody
    search: Callable[[str], Callable[[], Awaitable[Looked]] | None] = nobody
    peers: Callable[[str], ParameterServerClient | None] = nobody
    challenger: Callable[[str], ParameterServerControl | None] = nobody
    absent: Callable[[], str | None] = lambda: None


class Assembly:
    """All models of the settings in this process, and the application that answers for them.

    Parameters
    ----------
    load
        The untrained model that a model's settings describe.
    keys
        Sign label tokens and seal pickled state.

    Attributes
    ----------
    replicas
        By model's name.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        load: Callable[[ModelSettings], Loaded],
        around: Around,
    ) -> None:
        self._settings, self._around = settings, around
        self.replicas: dict[str, ModelReplica] = {}
        self._learners: list[LearnerProcess] = []
        self._servings: dict[str, Serving] = {}
        self._pushes: dict[str, Pushes] = {}
        self._controls: dict[str, Client] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._threads: list[ThreadPoolExecutor] = []
        journals: dict[str, Journal] = {}
        challengers: dict[str, ParameterServerControl] = {}
        open_one = journal_opener(settings)  # one a model: models do not wait for each other
        nonces = Nonces(os.urandom(6))
        for model in settings.models:
            loaded = load(model)
            journals[model.name] = open_one()
            self._add(model, loaded, journals[model.name], Tokens(keys, model.name, nonces))
            if model.challenger is not None:
                challenger = around.challenger(model.name)
                assert challenger is not None
                challengers[model.name] = challenger
        self._cluster = Cluster(
            self.replicas, self._controls, journals, self._facts.__getitem__,
            free_bytes=journal_room(settings), challengers=challengers, absent=around.absent,
        )  # fmt: skip

    def _add(self, model: ModelSettings, loaded: Loaded, journal: Journal, tokens: Tokens) -> None:
        name, settings, around = model.name, self._settings, self._around
        rule = merge_rule(model, loaded.model)
        client = around.server(name, loaded.spec_hash)
        replica = model_replica(
            model, settings, loaded, journal, around.replica, client,
            peers=around.peers(name), relearn=around.relearn(name), search=around.search(name),
        )  # fmt: skip
        if rule == "overlay" or not learns_here(model, rule):
            learner = around.learner_process(name, replica)
            assert learner is not None
            self._learners.append(learner)
        door = Door(model, settings.limits, numeric_only=loaded.model.numeric_only)
        self.replicas[name], self._controls[name] = replica, client
        self._servings[name] = Serving(
            replica, door, tokens, settings.limits, loaded.spec_hash, settings.tokens.askers
        )
        if model.devices is not None:
            self._pushes[name] = pushes_for(model, settings, model.devices, replica, door)
        self._facts[name] = {
            "learner": model.learner,
            "spec": loaded.spec_hash[:16],
            "learn": model.learn,
            "merge": rule,
            "labels": [door.show(False), door.show(True)] if model.task == "binary" else None,
        }

    async def start(self) -> None:
        """Take the newest values; returns when every model can answer."""
        await asyncio.gather(*(model.start() for model in self.replicas.values()))
        for learner in self._learners:
            learner.start()
        await self._cluster.start()

    def app(self) -> App:
        """The ASGI application that answers for the models."""
        from online.http.access import Access  # a program that only calls has no need of HTTP
        from online.http.app import App
        from online.http.browsers import Browsers

        settings = self._settings
        access = None
        if settings.tokens:
            given = {role: settings.tokens.of(role) for role in ROLES}
            access = Access(given, settings.tokens.grants)
        browsers = Browsers(
            settings.origins, settings.hosts, guarded=access is not None, own=settings.host
        )
        return App(
            self._servings, self._cluster, settings.limits, access, self._readers(),
            settings.state_dir / "edge", self._pushes, browsers,
        )  # fmt: skip

    def serving(self, name: str) -> Serving:
        """Predict and feedback of one model, without HTTP."""
        return self._servings[name]

    async def status(self, name: str) -> dict[str, Any]:
        """Everything about one model, as ``GET /v1/models/NAME`` answers it."""
        return await self._cluster.model(name)

    def _readers(self) -> Mapping[str, Reader]:
        """Return what reads each model's scores; the stores are opened when they are asked for."""
        if self._settings.scores != "sqlite":
            url = self._settings.scores
            return {name: Reader(RedisReads(url, name).get, time.time) for name in self._servings}
        place = self._settings.state_dir / "scores"
        threads = ThreadPoolExecutor(1, "scores")
        self._threads.append(threads)

        def reader(name: str) -> Reader:
            ask = threaded(SqliteScores(place, name), threads)
            return Reader(ask, time.time, SqliteScores(place, name))

        return {name: reader(name) for name in self._servings}

    async def stop(self) -> None:
        """Commit, push and seal: nothing is left for an adopter."""
        await asyncio.gather(*(model.stop(_STOP_S) for model in self.replicas.values()))
        await asyncio.gather(*(one.stop() for one in self._learners))
        for threads in self._threads:
            threads.shutdown(wait=False)
