"""The journal writer of one partition: many requests, one commit, one answer each.

Rows that wait are written together on a thread of its own.  What was committed is handed to the
learner in order; a request is answered when the last of its rows has been learned.  A handler
that goes away changes nothing: learning follows what was committed.

Predictions that a stored join needs are written behind, in the same commits, before the feedback
that waits: a label finds its prediction if both are here and fit.  Nobody waits for them; beyond
their bound they are dropped and counted.  What a half meets in the store is decided about and
written in a second step of the same commit (:mod:`online.rows.joins`).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, islice

import msgspec

from online.replica.answers import Answers, Waiter
from online.replica.corrections import Corrections
from online.replica.filtered import filtered
from online.replica.joined_names import within_room
from online.replica.partition import Partition
from online.replica.pending import Recorded, Waiting, Written, waiting_for
from online.replica.queue import Queue
from online.replica.refused import stopping
from online.replica.shared import Shared
from online.replica.targets import Targets
from online.replica.written_behind import Behind
from online.rows.joins import ROUNDS_MAX, Whole, entry_of, fate
from online.tracing.trace import Trace
from online.trust.filtering import Filtering
from replay.errors import JournalHeld, JournalUnavailable, ReplayError
from replay.example import Example
from replay.journal.base import NewRow, Outcome, Row, Verdict


class Writer:
    """Writes one model's feedback into this process's partition.

    Where another process learns the rows, they are answered ``queued`` at their commit, and at most
    ``limits.queue_max`` of them may be missing in the local model.

    Parameters:
        filters: Judge rows before they are written, unless the model is frozen; None: all are
            accepted.

    Attributes:
        answers: Who waits for which row.
        committed, decoded: Rows to be learned here, and what they say, by offset.
        to_learn: The last row of the partition that is not frozen.
        writing, committing: Whether a commit is under way, and one of rows that are not frozen.
        judged_by: Newest control row that was known when these were judged.
    """

    def __init__(self, shared: Shared, filters: Filtering | None) -> None:
        self.stopping = self.writing = self.committing = False
        self.committed: deque[Row] = deque()
        self.decoded: dict[int, Example] = {}
        self.to_learn, self.judged_by, self._targets = 0, 0, Targets(shared)
        self._shared, self._filters, self._limits = shared, filters, shared.limits
        self._learner, self._followed = shared.learner, shared.followed
        self._store, self._control, self._counts = shared.store, shared.control, shared.counts
        most = shared.limits.joins_queue_max
        self._halves = Behind(most, most * shared.limits.token_bytes_max)
        self._at, self._wake = Partition(shared, self._move_on), asyncio.Event()
        self.answers = Answers(shared, self._at)
        self._corrections = Corrections(shared, self.answers, self._write)
        self._queue = Queue(shared.limits, shared.counts, self.answers)
        self._traces: list[Trace] = []

    async def open(self) -> None:
        """Take the first partition."""
        await self._at.open()

    @property
    def partition(self) -> int:
        """Number of the partition that is written."""
        return self._at.number

    @property
    def known(self) -> int:
        """Last offset of it that there was an answer for."""
        return self._at.known

    @property
    def waiting(self) -> int:
        """Requests that wait for the journal, or to be learned."""
        return self.answers.requests

    @property
    def halves(self) -> int:
        """Predictions that wait to be written."""
        return len(self._halves)

    @property
    def idle(self) -> bool:
        """Whether nothing waits for a commit."""
        return not (self._queue or self.waiting or len(self._halves) or self.writing)

    # -- feedback ----------------------------------------------------------------------------

    async def record(
        self,
        rows: Sequence[NewRow],
        examples: Sequence[Example | None] | None = None,
        *,
        decided: bool = False,
    ) -> list[Recorded]:
        """Write rows durably in one step, wait until they are learned, say what became of each.

        ``examples`` are what the rows' payloads say, so that nobody has to read them again; None:
        the payload has to be read.  ``decided``: by an operator.  The rows are written with the
        verdicts that they have.

        Raises RequestError: 429 ``busy`` or ``queue_full`` before anything was written, 503
        ``journal_full`` or ``journal_held`` (definite), 503 ``journal_unavailable`` (indefinite:
        repeat with the same id).
        """
        done = asyncio.get_running_loop().create_future()
        waiting = waiting_for(rows, examples, done, decided=decided)
        late = self._put(waiting)
        try:
            await done  # who goes away cancels it, and nothing else
        finally:
            late.cancel()
        return [result for result in waiting.results if result is not None]

    def put(
        self,
        rows: Sequence[NewRow],
        examples: Sequence[Example | None],
        each: Sequence[asyncio.Future[Recorded | None]],
    ) -> None:
        """Write rows of as many requests in one step; each is told by its future what became of it.

        The futures get the errors of :meth:`record`, too, but for ``stopping``, ``busy`` and
        ``queue_full``: these are raised here, before anything was taken.
        """
        done = asyncio.get_running_loop().create_future()
        self._put(waiting_for(rows, examples, done, each=each))

    def _put(self, waiting: Waiting) -> asyncio.TimerHandle:
        if self.stopping:
            raise stopping()
        late = self._queue.put(waiting, None if self._followed is None else self.queued)
        self._wake.set()
        return late

    @property
    def queued(self) -> int:
        """Rows committed here that the model lacks, because another process learns them."""
        if self._followed is None:
            return 0
        return max(self.known - self._followed.clock.get(self.partition, 0), 0)

    def keep(self, *halves: NewRow) -> bool:
        """Write sides of stored joins behind, without waiting; whether there was room for all.

        The bound is ``joins_queue_max`` halves, and so many times ``token_bytes_max`` bytes.
        """
        if kept := self._halves.put(halves):
            self._wake.set()
        return kept

    async def run(self) -> None:
        """Commit whatever waits, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue or len(self._halves):
                batch = await self._queue.next_batch()
                size = sum(len(waiting.rows) for waiting in batch)
                room = max(self._store.journal.batch_rows_max - size, 0)
                await self._commit(self._halves.take(room), batch)

    async def _commit(self, halves: list[NewRow], batch: list[Waiting]) -> None:
        self.writing, self.judged_by = True, self._control.decisions.seq  # a thread reads more
        self._traces = [waiting.trace for waiting in batch if waiting.trace is not None]
        self._step("wait")
        try:
            if halves or any(waiting.joins for waiting in batch):
                await self._write_joins(halves, batch)
            else:
                await self._write_whole(batch)
            await self._corrections.give()
        finally:
            self.writing = self.committing = False
            self._queue.written(batch)
        await self.answers.after_commit()

    def _step(self, name: str) -> None:
        """A step of the commit under way has ended, for those of its requests that are traced."""
        for trace in self._traces:
            trace.step(name)

    async def _write_whole(self, batch: list[Waiting]) -> None:
        """Append rows that are no sides of stored joins."""
        events = [Waiter(waiting, i) for waiting in batch for i in range(len(waiting.rows))]
        rows = [row for waiting in batch for row in waiting.rows]
        examples = [example for waiting in batch for example in waiting.examples]
        if self._control.decisions.sources:
            judged, given = self._control.judged, zip(rows, events, strict=True)
            rows = [row if event.waiting.decided else judged(row) for row, event in given]
        most = self._store.journal.batch_rows_max
        for start in range(0, len(events), most):
            stop = start + most
            known = examples[start:stop]
            try:
                written, outcomes = await self._write(rows[start:stop], known)
            except ReplayError as error:
                left = [(e.waiting, e.i) for e in events[start:]]
                self._refuse([Written(Whole(w.rows[i]), w, i) for w, i in left], error)
                return
            # Without a pause: whoever learns a new row finds who waits for it.
            for event, row, example, outcome in zip(
                events[start:stop], written, known, outcomes, strict=True
            ):
                stands = self.answers.note_written(event, outcome)
                if example is not None and stands is not None and stands.payload == row.payload:
                    self.decoded[stands.offset] = example

    async def _write_joins(self, halves: list[NewRow], batch: list[Waiting]) -> None:
        """The same for rows among which are sides of stored joins: each may take several steps."""
        since = self._shared.clocks.now_s() - self._shared.settings.token_lifetime
        most = self._limits.waiting_labels_max
        events = [Written(entry_of(half, most, since), half=half) for half in halves]
        for waiting in batch:
            entries = (entry_of(row, most, since) for row in waiting.rows)
            events += [Written(entry, waiting, i) for i, entry in enumerate(entries)]
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
            except ReplayError as error:
                self._refuse(events, error)
                return
            left: list[Written] = []
            for event in some:
                # Without a pause: whoever learns a new row finds who waits for it.
                found = list(islice(outcomes, len(event.entry.rows)))
                left += self._settle(event, found)
            events = left + later
        self._refuse(events, JournalUnavailable("other replicas were faster each time"))

    async def _write(
        self, rows: list[NewRow], examples: list[Example | None]
    ) -> tuple[list[NewRow], Sequence[Outcome]]:
        """Append rows with their verdicts, as they are returned; new ones go to the learner.

        ``examples`` become what the rows say then.  Raises ReplayError if nothing was written.
        """
        rows = self._targets.bounded(rows, examples)
        if self._learner.frozen:
            rows = [msgspec.structs.replace(row, verdict=Verdict.FROZEN) for row in rows]
        else:
            self.committing = True
            if self._filters is not None:
                rows = await filtered(self._filters, rows, examples)
                self._step("judge")
        try:
            appended = await self._at.append(rows)
        except ReplayError:
            if self._filters is not None:
                self._filters.dropped()
            raise
        self._step("commit")
        self.answers.incident = None
        if self._filters is not None:
            self._filters.committed(rows, appended.outcomes)
        fresh = [outcome.row for outcome in appended.outcomes if outcome.new and outcome.row]
        self._take(fresh)
        self._shared.wake.set()
        if self._at.new_server:  # do not wait to meet it
            self._shared.pace.now.set()
        return rows, appended.outcomes

    def _settle(self, event: Written, outcomes: list[Outcome]) -> list[Written]:
        """Return what has to be appended next after these outcomes of the event's rows."""
        entry, waiting = event.entry, event.waiting
        try:
            entry.take(outcomes)
        except ReplayError as error:  # a half that nobody can read
            self._refuse([event], error)
            return []
        if (outcome := entry.outcome) is None:
            return [event]
        if event.half is not None:
            self._counts[f"joins_{fate(event.half, outcome)}"] += 1
        if waiting is not None:
            if (row := outcome.row) is not None:
                waiting.keys[event.i] = row.key
            self.answers.note_written(Waiter(waiting, event.i), outcome)
        return [Written(after) for after in entry.after]

    def _take(self, fresh: Sequence[Row]) -> None:
        """Hand new rows to the learner, each once, in order; frozen ones are not for it."""
        rows = [row for row in fresh if row.verdict is not Verdict.FROZEN]
        if rows:
            self.to_learn = max(self.to_learn, *(row.offset for row in rows))
        if self._followed is None:
            self.committed.extend(self.answers.expect(rows))

    def _refuse(self, events: Sequence[Written], error: ReplayError) -> None:
        """Nothing more is written of the events; of a request's others something may have been."""
        behind = [event.half for event in events if event.half is not None]
        if isinstance(error, JournalHeld):  # the next commit takes them
            self._halves.put_back(behind)
        else:
            self._counts["joins_dropped"] += len(behind)
        self.answers.refuse(events, error)

    async def _move_on(self) -> None:
        """Somebody else learns the rest of the partition: drop what is held of it, take another."""
        waiters = self.answers.leave()
        self.committed.clear()
        self.decoded.clear()
        self._learner.abandon(self.partition)
        if self._filters is not None:
            self._filters.reputations.leave(self.partition)
        await self._at.open()
        self.to_learn = 0
        await self.answers.leave_to_adopter(waiters)
