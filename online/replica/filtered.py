"""Rows are judged by the filters a few at a time, before they are written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from online.trust.filtering import Filtering
from replay.example import Example
from replay.journal.base import NewRow

_JUDGED_ROWS: Final = 8  # in one turn of the loop: .1 ms a row


async def filtered(
    filters: Filtering, rows: Sequence[NewRow], examples: list[Example | None]
) -> list[NewRow]:
    """Let the filters judge a few rows at a time: predictions have a turn in between.

    ``examples`` become what the judged rows say.
    """
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
