"""Sums by name over the rows that one model has learned: one block that adds over replicas."""

from __future__ import annotations

from paramserver.blocks import COUNT, Block, Blocks, Touched


class Sums:
    """Sums with an open delta, and the verbs of a view of the learned rows.

    Whoever sums something derives from it, and says in ``add`` what a row counts.

    Parameters:
        block: The key under which the sums travel.
    """

    def __init__(self, block: str) -> None:
        self._block = block
        self._sums: dict[str, float] = {}
        self._open: dict[str, float] = {}

    def _sum(self, name: str, value: float) -> None:
        self._sums[name] = self._sums.get(name, 0) + value
        self._open[name] = self._open.get(name, 0) + value

    @property
    def named(self) -> Touched:
        """The block, as a whole."""
        return {self._block: None}

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        opened, self._open = self._open, {}
        return {self._block: Block(COUNT, opened)} if opened else {}

    def rebase(self, values: Blocks) -> None:
        """Take new values for the keys given, with the open delta on top."""
        if (block := values.get(self._block)) is not None:
            for name, value in block.data.items():
                self._sums[name] = value + self._open.get(name, 0)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._sums, self._open = {}, {}
        self.rebase(values)
