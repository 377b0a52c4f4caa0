"""Removes journal rows that no start and no repeated request can need, in small steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final

from paramserver.core.state import Contained
from paramserver.store import PartitionInfo, Store

STEP: Final = 500  # rows or halves per transaction; writers wait for each
_BUDGET_S: Final = 0.5  # time limit of one run, for rows and for halves each
_STEPS_AT_ONCE: Final = 2  # at most this many steps of running time are added at once
_AHEAD_S: Final = 3600.0  # a row stamped further in the future was stamped by a wrong clock


class Trimming:
    """Removes rows of a model, and halves of rows, once two clocks agree that they are old.

    The wall clock alone is not trusted: it may be wrong by a month when a server starts.  So the
    running time of the servers is summed in the store, each row is written with the sum at its
    time, and a row is removed only when it is old by both.

    * The sum grows by the elapsed monotonic time, at most two steps at once.  Suspension of the
      machine, a stalled process or a lost reply make the sum too small, never too large.  While no
      server runs it does not grow, and rows are kept for longer.
    * A row stamped more than an hour in the future was stamped by a wrong clock.  For such a row
      the sum alone decides, so that it does not keep itself and later rows for a month.

    Parameters:
        keep_rows_s, halves_keep_s: Rows and halves are kept for at least so many seconds, whatever
            the snapshots contain.
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
        self._counted_s: float | None = None  # time of the last addition; None before the first
        self._ran_ms = 0

    def count(self, store: Store, model: str, spec: str, epoch: int) -> None:
        """Add the time since the last call to the sum, if it is a step; raises as the store."""
        now_s = self._monotonic()
        passed_s = 0.0 if self._counted_s is None else now_s - self._counted_s
        if passed_s < self._step_s and self._counted_s is not None:
            return
        self._counted_s = now_s  # before the store's call, so that no time is added twice
        ms = int(1000 * min(passed_s, _STEPS_AT_ONCE * self._step_s))
        self._ran_ms = store.run(model, spec, epoch, ms)

    def run(self, store: Store, model: str, spec: str, epoch: int, upto: Mapping[int, int]) -> None:
        """Remove old rows and halves within the time limit; the next run continues.

        Raises any error of the store, also if the epoch is no longer the newest.
        """
        self.count(store, model, spec, epoch)
        trim = partial(store.trim, model, spec, epoch, upto)
        self._repeat(trim, self._keep_rows_s)
        self._repeat(partial(store.expire, model), self._halves_keep_s)

    def _repeat(self, remove: Callable[..., int], keep_s: float) -> None:
        """Remove what was received, by both clocks, more than ``keep_s`` ago."""
        now_s, end_s = self._wall(), self._monotonic() + _BUDGET_S
        # a row carries the sum at the last addition before it, so it may be a step younger
        least_s = keep_s + _STEPS_AT_ONCE * self._step_s
        bounds = {"ahead": now_s + _AHEAD_S, "ran": self._ran_ms - 1000 * least_s}
        while remove(now_s - keep_s, STEP, **bounds) >= STEP and self._monotonic() < end_s:
            pass


def contained_in_all(
    kept: Collection[Contained], partitions: Iterable[PartitionInfo]
) -> dict[int, int]:
    """Return by partition the offset up to which every snapshot contains its rows."""
    upto = {}
    for p in partitions:
        last = [p.end if p.id in s.closed else s.clock.get(p.id, 0) for s in kept]
        if (least := min(last, default=0)) > 0:
            upto[p.id] = least
    return upto
