"""Data types of feedback on its way into the journal: a request's rows, and one row's outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import msgspec

from online.errors import RequestError
from online.rows.joins import Entry
from online.telemetry.trace import Trace, current
from replay.example import Example
from replay.journal.base import NewRow, Row, Stored


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """The outcome of one event.

    Attributes:
        status: ``learned``, ``clipped``, ``failed``, ``frozen``, ``quarantined``, ``undone``,
            ``released``, ``discarded``, ``waiting``, ``damaged``, or ``queued``: on disk, and
            another process will learn it.
        row: The journal row of the event; None for a label whose prediction has not arrived, and
            for a damaged row.
        version_before, version: Versions that answered before and after the row was learned.
        repeat: The event was already in the journal; ``status`` is its current outcome.
        reason: Why the row failed or is damaged; None otherwise.
        since: For a waiting label: when the first one arrived (POSIX seconds).  None: the store
            had no room and kept nothing.
        learned_as: For a repeat that is frozen, undone or released: the row by which the event was
            learned again, if there is one.
        met: For a prediction: the stored prediction that already has its id.
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


class OutcomeReceiver(Protocol):
    """Receives the outcome of one event, once.  A future of the event loop is one.

    The outcome None means that nothing was done with the event.
    """

    def done(self) -> bool:
        """Whether it has an outcome or an error, or was cancelled."""

    def set_result(self, result: Recorded | None, /) -> None:
        """Set the outcome of the event."""

    def set_exception(self, exception: RequestError, /) -> None:
        """Set the error that replaces the outcome."""

    def exception(self) -> BaseException | None:
        """Return the error, if one is set, and mark it as retrieved."""


@dataclass(slots=True, eq=False)
class Waiting:
    """One request's rows that wait for their commit, and their outcomes so far.

    Attributes:
        examples: Decoded payloads of the rows; None where a payload was not decoded.
        keys: Journal keys of the rows.
        done: Resolved when all rows have an outcome, unless ``each`` is used.
        results: Outcome of each row; None: none yet.
        open: Number of rows without an outcome.
        decided: An operator has decided about the rows: no filter judges them.
        joins: At least one row is a half of a stored join.
        trace: The request's trace, if it is traced.
        each: If every row belongs to a request of its own: the future of each; ``done`` is unused.
        late: Timer that refuses the request at its timeout.
        refused: Indexes of rows that were not written.  A single request fails with the first.
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
    each: Sequence[OutcomeReceiver] = ()
    late: asyncio.TimerHandle | None = None
    refused: tuple[int, ...] = ()

    @property
    def requests(self) -> int:
        """Number of requests that the rows belong to."""
        return len(self.each) or 1

    def fail(self, error: RequestError, places: Sequence[int] | None = None) -> int:
        """Fail the waiting futures with an error; return how many rows had no answer yet.

        ``places``: indexes of the failed rows, used where each row has a request of its own.
        """
        waits: Sequence[Any] = self.each or (self.done,)
        if self.each and places is not None:
            waits = [self.each[i] for i in places]
        left = [done for done in waits if not done.done()]
        for done in left:
            done.set_exception(error)
            done.exception()  # mark it retrieved: the handler may have been cancelled
        return len(left) if self.each else len(left) * len(self.rows)


def waiting_for(
    rows: Sequence[NewRow],
    examples: Sequence[Example | None] | None,
    done: asyncio.Future[None],
    *,
    decided: bool = False,
    each: Sequence[OutcomeReceiver] = (),
) -> Waiting:
    """Make the :class:`Waiting` of a request whose rows have no outcome yet."""
    n, keys = len(rows), [row.key for row in rows]
    joins = any([row.half is not None or row.over is not None for row in rows])
    known = examples or [None] * n
    if (trace := current.get()) is not None:
        trace.step("read")
    return Waiting(tuple(rows), known, keys, done, [None] * n, n, decided, joins, trace, each)


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """One row of a request or, if ``waiting`` is None, a half that no request waits for."""

    entry: Entry
    waiting: Waiting | None = None
    i: int = 0
    half: NewRow | None = None

    @property
    def decided(self) -> bool:
        """Whether an operator has decided about the row."""
        return self.waiting is not None and self.waiting.decided


class _OfRequest(Protocol):
    @property
    def waiting(self) -> Waiting | None: ...


def split_point(events: Sequence[_OfRequest]) -> int | None:
    """Return an index near the middle at which events can be split without splitting a request.

    Returns None if all of them belong to one request.
    """
    apart = [
        i
        for i, (before, event) in enumerate(pairwise(events), start=1)
        if (waiting := event.waiting) is None or waiting.each or waiting is not before.waiting
    ]
    return apart[len(apart) // 2] if apart else None
