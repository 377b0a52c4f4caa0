"""Sums by name over the rows that one model has learned: one block that adds over replicas."""

from __future__ import annotations

from paramserver.core.blocks import COUNT, Block, Blocks, Touched


class Sums:
    """Sums with an open delta: a block of a model, or the verbs of a view of the learned rows.

    Views derive from it, and say in ``add`` what a row counts.

    Parameters:
        block: The key under which the sums travel.

    Attributes:
        now: The sums by name, with the open delta.
    """

    def __init__(self, block: str) -> None:
        self._block = block
        self.now: dict[str, float] = {}
        self._open: dict[str, float] = {}

    def count(self, name: str, value: float) -> None:
        """Add to one of them."""
        self.now[name] = self.now.get(name, 0) + value
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
                self.now[name] = value + self._open.get(name, 0)

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self.now, self._open = {}, {}
        self.rebase(values)
