"""Finds rows that kill the process learning them, by claims counted in the store.

A process cannot record its own death, so a claim is counted before an adopted row is learned; a
learner that dies leaves its claim behind.

* Offset 0 is claimed once by each process that begins to learn an adopted partition.  If
  ``ADOPTERS`` other processes claimed it before, the process learns row by row.
* Row by row, offset ``k`` is claimed durably before row ``k`` is learned, and ``k + ENDED`` after
  it, or ``k + LEFT`` if it was not learned after all.  A learner has died at row ``k`` if it
  claimed ``k`` but neither of the others, so a process that is killed between two rows, or learns
  rows again, is not counted.
  (A process that has learned the whole partition, or has caught up, claims ``ENDED`` to show that
  it did not die.  A partition is adopted again whenever the journal is replayed.)
* A killing row reaches ``DEATHS``, and kills nearly every learner.  A machine that kills processes
  at random instants also ends them at harmless rows, since most of a row's time goes into its two
  claims.  But other learners survive such rows, so a row is given up only if its deaths exceed
  ``OUTLIVED`` times its survivals.
* With a model learned in order, several processes may learn an old row at the same time.  So a
  process that finds too many deaths checks again for a while: a live learner will have ended.
* Whether a claim without an answer was counted is read from the count, where another process's
  claim may be mistaken for it.  That may cost one more death, but gives up no harmless row.

A killing row costs its owner, the first ``ADOPTERS`` adopters, and ``DEATHS`` row-by-row learners.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from replay.errors import JournalUnavailable
from replay.journal.base import Row

log = logging.getLogger(__name__)

ADOPTERS: Final = 2
DEATHS: Final = 3
OUTLIVED: Final = 2
ENDED: Final = 2**40  # larger than every offset
LEFT: Final = 2 * ENDED
GIVEN_UP: Final = "three learners died at this row"
_PAUSE_S = 0.2
_AGAIN_S: Final = 0.2  # between two checks for survivors


Claim = Callable[[int, int], Awaitable[int]]


class Claims:
    """Claims of one process.

    Parameters:
        claim: Counts one more claim of (partition, offset) durably; returns the count before it.
            Raises JournalUnavailable.
        claims: Returns the count of (partition, offset).  Raises JournalUnavailable.
        patience_s: How long another process may take to learn a row, in seconds.
    """

    def __init__(self, claim: Claim, claims: Claim, *, patience_s: float = 0.0) -> None:
        self._claim, self._claims = claim, claims
        self._patience = round(patience_s / _AGAIN_S)
        self._row_by_row: dict[int, bool] = {}
        self._said = False  # whether this process has recorded that it survived
        self._outlived: set[int] = set()  # partitions for which it has
        self._begun: Row | None = None

    async def begin(self, row: Row) -> str | None:
        """Claim an adopted row before it is learned; return why it must not be learned, or None."""
        partition = row.partition
        if partition not in self._row_by_row:
            before = await self._count(partition, 0)
            if careful := before >= ADOPTERS:
                before -= await self._known(partition, ENDED)
                careful = before >= ADOPTERS
            self._row_by_row[partition] = careful
            if careful:
                log.warning(
                    "partition %d: %d processes ended before they had learned all of its rows; "
                    "they are learned one by one now, to find one that ends them",
                    partition,
                    before,
                )
        if not self._row_by_row[partition]:
            return None
        self._begun = row
        if not await self._kills(partition, row.offset):
            return None
        self._begun = None
        return GIVEN_UP

    async def _kills(self, partition: int, offset: int) -> bool:
        """Claim the row; return whether too many earlier claimants have died at it."""
        begun = await self._count(partition, offset)
        if begun < DEATHS:
            return False
        for look in range(1 + self._patience):
            if look:
                await asyncio.sleep(_AGAIN_S)
            ended = await self._known(partition, offset + ENDED)
            deaths = begun - ended - await self._known(partition, offset + LEFT)
            if deaths < DEATHS or deaths <= OUTLIVED * ended:
                return False
        return True

    async def survived(self) -> None:
        """Record that this process has learned all rows that existed when it began."""
        survived, self._row_by_row = list(self._row_by_row), dict.fromkeys(self._row_by_row, False)
        if self._said:
            return
        self._said = True
        self._outlived.update(survived)
        for partition in survived:
            await self._count(partition, ENDED)

    async def ended(self, partition: int) -> None:
        """Record that this process has learned a whole adopted partition."""
        known = self._row_by_row.pop(partition, None) is not None
        if known and partition not in self._outlived:
            await self._count(partition, ENDED)
        self._outlived.discard(partition)

    def careful(self, partition: int) -> bool:
        """Whether the partition's rows are learned row by row."""
        return self._row_by_row.get(partition, False)

    async def end(self, *, learned: bool) -> None:
        """Close the claim of the current row, after it was learned or given up by this process."""
        if (row := self._begun) is not None:
            await self._count(row.partition, row.offset + (ENDED if learned else LEFT))
            self._begun = None

    async def _count(self, partition: int, offset: int) -> int:
        """Add a claim durably; return the count before it."""
        while True:
            known = await self._known(partition, offset)
            try:
                return await self._claim(partition, offset)
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(_PAUSE_S)
            if await self._known(partition, offset) > known:
                return known

    async def _known(self, partition: int, offset: int) -> int:
        while True:
            try:
                return await self._claims(partition, offset)
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(_PAUSE_S)
