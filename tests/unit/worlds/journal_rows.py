"""Rows for a journal: small, and each with a key that its number says."""

from __future__ import annotations

from replay.journal.base import NewRow, Verdict


def rows(first: int, n: int = 1, size: int = 8) -> list[NewRow]:
    return [
        NewRow(i.to_bytes(16, "big"), f"e{i}", "s", Verdict.ACCEPTED, bytes(size), 1.0)
        for i in range(first, first + n)
    ]
