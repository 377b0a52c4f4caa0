"""This module has what waits for the journal.

That is the rows of a request, and one of them on its way into the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import msgspec

from online.errors import RequestError
from online.rows.joins import Entry
from online.tracing.trace import Trace, current
from replay.example import Example
from replay.journal.base import NewRow, Row, Stored


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """The record of what became of one event.

    Attributes:
        status: ``learned``, ``clipped``, ``failed``, ``frozen``, ``quarantined``, ``undone``,
            ``released``, ``discarded``, ``waiting``, ``damaged``, or ``queued``: on disk, and
            another process will learn it.
        row: The row that stands; None for a label whose prediction has not come, and if it is
            damaged.
        repeat: The row was there before, and ``status`` is what has become of it.
        since: For a label that waits: when the first one was taken (POSIX seconds).  None: the
            store has no room and kept nothing.
        learned_as: For a repeat that is frozen, undone or released: the row that taught it again,
            if there is one.
        met: For a prediction: the one that has its id already, and stands.
    """

    status: str
    row: Row | None
    version_before: str
    version: str
    repeat: bool
    reason: str | None = None
    since: float | None = None
    learned_as: Row | None = None
    met: Stored | None = None


class Told(Protocol):
    """Whoever is told what became of one event, once: a future is, and None tells it of nothing."""

    def done(self) -> bool:
        """Whether it was told, or nobody waits any more."""

    def set_result(self, result: Recorded | None, /) -> None:
        """Tell it what became of the event."""

    def set_exception(self, exception: RequestError, /) -> None:
        """Tell it why nobody can say."""

    def exception(self) -> BaseException | None:
        """Look at the error, which is no surprise any more."""


@dataclass(slots=True, eq=False)
class Waiting:
    """The rows of one request, what their payloads say, their keys, and what became of each.

    ``joins``: a row is one side of a stored join.  ``trace``: of the request, if it is traced.
    ``each``: the rows are of as many requests, and these are who waits for each of them; nobody
    waits for ``done`` then.  ``refused``: places of rows that were not written; a lone request has
    ended with the first.
    """

    rows: tuple[NewRow, ...]
    examples: Sequence[Example | None]
    keys: list[bytes]
    done: asyncio.Future[None]
    results: list[Recorded | None]
    open: int
    decided: bool
    joins: bool
    trace: Trace | None = None
    each: Sequence[Told] = ()
    late: asyncio.TimerHandle | None = None
    refused: tuple[int, ...] = ()

    @property
    def requests(self) -> int:
        """Requests that the rows are of."""
        return len(self.each) or 1

    def fail(self, error: RequestError, places: Sequence[int] | None = None) -> int:
        """Answer those who wait with an error; how many rows had no answer yet.

        ``places``: those of the rows that it is about, where each has a request of its own.
        """
        waits: Sequence[Any] = self.each or (self.done,)
        if self.each and places is not None:
            waits = [self.each[i] for i in places]
        left = [done for done in waits if not done.done()]
        for done in left:
            done.set_exception(error)
            done.exception()  # the handler may be gone: that is no surprise
        return len(left) if self.each else len(left) * len(self.rows)


def waiting_for(
    rows: Sequence[NewRow],
    examples: Sequence[Example | None] | None,
    done: asyncio.Future[None],
    *,
    decided: bool = False,
    each: Sequence[Told] = (),
) -> Waiting:
    """Make what waits for the rows of a request; nothing has become of them yet."""
    n, keys = len(rows), [row.key for row in rows]
    joins = any([row.half is not None or row.over is not None for row in rows])
    known = examples or [None] * n
    if (trace := current.get()) is not None:
        trace.step("read")
    return Waiting(tuple(rows), known, keys, done, [None] * n, n, decided, joins, trace, each)


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """One row of a request, or (``waiting`` is None) a half that nobody waits for."""

    entry: Entry
    waiting: Waiting | None = None
    i: int = 0
    half: NewRow | None = None

    @property
    def decided(self) -> bool:
        """Whether an operator has."""
        return self.waiting is not None and self.waiting.decided


class _Asked(Protocol):
    @property
    def waiting(self) -> Waiting | None: ...


def middle(events: Sequence[_Asked]) -> int | None:
    """Where events can be parted so that no request's are: about in the middle.

    None: all of them are of one request.
    """
    apart = [
        i
        for i, (before, event) in enumerate(pairwise(events), start=1)
        if (waiting := event.waiting) is None or waiting.each or waiting is not before.waiting
    ]
    return apart[len(apart) // 2] if apart else None
