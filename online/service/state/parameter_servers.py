"""Starts the parameter servers of a service as Ray actors, requests snapshots, and ends them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from online.errors import StartRefused
from online.models.loaded import Loaded
from online.models.loading.from_settings import merge_rule
from online.service import processes
from online.service.replica_names import gone
from online.service.state.deadline import StartDeadline
from online.settings.config import Settings
from online.settings.limits import RETRY_WINDOW_S
from online.settings.model import ModelSettings
from online.settings.places import (
    journal_opener,
    retention_of,
    server_name,
    server_names,
    snapshots_path,
)
from paramserver.core.admission import TableBounds
from paramserver.core.shards import shard_name
from paramserver.errors import ParamServerError, ServerUnavailable
from paramserver.process.actor import ServerSettings
from paramserver.process.lineage import Lineage
from paramserver.process.sharing import Shard
from paramserver.snapshots.places import lineage_place, open_snapshots

log = logging.getLogger(__name__)

_LAST_SNAPSHOTS_S: Final = 1.0  # for all models together, at a stop
_ASK_S: Final = 2.0
_LIVE_S: Final = 2.0  # every live replica, even an idle one, calls its server more often
_CONFIRM_S: Final = 0.25  # how often a server verifies its epoch; ages in answers count from there


def start(
    settings: Settings,
    loaded: Mapping[str, Loaded],
    progress: Callable[[str], None],
    deadline: StartDeadline,
    *,
    only: Collection[str] | None = None,
) -> None:
    """Start the servers of each model, or find them running, and wait until they serve.

    Parameters:
        only: Start the servers of these models alone; None: of all models.

    Raises:
        StartRefused: With the remedy.
    """
    wait_for(begin(settings, loaded, progress, only=only), progress, deadline)


@dataclass(frozen=True, slots=True)
class Begun:
    """A server that is starting: the model's name, and a function that returns its actor handle."""

    model: str
    handle: Callable[[], Any]


def begin(
    settings: Settings,
    loaded: Mapping[str, Loaded],
    progress: Callable[[str], None],
    *,
    only: Collection[str] | None = None,
) -> list[Begun]:
    """Start the servers of each model (or of those in ``only``) without waiting for them."""
    from paramserver.clients import ray_client
    from paramserver.clients.hosted import Given

    begun, shared = list[Begun](), dict[str, Given]()
    models = [model for model in settings.models if only is None or model.name in only]
    may_share = _that_share(settings, models, loaded)
    for model in models:
        one = loaded[model.name]
        rule = merge_rule(model, one.model)
        progress(f"starting the parameter server of {model.name} (merge: {rule})")
        given = Given(
            Lineage(model.name, one.spec_hash, one.spec_text, rule),
            journal_opener(settings),
            snapshots_path(settings),
            settings_of(model, settings),
            gone,
        )
        names = server_names(model.name, one.spec_hash, model.shards)
        if model.name in may_share:
            shared[names[0]] = given
            continue
        for shard, name in enumerate(names):
            which = shard_of(shard, partial(ray_client.ask_actor, names), model.shards)
            begun.append(Begun(model.name, ray_client.start_or_get(name, *given, shard=which)))
    if shared:
        wait = ray_client.start_shared(shared)
        begun += [Begun(given.lineage.model, partial(wait, n)) for n, given in shared.items()]
    return begun


def _that_share(
    settings: Settings, models: Sequence[ModelSettings], loaded: Mapping[str, Loaded]
) -> set[str]:
    """Models whose servers share a process: the small ones, if there are at least two.

    One that has a process already keeps it; one that has grown leaves the shared process.
    """
    from paramserver.clients import ray_client

    most = settings.limits.shared_server_mb * 1e6
    here, grown, small = ray_client.shared(), list[str](), set[str]()
    for model in models:
        spec = loaded[model.name].spec_hash
        name = server_name(model.name, spec)
        if model.shards == 1 and 0 < most >= _snapshot_bytes(settings, model.name, spec):
            if name in here or not ray_client.exists(name):
                small.add(model.name)
        elif name in here:
            grown.append(name)
    ray_client.end(grown)
    here = ray_client.shared()
    return small if len(small) > 1 or here else set()


def _snapshot_bytes(settings: Settings, model: str, spec: str) -> float:
    """Size of a lineage's largest snapshot; infinite if it can't be told."""
    try:
        return open_snapshots(lineage_place(snapshots_path(settings), model, spec)).largest()
    except (OSError, ParamServerError):
        return math.inf


def server_specs(settings: Settings, specs: Mapping[str, str]) -> dict[str, str]:
    """Spec hashes of all servers of these models, by the server's shard name."""
    return {
        shard_name(model.name, shard): specs[model.name]
        for model in settings.models
        if model.name in specs
        for shard in range(model.shards)
    }


def wait_for(
    begun: Sequence[Begun], progress: Callable[[str], None], deadline: StartDeadline
) -> None:
    """Wait until each server has restored its state.  Raises StartRefused with the remedy."""
    for one in begun:
        _wait_serving(one.model, one.handle, progress, deadline)


