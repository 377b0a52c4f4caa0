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
from typing import TYPE_CHECKING, Any, Final

from online.errors import StartRefused
from online.models.loaded import Loaded
from online.models.loading.from_settings import merge_rule
from online.replica.replica import ModelReplica
from online.replica.surroundings import ParameterServerClient
from online.rescore.stores import RedisReads, SqliteScores
from online.rows.door import Door
from online.rows.prediction_ids import Keys, Nonces, Tokens
from online.service.command_settings import clear
from online.service.composition import exchangeable, goes_over, learns_here, model_replica
from online.service.going_over import GoingOver
from online.service.model_part import LearnerProcess, Part
from online.service.report_task import Reporting
from online.serving.choosing import Choosing
from online.serving.default_labels import DefaultLabels
from online.serving.defaults import Defaults, give_for_ever
from online.serving.device_pushes import Pushes, pushes_for
from online.serving.journal_room import journal_room
from online.serving.scores import Reader, threaded
from online.serving.serving import Serving
from online.serving.status import Cluster, ParameterServerControl
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import journal_opener
from online.settings.tokens import ROLES
from online.trust.trigger_watch import SearchResult
from online.watch.on_rise import Relearn
from paramserver.clients.client import Client
from paramserver.clients.sharded_client import sharded
from paramserver.core.shards import shard_name
from refusals import installing
from replay.journal.base import Journal

if TYPE_CHECKING:
    from online.http.ingress import Application
    from online.tracing.spans import Tracing

_STOP_S: Final = 1.5


def nobody(*_: object) -> None:
    """There is none of what was asked for, whatever the model."""


@dataclass(frozen=True, slots=True)
class Around:
    """The surroundings of the models of one process, as the shell that runs it knows them.

    Attributes:
        replica: Name of this process among replicas; a new one a start.
        server: The way to the parameter server of a model (its name, its spec's hash).
        relearn, search: By the settings and a model's name, as of
            :class:`online.replica.replica.ModelReplica`.
        peers: By model's name: other replicas, asked for values; None: there are none.
        learner_process: Of a model that this process does not learn itself.
        challenger: The way to a model's challenger.
        absent: Why another replica does not start, None if nothing is wrong; called on a thread.
        as_served: The settings with the models that were promoted by now
            (:mod:`online.challenger.promotion`); called on a thread.  None: nothing is promoted
            here.
    """

    replica: str
    server: Callable[[str, str], Client]
    learner_process: Callable[[str, ModelReplica], LearnerProcess | None]
    relearn: Callable[[Settings, str], Relearn | None] = nobody
    search: Callable[[Settings, str], Callable[[], Awaitable[SearchResult]] | None] = nobody
    peers: Callable[[str], ParameterServerClient | None] = nobody
    challenger: Callable[[str], ParameterServerControl | None] = nobody
    absent: Callable[[], str | None] = lambda: None
    as_served: Callable[[], Settings] | None = None


