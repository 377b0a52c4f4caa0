"""The Ray Serve replica: builds everything from its settings, in its own process.

It is the shell of :mod:`online.http.app` and :mod:`online.replica.replica`; nothing else here
imports Ray.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from ray import serve

from online import processes, telemetry
from online.http import ingress
from online.http.access import Access
from online.http.app import App
from online.http.browsers import Browsers
from online.models.from_settings import load_model, merge_rule
from online.replica.replica import ModelReplica
from online.rescore.stores import RedisReads, SqliteScores
from online.rows.door import Door
from online.rows.prediction_ids import Keys, Nonces, Tokens
from online.service.learner_process import Background, actor_of, learns_here, model_replica
from online.service.origin import Origin
from online.service.scaling import Busy
from online.service.serve_middleware import replicas
from online.service.serve_peers import Peers
from online.serving.device_pushes import Pushes, pushes_for
from online.serving.journal_room import journal_room
from online.serving.scores import Reader, threaded
from online.serving.serving import Serving
from online.serving.status import Cluster
from online.settings.config import Settings
from online.settings.places import challenger_name, journal_opener
from online.settings.tokens import ROLES
from paramserver.ray_client import ParameterClient
from replay.journal.base import Journal

log = logging.getLogger("online.replica")

_STOP_S = 1.5
_ABSENCE_S = 5.0


class Absence:
    """Why another replica does not start, as Serve knows it; asked at most every five seconds."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s, self._asked_s = monotonic_s, -_ABSENCE_S
        self._reason: str | None = None

    def __call__(self) -> str | None:
        """The reason; None: nothing is wrong."""
        if self._monotonic_s() >= self._asked_s + _ABSENCE_S:
            self._asked_s = self._monotonic_s()
            self._reason = replicas().reason
        return self._reason


@serve.ingress()
class Replica:
    """One replica of the service: every model, one HTTP port."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, data: dict[str, Any], origin: Origin
    ) -> None:
        telemetry.log_to_stderr(logging.INFO)
        self._settings = Settings.model_validate(data)
        os.umask(self._settings.umask)  # in a cluster that was there before, it is another one's
        origin.check_place(self._settings)
        keys = Keys.from_file(self._settings.key_path)
        replica = processes.replica_name()
        nonces = Nonces(os.urandom(6))
        self._replicas: dict[str, ModelReplica] = {}
        self._background: dict[str, Background] = {}
        self._servings: dict[str, Serving] = {}
        self._pushes: dict[str, Pushes] = {}
        clients: dict[str, ParameterClient] = {}
        journals: dict[str, Journal] = {}
        facts: dict[str, dict[str, Any]] = {}
        challengers: dict[str, ParameterClient] = {}
        limits = self._settings.limits
        open_one = journal_opener(self._settings)  # one a model: models do not wait for each other
        for model in self._settings.models:
            name = model.name
            loaded = load_model(model, self._settings, keys.secret, keys.old_secrets)
            origin.check_spec(name, loaded.spec_hash)
            journals[name] = open_one()
            rule = merge_rule(model, loaded.model)
            self._replicas[name], clients[name] = model_replica(
                model, self._settings, loaded, journals[name], replica, peers=Peers(name)
            )
            if rule == "overlay" or not learns_here(model, rule):
                self._background[name] = Background(
                    partial(actor_of, data, name), self._replicas[name]
                )
            door = Door(model, limits, numeric_only=loaded.model.numeric_only)
            tokens = Tokens(keys, name, nonces)
            self._servings[name] = Serving(
                self._replicas[name], door, tokens, limits, loaded.spec_hash,
                self._settings.tokens.askers,
            )  # fmt: skip
            if model.devices is not None:
                self._pushes[name] = pushes_for(
                    model, self._settings, model.devices, self._replicas[name], door
                )
            facts[name] = {
                "learner": model.learner,
                "spec": loaded.spec_hash[:16],
                "learn": model.learn,
                "merge": rule,
                "labels": [door.show(False), door.show(True)] if model.task == "binary" else None,
            }
            if model.challenger is not None:
                challengers[name] = ParameterClient(challenger_name(name))
        self._cluster = Cluster(
            self._replicas, clients, journals, facts.__getitem__,
            free_bytes=journal_room(self._settings), challengers=challengers,
            absent=Absence(time.monotonic),
        )  # fmt: skip
        await asyncio.gather(*(model.start() for model in self._replicas.values()))
        for background in self._background.values():
            background.start()
        await self._cluster.start()
        self._busy = Busy(time.process_time, time.monotonic)
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> Callable[..., Awaitable[None]]:
        tokens = self._settings.tokens
        access = None
        if tokens:
            access = Access({role: tokens.of(role) for role in ROLES}, tokens.grants)
        browsers = Browsers(
            self._settings.origins, self._settings.hosts,
            guarded=access is not None, own=self._settings.host,
        )  # fmt: skip
        app = App(
            self._servings, self._cluster, self._settings.limits, access, self._readers(),
            self._settings.state_dir / "edge", self._pushes, browsers,
        )  # fmt: skip
        ingress.install(app)

        async def with_lifespan(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            while True:
                message = await receive()
                if message["type"] == "lifespan.shutdown":
                    await self._stop()
                await send({"type": f"{message['type']}.complete"})
                if message["type"] == "lifespan.shutdown":
                    return

        return with_lifespan

    async def tell_peer(self, model: str, request: bytes) -> bytes | None:
        """Values for a replica that starts and can't reach the parameter server."""
        return self._replicas[model].tell(request)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """How busy this replica is; Serve asks if their number follows the load."""
        return self._busy()

    def _readers(self) -> dict[str, Reader]:
        """Return what reads each model's scores; the stores are opened when they are asked for."""
        if self._settings.scores != "sqlite":
            url = self._settings.scores
            return {name: Reader(RedisReads(url, name).get, time.time) for name in self._servings}
        place = self._settings.state_dir / "scores"
        threads = ThreadPoolExecutor(1, "scores")

        def reader(name: str) -> Reader:
            ask = threaded(SqliteScores(place, name), threads)
            return Reader(ask, time.time, SqliteScores(place, name))

        return {name: reader(name) for name in self._servings}

    async def _stop(self) -> None:
        """Commit, push and seal: nothing is left for an adopter."""
        await asyncio.gather(*(model.stop(_STOP_S) for model in self._replicas.values()))
        await asyncio.gather(*(one.stop() for one in self._background.values()))
