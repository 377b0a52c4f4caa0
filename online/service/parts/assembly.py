"""Assembles the parts of one serving process from the settings: models, journal, HTTP application.

A replica of Ray Serve and the embedded service are shells around an :class:`Assembly`.  What
differs between them (:class:`ProcessContext`) is passed in; nothing here imports Ray.
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
from online.rows.prediction_ids import Keys, Nonces, Tokens
from online.rows.validator import Validator
from online.service.parts.command_settings import clear
from online.service.parts.composition import (
    learns_here,
    model_replica,
    swappable,
    watches_decisions,
)
from online.service.parts.model_swap import LearnerProcess, ModelSwap, Part
from online.service.parts.report_task import Reporting
from online.serving.choices.choosing import Choosing
from online.serving.default_labels import DefaultLabels
from online.serving.defaults import Defaults, give_for_ever
from online.serving.device_pushes import Pushes, pushes_for
from online.serving.operating.journal_room import journal_room
from online.serving.operating.status import Cluster, ParameterServerControl
from online.serving.scores import Reader, threaded
from online.serving.serving import Serving
from online.settings.access_tokens import AccessTokens
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import journal_opener
from online.trust.trigger_watch import SearchResult
from online.watch.on_rise import Relearn
from paramserver.clients.client import Client
from paramserver.clients.sharded_client import sharded
from paramserver.core.shards import shard_name
from refusals import installing
from replay.journal.base import Journal

if TYPE_CHECKING:
    from online.http.ingress import Application
    from online.http.middleware.access import Access
    from online.telemetry.spans import Tracing

_STOP_S: Final = 1.5


def nobody(*_: object) -> None:
    """Return None, the default for parts that a shell does not have; takes any arguments."""


@dataclass(frozen=True, slots=True)
class ProcessContext:
    """The surroundings of one process's models, provided by the shell that runs the process.

    Attributes:
        replica: Name of this process among replicas; a new one at each start.
        server: Returns the client of a parameter server (by shard name and spec hash).
        learner_process: Returns the process that learns a model for this one, if there is one.
        relearn, search: Return how relearning and trigger searches are started for a model
            (:class:`online.replica.replica.ModelReplica`); None: they are not.
        peers: Returns a client of other replicas, which are asked for parameters; None: no peers.
        challenger: Returns the client of a model's challenger.
        absent: The reason why another replica does not start, None if all is well; called on a
            thread.
        as_served: The settings with all promotions so far applied
            (:mod:`online.challenger.promotion`); called on a thread.  None: no promotions here.
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
    """All models of the settings in this process, and the ASGI application that serves them.

    Parameters:
        load: Loads the untrained model for a model's settings.
        keys: Sign label tokens and seal pickled state.

    Attributes:
        replicas: By model name.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        load: Callable[[ModelSettings], Loaded],
        context: ProcessContext,
    ) -> None:
        self._settings, self._context, self._keys, self._load = settings, context, keys, load
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
        self._swaps: list[ModelSwap] = []
        self._access: Access | None = None
        challengers: dict[str, ParameterServerControl] = {}
        self._tracing = _tracing(settings, context.replica)
        self._open_one = journal_opener(settings)  # one journal per model, as each blocks
        self._nonces = Nonces(os.urandom(6))
        for model in settings.models:
            self._put(model.name, self._make(settings, model, load(model)))
            if model.challenger is not None:
                challenger = context.challenger(model.name)
                assert challenger is not None
                challengers[model.name] = challenger
        self._cluster = Cluster(
            self.replicas, self._controls, self._journals,
            lambda name: self._parts[name].facts,
            disk=journal_room(settings), absent=context.absent,
            challengers=None if context.challenger is nobody else challengers,
        )  # fmt: skip

    def _make(self, settings: Settings, model: ModelSettings, loaded: Loaded) -> Part:
        """Build the part of a model without starting it."""
        name, context, limits = model.name, self._context, settings.limits
        rule = merge_rule(model, loaded.model)
        client = sharded(
            name,
            [context.server(shard_name(name, s), loaded.spec_hash) for s in range(model.shards)],
        )
        journal = self._open_one()
        replica = model_replica(
            model, settings, loaded, journal, context.replica, client,
            peers=context.peers(name) if model.shards == 1 else None,
            relearn=context.relearn(settings, name),
            search=context.search(settings, name),
            crossing=None if self._tracing is None else self._tracing.crossing(),
        )  # fmt: skip
        learner = None
        if rule == "overlay" or not learns_here(model, rule):
            learner = context.learner_process(name, replica)
            assert learner is not None
        validator = Validator(model, limits, numeric_only=loaded.model.numeric_only)
        tokens = Tokens(self._keys, name, self._nonces)
        pushes = None
        if model.devices is not None:
            pushes = pushes_for(model, settings, model.devices, replica, validator)
        facts = {
            "learner": model.learner,
            "spec": loaded.spec_hash[:16],
            "learn": model.learn,
            "merge": rule,
            "labels": [validator.show(False), validator.show(True)]
            if model.task == "binary"
            else None,
        }
        askers = self._settings.tokens.askers
        serving = Serving(replica, validator, tokens, limits, loaded.spec_hash, askers)
        can = swappable(model, rule)
        choosing = None
        if model.choose is not None:
            choosing = Choosing(serving, validator, limits, model.choose)
        defaults = _defaults(model, replica, choosing)
        return Part(
            replica, journal, serving, client, facts, pushes, learner, can, choosing, defaults
        )

    def _put(self, name: str, part: Part) -> None:
        """Serve the model by this part from the next request on."""
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
        """Pull the newest parameters; returns when every model can answer."""
        await asyncio.gather(*(model.start() for model in self.replicas.values()))
        for part in self._parts.values():
            if part.learner is not None:
                part.learner.start()
        await self._cluster.start()
        if self._defaults:
            self._giving = asyncio.create_task(give_for_ever(self._defaults))
        if (as_served := self._context.as_served) is None:
            return
        for model in self._settings.models:
            if watches_decisions(model):
                swap = ModelSwap(
                    model.name, self._parts, self._put, self._make, self._load, as_served
                )
                swap.start()
                self._swaps.append(swap)

    def app(self) -> Application:
        """The ASGI application for all models."""
        from online.http.app import App, ModelExtras
        from online.http.middleware.access import (
            Access,  # not imported by programs that do not use HTTP
        )
        from online.http.middleware.browsers import Browsers

        settings, access = self._settings, None
        if settings.tokens:
            access = Access(settings.tokens.by_role, settings.tokens.grants)
        self._access = access
        clear(settings.state_dir)
        browsers = Browsers(
            settings.origins, settings.hosts, guarded=access is not None, own=settings.host
        )
        app: Application = App(
            self._servings, self._cluster, settings.limits, access,
            ModelExtras(self._readers(), self._pushes, self._choosing, Reporting(settings)),
            settings.state_dir, browsers, None if self._tracing is None else self._tracing.drawn,
        )  # fmt: skip
        if self._tracing is not None:
            from online.http.middleware.traced import Traced

            app = Traced(app, self._tracing)
        if share := settings.telemetry.access_log:
            from online.http.middleware.access_log import AccessLog

            app = AccessLog(app, share)
        return app

    def renew(self, tokens: AccessTokens) -> None:
        """Admit callers by these tokens from the next request on, on open connections too."""
        self._settings = self._settings.model_copy(update={"tokens": tokens})
        for serving in self._servings.values():
            serving.reader.askers = tokens.askers
        if self._access is not None:
            self._access.renew(tokens.by_role, tokens.grants)

    def serving(self, name: str) -> Serving:
        """Predict and feedback of one model as a Python object."""
        return self._servings[name]

    async def status(self, name: str) -> dict[str, Any]:
        """Status of one model, as ``GET /v1/models/NAME`` returns it."""
        return await self._cluster.model(name)

    def _readers(self) -> Mapping[str, Reader]:
        """Return the reader of each model's published scores; stores are opened on first use."""
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
        """Commit, push and seal, so that nothing has to be adopted by another replica."""
        if self._giving is not None:
            self._giving.cancel()
        await asyncio.gather(*(swap.stop(_STOP_S) for swap in self._swaps))
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
    """Return what assigns default rewards to choices or default labels to predictions, if any."""
    if choosing is not None:
        return choosing.defaults
    if model.conversion_window is None:
        return None
    learner = replica.learner
    rule = DefaultLabels(model.conversion_window, learner.tally.views, lambda: learner.serving)
    return Defaults(replica, rule, time.time, time.monotonic)


def _tracing(settings: Settings, replica: str) -> Tracing | None:
    """Return the exporter of traces if an endpoint is configured.  Raises StartRefused."""
    if settings.telemetry.endpoint is None:
        return None
    try:
        from online.telemetry.spans import Tracing
    except ModuleNotFoundError as error:
        raise StartRefused(
            f"telemetry.endpoint needs {error.name}, which is not installed",
            f"Install the extra: {installing('telemetry')}",
        ) from None
    return Tracing(settings.telemetry, replica)
