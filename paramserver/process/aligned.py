"""Aligned cuts: snapshots of all shards with the same rows and decisions, joined to one state."""

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
    """Return the names of snapshots with the same rows, one per shard, or None.

    Parameters:
        histories: The indexed snapshot history of each shard.
        ends: Last offsets of the partitions, up to which the closed ones are contained.
        name: Snapshot of shard 0; None: its newest one that the other shards have matches for.
        since: Epoch in which the lineage last started afresh; older snapshots are ignored.
    """
    first, *others = [
        {one: had for one, had in history.contained().items() if _epoch(one) >= since}
        for history in histories
    ]
    names = [one for one in first if name is None or one == name]
    for one in sorted(names, key=lambda one: parse_name(one) or ((0, 0), None), reverse=True):
        wanted = first[one].control, first[one].rows(ends)
        matches = [
            next((n for n, had in known.items() if (had.control, had.rows(ends)) == wanted), None)
            for known in others
        ]
        if None not in matches:
            return one, *(n for n in matches if n is not None)
    return None


def _epoch(name: str) -> int:
    parsed = parse_name(name)
    return -1 if parsed is None else parsed[0][0]


def whole(parts: Sequence[SnapshotState]) -> SnapshotState:
    """Join the states of an aligned cut; fields other than the values are shard 0's.

    What bounded tables have sighted is left out, because each shard counts with a key of its own.
    """
    return replace(parts[0], values=joined_blocks([part.values for part in parts]), base=None)
