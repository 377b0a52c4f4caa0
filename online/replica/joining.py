"""Writes the halves of stored joins, and the joined row once both halves are in the store.

The joined row is written in a second step of the same commit (:mod:`online.rows.joins`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate, islice

import msgspec

from online.replica.answers import Answers, Waiter
from online.replica.corrections import Write
from online.replica.pending import Waiting, Written, split_point
from online.replica.refused import Unjudged
from online.replica.shared import ReplicaParts
from online.rows.joins import ROUNDS_MAX, entry_of, join_outcome
from replay import codec
from replay.errors import JournalUnavailable, ReplayError
from replay.journal.base import NewRow, Outcome, Verdict


class Joining:
    """Writes the halves of one model's stored joins.

    Parameters:
        answers: Receives the outcome of each event.
        write: Appends rows to this process's partition.
        refuse: Fails the requests of events that are not written.
    """

    def __init__(
        self,
        shared: ReplicaParts,
        answers: Answers,
        write: Write,
        refuse: Callable[[Sequence[Written], ReplayError], None],
    ) -> None:
        self._shared, self._limits = shared, shared.limits
        self._store, self._control, self._counts = shared.store, shared.control, shared.counts
        self._write, self._refuse, self._answers = write, refuse, answers

    async def write(self, halves: list[NewRow], batch: list[Waiting]) -> None:
        """Append rows some of which are halves of stored joins; each may take several steps."""
        since = self._shared.clocks.now_s() - self._shared.settings.token_lifetime
        most = self._limits.waiting_labels_max
        events = [Written(entry_of(half, most, since), half=half) for half in halves]
        for waiting in batch:
            entries = (entry_of(row, most, since) for row in waiting.rows)
            events += [Written(entry, waiting, i) for i, entry in enumerate(entries)]
        await self._append(events)

    async def _append(self, events: list[Written]) -> None:
        for _ in range(ROUNDS_MAX):
            if not events:
                return
            sizes = list(accumulate(len(event.entry.rows) for event in events))
            fit = max(bisect_right(sizes, self._store.journal.batch_rows_max), 1)
            some, later = events[:fit], events[fit:]
            judged, shared = self._control.judged, self._shared
            rows = [row if e.decided else judged(row) for e in some for row in e.entry.rows]
            rows = [within_room(row, shared) for row in rows]
            try:
                outcomes = iter((await self._write(rows, [None] * len(rows)))[1])
            except Unjudged as error:
                if (at := split_point(events)) is None:
                    self._refuse(events, error)
                else:
                    await self._append(events[:at])
                    await self._append(events[at:])
                return
            except ReplayError as error:
                self._refuse(events, error)
                return
            left: list[Written] = []
            for event in some:
                # No await here: the learner must find a new row's waiting request.
                outcome = list(islice(outcomes, len(event.entry.rows)))
                left += self._settle(event, outcome)
            events = left + later
        self._refuse(events, JournalUnavailable("other replicas were faster each time"))

    def _settle(self, event: Written, outcomes: list[Outcome]) -> list[Written]:
        """Record the outcomes of an event's rows; return what has to be appended next."""
        entry, waiting = event.entry, event.waiting
        try:
            entry.take(outcomes)
        except ReplayError as error:  # a half that cannot be decoded
            self._refuse([event], error)
            return []
        if (outcome := entry.outcome) is None:
            return [event]
        if event.half is not None:
            self._counts[f"joins_{join_outcome(event.half, outcome)}"] += 1
        if waiting is not None:
            if (row := outcome.row) is not None:
                waiting.keys[event.i] = row.key
            self._answers.note_written(Waiter(waiting, event.i), outcome)
        return [Written(after) for after in entry.after]


def within_room(row: NewRow, shared: ReplicaParts) -> NewRow:
    """Limit a joined row to the names that the vocabulary has room for; keep others as they are."""
    if row.half is not None or row.over is None:
        return row
    example, hold_s = codec.decode(row.payload), shared.settings.label_wait
    now_s, vocabulary = shared.clocks.now_s(), shared.learner.vocabulary
    features, left = vocabulary.taught(example.features, row.source, now_s, hold_s)
    if left is None:
        return row
    shared.counts["names_left_out"] += len(left)
    sent = {**left, **(example.raw or {})}
    payload = codec.encode(msgspec.structs.replace(example, features=features, raw=sent))
    verdict = Verdict.CLIPPED if row.verdict is Verdict.ACCEPTED else row.verdict
    return msgspec.structs.replace(row, payload=payload, verdict=verdict)
