"""Loads the whole state of a model with several parameter servers from their aligned snapshots."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from online.errors import StartRefused
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import history_of, open_journal
from paramserver.core.state import SnapshotState
from paramserver.process.aligned import aligned, whole
from paramserver.process.shortfall import begun
from paramserver.snapshots.history import SnapshotHistory


def histories_of(settings: Settings, model: ModelSettings, spec: str) -> list[SnapshotHistory]:
    """Snapshot histories of a lineage, one per shard."""
    return [history_of(settings, model.name, spec, shard) for shard in range(model.shards)]


@dataclass(frozen=True, slots=True)
class _Aligned:
    """Snapshots of all shards, and the names of those that contain the same rows, if any."""

    histories: list[SnapshotHistory]
    names: tuple[str, ...] | None


def _aligned(settings: Settings, model: ModelSettings, spec: str, name: str | None) -> _Aligned:
    histories = histories_of(settings, model, spec)
    for history in histories:
        history.index()
    with contextlib.closing(open_journal(settings)) as journal:
        ends = {p.id: p.end for p in journal.partitions(model.name)}
        since = begun(journal.controls(model.name, 0), spec)
    return _Aligned(histories, aligned(histories, ends, name, since))


def is_cut(settings: Settings, model: ModelSettings, spec: str) -> bool:
    """Whether all shards have snapshots with the same rows as shard 0's newest."""
    snapshots = _aligned(settings, model, spec, None)
    return (
        snapshots.names is not None
        and snapshots.names[0] == snapshots.histories[0].listed()[0].name
    )


def cut_of(
    settings: Settings, model: ModelSettings, spec: str, name: str | None = None
) -> tuple[str, SnapshotState]:
    """Name of shard 0's snapshot, and the merged state of all shards at the same rows.

    Parameters:
        name: Name or file name of shard 0's snapshot; None: the newest that all shards match.

    Raises:
        StartRefused: There is none.
        Exception: What reading snapshots raises.
    """
    name_wanted = name and Path(name).name.removesuffix(".snapshot")
    snapshots = _aligned(settings, model, spec, name_wanted)
    if snapshots.names is None:
        which = "no snapshot" if name_wanted is None else f"no snapshot {name_wanted}"
        raise StartRefused(
            f"model {model.name} has {model.shards} parameter servers, and {which} with the same "
            "rows in all of them",
            "Make one of the running service, again if much is learned: online snapshot create",
        )
    parts = [h.load(one) for h, one in zip(snapshots.histories, snapshots.names, strict=True)]
    return snapshots.names[0], whole(parts)
