"""Final labels that meet a provisional one: the rows that take its lesson back are written.

Nobody asks before an event is written whether its label was a provisional one.  Where an event was
there before, its row tells; then the final label is written as a row of its own, in a second step
of the same commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from online.replica.answers import Answers, Waiter
from online.replica.pending import Written
from online.replica.shared import Shared
from online.rows import history
from online.rows.finals import final_key, final_row
from online.rows.joins import Whole
from replay import codec
from replay.errors import ReplayError
from replay.example import Example
from replay.journal.base import NewRow, Outcome, Row, Verdict

Write = Callable[
    [list[NewRow], list[Example | None]], Awaitable[tuple[list[NewRow], Sequence[Outcome]]]
]
"""Appends rows as the writer does, and says what became of each."""


_Event = tuple[Waiter, Outcome]


def _asked(event: Waiter) -> NewRow:
    return event.waiting.rows[event.i]


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
        self._model = shared.settings.name
        self._store, self._control = shared.store, shared.control
        self._counts, self._write = shared.counts, write

    async def give(self) -> None:
        """Write final labels of events whose label was provisional, and answer for the events."""
        events, self._answers.changing = self._answers.changing, []
        most = self._store.journal.batch_rows_max
        for start in range(0, len(events), most):
            try:
                settled = await self._settled(events[start : start + most])
            except ReplayError as error:
                left = [event for event, _ in events[start:]]
                self._answers.refuse(
                    [Written(Whole(_asked(e)), e.waiting, e.i) for e in left], error
                )
                return
            for event, outcome in settled:
                if outcome.row is not None:
                    event.waiting.keys[event.i] = outcome.row.key
                self._answers.note_settled(event, outcome)

    async def _settled(self, events: Sequence[_Event]) -> list[_Event]:
        """Tell what became of each event: of a provisional label, its final one stands.

        Raises ReplayError if nothing was written.  Does not pause after the append.
        """
        out: list[_Event] = []
        finals: list[Waiter] = []
        rows: list[NewRow] = []
        for event, outcome in events:
            first = outcome.row
            assert first is not None
            label = event.waiting.examples[event.i] or codec.decode(_asked(event).payload)
            if label.provisional:
                find = (self._store.journal.find, self._model, final_key(first.key))
                stands = await self._store.surely(*find)
                out.append((event, outcome if stands is None else Outcome(False, stands)))
                continue
            row = final_row(_asked(event), label, first, await self._lesson(first))
            rows.append(self._control.judged(row))
            finals.append(event)
        if rows:
            _, outcomes = await self._write(rows, [None] * len(rows))
            self._counts["corrected"] += sum(outcome.new for outcome in outcomes)
            out += zip(finals, outcomes, strict=True)
        return out

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
