"""Loads the model of a snapshot for scoring, in any process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import sha256

import msgspec

from online.errors import StartRefused
from online.learning.bounds import Bounds
from online.models.base import Model
from online.models.choices.interactions import ACTION
from online.models.loading.from_settings import load_model
from online.models.rewards import Action
from online.rescore.best import BestAction
from online.rescore.run import Scored
from online.rescore.work import MakeModel
from online.rows.prediction_ids import Keys
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import snapshots_of
from online.settings.whole import cut_of
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.chain import read_whole
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.store import Retention


def scored(
    model: ModelSettings, settings: Settings, name: str = "latest", actions: Sequence[Action] = ()
) -> Scored:
    """Load a model from a snapshot; the service need not run.

    Parameters:
        name: Name of the snapshot, or ``latest``.
        actions: Actions of which a model of choices names the best; empty: rows are scored.

    Raises:
        StartRefused: There is no snapshot.
        SnapshotMissing, SnapshotCorrupt, LearnerUnusable: It can't be used.
    """
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(model, settings, keys.secret, keys.old_secrets)
    if model.shards > 1:
        name, state = cut_of(settings, model, loaded.spec_hash, None if name == "latest" else name)
        data = snapshot_format.encode(state)
    else:
        name, data = _read(model, settings, loaded.spec_hash, name)
        state = snapshot_format.decode(data)
    classes = model.classes
    bounds = Bounds.of(state.values, on=model.filters != "none")
    task, spec, within = model.task, loaded.spec_hash, (0.0, 1.0)
    make = partial(_made, model, settings, keys.secret, keys.old_secrets, data)
    if actions and model.choose is not None:  # the answers are the ids of actions
        task, within = "multiclass", model.choose.reward_range
        spec = sha256(msgspec.json.encode((spec, actions))).hexdigest()
        among = [_as_answered(one, bounds) for one in actions]
        make = partial(_asked_for_best, make, among, within)
    return Scored(
        model.name,
        task,
        spec,
        f"{state.version[0]}.{state.version[1]}",
        name,
        make,
        () if classes is None else (classes["negative"], classes["positive"]),
        bounds.ends(bounds.names),
        within,
    )


def _read(model: ModelSettings, settings: Settings, spec: str, name: str) -> tuple[str, bytes]:
    """Name and bytes of a snapshot, or of the newest one."""
    stored = snapshots_of(settings, model.name, spec)
    if name == "latest":
        history = SnapshotHistory(stored, Retention())
        history.index()
        if not (listed := history.listed()):
            raise StartRefused(
                f"there is no snapshot of {model.name} in {settings.state_dir}",
                "Make one of the running service: online snapshot create",
            )
        name = listed[0].name
    return name, read_whole(stored, name)


def _as_answered(action: Action, bounds: Bounds) -> Action:
    """The action with its numbers bounded as when the service answers a choice."""
    name, features = action
    taken = bounds.answered({ACTION + key: value for key, value in features.items()})
    return name, {key.removeprefix(ACTION): value for key, value in taken.items()}


def _asked_for_best(
    make: MakeModel, actions: Sequence[Action], within: tuple[float, float]
) -> Model:
    return BestAction(make(), actions, *within)


def _made(
    model: ModelSettings, settings: Settings, secret: bytes, old: Sequence[bytes], data: bytes
) -> Model:
    built = load_model(model, settings, secret, old).model
    built.reset(snapshot_format.decode(data).values)
    return built
