"""Shards of a model's parameter server that have not the same rows of a partition learned here.

One of them was away when the others were pushed to, or went back to a snapshot.  Then a delta may
be in the values of one and not of another, and counts where it is missing only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from online.learning.deltas import Delta
from paramserver.clients.sharded_client import ShardedReply
from paramserver.core.blocks import DIGEST, Blocks
from paramserver.core.shards import Cut
from paramserver.core.wire import SyncReply


class Apart:
    """The clocks of all shards; in some partition that is learned here they differ."""

    def __init__(self, clocks: Sequence[Mapping[int, int]]) -> None:
        self._clocks, self._cut = clocks, Cut(len(clocks))

    def lacking(self, deltas: Iterable[Delta]) -> list[Delta]:
        """The deltas without those parts whose shards have them already."""
        return [self._lacking(delta) for delta in deltas]

    def _lacking(self, delta: Delta) -> Delta:
        p, last = delta.partition, delta.last
        missing = [s for s, clock in enumerate(self._clocks) if clock.get(p, 0) < last]
        if len(missing) == self._cut.of:
            return delta
        parts = self._cut.blocks(delta.blocks)
        blocks: Blocks = {}
        for shard in missing:
            for name, block in parts[shard].items():
                if name in blocks:  # a digest stands on each, and shard 0's is told
                    if block.kind != DIGEST:
                        blocks[name].data.update(block.data)
                elif block.kind != DIGEST or shard == 0:
                    blocks[name] = block
        return replace(delta, blocks=blocks)

    def at(self, partition: int) -> set[int]:
        """Where the shards stand in a partition."""
        return {clock.get(partition, 0) for clock in self._clocks}

    def ahead(self, partition: int, end: int | None) -> int:
        """How far one of them is in a partition that ends there; None: it goes on."""
        furthest = max(self.at(partition))
        return furthest if end is None else min(furthest, end)

    @property
    def clocks(self) -> Sequence[Mapping[int, int]]:
        """Return the clock of each shard."""
        return self._clocks


def apart(reply: SyncReply, partitions: Collection[int]) -> Apart | None:
    """Where shards differ in one of the partitions; None: in none, or there is one server."""
    if not isinstance(reply, ShardedReply):
        return None
    clocks = reply.clocks
    if all(len({clock.get(p, 0) for clock in clocks}) == 1 for p in partitions):
        return None
    return Apart(clocks)
