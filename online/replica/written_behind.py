"""A bounded queue of the predictions that stored joins need, written after they are answered."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from replay.journal.base import NewRow


class WriteBehindQueue:
    """Halves of stored joins that no request waits for, bounded by number and by bytes.

    Sources that tokens stand for share the room: a source that has halves queued may use at most
    half of the room that the others leave, so one busy source cannot exclude the rest.
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
        """Queue all halves, which are of one source, or none; return whether there was room."""
        size = sum(len(half.payload) for half in halves)
        if len(self) + len(halves) > self._rows_max or self._bytes + size > self._bytes_max:
            return False
        if self.beyond_share(halves):
            return False
        self._halves.extend(halves)
        self._count(halves, 1)
        return True

    def beyond_share(self, halves: Sequence[NewRow]) -> int:
        """Return how many halves of the source wait if its share excludes these; otherwise 0."""
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
        """Put halves that were taken but not written back to the front of the queue."""
        self._halves.extendleft(reversed(halves))
        self._count(halves, 1)

    def take(self, n: int) -> list[NewRow]:
        """Remove and return at most ``n`` halves, the oldest first."""
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
