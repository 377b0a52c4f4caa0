"""Deploys the replicas as one Ray Serve application: start, scaling, rolling replacement."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any

from online.errors import StartRefused
from online.models.loaded import Loaded
from online.models.loading.from_settings import merge_rule
from online.service import processes
from online.service.on_ray import scaling
from online.service.on_ray.origin import APP, Origin
from online.service.parts.composition import swappable, watches_decisions
from online.service.state import parameter_servers
from online.settings.access_tokens import WITH_SECRETS
from online.settings.config import Settings
from online.settings.places import open_journal
from paramserver.snapshots.views import lineage_folder
from replay.errors import JournalHeld, JournalUnavailable, ReplayError
from replay.journal.base import Journal

log = logging.getLogger(__name__)

_STOP_REPLICA_S = 2.0
_POLL_S = 0.05  # between two polls of Serve whether replicas run
_HEALTH_S = 2.0  # a dead replica is replaced this soon
_LOOK_S = 0.1
_SEALED_S = 30.0  # for replicas that stop to push and seal
_LAST_SNAPSHOTS_S = 60.0  # of models that leave: nobody waits for them
_ABSENCE = b"absence"
_RENEW_S = 5.0  # for all replicas to take new tokens
_deployed = itertools.count()  # Serve ignores new arguments if no option of a version has changed
_SURGE_PERCENT = 50  # rounded up: replacements that start before the old replicas stop


def all_swappable(
    changed: Mapping[str, str], *served: tuple[Settings, Mapping[str, Loaded]]
) -> bool:
    """Whether replicas can swap all changed models without a restart of their processes.

    Parameters:
        changed: The changed models, by name.
        served: Settings and loaded models before and after the change
            (:mod:`online.service.parts.model_swap`).
    """
    return all(watches_decisions(m) for m in served[0][0].models if m.name in changed) and all(
        swappable(model, merge_rule(model, loaded[model.name].model))
        for settings, loaded in served
        for model in settings.models
        if model.name in changed
    )


def compensates(was: Settings, now: Settings, loaded: Mapping[str, Loaded]) -> bool:
    """Whether replicas must start or stop sending curvature, which only several replicas do."""
    alone = {was.replicas_max == 1, now.replicas_max == 1}
    rules = {merge_rule(model, loaded[model.name].model) for model in now.models}
    return len(alone) > 1 and "compensated" in rules


def application(
    replica: type[Any], settings: Settings, origin: Origin, version: int | None = None
) -> Any:
    """The replicas as a Ray Serve application.

    Parameters:
        replica: The class that Serve runs in each replica's process.
        origin: Facts that a replica compares with its own environment.
        version: Replicas of another version are replaced; with the same version only their number
            changes.  None: Serve derives it from the code and the arguments.
    """
    from ray import serve

    limits = settings.limits
    deployment = serve.deployment(
        replica,
        name="Replica",
        **scaling.options(settings.replicas),
        max_ongoing_requests=limits.ongoing_max,
        max_queued_requests=2 * limits.ongoing_max + next(_deployed) % 2,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_timeout_s=_STOP_REPLICA_S,
        graceful_shutdown_wait_loop_s=0.1,
        ray_actor_options={"num_cpus": 0.01},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        max_surge_percent=_SURGE_PERCENT,
    )
    if version is not None:
        # Serve would generate a new version per call, and so replace all replicas to scale.
        deployment = deployment.options(version=str(version), _internal=True)
    return deployment.bind(settings.model_dump(mode="json", context=WITH_SECRETS), origin)


def set_proxy_timeout(wait_s: float) -> None:
    """Set Serve's timeout for its proxies and its poll interval, which are constants there."""
    from ray.serve._private import api, client

    for module in (api, client):
        if hasattr(module, "HTTP_PROXY_TIMEOUT"):
            module.HTTP_PROXY_TIMEOUT = wait_s
    if hasattr(client, "CLIENT_POLLING_INTERVAL_S"):  # 1 s, which wastes half a second on average
        client.CLIENT_POLLING_INTERVAL_S = _POLL_S


def start_serve(host: str, port: int, wait_s: float) -> None:
    """Start Ray Serve's controller, which starts the proxies; replicas can be deployed at once.

    `serve.start` would wait for the proxies first; here the deployment waits for them at its end,
    up to ``wait_s``.
    """
    from ray.serve._private import api

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the rest is about its own queues
    set_proxy_timeout(wait_s)
    controller, _ = api._create_controller_and_proxy_refs(
        {"host": host, "port": port}, None, None, None, api._coerce_controller_options(None)
    )
    api._set_global_client(api.ServeControllerClient(controller))


def deploy(replica: type[Any], settings: Settings, origin: Origin, version: int) -> None:
    """Deploy the replicas with these settings; returns when all of them answer.

    Raises StartRefused if replicas do not start.
    """
    from ray import serve

    try:
        serve.run(application(replica, settings, origin, version), name=APP)
    except RuntimeError as error:
        message = serve.status().applications[APP].deployments["Replica"].message
        raise StartRefused(
            f"the replicas do not start: {reason(message) or error}", "Correct that"
        ) from error


