"""Final labels that meet a provisional one: the rows that take its lesson back are written.

Nobody asks before an event is written whether its label was a provisional one.  Where an event was
there before, its row tells; then the final label is written as a row of its own, in a second step
of the same commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from online.replica.answers import Answers, Waiter
from online.replica.pending import Written
from online.replica.shared import Shared
from online.rows import history
from online.rows.finals import final_key, final_row
from online.rows.joins import Whole
from replay import codec
from replay.errors import ReplayError
from replay.example import Example
from replay.journal.base import Journal, NewRow, Outcome, Row, Verdict

Write = Callable[
    [list[NewRow], list[Example | None]], Awaitable[tuple[list[NewRow], Sequence[Outcome]]]
]
"""Appends rows as the writer does, and says what became of each."""


_Event = tuple[Waiter, Outcome]


class _Final(NamedTuple):
    """A final label that was asked for, what it says, and the row that was there before."""

    event: Waiter
    label: Example
    first: Row


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

        Raises ReplayError if nothing was written, or a read has failed.  Does not pause after the
        append.
        """
        repeats: list[_Event] = []
        finals: list[_Final] = []
        for event, outcome in events:
            first = outcome.row
            assert first is not None
            label = event.waiting.examples[event.i] or codec.decode(_asked(event).payload)
            if label.provisional:
                repeats.append((event, outcome))
            else:
                finals.append(_Final(event, label, first))
        keys = [outcome.row.key for _, outcome in repeats if outcome.row is not None]
        firsts = [final.first for final in finals]
        kept = [first.key for first in firsts if first.verdict is Verdict.QUARANTINED]
        if kept:
            await self._store.write(_discard, self._store.journal, self._model, kept)
        decisions = await self._control.read() if finals else self._control.decisions
        look = (_look_up, self._store.journal, self._model, decisions, keys, firsts)
        standing, listed = await self._store.read(*look)
        out: list[_Event] = [
            (event, outcome if stands is None else Outcome(False, stands))
            for (event, outcome), stands in zip(repeats, standing, strict=True)
        ]
        if finals:
            lessons = await self._lessons(finals, listed)
            rows = [
                self._control.judged(final_row(_asked(f.event), f.label, f.first, lesson))
                for f, lesson in zip(finals, lessons, strict=True)
            ]
            _, outcomes = await self._write(rows, [None] * len(rows))
            self._counts["corrected"] += sum(outcome.new for outcome in outcomes)
            out += zip([final.event for final in finals], outcomes, strict=True)
        return out

    async def _lessons(
        self, finals: Sequence[_Final], listed: Sequence[history.Listed | None]
    ) -> list[Row | None]:
        """The rows that have taught the provisional labels; None: nothing has, and nothing will.

        A label that is released, frozen or undone, and not taught again yet, is taught here, to be
        taken back: whoever has it learned again meanwhile writes the same row.
        """
        lessons = [None if event is None else event.standing for event in listed]
        again = [
            (i, row)
            for i, (final, event) in enumerate(zip(finals, listed, strict=True))
            if event is not None and (row := event.again(_asked(final.event).at)) is not None
        ]
        if again:
            _, outcomes = await self._write([row for _, row in again], [None] * len(again))
            stands = self._control.decisions.stands
            for (i, _), outcome in zip(again, outcomes, strict=True):
                taught = outcome.row
                lessons[i] = taught if taught is not None and stands(taught) else None
        return lessons


def _discard(journal: Journal, model: str, keys: Sequence[bytes]) -> None:
    """Nobody releases these quarantined events any more, unless somebody has."""
    for key in keys:
        history.decide(journal, model, key, history.DISCARDED)


def _look_up(
    journal: Journal,
    model: str,
    decisions: history.Decisions,
    keys: Sequence[bytes],
    firsts: Sequence[Row],
) -> tuple[list[Row | None], list[history.Listed | None]]:
    """The final rows of events by their keys, and what teaches the first labels, in one step."""
    finals = [journal.find(model, final_key(key)) for key in keys]
    return finals, [history.lesson(journal, model, decisions, first) for first in firsts]
