"""The control rows of one model are read here, and nowhere else in a replica's process."""

from __future__ import annotations

from typing import Final

import msgspec

from online.replica.journal_threads import JournalThreads
from online.rows.history import Decisions
from replay.journal.base import NewRow, Row, Verdict

FAILED: Final = "failed"
"""Kind of the control rows that say which rows could not be learned."""


class ControlLog:
    """Reads what is decided about a model, and writes which rows could not be learned.

    Parameters:
        model, spec: Its name, and the hash of its spec: a row that one model fails on another may
            learn.

    Attributes:
        decisions: What is frozen, banned, undone or failed by the control rows that were read.
    """

    def __init__(self, model: str, spec: str, store: JournalThreads) -> None:
        self.decisions = Decisions(spec)
        self._model, self._spec, self._store = model, spec, store

    def judged(self, row: NewRow) -> NewRow:
        """The row with its verdict: that of a banned source is quarantined."""
        if not self.decisions.banned(row.source):
            return row
        return msgspec.structs.replace(row, verdict=Verdict.QUARANTINED)

    async def current(self) -> Decisions:
        """Return what is decided by now.  Waits until the journal can be read."""
        await self._store.surely(self.decisions.read, self._store.journal, self._model)
        return self.decisions

    async def read(self) -> Decisions:
        """Return what is decided by now.  Raises ReplayError if the journal cannot be read."""
        await self._store.read(self.decisions.read, self._store.journal, self._model)
        return self.decisions

    async def upto(self, seq: int) -> Decisions:
        """Return what is decided up to that control row, at least."""
        return await self.current() if seq > self.decisions.seq else self.decisions

    async def write_failed(self, row: Row, reason: str) -> None:
        """Say in the journal that the row could not be learned; the first to say so wins."""
        self.decisions.failed[row.key.hex()] = reason
        key = f"failed:{self._spec[:16]}:{row.key.hex()}"
        await self._store.write(
            self._store.journal.write_control, self._model, FAILED, key, reason.encode()
        )
