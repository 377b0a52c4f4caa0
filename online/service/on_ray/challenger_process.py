"""Runs a model's challenger as a Ray actor: one actor per model, beside the replicas."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from functools import partial
from typing import Any, Final

import ray
from ray.exceptions import RayError

from online.challenger.comparison import Standing
from online.challenger.promotion import decision
from online.challenger.shadow import Shadow
from online.models.loading.from_settings import load_model
from online.rows.prediction_ids import Keys
from online.service.processes import begun
from online.settings.model import ModelSettings
from online.settings.places import challenger_name, journal_opener, server_name
from online.telemetry.logs import log_to_stderr
from paramserver.clients.ray_client import NAMESPACE, find

log = logging.getLogger(__name__)

_IDLE_S: Final = 0.1
_AGAIN_S: Final = 1.0  # pause after an unexpected error
_RESTARTS: Final = 20  # bounded, because a row that kills the process would do so every time
_STOP_S: Final = 10.0
_DECIDE_S: Final = 30.0
_GONE_S: Final = 10.0


class ChallengerActor:
    """The actor's class: runs one challenger on a thread and answers status calls."""

    def __init__(self, data: dict[str, Any], name: str) -> None:
        log_to_stderr(logging.INFO)
        settings, model = begun(data, name)
        challenging = model.challenging
        assert challenging is not None
        keys = Keys.from_file(settings.key_path)
        serving = load_model(model, settings, keys.secret, keys.old_secrets).spec_hash
        loaded = load_model(challenging, settings, keys.secret, keys.old_secrets)
        self._spec, self._name = loaded.spec_hash, name
        self._shadow = Shadow(
            settings, model, loaded, journal_opener(settings)(),
            rival=serving, now_s=time.time, monotonic_s=time.monotonic,
            propose=partial(_propose, model, serving, loaded.spec_hash),
        )  # fmt: skip
        self._begun, self._trouble = False, "it has not begun yet"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="challenger", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        shadow = self._shadow
        while not (self._ending.is_set() or shadow.superseded):
            try:
                if not self._begun:
                    shadow.begin()
                    self._begun, self._trouble = True, ""
                if not shadow.step():
                    self._ending.wait(_IDLE_S)
            except Exception as error:  # of journal or model: restart from its own snapshot
                self._begun, self._trouble = False, f"{type(error).__name__}: {error}"
                log.warning("challenger of %s: %s", self._name, self._trouble)
                self._ending.wait(_AGAIN_S)
        if self._begun:
            shadow.close()

    def status(self) -> dict[str, Any]:
        """Status of the challenger; see :meth:`online.challenger.shadow.Shadow.status`."""
        if not self._begun:
            trouble = self._trouble or None
            return {"state": "beginning", "spec": self._spec[:16], "incident": trouble}
        return self._shadow.status()

    def stop(self) -> None:
        """Publish a last snapshot and end the thread."""
        self._ending.set()
        self._thread.join(_STOP_S)


def _propose(model: ModelSettings, before: str, after: str, now: Standing) -> None:
    """Ask the serving lineage's server to promote the challenger; retried if that fails."""
    log.info("challenger of %s is better: it is promoted", model.name)
    note = decision(model, before, after, "auto", now.summary())
    handle = find(server_name(model.name, before))
    ray.get(handle.promote.remote(note), timeout=_DECIDE_S)


def start_shadow(data: dict[str, Any], model: str) -> Any:
    """Start the challenger of a model; returns at once.  The actor ends with its handle."""
    actor = ray.remote(ChallengerActor).options(
        name=challenger_name(model), namespace=NAMESPACE, num_cpus=0, max_restarts=_RESTARTS,
        max_concurrency=4,
    )  # fmt: skip
    return actor.remote(data, model)


def end_shadow(model: str) -> None:
    """Publish and end the challenger of a model, if there is one; its name is free afterwards."""
    end_actor(challenger_name(model), "stop")


def end_actor(name: str, last: str) -> None:
    """Call an actor's method ``last`` and end the actor; returns when its name is free."""
    try:
        handle = ray.get_actor(name, NAMESPACE)
    except ValueError:
        return
    with contextlib.suppress(RayError):  # rows that are not published will be relearned
        ray.get(getattr(handle, last).remote(), timeout=2 * _STOP_S)
    ray.kill(handle, no_restart=True)
    deadline = time.monotonic() + _GONE_S
    while time.monotonic() < deadline:
        try:
            ray.get_actor(name, NAMESPACE)
        except ValueError:
            return
        time.sleep(0.05)