class Assembly:
    """All models of the settings in this process, and the application that answers for them.

    Parameters:
        load: The untrained model that a model's settings describe.
        keys: Sign label tokens and seal pickled state.

    Attributes:
        replicas: By model's name.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        load: Callable[[ModelSettings], Loaded],
        around: Around,
    ) -> None:
        self._settings, self._around, self._keys, self._load = settings, around, keys, load
        self.replicas: dict[str, ModelReplica] = {}
        self._parts: dict[str, Part] = {}
        self._servings: dict[str, Serving] = {}
        self._pushes: dict[str, Pushes] = {}
        self._choosing: dict[str, Choosing] = {}
        self._defaults: dict[str, Defaults] = {}
        self._giving: asyncio.Task[None] | None = None
        self._controls: dict[str, Client] = {}
        self._journals: dict[str, Journal] = {}
        self._threads: list[ThreadPoolExecutor] = []
        self._going_over: list[GoingOver] = []
        challengers: dict[str, ParameterServerControl] = {}
        self._tracing = _tracing(settings, around.replica)
        self._open_one = journal_opener(settings)  # one a model: models do not wait for each other
        self._nonces = Nonces(os.urandom(6))
        for model in settings.models:
            self._put(model.name, self._make(settings, model, load(model)))
            if model.challenger is not None:
                challenger = around.challenger(model.name)
                assert challenger is not None
                challengers[model.name] = challenger
        self._cluster = Cluster(
            self.replicas, self._controls, self._journals,
            lambda name: self._parts[name].facts,
            free_bytes=journal_room(settings), absent=around.absent,
            challengers=None if around.challenger is nobody else challengers,
        )  # fmt: skip

    def _make(self, settings: Settings, model: ModelSettings, loaded: Loaded) -> Part:
        """The model's part of this process, which has not begun."""
        name, around, limits = model.name, self._around, settings.limits
        rule = merge_rule(model, loaded.model)
        client = sharded(
            name,
            [around.server(shard_name(name, s), loaded.spec_hash) for s in range(model.shards)],
        )
        journal = self._open_one()
        replica = model_replica(
            model, settings, loaded, journal, around.replica, client,
            peers=around.peers(name) if model.shards == 1 else None,
            relearn=around.relearn(settings, name),
            search=around.search(settings, name),
            crossing=None if self._tracing is None else self._tracing.crossing(),
        )  # fmt: skip
        learner = None
        if rule == "overlay" or not learns_here(model, rule):
            learner = around.learner_process(name, replica)
            assert learner is not None
        door = Door(model, limits, numeric_only=loaded.model.numeric_only)
        tokens = Tokens(self._keys, name, self._nonces)
        pushes = None
        if model.devices is not None:
            pushes = pushes_for(model, settings, model.devices, replica, door)
        facts = {
            "learner": model.learner,
            "spec": loaded.spec_hash[:16],
            "learn": model.learn,
            "merge": rule,
            "labels": [door.show(False), door.show(True)] if model.task == "binary" else None,
        }
        asked = settings.tokens.askers
        serving = Serving(replica, door, tokens, limits, loaded.spec_hash, asked)
        can = exchangeable(model, rule)
        choosing = None
        if model.choose is not None:
            choosing = Choosing(serving, door, limits, model.choose)
        defaults = _defaults(model, replica, choosing)
        return Part(
            replica, journal, serving, client, facts, pushes, learner, can, choosing, defaults
        )

    def _put(self, name: str, part: Part) -> None:
        """Let the part answer for the model from the next request on."""
        self._parts[name] = part
        self.replicas[name], self._controls[name] = part.replica, part.control
        self._servings[name], self._journals[name] = part.serving, part.journal
        if part.pushes is not None:
            self._pushes[name] = part.pushes
        else:
            self._pushes.pop(name, None)
        if part.choosing is not None:
            self._choosing[name] = part.choosing
        if part.defaults is not None:
            self._defaults[name] = part.defaults

    async def start(self) -> None:
        """Take the newest values; returns when every model can answer."""
        await asyncio.gather(*(model.start() for model in self.replicas.values()))
        for part in self._parts.values():
            if part.learner is not None:
                part.learner.start()
        await self._cluster.start()
        if self._defaults:
            self._giving = asyncio.create_task(give_for_ever(self._defaults))
        if (as_served := self._around.as_served) is None:
            return
        for model in self._settings.models:
            if goes_over(model):
                going = GoingOver(
                    model.name, self._parts, self._put, self._make, self._load, as_served
                )
                going.start()
                self._going_over.append(going)

    def app(self) -> Application:
        """The ASGI application that answers for the models."""
        from online.http.access import Access  # a program that only calls has no need of HTTP
        from online.http.app import App, Some
        from online.http.browsers import Browsers

        settings = self._settings
        access = None
        if settings.tokens:
            given = {role: settings.tokens.of(role) for role in ROLES}
            access = Access(given, settings.tokens.grants)
        clear(settings.state_dir)
        browsers = Browsers(
            settings.origins, settings.hosts, guarded=access is not None, own=settings.host
        )
        app: Application = App(
            self._servings, self._cluster, settings.limits, access,
            Some(self._readers(), self._pushes, self._choosing, Reporting(settings)),
            settings.state_dir, browsers,
        )  # fmt: skip
        if self._tracing is not None:
            from online.http.traced import Traced

            app = Traced(app, self._tracing)
        if share := settings.telemetry.access_log:
            from online.http.access_log import AccessLog

            app = AccessLog(app, share)
        return app

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
        if self._giving is not None:
            self._giving.cancel()
        await asyncio.gather(*(going.stop(_STOP_S) for going in self._going_over))
        await asyncio.gather(*(model.stop(_STOP_S) for model in self.replicas.values()))
        learners = [part.learner for part in self._parts.values() if part.learner is not None]
        await asyncio.gather(*(learner.stop() for learner in learners))
        for threads in self._threads:
            threads.shutdown(wait=False)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


def _defaults(
    model: ModelSettings, replica: ModelReplica, choosing: Choosing | None
) -> Defaults | None:
    """Return what gives choices their rewards, or predictions their labels; None: nothing does."""
    if choosing is not None:
        return choosing.defaults
    if model.conversion_window is None:
        return None
    learner = replica.learner
    rule = DefaultLabels(model.conversion_window, learner.tally.views, lambda: learner.serving)
    return Defaults(replica, rule, time.time, time.monotonic)


def _tracing(settings: Settings, replica: str) -> Tracing | None:
    """Traces of this process, if there is somebody who takes them.  Raises StartRefused."""
    if settings.telemetry.endpoint is None:
        return None
    try:
        from online.tracing.spans import Tracing
    except ModuleNotFoundError as error:
        raise StartRefused(
            f"telemetry.endpoint needs {error.name}, which is not installed",
            f"Install the extra: {installing('telemetry')}",
        ) from None
    return Tracing(settings.telemetry, replica)
