"""Goes through a model's rows in the journal's commit order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from replay.journal.base import Journal, Row

PAGE_ROWS: Final = 1_000


def rows_after(journal: Journal, model: str, after: int = 0) -> Iterator[Row]:
    """Yield all rows with ``seq > after``, also those that come meanwhile."""
    while True:
        page = journal.follow(model, after, PAGE_ROWS)
        yield from page.rows
        if len(page.rows) < PAGE_ROWS:
            return
        after = page.upto
