"""A server's tables know what has changed since a snapshot, so the next one may lean on it."""

from __future__ import annotations

from typing import Final

from paramserver.core.admission import KEPT, Keeper
from paramserver.core.blocks import ROWS, Blocks, copy_block
from paramserver.core.state import Base
from paramserver.core.wire import Version

_ROWS_LEAST: Final = 4096  # a snapshot of fewer is a whole one
_SHARE: Final = 8  # times as many rows as changes


class Changes:
    """The version since which one server's tables know their changes; first there is none."""

    def __init__(self) -> None:
        self._since: Version | None = None

    def few_since(self, base: tuple[Version, Base] | None, values: Blocks) -> bool:
        """Whether a snapshot of these values may lean on that one, of a version."""
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
        """Have tables of the server's own that know from now on what changes; their names."""
        names = {name for name, block in values.items() if block.kind == ROWS}
        for name in names:
            values[name] = copy_block(values[name])
            values[name].data.track()
        if keeper is not None:
            keeper.track()
        self._since = version
        return names
