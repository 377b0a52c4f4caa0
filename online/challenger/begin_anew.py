"""A challenger's first snapshot, from which it learns the journal."""

from __future__ import annotations

import time

import msgspec

from online.models.load import Loaded
from online.settings.config import Settings
from online.settings.places import snapshots_path
from paramserver import rewrites
from paramserver.lineage import Lineage, begin_epoch, publish
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from paramserver.state import SnapshotState
from replay.journal.base import Journal


def begin_anew(journal: Journal, settings: Settings, name: str, loaded: Loaded) -> None:
    """Let a lineage begin with a snapshot that holds nothing, before the rows of the journal.

    While the model is served by another one.  Undone events stay so.
    """
    lineage = Lineage(name, loaded.spec_hash, loaded.spec_text, "ordered")
    place = lineage_place(snapshots_path(settings), name, loaded.spec_hash)
    history = SnapshotHistory(open_snapshots(place), Retention())
    epoch = begin_epoch(journal, lineage)
    clock = {p.id: p.trimmed for p in journal.partitions(name) if p.trimmed}
    controls = journal.controls(name, 0)
    empty = SnapshotState(
        model=name,
        spec=loaded.spec_hash,
        spec_text=loaded.spec_text,
        version=(epoch, 0),
        values={},
        clock=clock,
        control=controls[-1].seq if controls else 0,
        rewrite=rewrites.newest_rewrite(controls),
        frozen=rewrites.frozen_by(controls),
        created_at=time.time(),
    )
    begun = rewrites.Begun(loaded.spec_hash, clock)
    key = f"{rewrites.BEGUN}:{loaded.spec_hash}:{epoch}"
    journal.write_control(name, rewrites.BEGUN, key, msgspec.json.encode(begun))
    publish(journal, history, empty, None)