def settings_of(model: ModelSettings, settings: Settings) -> ServerSettings:
    """Settings of the parameter servers of a model."""
    return ServerSettings(
        interval_s=model.snapshots.interval_s,
        retention=retention_of(model),
        lease_s=settings.limits.adopt_s / 2,
        confirm_s=_CONFIRM_S,
        stall_s=settings.start_wait_s,
        keep_rows_s=model.dedupe_window + RETRY_WINDOW_S,
        halves_keep_s=max(model.token_lifetime, model.label_wait),
        banned_max=settings.limits.banned_max,
        sources_max=settings.limits.sources_max,
        held_max=settings.limits.held_rows_max,
        tables=_bounds_of(settings, model.shards),
        umask=settings.umask,
        shared=str(processes.shared_dir(settings.state_dir)) if model.sync.share_tables else None,
    )


def shard_of(number: int, ask: Callable[..., Any], of: int) -> Shard | None:
    """Description of one of several servers; None for the only one."""
    return None if of == 1 else Shard(number, of, ask)


def _bounds_of(settings: Settings, shards: int) -> TableBounds | None:
    most, sights = settings.limits.table_rows_max, settings.limits.table_sights
    return None if most is None else TableBounds(max(most // shards, 1), sights)


def _wait_serving(
    name: str, get: Callable[[], Any], progress: Callable[[str], None], deadline: StartDeadline
) -> None:
    """Wait until the server has restored its state, across restarts of it; report its version."""
    import ray
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayTaskError

    reason, handle = "its process has not begun", None
    while True:
        try:
            handle = get() if handle is None else handle
            status = ray.get(handle.status.remote(), timeout=max(deadline.left_s(), 0.1))
            if status["state"] == "serving":
                break
            reason = status["reason"] or status["state"]
            if status["state"] == "refused":
                raise StartRefused(f"model {name}: {reason}", "Nothing was started")
        except (ActorUnavailableError, GetTimeoutError):
            pass
        except RayTaskError as error:
            if not isinstance(error.cause, ServerUnavailable):  # the shared process begins anew
                raise
        deadline.check(f"model {name}: its parameter server is not ready ({reason})")
        time.sleep(0.02)
    text = f"model {name}: version {status['epoch']}.{status['count']}"
    if status["refused"]:
        text += f", after refusing {status['refused']}"
    progress(text)


def recent_replicas(name: str, spec: str) -> set[str]:
    """Return the replicas that have called the server of this spec within the last two seconds.

    The set is empty if the server does not answer.
    """
    import ray
    from ray.exceptions import RayError

    from paramserver.clients.ray_client import find

    try:
        handle = find(server_name(name, spec))
        replicas = ray.get(handle.status.remote(), timeout=_ASK_S)["replicas"]
    except (ValueError, RayError):  # RayError includes timeouts
        return set()
    return {replica for replica, seen in replicas.items() if seen["age_s"] < _LIVE_S}


def has_decided(name: str, spec: str, wait_s: float) -> bool:
    """Whether a model's server has completed its pending decisions; False if it does not answer.

    A snapshot that is being written does not delay the answer.
    """
    return _answers(name, spec, "confirm", wait_s)


def publishes(name: str, spec: str, wait_s: float) -> bool:
    """Have a model's server publish a snapshot; True if it answered, even with an error."""
    return _answers(name, spec, "snapshot", wait_s)


def _answers(name: str, spec: str, method: str, wait_s: float) -> bool:
    import ray
    from ray.exceptions import RayError, RayTaskError

    from paramserver.clients.ray_client import find

    try:
        handle = find(server_name(name, spec))
        ray.get(getattr(handle, method).remote(), timeout=wait_s)
    except RayTaskError:
        return True
    except (ValueError, RayError):  # RayError includes timeouts
        return False
    return True


def last_snapshots(specs: Mapping[str, str], within_s: float = _LAST_SNAPSHOTS_S) -> list[str]:
    """Have the servers publish last snapshots; returns a line about each server."""
    import ray

    from paramserver.clients.ray_client import find

    wanted, lines = {}, []
    for name, spec in specs.items():
        try:
            handle = find(server_name(name, spec))
        except ValueError:
            lines.append(_none(name, "its server does not run"))
        else:
            wanted[handle.snapshot.remote()] = name
    if not wanted:
        return lines
    done, late = ray.wait(list(wanted), num_returns=len(wanted), timeout=within_s)
    for ref in done:
        try:
            lines.append(f"model {wanted[ref]}: its state is in snapshot {ray.get(ref)['name']}")
        except Exception as error:
            lines.append(_none(wanted[ref], (str(error).strip().splitlines() or [repr(error)])[-1]))
    lines += [_none(wanted[ref], f"not written in {within_s:g} s") for ref in late]
    return lines


def _none(name: str, why: str) -> str:
    log.warning("no last snapshot of %s: %s", name, why)
    return f"model {name}: no last snapshot ({why}); the next start learns the rest of the journal"


def end(specs: Mapping[str, str]) -> None:
    """End the servers of these specs; keys are shard names."""
    from paramserver.clients import ray_client

    ray_client.end([server_name(name, spec) for name, spec in specs.items()])
