"""When a replica exchanges with the parameter server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

_IDLE_FACTOR = 5  # an idle replica asks this many times less often
_LEAST = 0.25  # of an interval from one exchange to the next, however many rows there are
_SHARE = 0.006
"""Of the time may be spent on what an exchange computes here, if that costs less often: to send it,
and to work it out at the server, takes some seven times as much."""


class Pace:
    """An interval after the first row to push, at once on demand, and less often when idle.

    ``first_row`` is set when a row was learned, ``now`` when the exchange should not wait.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = self._idle_s = interval_s
        self.first_row, self.now = asyncio.Event(), asyncio.Event()
        self._enough, self._rested = False, False

    def enough(self) -> None:
        """There are as many rows as one exchange should have.

        It is not held for each of them, though: bodies of many rows bring so many every few
        milliseconds, and an exchange costs as much as learning a hundred.
        """
        if self._rested:
            self.now.set()
        self._enough = True

    async def wait(self, waiting: Callable[[], bool], cost_s: float = 0.0) -> None:
        """Until the next exchange is due; ``waiting`` says whether there are rows to push.

        ``cost_s``: processor time that the last one took here.  Where rows come fast, each exchange
        has more of them rather than more of the time, up to what comes within the interval.
        """
        self.first_row.clear()
        if not waiting() and not self.now.is_set():
            waits = [asyncio.ensure_future(event.wait()) for event in (self.first_row, self.now)]
            await asyncio.wait(waits, timeout=self._idle_s, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if waiting():
            least_s = min(max(self._interval_s * _LEAST, cost_s / _SHARE), self._interval_s)
            await self._until_now(least_s)
            if not self._enough and least_s < self._interval_s:
                self._rested = True
                await self._until_now(self._interval_s - least_s)
        self._enough = self._rested = False
        self.now.clear()

    async def _until_now(self, seconds: float) -> None:
        if self.now.is_set():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # wait_for may swallow a cancellation
                await self.now.wait()

    def idle(self, nothing_happened: bool) -> None:
        """Ask less often while nothing happens."""
        longest = self._interval_s * _IDLE_FACTOR
        self._idle_s = min(self._idle_s * 2, longest) if nothing_happened else self._interval_s
