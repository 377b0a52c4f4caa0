"""The journal writer of one partition: batches the rows of many requests into one commit.

Waiting rows are written together on a separate thread.  Committed rows go to the learner in offset
order, and a request is answered when its last row is learned.  Cancelling a handler changes
nothing: what is learned follows from what was committed.

Predictions that a stored join needs are written asynchronously ("written behind") in the same
commits, before the waiting feedback, so a label finds its prediction if both fit into one commit.
No request waits for them; beyond their bound they are dropped and counted
(:mod:`online.replica.joining`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import msgspec

from online.learning.bounds import with_target
from online.replica.answers import Answers, Waiter
from online.replica.corrections import Corrections
from online.replica.filtered import Filtered
from online.replica.joining import Joining
from online.replica.partition import Partition
from online.replica.pending import (
    OutcomeReceiver,
    Recorded,
    Waiting,
    Written,
    split_point,
    waiting_for,
)
from online.replica.queue import Queue
from online.replica.refused import Unjudged, stopping
from online.replica.shared import ReplicaParts
from online.rows.history import is_again
from online.rows.joins import Whole
from online.telemetry.trace import Trace
from online.trust.filtering import Filtering
from replay import codec
from replay.errors import JournalHeld, ReplayError
from replay.example import Example
from replay.journal.base import NewRow, Outcome, Row, Verdict


class WriteBehindQueue:
    """Halves of stored joins that no request waits for, bounded by number and by bytes.

    Sources that tokens stand for share the room: a source that has halves queued may use at most
    half of the room that the others leave, so one busy source cannot exclude the rest.
    """

    def __init__(self, rows_max: int, bytes_max: int) -> None:
        self._rows_max, self._bytes_max = rows_max, bytes_max
        self._halves: deque[NewRow] = deque()
        self._bytes = 0
        self._rows_of: Counter[str] = Counter()
        self._bytes_of: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._halves)

    def put(self, halves: Sequence[NewRow]) -> bool:
        """Queue all halves, which are of one source, or none; return whether there was room."""
        size = sum(len(half.payload) for half in halves)
        if len(self) + len(halves) > self._rows_max or self._bytes + size > self._bytes_max:
            return False
        if self.beyond_share(halves):
            return False
        self._halves.extend(halves)
        self._count(halves, 1)
        return True

    def beyond_share(self, halves: Sequence[NewRow]) -> int:
        """Return how many halves of the source wait if its share excludes these; otherwise 0."""
        size = sum(len(half.payload) for half in halves)
        source = halves[0].source if halves else ""
        rows, bytes_ = self._rows_of[source], self._bytes_of[source]
        if not source or not rows:
            return 0
        room = self._rows_max - (len(self) - rows)
        bytes_room = self._bytes_max - (self._bytes - bytes_)
        full = 2 * (rows + len(halves)) > room or 2 * (bytes_ + size) > bytes_room
        return rows if full else 0

    def put_back(self, halves: Sequence[NewRow]) -> None:
        """Put halves that were taken but not written back to the front of the queue."""
        self._halves.extendleft(reversed(halves))
        self._count(halves, 1)

    def take(self, n: int) -> list[NewRow]:
        """Remove and return at most ``n`` halves, the oldest first."""
        halves = [self._halves.popleft() for _ in range(min(n, len(self)))]
        self._count(halves, -1)
        return halves

    def _count(self, halves: Iterable[NewRow], sign: int) -> None:
        for half in halves:
            self._bytes += sign * len(half.payload)
            self._bytes_of[half.source] += sign * len(half.payload)
            self._rows_of[half.source] += sign
            if not self._rows_of[half.source]:
                del self._rows_of[half.source], self._bytes_of[half.source]


class Targets:
    """Bounds the targets of one model; does nothing for tasks whose labels are not bounded."""

    def __init__(self, shared: ReplicaParts) -> None:
        settings = shared.settings
        self._bounds, self._counts = shared.learner.bounds, shared.counts
        self._bounded = settings.purpose.bounded

    def bounded(self, rows: list[NewRow], examples: list[Example | None]) -> list[NewRow]:
        """Return the rows to be written; ``examples`` is updated in place to their content."""
        if not (self._bounded and self._bounds.on):
            return rows
        out, ahead = list(rows), self._bounds.ahead()
        for i, (row, example) in enumerate(zip(rows, examples, strict=True)):
            if row.half is not None or is_again(row):
                continue
            sent = codec.decode(row.payload) if example is None else example
            taught = examples[i] = with_target(ahead, sent)
            raw = None if taught is sent else taught.raw
            ahead.add(Example({}, taught.label, raw=raw), row.source)
            if taught is not sent:
                self._counts["values_clipped"] += 1
                clipped = row.verdict is Verdict.ACCEPTED
                verdict = Verdict.CLIPPED if clipped else row.verdict
                payload = codec.encode(taught)
                out[i] = msgspec.structs.replace(row, verdict=verdict, payload=payload)
        return out


class Writer:
    """Writes one model's feedback into this process's partition.

    If another process learns the rows, they are answered ``queued`` at their commit, and at most
    ``limits.queue_max`` of them may be missing from the local model.

    Parameters:
        filters: Judge rows before they are written, unless the model is frozen; None: all rows are
            accepted.

    Attributes:
        answers: The requests that wait for committed rows.
        committed: Committed rows that are to be learned here, in offset order.
        decoded: Decoded payloads of committed rows, by offset.
        to_learn: Offset of the partition's last row that is not frozen.
        writing, committing: Whether a commit is under way, and one of rows that are not frozen.
        judged_by: The newest control row known when the current batch was judged.
        unjudged: The last failure to judge rows; None: there was none.
    """

    def __init__(self, shared: ReplicaParts, filters: Filtering | None) -> None:
        self.stopping = self.writing = self.committing = False
        self.unjudged: str | None = None
        self.committed: deque[Row] = deque()
        self.decoded: dict[int, Example] = {}
        self.to_learn, self.judged_by, self._targets = 0, 0, Targets(shared)
        self._shared, self._filters, self._limits = shared, Filtered(filters), shared.limits
        self._learner, self._followed = shared.learner, shared.followed
        self._store, self._control, self._counts = shared.store, shared.control, shared.counts
        most = shared.limits.joins_queue_max
        self._halves = WriteBehindQueue(most, most * shared.limits.token_bytes_max)
        self._at, self._wake = Partition(shared, self._move_on), asyncio.Event()
        self.answers = Answers(shared, self._at)
        self._corrections = Corrections(shared, self.answers, self._write, self._refuse_rows)
        self._joins = Joining(shared, self.answers, self._write, self._refuse)
        self._queue = Queue(shared.limits, shared.counts, self.answers)
        self._traces: list[Trace] = []

    async def open(self) -> None:
        """Register the first partition."""
        await self._at.open()

    @property
    def partition(self) -> int:
        """Number of the partition that this process writes."""
        return self._at.number

    @property
    def known(self) -> int:
        """Last offset of the partition that the store has confirmed."""
        return self._at.known

    @property
    def waiting(self) -> int:
        """Number of requests that wait for their rows to be committed or learned."""
        return self.answers.requests

    @property
    def halves(self) -> int:
        """Number of predictions that wait to be written for stored joins."""
        return len(self._halves)

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting for a commit or an answer."""
        return not (self._queue or self.waiting or len(self._halves) or self.writing)

    async def record(
        self,
        rows: Sequence[NewRow],
        examples: Sequence[Example | None] | None = None,
        *,
        decided: bool = False,
    ) -> list[Recorded]:
        """Write rows durably in one step, wait until they are learned, and return each outcome.

        ``examples`` are the decoded payloads of the rows, which saves decoding them again; None:
        the payloads must be decoded.  ``decided``: an operator has decided about the rows, so they
        are written with the verdicts that they carry.

        Raises RequestError: 429 ``busy`` or ``queue_full`` before anything was written, 503
        ``journal_full`` or ``journal_held`` (definite), 503 ``journal_unavailable`` (indefinite:
        repeat with the same id).
        """
        done = asyncio.get_running_loop().create_future()
        waiting = waiting_for(rows, examples, done, decided=decided)
        late = self._put(waiting)
        try:
            await done  # cancelling the handler cancels this future and nothing else
        finally:
            late.cancel()
        return [result for result in waiting.results if result is not None]

    def put(
        self,
        rows: Sequence[NewRow],
        examples: Sequence[Example | None],
        each: Sequence[OutcomeReceiver],
    ) -> None:
        """Write one row for each of several requests in one step; a future gets each outcome.

        The futures also get the errors of :meth:`record`, except ``stopping``, ``busy`` and
        ``queue_full``: these are raised here, before any row is queued.
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
        """Rows committed here that another process has not yet learned into the local model."""
        if self._followed is None:
            return 0
        return max(self.known - self._followed.clock.get(self.partition, 0), 0)

    def keep(self, *halves: NewRow) -> bool:
        """Queue halves of stored joins for the next commit; return whether there was room for all.

        The bound is ``joins_queue_max`` halves, and ``joins_queue_max * token_bytes_max`` bytes.
        """
        if stored := self._halves.put(halves):
            self._wake.set()
        return stored

    def beyond_share(self, *halves: NewRow) -> int:
        """Return how many halves of the source wait if its share excludes these; otherwise 0."""
        return self._halves.beyond_share(halves)

    async def run(self) -> None:
        """Commit whatever is queued, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue or len(self._halves):
                batch = await self._queue.next_batch()
                size = sum(len(waiting.rows) for waiting in batch)
                room = max(self._store.journal.batch_rows_max - size, 0)
                await self._commit(self._halves.take(room), batch)

    async def _commit(self, halves: list[NewRow], batch: list[Waiting]) -> None:
        # Taken now: a thread may read further control rows while the batch is judged.
        self.writing, self.judged_by = True, self._control.decisions.seq
        self._traces = [waiting.trace for waiting in batch if waiting.trace is not None]
        self._step("wait")
        try:
            try:
                if halves or any(waiting.joins for waiting in batch):
                    await self._joins.write(halves, batch)
                else:
                    await self._write_whole(batch)
                await self._corrections.write_finals()
            finally:
                self.writing = self.committing = False
                self._queue.written(batch)
            await self.answers.after_commit()
        except Exception:  # answer the waiting requests, and let the next batch go on
            self.answers.abandon(batch)
            self._wake.set()
            raise

    def _step(self, name: str) -> None:
        """Record the end of a step of the current commit in the traces of its requests."""
        for trace in self._traces:
            trace.step(name)

    async def _write_whole(self, batch: list[Waiting]) -> None:
        """Append rows that are not halves of stored joins."""
        events = [Waiter(waiting, i) for waiting in batch for i in range(len(waiting.rows))]
        rows = [row for waiting in batch for row in waiting.rows]
        examples = [example for waiting in batch for example in waiting.examples]
        if self._control.decisions.sources:
            judged, given = self._control.judged, zip(rows, events, strict=True)
            rows = [row if event.waiting.decided else judged(row) for row, event in given]
        most = self._store.journal.batch_rows_max
        steps = deque((i, min(i + most, len(events))) for i in range(0, len(events), most))
        while steps:
            start, stop = steps.popleft()
            known = examples[start:stop]
            try:
                written, outcomes = await self._write(rows[start:stop], known)
            except Unjudged as error:
                if (at := split_point(events[start:stop])) is None:
                    self._refuse_rows(events[start:stop], error)
                else:  # bisect, so that only the request at fault is refused
                    steps.extendleft([(start + at, stop), (start, start + at)])
                continue
            except ReplayError as error:
                self._refuse_rows(events[start:], error)
                return
            # No await here: the learner must find a new row's waiting request.
            for event, row, example, outcome in zip(
                events[start:stop], written, known, outcomes, strict=True
            ):
                stands = self.answers.note_written(event, outcome)
                if example is not None and stands is not None and stands.payload == row.payload:
                    self.decoded[stands.offset] = example

    async def _write(
        self, rows: list[NewRow], examples: list[Example | None]
    ) -> tuple[list[NewRow], Sequence[Outcome]]:
        """Append rows with their verdicts; return the written rows and the outcome of each.

        New rows are handed to the learner.  ``examples`` is updated in place to the written
        content.  Raises ReplayError if nothing was written.
        """
        rows = self._targets.bounded(rows, examples)
        if self._learner.frozen:
            rows = [msgspec.structs.replace(row, verdict=Verdict.FROZEN) for row in rows]
        else:
            self.committing = True
            rows = await self._filters.judge(rows, examples)
            if self._filters.present:
                self._step("judge")
        try:
            appended = await self._at.append(rows)
        except Exception:
            self._filters.dropped()
            raise
        self._step("commit")
        self.answers.incident = None
        fresh = [outcome.row for outcome in appended.outcomes if outcome.new and outcome.row]
        self._take(fresh)
        self._filters.committed(rows, appended.outcomes)
        self._shared.wake.set()
        if self._at.new_server:  # exchange with the restarted server at once
            self._shared.pace.now.set()
        return rows, appended.outcomes

    def _take(self, fresh: Sequence[Row]) -> None:
        """Hand new rows to the learner, each once and in order, except frozen ones."""
        frozen = Verdict.FROZEN
        rows = [row for row in fresh if row.verdict is not frozen]
        if rows:
            self.to_learn = max(self.to_learn, max([row.offset for row in rows]))
        if self._followed is None:
            self.committed.extend(self.answers.expect(rows))

    def _refuse_rows(self, events: Sequence[Waiter], error: ReplayError) -> None:
        self._refuse([Written(Whole(e.waiting.rows[e.i]), e.waiting, e.i) for e in events], error)

    def _refuse(self, events: Sequence[Written], error: ReplayError) -> None:
        """Refuse events that will not be written; other rows of their requests may have been."""
        if isinstance(error, Unjudged):
            self._counts["internal_errors"] += 1
            self.unjudged = str(error)
        behind = [event.half for event in events if event.half is not None]
        if isinstance(error, JournalHeld):  # the next commit retries these halves
            self._halves.put_back(behind)
        else:
            self._counts["joins_dropped"] += len(behind)
        self.answers.refuse(events, error)

    async def _move_on(self) -> None:
        """Register another partition after this one was sealed; its adopter learns the rest."""
        waiters = self.answers.pop_all()
        self.committed.clear()
        self.decoded.clear()
        self._learner.abandon(self.partition)
        self._filters.leave(self.partition)
        await self._at.open()
        self.to_learn = 0
        await self.answers.leave_to_adopter(waiters)
