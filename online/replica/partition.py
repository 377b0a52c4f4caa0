"""The journal partition that this process writes: its number and its last known offset."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from online.replica.shared import ReplicaParts
from replay.errors import JournalUnavailable, PartitionSealed
from replay.journal.base import Appended, NewRow

log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.02  # between two attempts to write, at first
_PAUSE_MAX_S: Final = 1.0
_UNOPENED_S: Final = 0.2  # between two attempts to take a partition


class Partition:
    """Appends to one partition of the journal, and to a new one after that is sealed.

    Parameters:
        moves_on: Awaited after another process has sealed the partition; it must open a new one.

    Attributes:
        number, known: The partition's number, and the last offset that the store has confirmed.
        new_server: Whether the last append returned a server epoch that was not known before.
    """

    def __init__(self, shared: ReplicaParts, moves_on: Callable[[], Awaitable[None]]) -> None:
        self.number = self.known = 0
        self.new_server = False
        self._shared, self._store, self._counts = shared, shared.store, shared.counts
        self._moves_on = moves_on
        self._epoch = 0

    def _seen(self) -> int:
        """Epoch of the local model's values; a store that does not know it has lost rows.

        The offsets of a newly registered partition would not show such a loss.
        """
        return self._shared.learner.answer_version[0]

    async def open(self) -> None:
        """Register a new partition; retries until the store answers."""
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
        """Append rows, retrying until the outcome is known.

        Raises ReplayError if nothing was written.
        """
        pause_s, certain = _PAUSE_S, True  # certain: no attempt so far has written anything
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
                # Another process took this replica for dead, and learns its rows.
                self._counts["sealed"] += 1
                await self._moves_on()
            except JournalUnavailable as error:
                if error.definite and certain:
                    raise
                certain = certain and error.definite
                self._counts["journal_retries"] += 1
                log.warning("journal: %s", error)
                await asyncio.sleep(pause_s)  # then the same batch: its keys make that idempotent
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)
        self.known = appended.end
        self.new_server = appended.epoch != self._epoch
        self._epoch = appended.epoch
        return appended
