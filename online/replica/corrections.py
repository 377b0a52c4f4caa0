"""Writes the rows by which a final label replaces a provisional one that was already learned.

Feedback is written without checking first whether the event has a provisional label.  If the event
already exists, its row says so; the final label is then written as a row of its own, in a second
step of the same commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from online.replica.answers import Answers, Waiter
from online.replica.control_log import FAILED
from online.replica.pending import split_point
from online.replica.refused import Unjudged
from online.replica.shared import ReplicaParts
from online.rows import history
from online.rows.finals import final_key, final_row
from online.rows.history import Decisions, again_key, copies, origin
from online.rows.joins import ROUNDS_MAX
from paramserver.core import rewrites
from replay import codec
from replay.errors import JournalUnavailable, ReplayError
from replay.example import Example
from replay.journal.base import Journal, NewRow, Only, Outcome, Row, Verdict

DECIDING: Final = tuple(sorted({*rewrites.DECISIONS, rewrites.SOURCE, FAILED}))
"""Kinds of control rows that change which row teaches an event, or whether one may."""

Write = Callable[
    [list[NewRow], list[Example | None]], Awaitable[tuple[list[NewRow], Sequence[Outcome]]]
]
"""Appends rows as the writer does; returns the written rows and the outcome of each."""


_Event = tuple[Waiter, Outcome]


class _Final(NamedTuple):
    """A final label that was sent, its decoded content, and the existing row of its event."""

    event: Waiter
    label: Example
    first: Row


def _row_of(event: Waiter) -> NewRow:
    return event.waiting.rows[event.i]


def _decoded(row: NewRow) -> Example:
    """Decode the row; a label sent by the id of a stored join is only one half of an example."""
    if row.half is None:
        return codec.decode(row.payload)
    (label,) = codec.decode_labels(row.payload)
    return Example({}, label.label, label.weight, event_time=label.event_time)


class Corrections:
    """Writes the rows that make labels final.

    Parameters:
        answers: Receives the outcome of each event.
        write: Appends rows to this process's partition.
        refuse: Fails the requests of events that will not be written.
    """

    def __init__(
        self,
        shared: ReplicaParts,
        answers: Answers,
        write: Write,
        refuse: Callable[[Sequence[Waiter], ReplayError], None],
    ) -> None:
        self._answers = answers
        self._model = shared.settings.name
        self._store, self._control = shared.store, shared.control
        self._counts, self._write, self._refuse = shared.counts, write, refuse

    async def write_finals(self) -> None:
        """Write the final labels of events with a provisional one, and answer for the events."""
        events, self._answers.changing = self._answers.changing, []
        most = self._store.journal.batch_rows_max
        parts = deque(events[i : i + most] for i in range(0, len(events), most))
        while parts:
            some = parts.popleft()
            left = {id(event): event for event, _ in some}
            try:
                await self._settle(some, left)
            except Unjudged as error:
                rest = [one for one in some if id(one[0]) in left]
                if (at := split_point(list(left.values()))) is None:
                    self._refuse(list(left.values()), error)
                else:  # bisect, so that only the request at fault is refused
                    parts.extendleft((rest[at:], rest[:at]))
            except ReplayError as error:
                self._refuse(
                    [*left.values(), *(event for part in parts for event, _ in part)], error
                )
                return

    async def _settle(self, events: Sequence[_Event], left: dict[int, Waiter]) -> None:
        """Determine the outcome of each event, and write the final labels.

        ``left`` holds the events without an outcome and is updated in place.  Raises ReplayError
        if nothing was written for these, or a read failed.
        """
        repeats: list[_Event] = []
        finals: list[_Final] = []
        for event, outcome in events:
            first = outcome.row
            assert first is not None
            label = event.waiting.examples[event.i] or _decoded(_row_of(event))
            if label.provisional:
                repeats.append((event, outcome))
            else:
                finals.append(_Final(event, label, first))
        for event, outcome in await self._repeated(repeats):
            self._note(event, outcome, left)
        quarantined_keys = [f.first.key for f in finals if f.first.verdict is Verdict.QUARANTINED]
        if quarantined_keys:
            await self._store.write(_discard, self._store.journal, self._model, quarantined_keys)
        for _ in range(ROUNDS_MAX):
            if not finals:
                return
            rows = await self._rows(finals)
            _, outcomes = await self._write(rows, [None] * len(rows))
            # No await here: the learner must find a new row's waiting request.
            pairs = list(zip(finals, outcomes, strict=True))
            for final, outcome in pairs:
                if not outcome.gone:
                    self._counts["corrected"] += outcome.new
                    self._note(final.event, outcome, left)
            finals = [final for final, outcome in pairs if outcome.gone]
        raise JournalUnavailable("something was decided each time")

    def _note(self, event: Waiter, outcome: Outcome, left: dict[int, Waiter]) -> None:
        del left[id(event)]
        if outcome.row is not None:
            event.waiting.keys[event.i] = outcome.row.key
        self._answers.note_settled(event, outcome)

    async def _repeated(self, repeats: Sequence[_Event]) -> list[_Event]:
        """Replace the outcome of a repeated provisional label by its final row, if there is one."""
        if not repeats:
            return []
        keys = [outcome.row.key for _, outcome in repeats if outcome.row is not None]
        journal = self._store.journal
        standing = await self._store.read(_finals, journal, self._model, keys)
        return [
            (event, outcome if stands is None else Outcome(False, stands))
            for (event, outcome), stands in zip(repeats, standing, strict=True)
        ]

    async def _rows(self, finals: Sequence[_Final]) -> list[NewRow]:
        """Make the rows of final labels, each with the lesson that it takes back.

        They are conditional: the store refuses them if a decision that takes events out or back,
        or another relearning of the event, was written meanwhile.
        """
        decisions = await self._control.read()
        control = decisions.seq  # taken before the look-up, during which a thread may read more
        firsts = [final.first for final in finals]
        look = (_lessons, self._store.journal, self._model, decisions, firsts)
        return [
            self._control.judged(
                final_row(
                    _row_of(final.event), final.label, final.first, found.row,
                    Only(control, DECIDING, found.next_key),
                )
            )
            for final, found in zip(finals, await self._store.read(*look), strict=True)
        ]  # fmt: skip


def _discard(journal: Journal, model: str, keys: Sequence[bytes]) -> None:
    """Discard these quarantined events, so that nobody can release them, unless one already is."""
    for key in keys:
        history.decide(journal, model, key, history.DISCARDED)


def _finals(journal: Journal, model: str, keys: Sequence[bytes]) -> list[Row | None]:
    """Return the final row of each event by its key, in one step; None where there is none."""
    return [journal.find(model, final_key(key)) for key in keys]


def _lessons(
    journal: Journal, model: str, decisions: history.Decisions, firsts: Sequence[Row]
) -> list[Lesson]:
    """Return the :class:`Lesson` of each first row, in one step."""
    return [lesson(journal, model, decisions, first) for first in firsts]


class Lesson(NamedTuple):
    """The row that teaches an event, or would if it was not undone; None: there is none.

    ``next_key``: key under which the event would be learned again; empty if it would not be.
    """

    row: Row | None
    next_key: bytes


def lesson(journal: Journal, model: str, decisions: Decisions, first: Row) -> Lesson:
    """Find the row that has taught the event of ``first``, or may, regardless of present bans."""
    if first.verdict is not Verdict.QUARANTINED:
        if first.verdict is Verdict.LOST or decisions.failure(first) is not None:
            return Lesson(None, b"")
        if decisions.stands(first):
            return Lesson(first, b"")
    event = origin(first)
    standing, undone, following = copies(journal, model, decisions, event, first)
    if standing is not None or following is None:
        return Lesson(standing or undone, b"")
    return Lesson(undone, again_key(following, event.key.hex()))
