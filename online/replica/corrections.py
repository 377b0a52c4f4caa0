"""Final labels that meet a provisional one: the rows that take its lesson back are written.

Nobody asks before an event is written whether its label was a provisional one.  Where an event was
there before, its row tells; then the final label is written as a row of its own, in a second step
of the same commit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from online.replica.answers import Answers, Waiter
from online.replica.control_log import FAILED
from online.replica.pending import middle
from online.replica.refused import Unjudged
from online.replica.shared import Shared
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
"""Kinds of control rows that change what teaches an event, or may be taught."""

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


def _said(asked: NewRow) -> Example:
    """Return what the row says, of which a label by the id of a stored join is one half."""
    if asked.half is None:
        return codec.decode(asked.payload)
    (label,) = codec.decode_labels(asked.payload)
    return Example({}, label.label, label.weight, event_time=label.event_time)


class Corrections:
    """Writes the rows that make labels final.

    Parameters:
        answers: Takes what became of each event.
        write: Appends rows to the partition of this process.
        refuse: Ends the requests of events of which no more is written.
    """

    def __init__(
        self,
        shared: Shared,
        answers: Answers,
        write: Write,
        refuse: Callable[[Sequence[Waiter], ReplayError], None],
    ) -> None:
        self._answers = answers
        self._model = shared.settings.name
        self._store, self._control = shared.store, shared.control
        self._counts, self._write, self._refuse = shared.counts, write, refuse

    async def give(self) -> None:
        """Write final labels of events whose label was provisional, and answer for the events."""
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
                if (at := middle(list(left.values()))) is None:
                    self._refuse(list(left.values()), error)
                else:  # whose it is, he alone is refused
                    parts.extendleft((rest[at:], rest[:at]))
            except ReplayError as error:
                self._refuse(
                    [*left.values(), *(event for part in parts for event, _ in part)], error
                )
                return

    async def _settle(self, events: Sequence[_Event], left: dict[int, Waiter]) -> None:
        """Find out what becomes of each event: of a provisional label, its final one stands.

        ``left``: those of which it is not known yet.  Raises ReplayError if of these nothing was
        written, or a read has failed.
        """
        repeats: list[_Event] = []
        finals: list[_Final] = []
        for event, outcome in events:
            first = outcome.row
            assert first is not None
            label = event.waiting.examples[event.i] or _said(_asked(event))
            if label.provisional:
                repeats.append((event, outcome))
            else:
                finals.append(_Final(event, label, first))
        for event, outcome in await self._repeated(repeats):
            self._note(event, outcome, left)
        kept = [f.first.key for f in finals if f.first.verdict is Verdict.QUARANTINED]
        if kept:
            await self._store.write(_discard, self._store.journal, self._model, kept)
        for _ in range(ROUNDS_MAX):
            if not finals:
                return
            rows = await self._rows(finals)
            _, outcomes = await self._write(rows, [None] * len(rows))
            # Without a pause: whoever learns a new row finds who waits for it.
            asked = list(zip(finals, outcomes, strict=True))
            for final, outcome in asked:
                if not outcome.gone:
                    self._counts["corrected"] += outcome.new
                    self._note(final.event, outcome, left)
            finals = [final for final, outcome in asked if outcome.gone]
        raise JournalUnavailable("something was decided each time")

    def _note(self, event: Waiter, outcome: Outcome, left: dict[int, Waiter]) -> None:
        del left[id(event)]
        if outcome.row is not None:
            event.waiting.keys[event.i] = outcome.row.key
        self._answers.note_settled(event, outcome)

    async def _repeated(self, repeats: Sequence[_Event]) -> list[_Event]:
        """Find the final rows of provisional labels that come again, where there is one."""
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
        """The rows of final labels, each with what it takes back as the journal is now.

        They are not written if anything is decided meanwhile that takes events out or back, or if
        somebody has the event learned again.
        """
        decisions = await self._control.read()
        control = decisions.seq  # before the look: a thread may read more
        firsts = [final.first for final in finals]
        look = (_lessons, self._store.journal, self._model, decisions, firsts)
        return [
            self._control.judged(
                final_row(
                    _asked(final.event), final.label, final.first, found.row,
                    Only(control, DECIDING, found.next_key),
                )
            )
            for final, found in zip(finals, await self._store.read(*look), strict=True)
        ]  # fmt: skip


def _discard(journal: Journal, model: str, keys: Sequence[bytes]) -> None:
    """Nobody releases these quarantined events any more, unless somebody has."""
    for key in keys:
        history.decide(journal, model, key, history.DISCARDED)


def _finals(journal: Journal, model: str, keys: Sequence[bytes]) -> list[Row | None]:
    """The final rows of events by their keys, in one step."""
    return [journal.find(model, final_key(key)) for key in keys]


def _lessons(
    journal: Journal, model: str, decisions: history.Decisions, firsts: Sequence[Row]
) -> list[Lesson]:
    """Return what teaches the first labels, in one step."""
    return [lesson(journal, model, decisions, first) for first in firsts]


class Lesson(NamedTuple):
    """The row that teaches an event, or would if it was not undone; None: nothing has.

    ``next_key``: of the row that would teach it again, which does not stand; empty: of none.
    """

    row: Row | None
    next_key: bytes


def lesson(journal: Journal, model: str, decisions: Decisions, first: Row) -> Lesson:
    """Find what has taught the event of a first row, or may, whoever is banned now."""
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
