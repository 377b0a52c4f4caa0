"""Tracks what changed in a server's tables since a snapshot, for incremental snapshots."""

from __future__ import annotations

from typing import Final

from paramserver.core.admission import KEPT, Keeper
from paramserver.core.blocks import ROWS, Blocks, copy_block
from paramserver.core.state import Base
from paramserver.core.wire import Version

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
