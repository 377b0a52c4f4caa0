"""The state of a model with several parameter servers, from snapshots of all of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from online.errors import StartRefused
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal, snapshots_path
from paramserver.core.shards import shard_place
from paramserver.core.state import SnapshotState
from paramserver.process.aligned import aligned, whole
from paramserver.process.shortfall import begun
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention


def histories_of(settings: Settings, model: ModelSettings, spec: str) -> list[SnapshotHistory]:
    """The snapshots of a lineage, of each of its shards."""
    path = snapshots_path(settings)
    places = [shard_place(path, shard) for shard in range(model.shards)]
    return [
        SnapshotHistory(open_snapshots(lineage_place(place, model.name, spec)), Retention())
        for place in places
    ]


@dataclass(frozen=True, slots=True)
class _Looked:
    """The snapshots of all shards, and the names of those that have the same rows, if any."""

    histories: list[SnapshotHistory]
    names: tuple[str, ...] | None


def _looked(settings: Settings, model: ModelSettings, spec: str, name: str | None) -> _Looked:
    histories = histories_of(settings, model, spec)
    for history in histories:
        history.index()
    with contextlib.closing(open_journal(settings)) as journal:
        ends = {p.id: p.end for p in journal.partitions(model.name)}
        since = begun(journal.controls(model.name, 0), spec)
    return _Looked(histories, aligned(histories, ends, name, since))


def is_cut(settings: Settings, model: ModelSettings, spec: str) -> bool:
    """Whether there are snapshots of all shards with the rows of shard 0's newest."""
    found = _looked(settings, model, spec, None)
    return found.names is not None and found.names[0] == found.histories[0].listed()[0].name


def cut_of(
    settings: Settings, model: ModelSettings, spec: str, name: str | None = None
) -> tuple[str, SnapshotState]:
    """Name of shard 0's snapshot, and the state of all shards that have the same rows.

    ``name``: which it is to be, or its file's; None: the newest for which there are others.

    Raises StartRefused: there is none; and what reading snapshots does.
    """
    wanted = name and Path(name).name.removesuffix(".snapshot")
    found = _looked(settings, model, spec, wanted)
    if found.names is None:
        which = "there is no snapshot" if wanted is None else f"of snapshot {wanted} there is none"
        raise StartRefused(
            f"model {model.name} has {model.shards} parameter servers, and {which} with the same "
            "rows in all of them",
            "Make one of the running service, again if much is learned: online snapshot create",
        )
    parts = [h.load(one) for h, one in zip(found.histories, found.names, strict=True)]
    return found.names[0], whole(parts)
