"""The service for `serve deploy` and KubeRay: Ray Serve starts it, instead of `online serve`.

In ``serve_config.yaml``: ``import_path: online.service.serve_deploy:build`` and
``args: {settings: FILE}``.
The file is read on the node that builds the application, which is any of them; what follows from it
is sent to the replicas.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from online.challenger import promotion
from online.errors import StartRefused
from online.service.on_ray import rollout
from online.service.on_ray.origin import Origin
from online.service.service import check_nodes
from online.service.state import parameter_servers, server_count
from online.service.state.check_state import Models
from online.service.state.deadline import Patience
from online.settings import config
from online.settings.places import open_journal

log = logging.getLogger(__name__)


class Arguments(BaseModel):
    """``args`` of the application in Serve's settings."""

    model_config = ConfigDict(extra="forbid")

    settings: Path


def build(arguments: Mapping[str, str]) -> Any:
    """Start the parameter servers that do not run yet; the application.

    Raises pydantic's ValidationError for other ``arguments`` than :class:`Arguments` has, and
    StartRefused for what the journal's state or the nodes do not allow.
    """
    import ray

    from online.service.on_ray.deployment import Replica

    # Serve makes an object of them only where the annotation is a class, and here it is a text.
    path = Arguments.model_validate(arguments).settings
    settings = config.load(path, {}, config.environment())
    os.umask(settings.umask)
    if settings.cluster == "local":
        raise StartRefused(
            f"{path} has `cluster: local`, and Ray Serve runs already",
            "Write `cluster: auto`",
        )
    check_nodes(settings, [n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"]])
    with contextlib.closing(open_journal(settings)) as journal:
        given = settings
        settings, promoted = promotion.as_served(given, journal)
        server_count.note_given(given, settings, journal)
        server_count.refuse_wishes(settings, journal)
    for line in promoted:
        log.info(line)
    models = Models(settings, log.info)
    loaded = models.check(fresh=False, relearn=False)
    settings = models.chosen(loaded)
    parameter_servers.start(settings, loaded, log.info, Patience(settings.start_wait_s))
    specs = {name: model.spec_hash for name, model in loaded.items()}
    return rollout.application(Replica, settings, Origin.here(settings, specs))
