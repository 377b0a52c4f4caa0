"""The partition that this process writes: its number, and the last offset that is known of it."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from online.replica.journal_threads import JournalThreads
from replay.errors import JournalUnavailable, PartitionSealed
from replay.journal.base import Appended, NewRow

log = logging.getLogger("online.writer")

_PAUSE_S = 0.02  # between two attempts to write, at first
_PAUSE_MAX_S = 1.0


class Partition:
    """Appends to one partition of the journal, and to the next one when somebody has sealed it.

    Parameters
    ----------
    seen
        Epoch of the local model's values: a store that does not know it has lost rows, and a
        partition that is new there would not show it.
    moves_on
        Awaited when somebody has sealed it: opens another one and returns its number.

    Attributes
    ----------
    number, known
        Its number, and the last offset that there was an answer for.
    new_server
        Whether the last append has met a server's epoch that was not known.
    """

    def __init__(
        self,
        store: JournalThreads,
        counts: Counter[str],
        seen: Callable[[], int],
        moves_on: Callable[[int], Awaitable[int]],
    ) -> None:
        self.number = self.known = 0
        self.new_server = False
        self._store, self._counts = store, counts
        self._seen, self._moves_on = seen, moves_on
        self._epoch = 0

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
                self.number, self.known = await self._moves_on(self.number), 0
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
