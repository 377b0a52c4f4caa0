"""An aligned cut: snapshots of all shards that have the same rows and decisions, as one state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from paramserver.core.shards import joined_blocks
from paramserver.core.state import SnapshotState
from paramserver.snapshots.history import SnapshotHistory, parse_name


def aligned(
    histories: Sequence[SnapshotHistory],
    ends: Mapping[int, int],
    name: str | None = None,
    since: int = 0,
) -> tuple[str, ...] | None:
    """Names of snapshots, one a shard, that have the same rows; None: there are none.

    Parameters:
        histories: Of each shard, with an index.
        ends: Last offsets of the partitions: what a closed one contains.
        name: That of shard 0's; None: of its newest for which there are others.
        since: The epoch in which the lineage last began anew: what was before is not its past.
    """
    first, *others = [
        {one: had for one, had in history.contained().items() if _epoch(one) >= since}
        for history in histories
    ]
    names = [one for one in first if name is None or one == name]
    for one in sorted(names, key=lambda one: parse_name(one) or ((0, 0), None), reverse=True):
        wanted = first[one].control, first[one].rows(ends)
        found = [
            next((n for n, had in known.items() if (had.control, had.rows(ends)) == wanted), None)
            for known in others
        ]
        if None not in found:
            return one, *(n for n in found if n is not None)
    return None


def _epoch(name: str) -> int:
    parsed = parse_name(name)
    return -1 if parsed is None else parsed[0][0]


def whole(parts: Sequence[SnapshotState]) -> SnapshotState:
    """The state of all shards from an aligned cut; what is not in parts is told as shard 0 has it.

    What the servers alone keep of bounded tables is left out: it is of a shard's own rows.
    """
    return replace(parts[0], values=joined_blocks([part.values for part in parts]), base=None)
