"""Rows that kill whoever learns them: counted in the store, because a process can't tell its death.

A claim is counted before an adopted row is learned, so a learner that dies leaves it.

* Offset 0 is claimed once by each process that begins to learn an adopted partition.  With
  ``ADOPTERS`` claims of others before, the process goes row by row.
* Row by row, offset ``k`` is claimed durably before row ``k`` is learned, and ``k + ENDED`` after
  it; ``k + LEFT`` if it was not learned after all.  A learner died at row ``k`` if it has claimed
  the one and neither of the others, so whoever is killed between two rows, or learns rows again,
  is not counted.
  (A process that has learned all of the partition, or has caught up, says so under ``ENDED``: it
  did not die.  A partition is adopted again whenever the journal is learned again.)
* A row that kills has ``DEATHS`` of them, and kills nearly whoever learns it.  A machine that
  kills at random instants ends processes at good rows, too: most of the time of a row goes into
  its two claims.  Those rows have been learned and lived through as well, so a row is given up
  only if it has killed more than ``OUTLIVED`` times as many as have lived.
* Of a model learned in order several processes may learn an old row at the same time.  So one
  that finds too many deaths looks again for a while: who lives will have ended by then.
* Whether a claim whose answer was lost has counted is seen in the count, where another process's
  claim may be taken for it: rather one death too many than a good row given up.

A row that kills costs its owner, ``ADOPTERS`` processes that do not know yet, and ``DEATHS`` that
go row by row.
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
ENDED: Final = 2**40  # beyond every offset
LEFT: Final = 2 * ENDED
GIVEN_UP: Final = "three learners died at this row"
_PAUSE_S = 0.2
_AGAIN_S: Final = 0.2  # between two looks at who lives


Claim = Callable[[int, int], Awaitable[int]]


class Claims:
    """Claims of one process.

    Parameters:
        claim: Counts one more claim of (partition, offset) durably; how many there were before it.
            Raises JournalUnavailable.
        claims: How many there are.  Raises JournalUnavailable.
        patience_s: How long another process may take to learn a row.
    """

    def __init__(self, claim: Claim, claims: Claim, *, patience_s: float = 0.0) -> None:
        self._claim, self._claims = claim, claims
        self._patience = round(patience_s / _AGAIN_S)
        self._row_by_row: dict[int, bool] = {}
        self._said = False  # that this process has survived
        self._outlived: set[int] = set()  # of these by name
        self._begun: Row | None = None

    async def begin(self, row: Row) -> str | None:
        """To be awaited before an adopted row is learned; why it must not be, or None."""
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
        """Claim the row; whether it has killed too many of those before who have claimed it."""
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
        """This process has learned all that was there when it began, and lives."""
        survived, self._row_by_row = list(self._row_by_row), dict.fromkeys(self._row_by_row, False)
        if self._said:
            return
        self._said = True
        self._outlived.update(survived)
        for partition in survived:
            await self._count(partition, ENDED)

    async def ended(self, partition: int) -> None:
        """This process has learned all of an adopted partition, and lives."""
        known = self._row_by_row.pop(partition, None) is not None
        if known and partition not in self._outlived:
            await self._count(partition, ENDED)
        self._outlived.discard(partition)

    def careful(self, partition: int) -> bool:
        """Whether the partition's rows are learned row by row."""
        return self._row_by_row.get(partition, False)

    async def end(self, *, learned: bool) -> None:
        """To be awaited when the row that was begun is learned, or will not be by this process."""
        if (row := self._begun) is not None:
            await self._count(row.partition, row.offset + (ENDED if learned else LEFT))
            self._begun = None

    async def _count(self, partition: int, offset: int) -> int:
        """One more claim, durably; how many there were before it."""
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
