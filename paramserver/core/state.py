"""Defines the content of a snapshot: the whole state of a server at one version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from paramserver.core.admission import KEPT, Keeper
from paramserver.core.blocks import ROWS, Blocks, copy_block
from paramserver.core.wire import Version


class Base(NamedTuple):
    """A whole snapshot that incremental ones refer to: its name, and its SHA-256 in hex."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """Parameters, clocks and control position of one version.

    Attributes:
        model, spec, spec_text: The model's name, the hash of its spec, and the spec itself.
        version: ``(epoch, count)``.
        values: The parameters.  Read only: a running server may share blocks with it.
        clock: Last offset contained, by open partition.
        closed: Partitions contained to their sealed end; they are not in the clock.
        control: ``seq`` of the last control row contained.
        rewrite: ``seq`` of the control row that rewrote the values last (0: none).
        frozen: ``seq`` of the control row that froze the model (0: it learns).
        banned: Sources that were banned then; None: an older release wrote the snapshot and did
            not record them.
        position: ``seq`` of the last row contained, if the rows were learned in commit order (else
            0).
        metrics: Numbers to show beside the snapshot.
        parent: Name of the snapshot published before it, or None.
        created_at: POSIX seconds.
        log: Number and SHA-256 of the newest line of the store's log of decisions at that time.
        base: Of tables that track changes, only the changes since this snapshot are written; None:
            all rows.  A state that was read from files is always whole.
    """

    model: str
    spec: str
    spec_text: str
    version: Version
    values: Blocks
    clock: Mapping[int, int]
    closed: frozenset[int] = frozenset()
    control: int = 0
    rewrite: int = 0
    frozen: int = 0
    position: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    parent: str | None = None
    created_at: float = 0.0
    banned: frozenset[str] | None = None
    log: tuple[int, str] | None = None
    base: Base | None = None


@dataclass(frozen=True, slots=True)
class Contained:
    """The clock, closed partitions and control position that a snapshot contains."""

    clock: Mapping[int, int]
    closed: frozenset[int]
    control: int = 0

    def rows(self, ends: Mapping[int, int]) -> dict[int, int]:
        """Return the last offset contained of each partition, the closed ones included.

        Parameters:
            ends: Last offsets of the partitions, as far as they are known.
        """
        closed = {p: ends[p] for p in self.closed if p in ends}
        return {p: last for p, last in sorted({**self.clock, **closed}.items()) if last}


_ROWS_LEAST: Final = 4096  # with fewer rows a snapshot is always whole
_SHARE: Final = 8  # incremental if at most one row in 8 has changed


class Changes:
    """The version since which the tables of one server record their changes; at first none."""

    def __init__(self) -> None:
        self._since: Version | None = None

    def few_since(self, base: tuple[Version, Base] | None, values: Blocks) -> bool:
        """Return whether few enough rows changed since ``base`` for an incremental snapshot."""
        if base is None or base[0] != self._since:
            return False
        tables = [
            block.data
            for name, block in values.items()
            if block.kind == ROWS and block.data.changes is not None and not name.startswith(KEPT)
        ]
        rows = sum(map(len, tables))
        return rows >= _ROWS_LEAST and sum(t.changes for t in tables) * _SHARE <= rows

    def begin(self, values: Blocks, version: Version, keeper: Keeper | None) -> set[str]:
        """Copy the tables and start to record changes in the copies; return their names."""
        names = {name for name, block in values.items() if block.kind == ROWS}
        for name in names:
            values[name] = copy_block(values[name])
            values[name].data.track()
        if keeper is not None:
            keeper.track()
        self._since = version
        return names
