"""Control rows that change what a model holds or learns: rollback, freeze, unfreeze.

The row comes first and is what makes the decision durable: whoever starts a server from a snapshot
before it applies it.  Payloads are JSON.
"""

from __future__ import annotations

from typing import Final

import msgspec

ROLLBACK: Final = "rollback"
FREEZE: Final = "freeze"
UNFREEZE: Final = "unfreeze"


class Rollback(msgspec.Struct, frozen=True):
    """Back to a snapshot's values; the clock stays where it was.

    Attributes
    ----------
    spec
        Hash of the spec of the lineage that was rolled back.
    snapshot, control
        Name of the snapshot, and the control position that it contains.
    clock, closed
        Clock and closed partitions of the new state: the larger of the server's and the
        snapshot's.
    undone
        Rows that the rollback took out, by partition: after the first offset, up to the second.
    """

    spec: str
    snapshot: str
    control: int
    clock: dict[int, int]
    closed: list[int]
    undone: dict[int, tuple[int, int]]


class Freeze(msgspec.Struct, frozen=True):
    """From here on rows are written as ``frozen``: none of them at or below this clock."""

    clock: dict[int, int]
    closed: list[int]


class Unfreeze(msgspec.Struct, frozen=True):
    """Rows are learned again from here on."""
