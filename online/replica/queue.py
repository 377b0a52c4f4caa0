"""Feedback that was taken waits here for its commit, up to bounds; beyond them it is refused."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from online.replica.pending import Waiting
from online.replica.refused import busy, queue_full
from online.settings.config import Limits

_BATCH_ROWS: Final = 256  # of feedback in one commit; one request's rows are never split


class Queue:
    """Requests that wait for a commit, in the order in which they came.

    Parameters
    ----------
    counts
        What is refused is counted there, by the reason.
    """

    def __init__(self, limits: Limits, counts: Counter[str]) -> None:
        self._requests_max = limits.ongoing_max // 2  # half of the slots: the rest can predict
        self._rows_max, self._counts = limits.queue_max, counts
        self._waiting: deque[Waiting] = deque()
        self._rows = 0  # those being written too

    def __len__(self) -> int:
        return len(self._waiting)

    def check(self, rows: int, requests: int, missing: int | None) -> None:
        """Refuse as many rows if too much waits: RequestError 429 ``busy`` or ``queue_full``.

        ``requests`` have no answer yet, those of the rows among them.  ``missing``: committed rows
        that the model lacks, where another process learns them; None: where this one does.
        """
        if requests > self._requests_max:
            self._counts["refused_busy"] += rows
            raise busy()
        if missing is not None and missing + self._rows + rows > self._rows_max:
            self._counts["refused_queue"] += rows
            raise queue_full(missing, self._rows_max)

    def put(self, waiting: Waiting) -> None:
        """Have a request wait."""
        self._waiting.append(waiting)
        self._rows += len(waiting.rows)

    def withdraw(self, waiting: Waiting) -> bool:
        """Take a request back, if no commit has begun with it: then none will."""
        if waiting not in self._waiting:
            return False
        self._waiting.remove(waiting)
        self._rows -= len(waiting.rows)
        return True

    def take(self) -> list[Waiting]:
        """Return the requests of the next commit; nothing if none waits."""
        waiting, batch, size = self._waiting, list[Waiting](), 0
        while waiting and (not batch or size + len(waiting[0].rows) <= _BATCH_ROWS):
            size += len(waiting[0].rows)
            batch.append(waiting.popleft())
        return batch

    def written(self, batch: Sequence[Waiting]) -> None:
        """Their commit is over, whatever came of it."""
        self._rows -= sum(len(waiting.rows) for waiting in batch)
