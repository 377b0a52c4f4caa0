"""The replicas as one application of Ray Serve: started, scaled, replaced while others answer."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from online.errors import StartRefused
from online.service import parameter_servers, scaling
from online.service.origin import APP, Origin
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings
from online.settings.model import ModelSettings
from replay.errors import JournalHeld, JournalUnavailable
from replay.journal.base import Journal

_STOP_REPLICA_S = 2.0
_POLL_S = 0.05  # between two looks of Serve whether replicas run
_HEALTH_S = 2.0  # so soon is a replica that has died replaced
_LOOK_S = 0.1
_ABSENCE = b"absence"
_SURGE_PERCENT = 50  # rounded up: replacements that start before what they replace stops

_BY_REPLICAS = ("limits", "tokens", "origins", "hosts", "telemetry")
_AT_ONCE = ("start_wait_s", "alerts")  # asked for only by the process that owns the service
_BY_RESTART = ("task", "learner", "params", "classes", "state_of", "entity", "shards")  # its spec


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes that new settings make, as dotted names.

    Attributes:
        restart: Only a restart of the service can change these.
        rolling: Replicas know these from their start: each is replaced.
        scaled: Only the number of replicas, or not even that.
        at_once: The process that owns the service goes by these as soon as it knows them.
    """

    restart: tuple[str, ...]
    rolling: tuple[str, ...]
    scaled: bool
    at_once: tuple[str, ...] = ()


def changes(old: Settings, new: Settings) -> Changes:
    """Compare the settings that a service runs with new ones."""
    restart = [
        name
        for name in Settings.model_fields
        if name not in ("replicas", "models", *_AT_ONCE, *_BY_REPLICAS)
        and getattr(old, name) != getattr(new, name)
    ]
    rolling = [name for name in _BY_REPLICAS if getattr(old, name) != getattr(new, name)]
    if [m.name for m in old.models] != [m.name for m in new.models]:
        restart.append("models")
    else:
        for was, model in zip(old.models, new.models, strict=True):
            for name in ModelSettings.model_fields:
                if getattr(was, name) != getattr(model, name):
                    found = restart if name in _BY_RESTART else rolling
                    found.append(f"models.{model.name}.{name}")
    at_once = [name for name in _AT_ONCE if getattr(old, name) != getattr(new, name)]
    scaled = old.replicas != new.replicas
    return Changes(tuple(restart), tuple(rolling), scaled, tuple(at_once))


def application(
    replica: type[Any], settings: Settings, origin: Origin, version: int | None = None
) -> Any:
    """The replicas as an application of Ray Serve.

    Parameters:
        replica: The class that Serve runs in each replica's process.
        origin: What a replica compares itself with.
        version: Replicas of another version are replaced; with the same one, only their number
            changes.  None: as Serve finds it, from the code and these arguments.
    """
    from ray import serve

    limits = settings.limits
    deployment = serve.deployment(
        replica,
        name="Replica",
        **scaling.options(settings.replicas),
        max_ongoing_requests=limits.ongoing_max,
        max_queued_requests=2 * limits.ongoing_max,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_timeout_s=_STOP_REPLICA_S,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 0.01},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        max_surge_percent=_SURGE_PERCENT,
    )
    if version is not None:
        # Serve makes up a version at each call, which would replace every replica to scale.
        deployment = deployment.options(version=str(version), _internal=True)
    return deployment.bind(settings.model_dump(mode="json", context=WITH_SECRETS), origin)


def be_patient(wait_s: float) -> None:
    """Let Serve wait so long for its proxies, and look often: it has constants, no settings."""
    from ray.serve._private import api, client

    for module in (api, client):
        if hasattr(module, "HTTP_PROXY_TIMEOUT"):
            module.HTTP_PROXY_TIMEOUT = wait_s
    if hasattr(client, "CLIENT_POLLING_INTERVAL_S"):  # a second, of which half is waited in vain
        client.CLIENT_POLLING_INTERVAL_S = _POLL_S


def start_serve(host: str, port: int, wait_s: float) -> None:
    """Start Ray Serve's controller, which starts its proxies; replicas can be deployed at once.

    `serve.start` would wait for the proxies, for which the deployment waits in the end, too, up to
    ``wait_s``.
    """
    from ray.serve._private import api

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    be_patient(wait_s)
    controller, _ = api._create_controller_and_proxy_refs(
        {"host": host, "port": port}, None, None, None, api._coerce_controller_options(None)
    )
    api._set_global_client(api.ServeControllerClient(controller))


def deploy(replica: type[Any], settings: Settings, origin: Origin, version: int) -> None:
    """Bring the replicas to these settings; returns when all of them answer.

    Raises StartRefused if replicas do not start.
    """
    from ray import serve

    try:
        serve.run(application(replica, settings, origin, version), name=APP)
    except RuntimeError as error:
        said = serve.status().applications[APP].deployments["Replica"].message
        raise StartRefused(
            f"the replicas do not start: {reason(said) or error}", "Mend what it says"
        ) from error


def gone_over(
    journal: Journal, before: Mapping[str, str], after: Mapping[str, str], wait_s: float
) -> bool:
    """Wait until the replicas have gone over by themselves; False: not all have, in ``wait_s``.

    A replica has, once it has sealed the partition of the model before.  Those that the server
    before has not heard of lately are not waited for: they look for themselves when they go on.

    Parameters:
        before, after: By model: the spec that served, and the one that is to serve.
    """
    deadline_s = time.monotonic() + wait_s
    while True:
        over = False
        with contextlib.suppress(JournalUnavailable, JournalHeld):
            over = all(
                parameter_servers.heard_of(name, after[name])
                and not _open(journal, name, spec) & parameter_servers.heard_of(name, spec)
                for name, spec in before.items()
            )
        if over or time.monotonic() > deadline_s:
            return over
        time.sleep(_LOOK_S)


def _open(journal: Journal, model: str, spec: str) -> set[str]:
    """The replicas that have a partition of the spec that is not sealed."""
    return {p.replica for p in journal.partitions(model) if p.spec == spec and not p.sealed}


def absent(state: str, said: str, known: str | None) -> str | None:
    """Why a replica does not start, by what Serve says of all of them; None: nothing is wrong.

    ``known`` is what this gave before: it stands while Serve has something else to say.
    """
    if "failed to start" in said:
        return reason(said)
    return known if said and state != "HEALTHY" else None


def note_absence(why: str | None) -> None:
    """Tell all processes of the service why no other replica can start; None: nothing is known."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(_ABSENCE, (why or "").encode(), namespace=APP.encode())


def noted_absence() -> str | None:
    """Return what the service's own process has told of it."""
    from ray.experimental import internal_kv

    told = internal_kv._internal_kv_get(_ABSENCE, namespace=APP.encode())
    return told.decode() if told else None


def reason(said: str) -> str:
    """The error that a replica's constructor raised, out of Serve's message with its traceback."""
    errors = re.findall(r"^(?:\w+\.)*\w+(?:Error|Refused|\w*Exception)?: .+", said, re.MULTILINE)
    return errors[-1] if errors else said.strip().rpartition("\n")[2]
