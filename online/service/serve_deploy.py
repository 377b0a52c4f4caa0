"""The entry point for `serve deploy` and KubeRay, where Ray Serve starts the service.

``serve_config.yaml`` names it: ``import_path: online.service.serve_deploy:build`` and
``args: {settings: FILE}``.  The file is read on the node that builds the application, which may be
any node; the resulting settings are sent to the replicas.
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
from online.service.on_ray.start_checks import check_nodes
from online.service.state import parameter_servers, server_count
from online.service.state.check_state import Models
from online.service.state.deadline import StartDeadline
from online.settings import config
from online.settings.places import open_journal

log = logging.getLogger(__name__)


class Arguments(BaseModel):
    """The ``args`` of the application in Serve's settings."""

    model_config = ConfigDict(extra="forbid")

    settings: Path


def build(arguments: Mapping[str, str]) -> Any:
    """Start the parameter servers that do not run yet, and return the Serve application.

    Raises:
        pydantic.ValidationError: ``arguments`` do not match :class:`Arguments`.
        StartRefused: The state in the journal or the nodes do not allow the start.
    """
    import ray

    from online.service.on_ray.deployment import Replica

    # Serve converts arguments only for annotations that are classes; these are strings here.
    path = Arguments.model_validate(arguments).settings
    settings = config.load(path, {}, config.environment())
    os.umask(settings.umask)
    if settings.cluster == "local":
        raise StartRefused(
            f"{path} has `cluster: local`, and Ray Serve runs already", "Write `cluster: auto`"
        )
    check_nodes(settings, [n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"]])
    with contextlib.closing(open_journal(settings)) as journal:
        given = settings
        settings, promoted = promotion.as_served(given, journal)
        server_count.record_given(given, settings, journal)
        server_count.reject_requests(settings, journal)
    for line in promoted:
        log.info(line)
    models = Models(settings, log.info)
    loaded = models.check(fresh=False, relearn=False)
    settings = models.chosen(loaded)
    parameter_servers.start(settings, loaded, log.info, StartDeadline(settings.start_wait_s))
    specs = {name: model.spec_hash for name, model in loaded.items()}
    return rollout.application(Replica, settings, Origin.here(settings, specs))
