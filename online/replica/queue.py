"""A bounded queue of feedback requests that wait for their commit; beyond its bounds they fail."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

from online.errors import journal_held
from online.replica.answers import Answers
from online.replica.pending import Waiting
from online.replica.refused import busy, queue_full, unanswered_in_time
from online.settings.limits import Limits

_BATCH_ROWS: Final = 256  # of feedback in one commit; one request's rows are never split
_SMALL_ROWS: Final = 64
_TURNS: Final = 5
"""Turns of the event loop before a small commit.  Clients answered by the last commit can send
their next event, which joins this one.  A commit costs as much as learning ten rows; without these
turns the clients split into two groups that wait for each other's commits alternately."""
_GATHER_S: Final = 0.004
"""Within this time after the last commit, and if predictions compete for the loop, a small commit
waits until all recently active clients have sent.  Otherwise single events would cost a commit and
a learning pass each."""
_BESIDE: Final = 1.5
"""Predictions and choices per waiting event above which the loop counts as contended."""


class Queue:
    """Requests that wait for a commit, in order of arrival.

    Parameters:
        counts: Counts refused rows by reason; its prediction and choice counts are read here.
        answers: The requests that wait for an answer.
    """

    def __init__(self, limits: Limits, counts: Counter[str], answers: Answers) -> None:
        self._requests_max = limits.ongoing_max // 2  # the other half of the slots can predict
        self._rows_max, self._wait_s = limits.queue_max, limits.feedback_wait_s
        self._counts, self._answers = counts, answers
        self._waiting: deque[Waiting] = deque()
        self._rows = 0  # queued, or being written
        self._requests, self._most = 0, 0  # queued now; recent peak of unanswered ones
        self._begun_s, self._asked_before = -math.inf, 0
        self._more: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def next_batch(self) -> list[Waiting]:
        """Return the requests of the next commit; an empty list if none waits.

        Before a small commit the loop gets a few turns if several requests await answers.  If
        predictions compete for the loop, it also waits briefly for recently active clients.
        """
        if self._answers.requests > 1 and self._is_small():
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            if self._asked() - self._asked_before > _BESIDE * self._requests:
                await self._gather()
        self._begun_s = asyncio.get_running_loop().time()
        self._asked_before = self._asked()
        return self._take()

    def _asked(self) -> int:
        return self._counts["predictions"] + self._counts["choices"]

    async def _gather(self) -> None:
        """Wait, up to ``_GATHER_S``, until as many requests are queued as were recently open."""
        loop = asyncio.get_running_loop()
        until_s = self._begun_s + _GATHER_S
        if self._requests >= self._most or not self._is_small() or loop.time() >= until_s:
            return
        self._more = loop.create_future()
        late = loop.call_at(until_s, self._end_gathering)
        try:
            await self._more
        finally:
            late.cancel()
            self._more = None

    def _end_gathering(self) -> None:
        """Stop gathering, and expect no more requests than this the next time."""
        self._most = self._requests
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    def _is_small(self) -> bool:
        size = 0
        for waiting in self._waiting:
            size += len(waiting.rows)
            if size >= _SMALL_ROWS:
                return False
        return size > 0

    def put(self, waiting: Waiting, missing: int | None) -> asyncio.TimerHandle:
        """Queue rows for a commit, and refuse them if the commit does not come in time.

        ``missing``: committed rows that the local model lacks because another process learns them;
        None: this process learns.  Returns the timer of the timeout.  Raises RequestError 429
        ``busy`` or ``queue_full`` beyond a bound.
        """
        self._check(len(waiting.rows), self._answers.requests + waiting.requests, missing)
        self._waiting.append(waiting)
        self._rows += len(waiting.rows)
        self._answers.requests += waiting.requests
        self._requests += waiting.requests
        self._most = max(self._most, self._answers.requests)
        more, all_here = self._more, self._requests >= self._most or not self._is_small()
        if all_here and more is not None and not more.done():
            more.set_result(None)
        loop = asyncio.get_running_loop()
        waiting.late = loop.call_later(self._wait_s, self._give_up, waiting)
        return waiting.late

    def _check(self, rows: int, requests: int, missing: int | None) -> None:
        """Raise RequestError if too many requests are unanswered, or too many rows unlearned."""
        if requests > self._requests_max:
            self._counts["refused_busy"] += rows
            raise busy()
        if missing is not None and missing + self._rows + rows > self._rows_max:
            self._counts["refused_queue"] += rows
            raise queue_full(missing, self._rows_max)

    def _give_up(self, waiting: Waiting) -> None:
        """Refuse a timed-out request: definitely if its commit has not begun, else indefinitely."""
        error = unanswered_in_time()
        if self._withdraw(waiting):
            self._answers.requests -= waiting.requests
            held = "the rows before these are not written yet"
            error = journal_held(self._answers.incident or held)
        self._counts["feedback_timeouts"] += waiting.fail(error)

    def _withdraw(self, waiting: Waiting) -> bool:
        """Remove a request from the queue; return False if its commit has already begun."""
        if waiting not in self._waiting:
            return False
        self._waiting.remove(waiting)
        self._requests -= waiting.requests
        self._rows -= len(waiting.rows)
        return True

    def _take(self) -> list[Waiting]:
        waiting, batch, size = self._waiting, list[Waiting](), 0
        while waiting and (not batch or size + len(waiting[0].rows) <= _BATCH_ROWS):
            size += len(waiting[0].rows)
            batch.append(waiting.popleft())
            self._requests -= batch[-1].requests
        return batch

    def written(self, batch: Sequence[Waiting]) -> None:
        """Release the queue room of a batch whose commit has ended, successful or not."""
        self._rows -= sum(len(waiting.rows) for waiting in batch)
