"""Judges rows by the filters before they are written, a few at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from online.replica.refused import Unjudged
from online.trust.filtering import Filtering
from replay.errors import ReplayError
from replay.example import Example
from replay.journal.base import NewRow, Outcome

log = logging.getLogger(__name__)

_JUDGED_ROWS: Final = 8  # in one turn of the event loop: 0.1 ms a row


class Filtered:
    """One model's filters as its writer calls them; without any, all rows are accepted.

    After :meth:`judge`, call :meth:`committed` or :meth:`dropped` with the outcome.
    """

    def __init__(self, filters: Filtering | None) -> None:
        self._filters = filters
        self.present = filters is not None

    async def judge(self, rows: list[NewRow], examples: list[Example | None]) -> list[NewRow]:
        """Judge rows a few at a time, so that predictions can run in between.

        Returns the rows with their verdicts; ``examples`` is updated in place to their content.
        Raises Unjudged if a filter raises; the filters' state is then as before the call.
        """
        if self._filters is None:
            return rows
        try:
            return await _judged(self._filters, rows, examples)
        except Exception as error:
            self._filters.dropped()
            if isinstance(error, ReplayError):
                raise
            log.exception("%d rows can't be judged together", len(rows))
            raise Unjudged(f"{type(error).__name__}: {error}") from error

    def committed(self, rows: Sequence[NewRow], outcomes: Sequence[Outcome]) -> None:
        """Tell the filters that the rows were written, or were already in the journal."""
        if self._filters is not None:
            self._filters.committed(rows, outcomes)

    def dropped(self) -> None:
        """Tell the filters that none of the judged rows was written."""
        if self._filters is not None:
            self._filters.dropped()

    def leave(self, partition: int) -> None:
        """Tell the filters that another process learns the rest of the partition."""
        if self._filters is not None:
            self._filters.reputations.leave(partition)


async def _judged(
    filters: Filtering, rows: Sequence[NewRow], examples: list[Example | None]
) -> list[NewRow]:
    if filters.sleeps_through(rows, examples):
        return list(rows)
    out: list[NewRow] = []
    for i in range(0, len(rows), _JUDGED_ROWS):
        if i:
            await asyncio.sleep(0)
        stop = i + _JUDGED_ROWS
        some = examples[i:stop]
        out += filters.judge(rows[i:stop], some, more=bool(i))
        examples[i:stop] = some
    return out
