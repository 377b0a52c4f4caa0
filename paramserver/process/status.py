"""Builds the parts of a server's status as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from paramserver.core.blocks import COUNT, size_bytes
from paramserver.core.server import Server
from paramserver.core.state import Contained
from paramserver.process.shared_tables import SharedTables
from paramserver.snapshots.history import Listed
from paramserver.store import PartitionInfo

EPOCHS_SHOWN: Final = 9

METRICS: Final = "metrics"
SCORES: Final = ("n", "correct", "abs_error")
"""Totals of the block :data:`METRICS` that are stored with snapshots: rows scored, and scores."""


def scores(server: Server) -> dict[str, float]:
    """Return the totals of :data:`SCORES` in the values, to be stored with a snapshot."""
    block = server.values.get(METRICS)
    if block is None or block.kind != COUNT:
        return {}
    return {name: float(block.data[name]) for name in SCORES if name in block.data}


def epochs(listed: Sequence[Listed], server: Server | None) -> list[dict[str, float]]:
    """Return the score totals at the end of the newest epochs, oldest first.

    Past epochs are taken from snapshots; the last entry has the present totals.
    """
    ends: dict[int, Mapping[str, float]] = {}
    for row in listed:  # newest first
        ends.setdefault(row.version[0], row.metrics)
    if server is not None:
        ends[server.epoch] = scores(server)
    newest = sorted(ends.items())[-EPOCHS_SHOWN:]
    return [
        {"epoch": epoch, **{name: totals[name] for name in SCORES if name in totals}}
        for epoch, totals in newest
    ]


def rows_since(
    server: Server, partitions: Mapping[int, PartitionInfo], contained: Contained
) -> int:
    """Return the number of rows learned after a snapshot, which a rollback to it would undo."""
    upto = dict(server.clock)
    upto |= {p: partitions[p].end for p in server.closed if p in partitions}
    return sum(
        max(end - contained.clock.get(p, 0), 0)
        for p, end in upto.items()
        if p not in contained.closed
    )


def numbers(server: Server | None, shared: SharedTables | None) -> dict[str, Any]:
    """Return the part of ``status`` that describes the server's state and its shared tables."""
    if server is None:
        return {
            "epoch": None, "count": None, "version": None, "clock": {}, "durable": {},
            "control": None, "rewrite": 0, "frozen": 0, "shared": None,
        }  # fmt: skip
    return {
        "epoch": server.epoch,
        "count": server.count,
        "version": list(server.version),
        "control": server.control,
        "rewrite": server.rewrite,
        "frozen": server.frozen,
        "clock": dict(server.clock),
        "closed": sorted(server.closed),
        "durable": dict(server.durable),
        "bytes": size_bytes(server.values),
        "shared": None if shared is None else shared.status(),
        "tables": (server.keeper.counts(server.values) if server.keeper else {})
        | server.holdings.counts(),
    }
