"""Handles shards of a model's parameter server whose clocks differ in a partition learned here.

A shard was away when the others were pushed to, or went back to a snapshot.  A delta may then be
in the values of one shard and not of another, and only the missing parts of it count as pending.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from online.learning.deltas import Delta
from paramserver.clients.sharded_client import ShardedReply
from paramserver.core.blocks import DIGEST, Blocks
from paramserver.core.shards import Cut
from paramserver.core.wire import SyncReply


class ShardDivergence:
    """The clocks of all shards, which differ in some partition that is learned here."""

    def __init__(self, clocks: Sequence[Mapping[int, int]]) -> None:
        self._clocks, self._cut = clocks, Cut(len(clocks))

    def lacking(self, deltas: Iterable[Delta]) -> list[Delta]:
        """Return the deltas without the parts that their shards already have."""
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
                if name in blocks:  # every part has a copy of the digest: take shard 0's
                    if block.kind != DIGEST:
                        blocks[name].data.update(block.data)
                elif block.kind != DIGEST or shard == 0:
                    blocks[name] = block
        return replace(delta, blocks=blocks)

    def at(self, partition: int) -> set[int]:
        """The shards' clock values for a partition."""
        return {clock.get(partition, 0) for clock in self._clocks}

    def ahead(self, partition: int, end: int | None) -> int:
        """The clock of the most advanced shard, at most the partition's ``end`` (None: open)."""
        furthest = max(self.at(partition))
        return furthest if end is None else min(furthest, end)

    @property
    def clocks(self) -> Sequence[Mapping[int, int]]:
        """The clock of each shard."""
        return self._clocks


def shard_divergence(reply: SyncReply, partitions: Collection[int]) -> ShardDivergence | None:
    """Return how the shards differ in one of the partitions; None: in none, or no shards."""
    if not isinstance(reply, ShardedReply):
        return None
    clocks = reply.clocks
    if all(len({clock.get(p, 0) for clock in clocks}) == 1 for p in partitions):
        return None
    return ShardDivergence(clocks)
