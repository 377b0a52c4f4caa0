"""Begins a lineage anew: with the rows of the journal to be learned again, or without them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from online.errors import StartRefused
from online.models.loaded import Loaded
from online.settings.config import Settings
from online.settings.places import history_of
from paramserver.core import rewrites
from paramserver.core.blocks import Blocks
from paramserver.core.shards import ShardStore
from paramserver.core.state import SnapshotState
from paramserver.errors import SnapshotCorrupt, SnapshotFormat, SnapshotMissing
from paramserver.process import bases
from paramserver.process.lineage import Lineage, begin_epoch, publish
from paramserver.snapshots.history import SnapshotHistory
from paramserver.store import Store
from replay.journal.base import Control, Journal


def begin_anew(
    settings: Settings,
    journal: Journal,
    name: str,
    loaded: Loaded,
    base: bases.Backfill | None,
    *,
    without: bool,
) -> str | None:
    """Publish a snapshot that contains only the state of the ``base``, if there is one.

    Its clock stands before every row of the journal, or after all of them with ``without``.

    Returns what the model begins with, for its operator; None if it learns all rows again.  Raises
    StartRefused if the base can't be loaded.
    """
    lineage = Lineage(name, loaded.spec_hash, loaded.spec_text, "sum")
    servers = _servers(settings, journal, name, loaded.spec_hash)
    epoch = _next_epoch([store for store, _ in servers], lineage)
    ends = {p.id: journal.seal(p.id) for p in journal.partitions(name)}
    gone = {p.id: p.trimmed for p in journal.partitions(name) if p.trimmed}
    clock = ends if without else gone
    controls = journal.controls(name, 0)
    values: Blocks = {}
    skipped, closed, position = clock, frozenset[int](), 0
    rewrite = rewrites.newest_rewrite(controls)  # undone events stay undone
    if base is not None:
        values = _base(servers[0][1], name, base).values
        skipped = _skipped(controls, loaded.spec_hash)
        skipped |= {p: n for p, n in gone.items() if p not in base.clock}
        closed, position = frozenset(base.closed), base.position
        clock = {**gone, **{p: max(n, gone.get(p, 0)) for p, n in base.clock.items()}}
        clock = {p: n for p, n in clock.items() if p not in closed}
        rewrite = max(rewrite, bases.backfills(controls, loaded.spec_hash)[-1].seq)
    if without:
        position = journal.follow(name, 2**62, 1).upto
    empty = SnapshotState(
        model=name,
        spec=loaded.spec_hash,
        spec_text=loaded.spec_text,
        version=(epoch, 0),
        values=values,
        clock=clock,
        closed=closed,
        control=controls[-1].seq if controls else 0,
        rewrite=rewrite,
        frozen=rewrites.frozen_by(controls),
        position=position,
        created_at=time.time(),
    )
    begun = rewrites.Begun(loaded.spec_hash, skipped, None if base is None else base.snapshot)
    key = f"{rewrites.BEGUN}:{loaded.spec_hash}:{epoch}"
    journal.write_control(name, rewrites.BEGUN, key, msgspec.json.encode(begun))
    for store, history in servers:
        publish(store, history, empty, None)
    if base is not None:
        return f"begins with the {base.learned:,} rows of {base.snapshot}"
    return f"begins without the {sum(ends.values()):,} events before" if without else None


def _base(history: SnapshotHistory, name: str, base: bases.Backfill) -> SnapshotState:
    """The state that a backfill has published.  Raises StartRefused if it can't be loaded."""
    try:
        return history.load(base.snapshot)
    except (SnapshotCorrupt, SnapshotFormat, SnapshotMissing, OSError) as error:
        files = ", ".join(file.name for file in base.files)
        raise StartRefused(
            f"model {name} starts from what it learned from {files}, and the snapshot "
            f"{base.snapshot} of that can't be used ({error})",
            "Restore a good copy of it, or learn the tables again: online backfill --relearn",
        ) from error


def _servers(
    settings: Settings, journal: Journal, name: str, spec: str
) -> list[tuple[Store, SnapshotHistory]]:
    """Return each parameter server's view of the journal and its snapshots."""
    servers: list[tuple[Store, SnapshotHistory]] = []
    model = next(one for one in settings.models if one.name == name)
    for shard in range(model.shards):
        store: Store = ShardStore(journal, shard) if shard else journal
        servers.append((store, history_of(settings, name, spec, shard)))
    return servers


def _next_epoch(stores: Sequence[Store], lineage: Lineage) -> int:
    """Begin one epoch for all servers of a lineage, larger than any of their epochs."""
    epochs = [begin_epoch(store, lineage) for store in stores]
    for shard, store in enumerate(stores):
        while epochs[shard] < max(epochs):
            epochs[shard] = begin_epoch(store, lineage)
    return max(epochs)


def _skipped(controls: Sequence[Control], spec: str) -> dict[int, int]:
    """Offsets that the lineage skipped when it was last begun, by partition."""
    begun = [b for c in controls if (b := bases.begun_by(c, spec)) is not None]
    return dict(begun[-1].clock) if begun else {}
