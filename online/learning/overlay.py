"""The learner of replicas with background learning: own rows on top of published values.

It is for models that learn slowly.  One process learns all rows in commit order
(:mod:`online.learning.ordered`) and publishes its state at the parameter server now and then.  Each
replica relearns its own rows on every published copy, so that it reads its own writes, while the
previous copy goes on answering.  Without own rows, answers lag behind the feedback.

    local model = values as published  +  own rows that they do not contain
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from online.learning.deltas import CLOSED
from online.learning.ordered import OrderedLearner
from online.learning.values_in_parts import PartialValues
from online.models.base import Model, Stepwise
from paramserver.core import blocks as algebra
from paramserver.core.blocks import Blocks
from paramserver.core.wire import SyncReply
from replay.journal.base import Row


class OverlayLearner(OrderedLearner):
    """Values that another process publishes, with own rows on top.

    Parameters:
        own_rows: Whether this replica learns its own rows on top.
    """

    role: ClassVar[str] = "host"
    decides: ClassVar[bool] = False  # the learning process may be able to learn what fails here
    in_order: ClassVar[bool] = False

    def __init__(self, *args: Any, own_rows: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._own_rows = own_rows
        self._pulled: Blocks = {}
        self._coming: tuple[SyncReply, Blocks, Mapping[int, int]] | None = None

    def is_newest(self, reply: SyncReply) -> bool:
        """Whether the local values are the server's."""
        return self.version == (reply.epoch, reply.count)

    @property
    def unsent(self) -> bool:
        """Return False, since the server has these values from another process."""
        return False

    @property
    def needs_process(self) -> bool:
        """Whether the server names this replica to host the learning process."""
        return self.keeper

    def wants_values(self, *, learns: bool, rested: bool) -> bool:
        """Whether newer values may be loaded now; loading blocks everything else."""
        return rested

    def wanted(self) -> list[tuple[int, int]]:
        """``(partition, offset)`` of the next own row."""
        if not (self.follows and self._own_rows):
            return []
        own = [p for p, track in self.tracks.items() if track.end is None]
        return [(p, self._learned.get(p, 0) + 1) for p in own]

    def wants(self, row: Row) -> bool:
        """Whether the row is the next own one."""
        return (row.partition, row.offset) in self.wanted()

    def _values_of(self, reply: SyncReply, coming: PartialValues | None) -> Blocks | None:
        if reply.kind != "changes" or coming is not None:
            return super()._values_of(reply, coming)
        if self.want_all or reply.since != self.version:
            return None
        if not reply.blocks:  # the new rows changed nothing, so these values are the newest
            self.version, self._standing = (reply.epoch, reply.count), reply.learned
            clock = {**reply.clock, **dict.fromkeys(reply.closed, CLOSED)}
            for partition, last in clock.items():
                self._learned[partition] = max(last, self._learned.get(partition, 0))
            return None
        values = algebra.copy(self._pulled)
        algebra.put(values, algebra.from_wire(reply.blocks))
        return values

    def prepared(self) -> Iterator[None]:
        """Load the values that have arrived into a new copy, in steps, and switch to it."""
        coming, self._coming = self._coming, None
        if coming is None:
            return
        collects = gc.isenabled()
        gc.disable()  # a copy has no garbage; scanning half of it takes as long as ten steps
        try:
            copy = self._build()
            if isinstance(copy, Stepwise):
                yield from copy.resetting(coming[1])
            else:
                copy.reset(coming[1])
            before = self.serving
            self._begin_at(*coming, copy)  # frees as many objects as were made
            if isinstance(before, Stepwise) and before is not self.serving:
                yield
                yield from before.dropping()
        finally:
            if collects:
                gc.enable()

    def _begin_at(
        self, reply: SyncReply, values: Blocks, clock: Mapping[int, int], copy: Model | None = None
    ) -> None:
        if copy is None and self.ready and reply.rewrite == self.rewrite:
            self._coming = reply, values, clock
            return
        super()._begin_at(reply, algebra.copy(values), clock, copy)
        self._pulled = values
        self.version, self._standing = (reply.epoch, reply.count), reply.learned

    def _stand(self) -> None:
        """Keep the version, which changes only with the values."""
