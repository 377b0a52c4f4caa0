"""A deadline for a whole start: one setting bounds all of its waits together."""

from __future__ import annotations

import time
from collections.abc import Callable

from online.errors import StartRefused


class StartDeadline:
    """The time that a start, or a change of the settings, may still take.

    Parameters:
        wait_s: The total, in seconds from now on: the setting ``start_wait_s``.
        monotonic_s: A monotonic clock in seconds.
    """

    def __init__(self, wait_s: float, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._wait_s, self._monotonic_s = wait_s, monotonic_s
        self._until_s = monotonic_s() + wait_s

    def left_s(self) -> float:
        """Seconds that are left, 0 after the end."""
        return max(self._until_s - self._monotonic_s(), 0.0)

    def check(self, waits_for: str) -> None:
        """Raise StartRefused if the time is over; ``waits_for`` says what is still missing."""
        if self.left_s() == 0.0:
            raise StartRefused(
                f"{waits_for}; the start gives up after {self._wait_s:g} s",
                "On a busy machine raise `start_wait_s` in the settings",
            )
