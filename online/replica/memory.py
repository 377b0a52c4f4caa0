"""The memory of a model in one replica, kept clean of sources that are quarantined or banned."""

from __future__ import annotations

import logging

from online.replica.memory_settings import fill
from online.replica.shared import Shared
from online.trust.filtering import Filtering
from replay.errors import ReplayError

log = logging.getLogger(__name__)


class Remembering:
    """This class tends what is kept of the stream to be learned again, if the settings want that.

    Parameters:
        shared: Its learner has the memory; none of it: nothing is done here.
        filters: Who is quarantined; None: nobody.
    """

    def __init__(self, shared: Shared, filters: Filtering | None) -> None:
        self._learner, self._control, self._store = shared.learner, shared.control, shared.store
        self._counts, self._settings, self._filters = shared.counts, shared.settings, filters
        self._banned_by = 0  # newest control row by which banned sources were purged
        if filters is not None:
            filters.reputations.on_quarantine = self.purge

    def alarm(self) -> None:
        """The error has risen: what is kept of before is of another stream."""
        if self._learner.memory is not None:
            self._learner.memory.alarm()

    def purge(self, source: str) -> None:
        """Learn nothing again that the source has sent."""
        if self._learner.memory is not None:
            self._counts["replay_purged"] += self._learner.memory.purge(source)

    def look(self) -> None:
        """Purge those banned since the last look."""
        decisions = self._control.decisions
        if decisions.seq > self._banned_by:
            self._banned_by = decisions.seq
            for source in decisions.bans:
                self.purge(source)

    async def fill(self) -> None:
        """Keep what the journal has of the stream; a rollback has taken some of it out."""
        memory = self._learner.memory
        if memory is None:
            return
        name, rows = self._settings.name, self._settings.replay.rebuild_rows
        try:
            decisions = await self._control.current()
            fresh = memory.emptied()
            n = await self._store.read(fill, fresh, self._store.journal, name, rows, decisions)
        except ReplayError as error:
            log.warning("nothing is rehearsed of what came before: %s", error)
            return
        self._learner.memory = fresh
        quarantined = () if self._filters is None else self._filters.reputations.quarantined
        for source in (*quarantined, *decisions.bans):
            self.purge(source)
        log.info("model %s: %d of %d rows kept to be learned again", name, len(fresh.buffer), n)
