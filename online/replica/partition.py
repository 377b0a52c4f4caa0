"""The partition that this process writes: its number, and the last offset that is known of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from online.replica.shared import Shared
from replay.errors import JournalUnavailable, PartitionSealed
from replay.journal.base import Appended, NewRow

log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.02  # between two attempts to write, at first
_PAUSE_MAX_S: Final = 1.0
_UNOPENED_S: Final = 0.2  # between two attempts to take a partition


class Partition:
    """Appends to one partition of the journal, and to the next one when somebody has sealed it.

    Parameters:
        moves_on: Awaited when somebody has sealed it: has another one opened.

    Attributes:
        number, known: Its number, and the last offset that there was an answer for.
        new_server: Whether the last append has met a server's epoch that was not known.
    """

    def __init__(self, shared: Shared, moves_on: Callable[[], Awaitable[None]]) -> None:
        self.number = self.known = 0
        self.new_server = False
        self._shared, self._store, self._counts = shared, shared.store, shared.counts
        self._moves_on = moves_on
        self._epoch = 0

    def _seen(self) -> int:
        """Epoch of the local model's values: a store that does not know it has lost rows.

        A partition that is new there would not show it.
        """
        return self._shared.learner.answer_version[0]

    async def open(self) -> None:
        """Take a new one, however long that takes."""
        model, who, now_s = self._shared.settings.name, self._shared.who, self._shared.clocks.now_s
        register = self._store.journal.register
        while True:
            try:
                opened = await self._store.write(register, model, who.replica, who.spec, now_s())
                break
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(_UNOPENED_S)
        self.number, self.known = int(opened.id), 0
        if who.learns:
            self._shared.learner.open_partition(self.number)

    async def append(self, rows: Sequence[NewRow]) -> Appended:
        """Write, as often as it takes to know.  Raises ReplayError if nothing was written."""
        pause_s, certain = _PAUSE_S, True  # that no attempt so far has written anything
        while True:
            try:
                appended: Appended = await self._store.write(
                    self._store.journal.append,
                    self.number,
                    self.known,
                    rows,
                    max(self._epoch, self._seen()),
                )
                break
            except PartitionSealed:
                # Somebody thought this replica dead and learns its rows.
                self._counts["sealed"] += 1
                await self._moves_on()
            except JournalUnavailable as error:
                if error.definite and certain:
                    raise
                certain = certain and error.definite
                self._counts["journal_retries"] += 1
                log.warning("journal: %s", error)
                await asyncio.sleep(pause_s)  # the same batch again: its rows are known by key
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)
        self.known = appended.end
        self.new_server = appended.epoch != self._epoch
        self._epoch = appended.epoch
        return appended
