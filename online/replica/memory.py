"""Maintains a model's rehearsal memory, and purges quarantined or banned sources from it."""

from __future__ import annotations

import logging

from online.replica.memory_settings import fill
from online.replica.shared import ReplicaParts
from online.trust.filtering import Filtering
from replay.errors import ReplayError

log = logging.getLogger(__name__)


class MemoryUpkeep:
    """Maintains the rows kept for rehearsal, if the settings enable it.

    Parameters:
        shared: Its learner owns the memory; without one, all methods do nothing.
        filters: Reports sources that become quarantined; None: there are no filters.
    """

    def __init__(self, shared: ReplicaParts, filters: Filtering | None) -> None:
        self._learner, self._control, self._store = shared.learner, shared.control, shared.store
        self._counts, self._settings, self._filters = shared.counts, shared.settings, filters
        self._banned_by = 0  # newest control row whose bans are purged
        if filters is not None:
            filters.reputations.on_quarantine = self.purge

    def alarm(self) -> None:
        """Handle a rise of the error: the kept rows are of an outdated stream."""
        if self._learner.memory is not None:
            self._learner.memory.alarm()

    def purge(self, source: str) -> None:
        """Remove all kept rows of the source."""
        if self._learner.memory is not None:
            self._counts["replay_purged"] += self._learner.memory.purge(source)

    def look(self) -> None:
        """Purge the sources that were banned since the last call."""
        decisions = self._control.decisions
        if decisions.seq > self._banned_by:
            self._banned_by = decisions.seq
            for source in decisions.bans:
                self.purge(source)

    async def fill(self) -> None:
        """Rebuild the memory from the journal, at the start and after a rewrite."""
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
