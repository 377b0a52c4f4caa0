"""Who waits for which row of the partition, and what each of them is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from online.errors import RequestError, journal_held
from online.replica.pending import Recorded, Waiting
from replay.errors import JournalFull, JournalHeld, ReplayError
from replay.journal.base import Row


class Waiter(msgspec.Struct, frozen=True, gc=False):
    """One row of a request; ``repeat``: the event was there before."""

    waiting: Waiting
    i: int
    repeat: bool = False


class Answers:
    """Requests by the offset of the committed row that they wait for.

    Attributes
    ----------
    requests
        How many are not answered yet.
    """

    def __init__(self) -> None:
        self.requests = 0
        # Hardly ever do two wait for the same row, and a thousand lists that live for some
        # milliseconds have Python look for circles in all that there is.
        self._waiters: dict[int, Waiter | list[Waiter] | None] = {}

    def expect(self, rows: Sequence[Row]) -> list[Row]:
        """Take those who wait for the rows from now on; the rows that were not expected before."""
        waiters = self._waiters
        fresh = [row for row in rows if row.offset not in waiters]
        waiters.update(dict.fromkeys([row.offset for row in fresh]))
        return fresh

    def add(self, offset: int, waiter: Waiter) -> bool:
        """One more waits for the row; False: it is not expected."""
        waiters = self._waiters
        if offset not in waiters:
            return False
        first = waiters[offset]
        if first is None:
            waiters[offset] = waiter
        elif isinstance(first, list):
            first.append(waiter)
        else:
            waiters[offset] = [first, waiter]
        return True

    def take(self, offset: int) -> Sequence[Waiter]:
        """Those who wait for a row, which is learned now."""
        return _several(self._waiters.pop(offset, None))

    def leave(self) -> list[Waiter]:
        """All who wait; no row of this partition is expected any more."""
        waiters, self._waiters = self._waiters, {}
        return [waiter for some in waiters.values() for waiter in _several(some)]

    def give(self, waiting: Waiting, i: int, recorded: Recorded) -> None:
        """Answer for one row of a request; with the last one the request has its answer."""
        waiting.results[i] = recorded
        waiting.open -= 1
        if waiting.open == 0:
            self.requests -= 1
            if not waiting.done.done():
                waiting.done.set_result(None)

    def give_alike(
        self, rows: Sequence[Row], status: Callable[[Row, None], str], version: str, own: int
    ) -> None:
        """Answer for rows that were learned one after the other, on top of ``own`` others."""
        before = f"{version}+{own}"
        for row in rows:
            own += 1
            now = f"{version}+{own}"
            for waiter in self.take(row.offset):
                found = Recorded(status(row, None), row, before, now, waiter.repeat)
                self.give(waiter.waiting, waiter.i, found)
            before = now

    def refuse(self, waiting: Waiting, error: Exception) -> None:
        """End a request with an error."""
        self.requests -= 1
        if not waiting.done.done():
            waiting.done.set_exception(error)
            waiting.done.exception()  # the handler may be gone: that is no surprise


def _several(waiters: Waiter | list[Waiter] | None) -> Sequence[Waiter]:
    if waiters is None:
        return ()
    return waiters if isinstance(waiters, list) else (waiters,)


_AGAIN: Final = "Send it again after Retry-After; nothing was recorded"


def stopping() -> RequestError:
    """Say that this replica takes no more."""
    return RequestError(503, "stopping", "this replica is stopping", None, "Send it again", 1)


def busy() -> RequestError:
    """Say that too many requests wait already."""
    message = "too much feedback waits for the journal"
    return RequestError(429, "busy", message, None, _AGAIN, 1)


def queue_full(queued: int, most: int) -> RequestError:
    """Say that the process which learns is too far behind."""
    message = f"the model is {queued} rows behind here, and {most} may wait for it"
    return RequestError(429, "queue_full", message, None, _AGAIN, 1)


def unanswered_in_time() -> RequestError:
    """Say that nobody knows whether the rows are written."""
    hint = "It may have been recorded: repeat it with the same id"
    message = "the journal did not answer in time"
    return RequestError(503, "journal_unavailable", message, None, hint, 1)


def refusal_of(error: ReplayError, *, in_part: bool) -> RequestError:
    """Say why rows of a request were not written; ``in_part``: others of it may have been."""
    if in_part:
        hint = "A part of it was recorded: repeat it with the same ids"
        return RequestError(503, "journal_unavailable", str(error), None, hint, 1)
    if isinstance(error, JournalHeld):
        return journal_held(str(error))
    full = isinstance(error, JournalFull)
    hint = "Nothing was recorded. Free disk space" if full else "Nothing was recorded"
    code = "journal_full" if full else "journal_refused"
    return RequestError(503, code, str(error), None, hint, 30)
