"""Removing what no start and no repeat can ask for again, in small steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from paramserver.state import Contained
from paramserver.store import PartitionInfo, Store

STEP: Final = 500  # rows or halves of one transaction: writers wait for it
_BUDGET_S: Final = 0.5  # of one run, for each of the two
_AHEAD_S: Final = 3600.0


class Trimming:
    """Trims the rows of one lineage's model, and its halves of rows.

    A wall clock that jumps forward must not make everything old: it counts no further than an
    hour ahead of what the monotonic clock says has passed since the start.

    Parameters
    ----------
    keep_rows_s, halves_keep_s
        Rows and halves taken within so many seconds stay, whatever the snapshots contain.
    wall, monotonic
        Clocks in seconds.
    """

    def __init__(
        self,
        keep_rows_s: float,
        halves_keep_s: float,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._keep_rows_s, self._halves_keep_s = keep_rows_s, halves_keep_s
        self._wall, self._monotonic = wall, monotonic
        self._ahead_s = wall() - monotonic() + _AHEAD_S

    def run(self, store: Store, model: str, spec: str, epoch: int, upto: Mapping[int, int]) -> None:
        """Remove what may go, as far as the time allows; the next run goes on.

        Raises whatever the store raises, also if the epoch is no longer the newest.
        """
        now_s = min(self._wall(), self._monotonic() + self._ahead_s)
        rows_before, halves_before = now_s - self._keep_rows_s, now_s - self._halves_keep_s
        self._repeat(lambda: store.trim(model, spec, epoch, upto, rows_before, STEP))
        self._repeat(lambda: store.expire(model, halves_before, STEP))

    def _repeat(self, step: Callable[[], int]) -> None:
        end_s = self._monotonic() + _BUDGET_S
        while step() >= STEP and self._monotonic() < end_s:
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
