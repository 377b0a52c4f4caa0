"""The last pushes that a server has applied: what they touched, and whose they were."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from paramserver.blocks import Touched, add_touched


@dataclass(frozen=True, slots=True)
class Applied:
    """One applied push: the count that it made, whose it was, its rows, and what it touched."""

    count: int
    partition: int
    rows: int
    touched: Touched


class AppliedPushes:
    """The newest pushes of one epoch, as many as are remembered.

    Parameters
    ----------
    most
        Pushes that are remembered; of older ones nothing is known.
    """

    def __init__(self, most: int) -> None:
        self._newest: deque[Applied] = deque(maxlen=most)

    def note(self, applied: Applied) -> None:
        """Remember the push that made the newest count."""
        self._newest.append(applied)

    def by_others(self, partition: int, after: int) -> list[Applied]:
        """Pushes with rows of other partitions since a count, the newest first."""
        others = []
        for applied in reversed(self._newest):
            if applied.count <= after:
                break
            if applied.rows > 0 and applied.partition != partition:
                others.append(applied)
        return others

    def touched_since(self, after: int, now: int) -> Touched | None:
        """All that was touched between two counts; None: that is not known any more."""
        oldest = self._newest[0].count - 1 if self._newest else now
        if not oldest <= after <= now:
            return None
        touched: Touched = {}
        for applied in reversed(self._newest):
            if applied.count <= after:
                break
            add_touched(touched, applied.touched)
        return touched
