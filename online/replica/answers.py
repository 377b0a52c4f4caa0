"""Maps committed journal rows to the requests that wait for them, and builds their answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec

from online.errors import RequestError
from online.learning.base import LEARNED, BaseLearner
from online.replica.partition import Partition
from online.replica.pending import Recorded, Waiting, Written
from online.replica.refused import refusal_of, unanswered_in_time
from online.replica.shared import ReplicaParts
from online.rows import history
from online.rows.finals import may_change
from online.telemetry.trace import Trace
from replay.errors import JournalDamaged, ReplayError
from replay.journal.base import Outcome, Row, Verdict


class Waiter(msgspec.Struct, frozen=True, gc=False):
    """One row of a request that waits for its commit.

    ``repeat`` is true if the event was already in the journal.
    """

    waiting: Waiting
    i: int
    repeat: bool = False


class Answers:
    """The waiting requests, by the offset of the committed row that they wait for.

    Parameters:
        partition: The partition that the waiting rows belong to.

    Attributes:
        requests: Number of unanswered requests.
        incident: Why the last requests could not be answered; None if they could.
        changing: Repeats of events whose label may change, for :mod:`online.replica.corrections`.
    """

    def __init__(self, shared: ReplicaParts, partition: Partition) -> None:
        self.requests = 0
        self.incident: str | None = None
        self.changing: list[tuple[Waiter, Outcome]] = []
        self._model, self._learner = shared.settings.name, shared.learner
        self._store, self._control, self._counts = shared.store, shared.control, shared.counts
        self._statuses = RowStatuses(shared.control.decisions, shared.followed)
        self._partition, self._crossing = partition, shared.crossing
        self._wait_s = shared.limits.feedback_wait_s
        self._unanswered: list[tuple[Waiter, Outcome]] = []
        # Almost always one request waits for a row, so the value is a bare Waiter: a thousand
        # short-lived lists would trigger the cyclic garbage collector, which walks every object.
        self._waiters: dict[int, Waiter | list[Waiter] | None] = {}

    def expect(self, rows: Sequence[Row]) -> list[Row]:
        """Register rows so that requests can wait for them; return the newly registered ones."""
        waiters = self._waiters
        fresh = [row for row in rows if row.offset not in waiters]
        waiters.update(dict.fromkeys([row.offset for row in fresh]))
        return fresh

    def add(self, offset: int, waiter: Waiter) -> bool:
        """Add a request that waits for a row; return False if the row is not registered."""
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

    def note_written(self, event: Waiter, outcome: Outcome) -> Row | None:
        """Register the answer for a written row; return the row if it is new and learned here.

        The answer for any other row is given by :meth:`after_commit`.  A repeat whose label may
        change is put into ``changing`` instead.
        """
        stood = not (outcome.new or event.waiting.decided)
        if stood and may_change(event.waiting.rows[event.i], outcome):
            self.changing.append((event, outcome))
            return None
        return self.note_settled(event, outcome)

    def note_settled(self, event: Waiter, outcome: Outcome) -> Row | None:
        """Do what :meth:`note_written` does, but never put the event into ``changing``."""
        row = outcome.row
        if outcome.new and row is not None and self.add(row.offset, event):
            return row
        self._unanswered.append((event, outcome))
        return None

    async def after_commit(self) -> None:
        """Answer for rows that this process will not learn: repeats, frozen, waiting and others."""
        unanswered, self._unanswered = self._unanswered, []
        for event, outcome in unanswered:
            try:
                await self._answer_unlearned(event.waiting, event.i, outcome)
            except JournalDamaged as error:  # of the row, or of a control row needed for the answer
                self._answer_damaged(event.waiting, event.i, error)

    def pop_waiters(self, offset: int) -> Sequence[Waiter]:
        """Remove and return the requests that wait for a row, which has just been learned."""
        return _as_sequence(self._waiters.pop(offset, None))

    def passed(self, first: int) -> list[Waiter]:
        """Remove and return the requests waiting for rows before ``first``, never learned here."""
        waiters, behind = self._waiters, list[Waiter]()
        while waiters and (offset := next(iter(waiters))) < first:  # offsets are ascending
            behind += self.pop_waiters(offset)
        return behind

    def pop_all(self) -> list[Waiter]:
        """Remove and return all waiting requests, and unregister all rows of the partition."""
        waiters, self._waiters = self._waiters, {}
        return [waiter for some in waiters.values() for waiter in _as_sequence(some)]

    def record_outcome(self, waiting: Waiting, i: int, recorded: Recorded) -> None:
        """Record the outcome of one row; the last outcome completes its request."""
        waiting.results[i] = recorded
        waiting.open -= 1
        if waiting.each:
            self.requests -= 1
            if not waiting.each[i].done():
                waiting.each[i].set_result(recorded)
        if waiting.open == 0:
            self.requests -= not waiting.each
            if waiting.late is not None:
                waiting.late.cancel()
            if waiting.trace is not None:
                self._trace_outcome(waiting.trace, recorded)
            if not waiting.done.done():
                waiting.done.set_result(None)

    def _trace_outcome(self, trace: Trace, recorded: Recorded) -> None:
        """Record in the trace of a request that its last row has an outcome."""
        row, learned = recorded.row, recorded.status in ("learned", "clipped")
        at_ns = trace.step("learn" if learned else "settle", status=recorded.status)
        if learned and row is not None and self._crossing is not None:
            self._crossing.learned(row.partition, row.offset, trace, at_ns)

    def note_alike(self, rows: Sequence[Row], version: str, own: int) -> None:
        """Answer for rows learned one after the other on top of ``own`` earlier local rows."""
        before, status = f"{version}+{own}", self._statuses.status
        for row in rows:
            own += 1
            now = f"{version}+{own}"
            for waiter in self.pop_waiters(row.offset):
                recorded = Recorded(status(row, None), row, before, now, waiter.repeat)
                self.record_outcome(waiter.waiting, waiter.i, recorded)
            before = now

    def note_learned(
        self, row: Row, before: str, reason: str | None, *, undecided: bool = False
    ) -> None:
        """Answer for a row that was learned or, with a ``reason``, could not be.

        ``undecided``: whether it failed is for another process to decide, which has not yet.
        """
        if waiters := self.pop_waiters(row.offset):
            status, now = self._statuses.status(row, reason), self._learner.stamp
            if undecided:
                status, reason = "queued", None
            for waiter in waiters:
                recorded = Recorded(status, row, before, now, waiter.repeat, reason)
                self.record_outcome(waiter.waiting, waiter.i, recorded)

    async def _answer_unlearned(self, waiting: Waiting, i: int, outcome: Outcome) -> None:
        """Answer for an event that is not learned now: a repeat, or frozen, queued or waiting."""
        row, now = outcome.row, self._learner.stamp
        if outcome.damaged is not None:
            self._answer_damaged(waiting, i, outcome.damaged)
            return
        if row is None:
            recorded = Recorded(
                "waiting", None, now, now, False, None, outcome.since, met=outcome.met
            )
            self.record_outcome(waiting, i, recorded)
            return
        if row.partition == self._partition.number and self.add(
            row.offset, Waiter(waiting, i, True)
        ):
            return  # answered together with the first request for the row
        decisions, track = self._control.decisions, self._learner.tracks.get(row.partition)
        counted = track is not None and track.next > row.offset
        # A failed row's control row is written before the row counts as learned.
        if not outcome.new or counted or self._statuses.includes(row):
            decisions = await self._control.current()
        reason, again = decisions.failure(row), None
        status = self._statuses.status(row, reason)
        if not outcome.new and status in ("frozen", "undone", "released"):
            arguments = (self._store.journal, self._model, decisions, row)
            again = await self._store.read_retrying(history.standing, *arguments)
        recorded = Recorded(status, row, now, now, not outcome.new, reason, learned_as=again)
        self.record_outcome(waiting, i, recorded)

    async def answer_rewritten(self, waiters: Sequence[Waiter]) -> None:
        """Answer for rows that arrived as part of the server's rewritten values.

        Takes at most ``limits.feedback_wait_s``; the remaining requests then fail as unanswered in
        time, and learning goes on.
        """
        left = deque(waiters)
        try:
            async with asyncio.timeout(self._wait_s):
                while left:
                    await self._answer_from_values(left[0])
                    left.popleft()
        except TimeoutError:
            for waiter in left:
                self._end(waiter.waiting, [waiter.i], unanswered_in_time())

    async def _answer_from_values(self, waiter: Waiter) -> None:
        waiting, i = waiter.waiting, waiter.i
        try:
            row = await self._store.read_retrying(
                self._store.journal.find, self._model, waiting.keys[i]
            )
            if row is None:  # it was trimmed, or the store has lost it
                self._end(waiting, [i], unanswered_in_time())
            else:
                await self._answer_unlearned(waiting, i, Outcome(not waiter.repeat, row))
        except JournalDamaged as error:
            self._answer_damaged(waiting, i, error)

    async def leave_to_adopter(self, waiters: Sequence[Waiter]) -> None:
        """Answer for rows of a sealed partition: the process that sealed it will learn them."""
        now = self._learner.stamp
        for waiter in waiters:
            waiting, i, repeat = waiter.waiting, waiter.i, waiter.repeat
            find = self._store.journal.find
            try:
                standing = await self._store.read_retrying(find, self._model, waiting.keys[i])
            except JournalDamaged as error:
                self._answer_damaged(waiting, i, error)
                continue
            if standing is None:  # it was trimmed, or the store has lost it
                self._end(waiting, [i], unanswered_in_time())
            else:
                # The adopter learns it, so its final outcome is not known here yet.
                learned = standing.verdict in LEARNED
                status = "queued" if learned else self._statuses.status(standing, None)
                self.record_outcome(waiting, i, Recorded(status, standing, now, now, repeat))

    def _answer_damaged(self, waiting: Waiting, i: int, error: JournalDamaged) -> None:
        """Answer for an event whose journal row or control rows are damaged."""
        self.incident = str(error)
        self._counts["damaged"] += 1
        now = self._learner.stamp
        self.record_outcome(waiting, i, Recorded("damaged", None, now, now, True, str(error)))

    def refuse(self, events: Sequence[Written], error: ReplayError) -> None:
        """Fail the requests whose events were not written; other rows of them may have been."""
        self.incident = str(error)
        refused: dict[Waiting, list[int]] = {}
        for event in events:
            if event.waiting is not None:
                refused.setdefault(event.waiting, []).append(event.i)
        for waiting, places in refused.items():
            self._counts["refused_journal"] += len(places)
            in_part = not waiting.each and len(places) < len(waiting.rows)
            self._end(waiting, places, refusal_of(error, in_part=in_part))

    def abandon(self, batch: Sequence[Waiting]) -> None:
        """Fail the requests of an aborted batch that nothing else will answer, as indefinite.

        Requests that wait for a committed row are answered when it is learned.
        """
        self.changing, self._unanswered = [], []
        waits = {
            (id(w.waiting), w.i) for some in self._waiters.values() for w in _as_sequence(some)
        }
        for waiting in batch:
            if waiting.refused and not waiting.each:
                continue
            places = [
                i
                for i, result in enumerate(waiting.results)
                if result is None and (id(waiting), i) not in waits and i not in waiting.refused
            ]
            if places:
                self._counts["refused_journal"] += len(places)
                self._end(waiting, places, unanswered_in_time())

    def _end(self, waiting: Waiting, places: Sequence[int], error: RequestError) -> None:
        """Fail a request, or only the rows at these indexes where each has its own request."""
        self.requests -= len(places) if waiting.each else not waiting.refused
        waiting.refused = (*waiting.refused, *places)
        waiting.fail(error, places)


def _as_sequence(waiters: Waiter | list[Waiter] | None) -> Sequence[Waiter]:
    if waiters is None:
        return ()
    return waiters if isinstance(waiters, list) else (waiters,)


_LEARNED_AS: Final = {Verdict.ACCEPTED: "learned", Verdict.CLIPPED: "clipped"}
_FROZEN, _QUARANTINED = Verdict.FROZEN, Verdict.QUARANTINED  # looking up enum members is slow


class RowStatuses:
    """Derives the status of one model's rows from their verdicts and the control rows.

    Parameters:
        follows: The local model if another process learns the rows; None: this process does.
    """

    def __init__(self, decisions: history.Decisions, follows: BaseLearner | None) -> None:
        self._decisions, self._follows = decisions, follows

    def status(self, row: Row, reason: str | None) -> str:
        """Return the row's status; ``reason``: why it could not be learned, or None."""
        decisions = self._decisions
        if reason:
            return "failed"
        if row.verdict is _FROZEN:
            return "frozen"
        if row.verdict is _QUARANTINED:
            return decisions.choice(history.origin(row)) or "quarantined"
        if decisions.undone.has(row.partition, row.offset):
            return "undone"
        learned = _LEARNED_AS.get(row.verdict, "learned")
        return learned if self._follows is None or self.includes(row) else "queued"

    def includes(self, row: Row) -> bool:
        """Whether another process has learned the row, and the local model includes it."""
        return self._follows is not None and self._follows.includes(row.partition, row.offset)
