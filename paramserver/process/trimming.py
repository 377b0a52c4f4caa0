"""Removing what no start and no repeat can ask for again, in small steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final

from paramserver.core.state import Contained
from paramserver.store import PartitionInfo, Store

STEP: Final = 500  # rows or halves of one transaction: writers wait for it
_BUDGET_S: Final = 0.5  # of one run, for each of the two
_STEPS_AT_ONCE: Final = 2  # of running time
_AHEAD_S: Final = 3600.0  # later than now by more: the clock was wrong when it was taken


class Trimming:
    """Trims the rows of one lineage's model, and its halves of rows, when two clocks call them old.

    The wall clock proves nothing by itself: it may be wrong by a month when a server starts.  So
    the time for which servers run is summed in the store, each row is written with the sum of its
    time, and a row goes only when both say so.

    * The sum grows by what the monotonic clock says has passed, at most two steps at once: what a
      machine slept, a process that stood still or an answer that was lost makes it smaller, never
      larger.  While nothing runs it stands, and rows stay for longer.
    * A row that was taken more than an hour from now was stamped by a wrong clock.  Then its stamp
      says nothing, and neither keeps the row for a month nor those behind it: the sum decides.

    Parameters:
        keep_rows_s, halves_keep_s: Rows and halves taken within so many seconds stay, whatever the
            snapshots contain.
        step_s: Seconds between two additions to the sum.
        wall, monotonic: Clocks in seconds.
    """

    def __init__(
        self,
        keep_rows_s: float,
        halves_keep_s: float,
        step_s: float,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._keep_rows_s, self._halves_keep_s, self._step_s = keep_rows_s, halves_keep_s, step_s
        self._wall, self._monotonic = wall, monotonic
        self._counted_s: float | None = None  # from when on a server counts: it has the epoch then
        self._ran_ms = 0

    def count(self, store: Store, model: str, spec: str, epoch: int) -> None:
        """Add what has passed since the last time, if that is a step; raises as the store does."""
        now_s = self._monotonic()
        passed_s = 0.0 if self._counted_s is None else now_s - self._counted_s
        if passed_s < self._step_s and self._counted_s is not None:
            return
        self._counted_s = now_s  # before the store is asked: nothing is counted twice
        ms = int(1000 * min(passed_s, _STEPS_AT_ONCE * self._step_s))
        self._ran_ms = store.run(model, spec, epoch, ms)

    def run(self, store: Store, model: str, spec: str, epoch: int, upto: Mapping[int, int]) -> None:
        """Remove what may go, as far as the time allows; the next run goes on.

        Raises whatever the store raises, also if the epoch is no longer the newest.
        """
        self.count(store, model, spec, epoch)
        trim = partial(store.trim, model, spec, epoch, upto)
        self._repeat(trim, self._keep_rows_s)
        self._repeat(partial(store.expire, model), self._halves_keep_s)

    def _repeat(self, remove: Callable[..., int], keep_s: float) -> None:
        """Remove what was taken, and written, more than ``keep_s`` ago."""
        now_s, end_s = self._wall(), self._monotonic() + _BUDGET_S
        # a row has the sum of the last addition, and was written up to the next one
        least_s = keep_s + _STEPS_AT_ONCE * self._step_s
        bounds = {"ahead": now_s + _AHEAD_S, "ran": self._ran_ms - 1000 * least_s}
        while remove(now_s - keep_s, STEP, **bounds) >= STEP and self._monotonic() < end_s:
            pass


def contained_in_all(
    kept: Collection[Contained], partitions: Iterable[PartitionInfo]
) -> dict[int, int]:
    """By partition: the offset up to which every snapshot contains its rows."""
    upto = {}
    for p in partitions:
        last = [p.end if p.id in s.closed else s.clock.get(p.id, 0) for s in kept]
        if (least := min(last, default=0)) > 0:
            upto[p.id] = least
    return upto
