"""The parameter servers of a service: started in the Ray that is joined, one a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from online import processes
from online.config import Settings
from online.errors import StartRefused
from online.models.load import Loaded
from online.names import journal_opener, merge_rule, server_name, snapshots_path
from paramserver.actor import ServerSettings
from paramserver.lineage import Lineage
from paramserver.snapshots.store import Retention

_RESTORE_S: Final = 30.0
_CONFIRM_S: Final = 0.25  # ages count from here: the server saw its epoch to be the newest
_RETRY_WINDOW_S: Final = 86_400.0  # rows are known so much longer than repeats are promised to be


def start_servers(
    settings: Settings, loaded: Mapping[str, Loaded], progress: Callable[[str], None]
) -> None:
    """Start each model's server, or keep the one that runs with the same settings.

    Returns when all of them serve.  Raises StartRefused with the remedy.
    """
    from paramserver.ray_client import start_or_get

    for model in settings.models:
        own = loaded[model.name]
        rule = merge_rule(model, own.model)
        progress(f"starting the parameter server of {model.name} (merge: {rule})")
        snapshots = model.snapshots
        handle = start_or_get(
            server_name(model.name),
            Lineage(model.name, own.spec_hash, own.spec_text, rule),
            journal_opener(settings),
            snapshots_path(settings),
            ServerSettings(
                interval_s=snapshots.interval_s,
                retention=Retention(
                    snapshots.keep, snapshots.hourly, snapshots.daily, snapshots.weekly
                ),
                lease_s=settings.limits.adopt_s / 2,
                confirm_s=_CONFIRM_S,
                keep_rows_s=model.dedupe_window + _RETRY_WINDOW_S,
                halves_keep_s=max(model.token_lifetime, model.label_wait),
                banned_max=settings.limits.banned_max,
                sources_max=settings.limits.sources_max,
            ),
            processes.gone,
        )
        progress(_serving(model.name, handle))


def _serving(name: str, handle: Any) -> str:
    """Wait until the server has restored its state; what it restored."""
    import ray

    deadline = time.monotonic() + _RESTORE_S
    while True:
        status = ray.get(handle.status.remote(), timeout=_RESTORE_S)
        if status["state"] == "serving":
            break
        if status["state"] == "refused" or time.monotonic() > deadline:
            raise StartRefused(f"model {name}: {status['reason']}", "See the reason above")
        time.sleep(0.02)
    text = f"model {name}: version {status['epoch']}.{status['count']}"
    return f"{text}, after refusing {status['refused']}" if status["refused"] else text
