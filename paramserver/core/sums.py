"""Named sums over the rows that a model has learned, as one block that adds up over replicas."""

from __future__ import annotations

from paramserver.core.blocks import COUNT, Block, Blocks, Touched, merge


class Sums:
    """Named sums with an open (not yet pushed) delta.

    Models use it for one of their blocks.  Views of the learned rows derive from it and define in
    ``add`` what a row contributes.

    Parameters:
        block: Name of the block.

    Attributes:
        now: The sums by name, including the open delta.
    """

    def __init__(self, block: str) -> None:
        self._block = block
        self.now: dict[str, float] = {}
        self._open: dict[str, float] = {}

    def count(self, name: str, value: float) -> None:
        """Add ``value`` to the sum of that name."""
        self.now[name] = self.now.get(name, 0) + value
        self._open[name] = self._open.get(name, 0) + value

    @property
    def named(self) -> Touched:
        """The block's name, touched as a whole."""
        return {self._block: None}

    def cut(self) -> Blocks:
        """Return the open delta and start an empty one."""
        opened, self._open = self._open, {}
        return {self._block: Block(COUNT, opened)} if opened else {}

    def rebase(self, values: Blocks) -> None:
        """Replace the sums of the given keys by ``values`` plus the open delta."""
        if (block := values.get(self._block)) is not None:
            for name, value in block.data.items():
                self.now[name] = value + self._open.get(name, 0)

    def reset(self, values: Blocks) -> None:
        """Replace all sums by ``values``, with an empty open delta."""
        self.now, self._open = {}, {}
        self.rebase(values)


def add_counts(values: Blocks, delta: Blocks, times: int = 1) -> None:
    """Add the counts of ``delta`` to ``values`` in place, or subtract them if ``times`` is -1.

    This is :func:`~paramserver.core.blocks.merge` for blocks of kind ``count`` without its checks
    and without its result: a fast path for the many small sums that a process keeps locally.
    Blocks of other kinds are merged if ``times`` is 1 and ignored if it is -1.  ``delta`` shares no
    container with ``values``.
    """
    for name, change in delta.items():
        if change.kind != COUNT:
            if times == 1:
                merge(values, {name: change})
            continue
        old = values.get(name)
        if old is None:
            old = values[name] = Block(COUNT, {})
        data = old.data
        for key, x in change.data.items():
            data[key] = data.get(key, 0) + times * x
