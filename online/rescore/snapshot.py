"""The model of a snapshot, in any process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from online.errors import StartRefused
from online.learning.bounds import Bounds
from online.models.base import Model
from online.models.from_settings import load_model
from online.rescore.run import Scored
from online.rows.prediction_ids import Keys
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import snapshots_path
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.chain import read_whole
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention


def scored(model: ModelSettings, settings: Settings, name: str = "latest") -> Scored:
    """The model as a snapshot of the service has it; the service need not run.

    Parameters:
        name: Of the snapshot, or ``latest``.

    Raises StartRefused: there is none; SnapshotMissing, SnapshotCorrupt, LearnerUnusable.
    """
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(model, settings, keys.secret, keys.old_secrets)
    place = lineage_place(snapshots_path(settings), model.name, loaded.spec_hash)
    stored = open_snapshots(place)
    if name == "latest":
        history = SnapshotHistory(stored, Retention())
        history.index()
        if not (listed := history.listed()):
            raise StartRefused(
                f"there is no snapshot of {model.name} in {settings.state_dir}",
                "Make one of the running service: online snapshot create",
            )
        name = listed[0].name
    data = read_whole(stored, name)
    state = snapshot_format.decode(data)
    classes = model.classes
    bounds = Bounds.of(state.values, on=model.filters != "none")
    return Scored(
        model.name,
        model.task,
        loaded.spec_hash,
        f"{state.version[0]}.{state.version[1]}",
        name,
        partial(_made, model, settings, keys.secret, keys.old_secrets, data),
        () if classes is None else (classes["negative"], classes["positive"]),
        bounds.ends(bounds.names),
    )


def _made(
    model: ModelSettings, settings: Settings, secret: bytes, old: Sequence[bytes], data: bytes
) -> Model:
    built = load_model(model, settings, secret, old).model
    built.reset(snapshot_format.decode(data).values)
    return built
