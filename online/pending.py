"""What waits for the journal: the rows of a request, and one of them on its way into the store."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from online.joins import Entry
from replay.journal.base import NewRow


@dataclass(slots=True, eq=False)
class Waiting:
    """The rows of one request, the key that each has got, and what became of it."""

    rows: tuple[NewRow, ...]
    keys: list[bytes]
    done: asyncio.Future[None]
    results: list[Any]
    open: int
    decided: bool


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """One row of a request, or (``waiting`` is None) a half that nobody waits for."""

    entry: Entry
    waiting: Waiting | None = None
    i: int = 0
    half: NewRow | None = None

    @property
    def decided(self) -> bool:
        """Whether an operator has."""
        return self.waiting is not None and self.waiting.decided
