"""Decides when a replica exchanges with the parameter server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

_IDLE_FACTOR = 5  # an idle replica polls at up to this multiple of the interval
_ASLEEP_FACTOR = 16  # and at up to this one when nothing has happened for a while,
_ASLEEP_S = 0.32  # but at least this often: requests that ask for answers of a second get them
_ADOPT_SHARE = 0.125  # of the time within which a dead replica's rows are adopted, at most
_AWAKE_POLLS = 100  # in a row without anything new, before that
_LEAST = 0.25  # of an interval between two exchanges, at least, however many rows there are
_SHARE = 0.006
"""Share of this process's time that exchanges may take; costlier ones are spaced out, up to the
interval.  Sending and serving an exchange costs about seven times as much again."""

_ALONE_FACTOR = 5  # and up to this multiple of it where no other process waits for what is learned


class Pace:
    """Exchanges an interval after the first row, at once on demand, and less often when idle.

    ``first_row`` is set when a row was learned, ``now`` when the exchange should not wait.

    Parameters:
        adopt_s: Seconds within which others learn the rows of a replica that has died.  One that
            only seldom asks its server would look dead, and would adopt late itself.
        alone: Whether no other process pulls what this one learns.
    """

    def __init__(self, interval_s: float, adopt_s: float, *, alone: bool = False) -> None:
        self._interval_s = self._idle_s = interval_s
        self._longest_s = interval_s * (_ALONE_FACTOR if alone else 1)
        self._asleep_s = min(interval_s * _ASLEEP_FACTOR, _ASLEEP_S, adopt_s * _ADOPT_SHARE)
        self._polls = 0
        self.first_row, self.now = asyncio.Event(), asyncio.Event()
        self._enough, self._rested = False, False

    def enough(self) -> None:
        """Report that there are as many rows as one exchange should carry.

        This alone does not start one exchange after another: bodies of many rows bring that many
        every few milliseconds, and an exchange costs as much as learning a hundred rows.
        """
        if self._rested:
            self.now.set()
        self._enough = True

    async def wait(self, waiting: Callable[[], bool], cost_s: float = 0.0) -> None:
        """Wait until the next exchange is due; ``waiting`` returns whether there are rows to push.

        ``cost_s``: processor seconds that the last exchange took in this process.  If rows arrive
        fast, exchanges carry more rows instead of taking more of the time, up to the longest wait.
        """
        self.first_row.clear()
        if not waiting() and not self.now.is_set():
            waits = [asyncio.ensure_future(event.wait()) for event in (self.first_row, self.now)]
            # all models of a process poll in the same turns of its loop: waking it costs the most
            half_s = self._idle_s / 2
            timeout = self._idle_s - asyncio.get_running_loop().time() % half_s
            try:
                await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        if waiting():
            least_s = min(max(self._interval_s * _LEAST, cost_s / _SHARE), self._longest_s)
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
        """Double the polling interval while nothing happens, up to its limit."""
        self._polls = self._polls + 1 if nothing_happened else 0
        longest = self._interval_s * _IDLE_FACTOR
        if self._polls > _AWAKE_POLLS:
            longest = max(longest, self._asleep_s)
        self._idle_s = min(self._idle_s * 2, longest) if nothing_happened else self._interval_s
