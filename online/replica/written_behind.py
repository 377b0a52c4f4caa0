"""Predictions that stored joins need, waiting to be written behind the answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from replay.journal.base import NewRow


class Behind:
    """Halves of stored joins that nobody waits for, up to a number and to a sum of bytes."""

    def __init__(self, rows_max: int, bytes_max: int) -> None:
        self._rows_max, self._bytes_max = rows_max, bytes_max
        self._halves: deque[NewRow] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._halves)

    def put(self, halves: Sequence[NewRow]) -> bool:
        """Take all of them, or none; whether there was room."""
        size = sum(len(half.payload) for half in halves)
        if len(self) + len(halves) > self._rows_max or self._bytes + size > self._bytes_max:
            return False
        self._halves.extend(halves)
        self._bytes += size
        return True

    def put_back(self, halves: Sequence[NewRow]) -> None:
        """Put back into their old place the halves that were taken and not written."""
        self._halves.extendleft(reversed(halves))
        self._bytes += sum(len(half.payload) for half in halves)

    def take(self, n: int) -> list[NewRow]:
        """At most ``n``, the oldest first."""
        halves = [self._halves.popleft() for _ in range(min(n, len(self)))]
        self._bytes -= sum(len(half.payload) for half in halves)
        return halves
