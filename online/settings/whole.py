"""The state of a model with several parameter servers, from snapshots of all of them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from online.errors import StartRefused
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.places import open_journal, snapshots_path
from paramserver.aligned import aligned, whole
from paramserver.shards import shard_place
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from paramserver.state import SnapshotState


def histories_of(settings: Settings, model: ModelSettings, spec: str) -> list[SnapshotHistory]:
    """The snapshots of a lineage, of each of its shards."""
    path = snapshots_path(settings)
    places = [shard_place(path, shard) for shard in range(model.shards)]
    return [
        SnapshotHistory(open_snapshots(lineage_place(place, model.name, spec)), Retention())
        for place in places
    ]


def cut_of(
    settings: Settings, model: ModelSettings, spec: str, name: str | None = None
) -> tuple[str, SnapshotState]:
    """Name of shard 0's snapshot, and the state of all shards that have the same rows.

    ``name``: which it is to be, or its file's; None: the newest for which there are others.

    Raises StartRefused: there is none; and what reading snapshots does.
    """
    histories = histories_of(settings, model, spec)
    for history in histories:
        history.index()
    with contextlib.closing(open_journal(settings)) as journal:
        ends = {p.id: p.end for p in journal.partitions(model.name)}
    wanted = name and Path(name).name.removesuffix(".snapshot")
    if (names := aligned(histories, ends, wanted)) is None:
        which = "there is no snapshot" if wanted is None else f"of snapshot {wanted} there is none"
        raise StartRefused(
            f"model {model.name} has {model.shards} parameter servers, and {which} with the same "
            "rows in all of them",
            "Make one of the running service, again if much is learned: online snapshot create",
        )
    parts = [history.load(one) for history, one in zip(histories, names, strict=True)]
    return names[0], whole(parts)
