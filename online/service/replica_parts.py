"""The parts that a replica of Ray Serve is made of: imported in its own process alone.

It is the shell of :mod:`online.service.assembly`, which knows no Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from online import processes
from online.challenger import promotion
from online.http import ingress
from online.models.loaded import Loaded
from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import Keys
from online.service.assembly import Around, Assembly
from online.service.composition import goes_over
from online.service.learner_process import Background, actor_of, relearning, searching
from online.service.origin import Origin
from online.service.serve_middleware import Looks
from online.service.serve_peers import Peers
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import challenger_name, server_name
from paramserver.clients.ray_client import ParameterClient
from replay.errors import ReplayError

log = logging.getLogger(__name__)

_ABSENCE_S = 5.0
_UNREAD_S = 0.2  # between two attempts to read the journal


class Absence:
    """Why another replica does not start, as Serve knows it; asked at most every five seconds."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s, self._asked_s = monotonic_s, -_ABSENCE_S
        self._look = Looks()
        self._reason: str | None = None

    def __call__(self) -> str | None:
        """The reason; None: nothing is wrong."""
        if self._monotonic_s() >= self._asked_s + _ABSENCE_S:
            self._asked_s = self._monotonic_s()
            self._reason = self._look().reason
        return self._reason


async def _surely(as_served: Callable[[], Settings]) -> Settings:
    """The settings that are served by now, as often as it takes the journal to say them."""
    while True:
        try:
            return await asyncio.to_thread(as_served)
        except ReplayError as error:
            log.warning("journal: %s", error)
            await asyncio.sleep(_UNREAD_S)


async def assemble(data: dict[str, Any], given: Settings, origin: Origin) -> Assembly:
    """Everything that the replica answers with, not started.  Raises StartRefused."""
    origin.check_place(given)
    keys = Keys.from_file(given.key_path)
    as_served = None
    settings = given
    if any(goes_over(model) for model in given.models):
        # What the running replicas went over to is in no argument of this one.
        as_served = partial(promotion.as_stored, given, running=True)
        settings = await _surely(as_served)
        data = settings.model_dump(mode="json", context=WITH_SECRETS)

    def load(model: ModelSettings) -> Loaded:
        loaded = load_model(model, given, keys.secret, keys.old_secrets)
        if model in given.models:  # else a promotion says its spec, and was compared with it
            origin.check_spec(model.name, loaded.spec_hash)
        return loaded

    around = Around(
        processes.replica_name(),
        lambda name, spec: ParameterClient(server_name(name, spec)),
        lambda name, replica: Background(partial(actor_of, data, name), replica),
        relearn=relearning,
        search=searching,
        peers=Peers,
        challenger=lambda name: ParameterClient(challenger_name(name)),
        absent=Absence(time.monotonic),
        as_served=as_served,
    )
    return Assembly(settings, keys, load, around)


def application(assembly: Assembly) -> ingress.Application:
    """The ASGI application of a replica, behind what Ray Serve puts in front of it."""
    app = assembly.app()
    ingress.install(app)
    return app
