"""Predictions that stored joins need, waiting to be written behind the answers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from replay.journal.base import NewRow


class Behind:
    """Halves of stored joins that nobody waits for, up to a number and to a sum of bytes.

    Sources that tokens stand for share the room: one whose halves wait here already takes no more
    than half of what the others leave, so whoever asks without end keeps nobody else out.
    """

    def __init__(self, rows_max: int, bytes_max: int) -> None:
        self._rows_max, self._bytes_max = rows_max, bytes_max
        self._halves: deque[NewRow] = deque()
        self._bytes = 0
        self._rows_of: Counter[str] = Counter()
        self._bytes_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._halves)

    def put(self, halves: Sequence[NewRow]) -> bool:
        """Take all of them, which are of one source, or none; whether there was room."""
        size = sum(len(half.payload) for half in halves)
        if len(self) + len(halves) > self._rows_max or self._bytes + size > self._bytes_max:
            return False
        if self.beyond_share(halves):
            return False
        self._halves.extend(halves)
        self._count(halves, 1)
        return True

    def beyond_share(self, halves: Sequence[NewRow]) -> int:
        """How many halves of the same source wait, if its share has no room for these; else 0."""
        size = sum(len(half.payload) for half in halves)
        source = halves[0].source if halves else ""
        rows, bytes_ = self._rows_of[source], self._bytes_of[source]
        if not source or not rows:
            return 0
        room = self._rows_max - (len(self) - rows)
        bytes_room = self._bytes_max - (self._bytes - bytes_)
        full = 2 * (rows + len(halves)) > room or 2 * (bytes_ + size) > bytes_room
        return rows if full else 0

    def put_back(self, halves: Sequence[NewRow]) -> None:
        """Put back into their old place the halves that were taken and not written."""
        self._halves.extendleft(reversed(halves))
        self._count(halves, 1)

    def take(self, n: int) -> list[NewRow]:
        """At most ``n``, the oldest first."""
        halves = [self._halves.popleft() for _ in range(min(n, len(self)))]
        self._count(halves, -1)
        return halves

    def _count(self, halves: Iterable[NewRow], sign: int) -> None:
        for half in halves:
            self._bytes += sign * len(half.payload)
            self._bytes_of[half.source] += sign * len(half.payload)
            self._rows_of[half.source] += sign
            if not self._rows_of[half.source]:
                del self._rows_of[half.source], self._bytes_of[half.source]
