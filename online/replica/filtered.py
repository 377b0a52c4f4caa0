"""Rows are judged by the filters a few at a time, before they are written."""

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

_JUDGED_ROWS: Final = 8  # in one turn of the loop: .1 ms a row


class Filtered:
    """The filters of one model as its writer asks them; None: all rows are taken as they are.

    After :meth:`judge` one of the others is called with what became of the rows.
    """

    def __init__(self, filters: Filtering | None) -> None:
        self._filters = filters
        self.present = filters is not None

    async def judge(self, rows: list[NewRow], examples: list[Example | None]) -> list[NewRow]:
        """Let the filters judge a few rows at a time: predictions have a turn in between.

        ``examples`` become what the judged rows say.  Raises Unjudged if a filter raises, and then
        nothing is left of what they made of the rows before.
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
        """The rows stand, or were there before."""
        if self._filters is not None:
            self._filters.committed(rows, outcomes)

    def dropped(self) -> None:
        """Nothing of the rows was written."""
        if self._filters is not None:
            self._filters.dropped()

    def leave(self, partition: int) -> None:
        """Somebody else learns what is not learned yet of the partition."""
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
