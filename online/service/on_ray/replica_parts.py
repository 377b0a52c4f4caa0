"""Builds the parts of a Ray Serve replica; imported only in the replica's own process.

It is the shell around :mod:`online.service.parts.assembly`, which does not import Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from online.challenger import promotion
from online.http import ingress
from online.models.loaded import Loaded
from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import Keys
from online.service.on_ray.learner_process import LearnerSupervisor, actor_of, relearning, searching
from online.service.on_ray.origin import Origin
from online.service.on_ray.serve_peers import Peers
from online.service.parts.assembly import Assembly, ProcessContext
from online.service.parts.composition import watches_decisions
from online.service.replica_names import replica_name
from online.service.serve_middleware import Looks
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import challenger_name, server_name
from paramserver.clients.ray_client import ParameterClient
from replay.errors import ReplayError

log = logging.getLogger(__name__)

_ABSENCE_S = 5.0
_UNREAD_S = 0.2  # between two attempts to read the journal


class AbsenceReason:
    """Caches Serve's reason why another replica does not start, for five seconds."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s, self._asked_s = monotonic_s, -_ABSENCE_S
        self._look = Looks()
        self._reason: str | None = None

    def __call__(self) -> str | None:
        """The reason; None if nothing is wrong."""
        if self._monotonic_s() >= self._asked_s + _ABSENCE_S:
            self._asked_s = self._monotonic_s()
            self._reason = self._look().reason
        return self._reason


async def _retried(as_served: Callable[[], Settings]) -> Settings:
    """The settings with promotions applied; retries until the journal answers."""
    while True:
        try:
            return await asyncio.to_thread(as_served)
        except ReplayError as error:
            log.warning("journal: %s", error)
            await asyncio.sleep(_UNREAD_S)


async def assemble(data: dict[str, Any], given: Settings, origin: Origin) -> Assembly:
    """Build everything that the replica serves, without starting it.  Raises StartRefused."""
    origin.check_place(given)
    keys = Keys.from_file(given.key_path)
    as_served = None
    settings = given
    if any(watches_decisions(model) for model in given.models):
        # The arguments of this replica do not contain promotions that running replicas have seen.
        as_served = partial(promotion.as_stored, given, running=True)
        settings = await _retried(as_served)
        data = settings.model_dump(mode="json", context=WITH_SECRETS)

    def load(model: ModelSettings) -> Loaded:
        loaded = load_model(model, given, keys.secret, keys.old_secrets)
        if model in given.models:  # a promoted model's spec was compared with the promotion
            origin.check_spec(model.name, loaded.spec_hash)
        return loaded

    context = ProcessContext(
        replica_name(),
        lambda name, spec: ParameterClient(server_name(name, spec)),
        lambda name, replica: LearnerSupervisor(partial(actor_of, data, name), replica),
        relearn=relearning,
        search=searching,
        peers=Peers,
        challenger=lambda name: ParameterClient(challenger_name(name)),
        absent=AbsenceReason(time.monotonic),
        as_served=as_served,
    )
    return Assembly(settings, keys, load, context)


def application(assembly: Assembly) -> ingress.Application:
    """The ASGI application of a replica, inside the middleware for Ray Serve."""
    app = assembly.app()
    ingress.install(app)
    return app
