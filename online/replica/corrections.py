"""Final labels that meet a provisional one: the rows that take its lesson back are written.

Nobody asks before an event is written whether its label was a provisional one.  Where an event was
there before, its row tells; then the final label is written as a row of its own, in a second step
of the same commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from online.replica.answers import Answers, Waiter
from online.replica.pending import Written
from online.replica.shared import Shared
from online.rows import history
from online.rows.finals import final_key, final_row, is_provisional
from online.rows.joins import Whole
from replay import codec
from replay.errors import PayloadFormat, PayloadInvalid, ReplayError
from replay.example import Example
from replay.journal.base import NewRow, Outcome, Row, Verdict

Write = Callable[
    [list[NewRow], list[Example | None]], Awaitable[tuple[list[NewRow], Sequence[Outcome]]]
]
"""Appends rows as the writer does, and says what became of each."""


class Met(msgspec.Struct, frozen=True, gc=False):
    """An event that was there before, with a provisional label: the row asked for, and its row."""

    event: Waiter
    asked: NewRow
    label: Example
    outcome: Outcome
    first: Row


class Corrections:
    """Writes the rows that make labels final.

    Parameters
    ----------
    answers
        Takes what became of each event.
    write
        Appends rows to the partition of this process.
    """

    def __init__(self, shared: Shared, answers: Answers, write: Write) -> None:
        self._answers = answers
        self._met: list[Met] = []
        self._model = shared.settings.name
        self._store, self._control = shared.store, shared.control
        self._counts, self._write = shared.counts, write

    def meet(self, event: Waiter, asked: NewRow, example: Example | None, outcome: Outcome) -> bool:
        """Whether the event was there before with a label that may change: it is dealt with here.

        ``asked`` is the row that was to be written, ``example`` what it says if somebody has it.
        """
        first = outcome.row
        if outcome.new or first is None or asked.half is not None or event.waiting.decided:
            return False
        try:
            if not is_provisional(first):
                return False
            label = example or codec.decode(asked.payload)
        except (PayloadFormat, PayloadInvalid):  # whoever answers says so
            return False
        self._met.append(Met(event, asked, label, outcome, first))
        return True

    async def give(self) -> None:
        """Write the final labels among the events that were met, and answer for all of them."""
        events, self._met = self._met, []
        most = self._store.journal.batch_rows_max
        for start in range(0, len(events), most):
            try:
                settled = await self._settled(events[start : start + most])
            except ReplayError as error:
                left = [(one.event, Whole(one.asked)) for one in events[start:]]
                self._answers.refuse([Written(w, e.waiting, e.i) for e, w in left], error)
                return
            for event, outcome in settled:
                if outcome.row is not None:
                    event.waiting.keys[event.i] = outcome.row.key
                self._answers.note_written(event, outcome)

    async def _settled(self, events: Sequence[Met]) -> list[tuple[Waiter, Outcome]]:
        """Tell what became of each event: of a provisional label, its final one stands.

        Raises ReplayError if nothing was written.  Does not pause after the append.
        """
        out: list[tuple[Waiter, Outcome]] = []
        finals: list[Met] = []
        for one in events:
            if not one.label.provisional:
                finals.append(one)
                continue
            journal, key = self._store.journal, final_key(one.first.key)
            stands = await self._store.surely(journal.find, self._model, key)
            out.append((one.event, Outcome(False, stands) if stands is not None else one.outcome))
        if not finals:
            return out
        rows = [await self._row(one) for one in finals]
        _, outcomes = await self._write(rows, [None] * len(rows))
        for one, outcome in zip(finals, outcomes, strict=True):
            self._counts["corrected"] += outcome.new
            out.append((one.event, outcome))
        return out

    async def _row(self, one: Met) -> NewRow:
        lesson = await self._lesson(one.first)
        return self._control.judged(final_row(one.asked, one.label, one.first, lesson))

    async def _lesson(self, first: Row) -> Row | None:
        """The row that has taught the provisional label; None: nothing has, and nothing will."""
        store, journal = self._store, self._store.journal
        decisions = await self._control.current()
        if first.verdict is Verdict.QUARANTINED:
            choice = (history.decide, journal, self._model, first.key, history.DISCARDED)
            if (await store.write(*choice)).choice == history.DISCARDED:
                return None  # the first decision stands: nobody releases it any more
            decisions = await self._control.current()
        elif decisions.failure(first) is not None:
            return None
        elif decisions.stands(first):
            return first
        look = (history.standing, journal, self._model, decisions, first)
        standing: Row | None = await store.surely(*look)
        if standing is None and first.verdict is Verdict.QUARANTINED:
            standing = await self._released(first, decisions)
        return standing

    async def _released(self, first: Row, decisions: history.Decisions) -> Row | None:
        """A row that is released and not taught yet: it is, so that it can be taken back."""
        look = (history.shown, self._store.journal, self._model, decisions, first)
        listed: history.Listed | None = await self._store.surely(*look)
        if listed is None or (again := listed.again(first.at)) is None:
            return None
        _, (outcome,) = await self._write([again], [None])
        row = outcome.row
        return row if row is not None and decisions.stands(row) else None
