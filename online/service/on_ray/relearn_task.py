"""Trains a fresh model on recent rows as a Ray task, in a process of its own."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

import ray
from ray.exceptions import RayTaskError

from online.errors import StartRefused
from online.models.loading.from_settings import load_model
from online.rebuild.rebuild import method_of
from online.rebuild.relearn import Relearning, relearn, window_of
from online.rows.history import Decisions
from online.rows.prediction_ids import Keys
from online.service.processes import begun
from online.settings.places import history_of, open_journal, server_name
from paramserver.clients.ray_client import find
from paramserver.errors import ParamServerError
from paramserver.snapshots.history import ASIDE

_DECIDE_S: Final = 30.0


def fresh_of(data: dict[str, Any], model: str, rewrite: int, since: float) -> Any:
    """Start the task; returns the reference of its result text.  It ends with this process."""
    task = ray.remote(_taught).options(num_cpus=0, max_retries=0)
    return task.remote(data, model, rewrite, since)


def _taught(data: dict[str, Any], name: str, rewrite: int, since: float) -> str:
    settings, model = begun(data, name)
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(model, settings, keys.secret, keys.old_secrets)
    spec = loaded.spec_hash
    history = history_of(settings, name, spec)
    with contextlib.closing(open_journal(settings)) as journal:
        decisions = Decisions(spec)
        decisions.read(journal, name)
        head = journal.head(name, spec).snapshot
        window = window_of(journal, name, decisions, since, model.drift.relearn_rows)
        work = Relearning(
            journal, decisions, window, None if head is None else history.load(head),
            method_of(model, loaded, settings), model=name, spec_text=loaded.spec_text,
        )  # fmt: skip
        snapshot_prefix = f"{ASIDE}{rewrite}-{secrets.token_hex(4)}"
        handle = find(server_name(name, spec))

        def swap(*asked: object) -> Mapping[str, Any]:
            try:
                done: Mapping[str, Any] = ray.get(handle.relearn.remote(*asked), timeout=_DECIDE_S)
            except RayTaskError as error:
                if isinstance(error.cause, ParamServerError):
                    raise error.cause from None
                raise
            return done

        try:
            return str(relearn(work, window, history, swap, snapshot_prefix, rewrite, time.time()))
        except StartRefused as error:
            return f"its error has risen; no fresh model was taught: {error.problem}"