def renew_tokens(settings: Settings) -> bool:
    """Have all running replicas take new access tokens; False if one of them may not have."""
    from ray import serve

    tokens = settings.tokens.model_dump(mode="json", context=WITH_SECRETS)
    try:
        handle = serve.get_deployment_handle("Replica", APP)
        if not handle.is_initialized:  # else it works on an event loop only, by the flags
            handle._init(_run_router_in_separate_loop=True)
        renewed = handle.broadcast("renew", tokens).results(timeout_s=_RENEW_S)
        found = serve.status().applications[APP].deployments["Replica"].replica_states
    except Exception as error:  # whatever Ray raises: replicas are replaced then
        log.warning("not all replicas have taken the new tokens: %r", error)
        return False
    return bool(len(renewed) == sum(found.values()))


def wait_swapped(
    journal: Journal, before: Mapping[str, str], after: Mapping[str, str], wait_s: float
) -> bool:
    """Wait until all replicas have swapped their model; False if some have not within ``wait_s``.

    A replica has swapped once it has sealed the partition of the previous model.  Replicas that the
    previous model's server has not heard from lately are not waited for: they read the journal
    when they continue.

    Parameters:
        before, after: Spec hashes of the previous and the new lineages, by model.
    """

    def swapped() -> bool:
        return all(
            parameter_servers.recent_replicas(name, after[name]) and _sealed(journal, name, spec)
            for name, spec in before.items()
        )

    return _wait(swapped, wait_s)


def end_servers(was: Settings, specs: Mapping[str, str]) -> list[str]:
    """End the parameter servers of models that the new replicas do not serve; return lines.

    A replica that stops pushes what it has learned and seals its partition; it is waited for.  Rows
    that are not pushed by then are in the journal, and are learned if the model is added again.

    Parameters:
        was: The settings that these models were served with.
        specs: Spec hashes, by model.
    """
    if not specs:
        return []
    unread = (ReplayError, StartRefused)  # the servers end whether the journal can be read or not
    with contextlib.suppress(*unread), contextlib.closing(open_journal(was)) as journal:
        _wait(lambda: all(_sealed(journal, name, spec) for name, spec in specs.items()), _SEALED_S)
    left = parameter_servers.server_specs(was, specs)
    lines = parameter_servers.last_snapshots(left, _LAST_SNAPSHOTS_S)
    parameter_servers.end(left)
    for name, spec in specs.items():
        tables = lineage_folder(str(processes.shared_dir(was.state_dir)), name, spec)
        shutil.rmtree(tables, ignore_errors=True)
        lines.append(f"model {name} is no longer served; its state stays in {was.state_dir}")
    return lines


def _wait(condition: Callable[[], bool], wait_s: float) -> bool:
    """Poll until a condition of the journal holds; False if it does not within ``wait_s``."""
    deadline_s = time.monotonic() + wait_s
    while True:
        over = False
        with contextlib.suppress(JournalUnavailable, JournalHeld):
            over = condition()
        if over or time.monotonic() > deadline_s:
            return over
        time.sleep(_LOOK_S)


def _sealed(journal: Journal, name: str, spec: str) -> bool:
    """Whether each replica that has called this server lately has sealed its partition."""
    return not _open(journal, name, spec) & parameter_servers.recent_replicas(name, spec)


def _open(journal: Journal, model: str, spec: str) -> set[str]:
    """Names of replicas with an unsealed partition of this spec."""
    return {p.replica for p in journal.partitions(model) if p.spec == spec and not p.sealed}


def absent(state: str, message: str, known: str | None) -> str | None:
    """The reason why a replica does not start, from Serve's state and message; None if all is well.

    Parameters:
        known: The previous result, which holds while Serve's message is about something else.
    """
    if "failed to start" in message:
        return reason(message)
    return known if message and state != "HEALTHY" else None


def complete(replicas: int) -> bool:
    """Whether Serve reports as many running replicas as are wanted."""
    from ray import serve

    deployment = serve.status().applications[APP].deployments["Replica"]
    running = deployment.replica_states.get("RUNNING", 0)  # as `serve_middleware.Looks` asks
    return bool(deployment.status == "HEALTHY" and running >= replicas)


def note_absence(why: str | None) -> None:
    """Tell all processes of the service why no other replica can start; None: nothing is known."""
    from ray.experimental import internal_kv

    internal_kv._internal_kv_put(_ABSENCE, (why or "").encode(), namespace=APP.encode())


def noted_absence() -> str | None:
    """Return the reason that the service's own process has published."""
    from ray.experimental import internal_kv

    noted = internal_kv._internal_kv_get(_ABSENCE, namespace=APP.encode())
    return noted.decode() if noted else None


def reason(message: str) -> str:
    """The exception of a replica's constructor, extracted from Serve's message with traceback."""
    errors = re.findall(r"^(?:\w+\.)*\w+(?:Error|Refused|\w*Exception)?: .+", message, re.MULTILINE)
    return errors[-1] if errors else message.strip().rpartition("\n")[2]
