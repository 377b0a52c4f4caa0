"""Reads the control rows of one model; the only place in a replica's process that does."""

from __future__ import annotations

from typing import Final

import msgspec

from online.replica.journal_threads import JournalThreads
from online.rows.history import Decisions
from replay.journal.base import NewRow, Row, Verdict

FAILED: Final = "failed"
"""Kind of the control rows that record which rows could not be learned."""


class ControlLog:
    """Reads the decisions about a model, and records rows that could not be learned.

    Parameters:
        model, spec: The model's name, and the hash of its spec: a row that fails on one model may
            be learned by another.

    Attributes:
        decisions: What is frozen, banned, undone or failed by the control rows read so far.
    """

    def __init__(self, model: str, spec: str, store: JournalThreads) -> None:
        self.decisions = Decisions(spec)
        self._model, self._spec, self._store = model, spec, store

    def judged(self, row: NewRow) -> NewRow:
        """Return the row with its verdict: rows of a banned source are quarantined."""
        if not self.decisions.banned(row.source):
            return row
        return msgspec.structs.replace(row, verdict=Verdict.QUARANTINED)

    async def current(self) -> Decisions:
        """Read and return all decisions to date.  Waits until the journal can be read."""
        await self._store.read_retrying(self.decisions.read, self._store.journal, self._model)
        return self.decisions

    async def read(self) -> Decisions:
        """Read and return all decisions to date.  Raises ReplayError if that fails."""
        await self._store.read(self.decisions.read, self._store.journal, self._model)
        return self.decisions

    async def upto(self, seq: int) -> Decisions:
        """Return the decisions up to that control row, at least."""
        return await self.current() if seq > self.decisions.seq else self.decisions

    async def write_failed(self, row: Row, reason: str) -> None:
        """Record in the journal that the row could not be learned; the first record wins."""
        self.decisions.failed[row.key.hex()] = reason
        key = f"failed:{self._spec[:16]}:{row.key.hex()}"
        await self._store.write(
            self._store.journal.write_control, self._model, FAILED, key, reason.encode()
        )
