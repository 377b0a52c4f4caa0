"""Who waits for which row of the partition, and what each of them is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from online.replica.pending import Recorded, Waiting


class Waiter(NamedTuple):
    """One row of a request; ``repeat``: the event was there before."""

    waiting: Waiting
    i: int
    repeat: bool


class Answers:
    """Requests by the offset of the committed row that they wait for.

    Attributes
    ----------
    requests
        How many are not answered yet.
    """

    def __init__(self) -> None:
        self.requests = 0
        self._waiters: dict[int, list[Waiter]] = {}

    def expects(self, offset: int) -> bool:
        """Whether the row is committed, and not learned yet."""
        return offset in self._waiters

    def expect(self, offset: int) -> None:
        """Take those who wait for a row from now on."""
        self._waiters[offset] = []

    def add(self, offset: int, waiter: Waiter) -> None:
        """One more waits for the row, which is expected."""
        self._waiters[offset].append(waiter)

    def take(self, offset: int) -> Sequence[Waiter]:
        """Those who wait for a row, which is learned now."""
        return self._waiters.pop(offset, ())

    def leave(self) -> list[Waiter]:
        """All who wait; no row of this partition is expected any more."""
        waiters, self._waiters = self._waiters, {}
        return [waiter for several in waiters.values() for waiter in several]

    def give(self, waiting: Waiting, i: int, recorded: Recorded) -> None:
        """Answer for one row of a request; with the last one the request has its answer."""
        waiting.results[i] = recorded
        waiting.open -= 1
        if waiting.open == 0:
            self.requests -= 1
            if not waiting.done.done():
                waiting.done.set_result(None)

    def refuse(self, waiting: Waiting, error: Exception) -> None:
        """End a request with an error."""
        self.requests -= 1
        if not waiting.done.done():
            waiting.done.set_exception(error)
            waiting.done.exception()  # the handler may be gone: that is no surprise
