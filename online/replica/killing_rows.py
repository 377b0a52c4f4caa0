"""Rows that kill whoever learns them: counted in the store, because a process can't tell its death.

A claim is counted before an adopted row is learned, so a learner that dies leaves it.

* Offset 0 is claimed once by each process that begins to learn an adopted partition.  With
  ``DEATHS`` claims of others before, the process goes row by row.
* Row by row, offset ``k`` is claimed durably before row ``k`` is learned, and ``k + ENDED`` after
  it.  A learner died at row ``k`` if it has claimed the one and not the other, so whoever is
  killed between two rows, or learns rows again, is not counted.  Deaths at a row are the claims
  of ``k`` less those of ``k + ENDED``; with ``DEATHS`` of them it is not learned any more.
  (A process that has caught up says so under ``ENDED``: it did not die.)
* Of a model learned in order several processes may learn an old row at the same time.  So one
  that finds too many deaths looks again for a while: who lives will have ended by then.
* A claim whose answer was lost is taken for one that has ended: rather one death too many than a
  good row given up.

A row that kills costs its owner, ``DEATHS`` adopters that do not know yet, and ``DEATHS`` that go
row by row.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from replay.errors import JournalUnavailable
from replay.journal.base import Row

log = logging.getLogger("online.claims")

DEATHS: Final = 2
ENDED: Final = 2**40  # beyond every offset
GIVEN_UP: Final = "two learners died at this row"
_PAUSE_S = 0.2
_AGAIN_S: Final = 0.2  # between two looks at who lives


Claim = Callable[[int, int], Awaitable[int]]


class Claims:
    """Claims of one process.

    Parameters
    ----------
    claim
        Counts one more claim of (partition, offset) durably; how many there were before it.
        Raises JournalUnavailable.
    patience_s
        How long another process may take to learn a row.
    """

    def __init__(self, claim: Claim, *, patience_s: float = 0.0) -> None:
        self._claim = claim
        self._patience = round(patience_s / _AGAIN_S)
        self._row_by_row: dict[int, bool] = {}
        self._said = False  # that this process has survived
        self._begun: Row | None = None

    async def begin(self, row: Row) -> str | None:
        """To be awaited before an adopted row is learned; why it must not be, or None."""
        partition = row.partition
        if partition not in self._row_by_row:
            before = await self._open(partition, 0, self._surely)
            self._row_by_row[partition] = before >= DEATHS
            if before >= DEATHS:
                log.warning("partition %d: %d learners before; row by row", partition, before)
        if not self._row_by_row[partition]:
            return None
        self._begun = row
        if await self._open(partition, row.offset, self._begin) < DEATHS:
            return None
        self._begun = None
        return GIVEN_UP

    async def _open(self, partition: int, offset: int, begin: Claim) -> int:
        """Claim; how many claims of others have not ended, at most DEATHS are told apart."""
        begun = await begin(partition, offset)
        if begun < DEATHS:
            return begun
        opened = begun - await self._surely(partition, offset + ENDED)
        for _ in range(self._patience):
            if opened < DEATHS:
                break
            await asyncio.sleep(_AGAIN_S)
            # in place of what the look above counted as an end
            begun = await begin(partition, offset)
            opened = begun - await self._surely(partition, offset + ENDED)
        if opened < DEATHS or offset == 0:
            await begin(partition, offset)
        return opened

    async def survived(self) -> None:
        """This process has learned all that was there when it began, and lives."""
        survived, self._row_by_row = list(self._row_by_row), dict.fromkeys(self._row_by_row, False)
        if self._said:
            return
        self._said = True
        for partition in survived:
            await self._surely(partition, ENDED)

    def careful(self, partition: int) -> bool:
        """Whether the partition's rows are learned row by row."""
        return self._row_by_row.get(partition, False)

    async def end(self) -> None:
        """To be awaited when the row that was begun is learned, or will not be by this process."""
        if (row := self._begun) is not None:
            await self._surely(row.partition, row.offset + ENDED)
            self._begun = None

    async def _begin(self, partition: int, offset: int) -> int:
        while True:
            try:
                return await self._claim(partition, offset)
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await self._surely(partition, offset + ENDED)

    async def _surely(self, partition: int, offset: int) -> int:
        while True:
            try:
                return await self._claim(partition, offset)
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(_PAUSE_S)
