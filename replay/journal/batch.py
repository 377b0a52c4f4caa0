"""Checks of a batch of rows that every journal performs before it calls its store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Final

from replay.errors import BatchSize, RowInvalid
from replay.journal.base import NewRow

KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """Greatest number of rows in one append (≥ 1), and of stored halves for each model."""

    batch_rows: int = 1024
    halves: int = 100_000


BOUNDS: Final = Bounds()


def check_batch(rows: Sequence[NewRow], rows_max: int) -> None:
    """Raise BatchSize or RowInvalid for values that a store would alter or could not hold."""
    if not 0 < len(rows) <= rows_max:
        raise BatchSize(len(rows), rows_max)
    for row in rows:
        plain = row.half is None and row.event_id.isascii() and row.source.isascii()
        if not plain or len(row.key) != KEY_BYTES or not (0 < row.factor <= 1 and isfinite(row.at)):
            _check(row)


def _check(row: NewRow) -> None:
    if len(row.key) != KEY_BYTES:
        raise RowInvalid("key", f"{len(row.key)} bytes", f"give {KEY_BYTES} bytes")
    if not 0 < row.factor <= 1:
        raise RowInvalid("factor", repr(row.factor), "give a number in (0, 1]")
    if not isfinite(row.at):
        raise RowInvalid("at", repr(row.at), "give POSIX seconds")
    if row.half is not None and not row.payload and row.over is None:
        raise RowInvalid("payload", "empty", "give a half's payload, or what it removes in over")
    for field in (row.event_id, row.source):
        if not field.isascii() and field.encode(errors="replace").decode() != field:
            raise RowInvalid("event_id or source", ascii(field), "give valid Unicode text")
