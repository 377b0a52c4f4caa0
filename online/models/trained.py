"""Steps that a network has taken, where its learning rate warms up."""

from __future__ import annotations

from typing import Final

from paramserver.blocks import COUNT, Block, Blocks

_TRAINED: Final = "trained"


class Trained:
    """How many steps were taken, by all replicas."""

    def __init__(self) -> None:
        self.rows = self._start = 0

    def cut(self) -> Blocks:
        """Steps since the cut; nothing if there were none."""
        n, self._start = self.rows - self._start, self.rows
        return {_TRAINED: Block(COUNT, {"rows": n})} if n else {}

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""
        if (block := values.get(_TRAINED)) is not None:
            n = int(block.data["rows"])
            self.rows, self._start = n + self.rows - self._start, n

    def reset(self, values: Blocks) -> None:
        """Reset the number of steps to exactly that of ``values``."""
        self.rows = self._start = 0
        self.rebase(values)
