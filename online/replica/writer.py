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
import logging
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import accumulate, islice

import msgspec

from online.errors import journal_held
from online.learning.base import LEARNED, BaseLearner
from online.replica import answers
from online.replica.answers import Answers, Waiter
from online.replica.fates import Fates
from online.replica.filtered import filtered
from online.replica.journal_threads import JournalThreads
from online.replica.partition import Partition
from online.replica.pending import Recorded, Waiting, Written, waiting_for
from online.replica.written_behind import Behind
from online.rows import history
from online.rows.joins import ROUNDS_MAX, Whole, entry_of, fate
from online.settings.config import Limits
from online.trust.filtering import Filtering
from replay.errors import JournalDamaged, JournalHeld, JournalUnavailable, ReplayError
from replay.example import Example
from replay.journal.base import NewRow, Outcome, Row, Verdict

log = logging.getLogger("online.writer")

_BATCH_ROWS = 256  # of feedback in one commit; one request's rows are never split


class Writer:
    """Writes one model's feedback into this process's partition.

    Parameters
    ----------
    model, spec
        Its name, and the hash of its spec: a row that one model fails on another may learn.
    stamp
        The local model's version as answers state it.
    frozen
        Whether the model is: rows are then written as such, and answered without being learned.
    moved
        Called when rows were committed; True: the store knows a server that is new.
    sealed
        Awaited when somebody sealed the partition: it opens another and returns its number.
    follows
        The local model if another process learns the rows: they are answered ``queued`` at their
        commit, and at most ``limits.queue_max`` of them may be missing in it.
    filters
        Judge rows before they are written, unless the model is frozen; None: all are accepted.
    seen
        Epoch of the local model's values, as of :class:`online.replica.partition.Partition`.
    now_s, label_life_s
        The wall clock (POSIX seconds), and how long labels wait for their predictions.
    """

    def __init__(
        self,
        model: str,
        spec: str,
        limits: Limits,
        store: JournalThreads,
        counts: Counter[str],
        *,
        stamp: Callable[[], str],
        frozen: Callable[[], bool],
        moved: Callable[[bool], None],
        sealed: Callable[[int], Awaitable[int]],
        follows: BaseLearner | None = None,
        filters: Filtering | None = None,
        seen: Callable[[], int] = lambda: 0,
        now_s: Callable[[], float] = lambda: 0.0,
        label_life_s: float = 0.0,
    ) -> None:
        self.stopping = False
        self.incident: str | None = None
        self.committed: deque[Row] = deque()
        self.decoded: dict[int, Example] = {}  # what committed rows say, by offset
        self.to_learn = 0  # the last row of the partition that is not frozen
        self.writing = False
        self.committing = False  # rows that are not frozen
        self.judged_by = 0  # these: newest control row that was known
        self.decisions = history.Decisions(spec)
        self._fates = Fates(self.decisions, follows)
        self._model, self._spec = model, spec
        self._limits, self._store, self._counts = limits, store, counts
        self._stamp, self._frozen, self._moved, self._sealed = stamp, frozen, moved, sealed
        self._follows, self._filters = follows, filters
        self._now_s, self._label_life_s = now_s, label_life_s
        self._uncommitted = 0  # rows that were taken and wait for their commit
        self._queue: deque[Waiting] = deque()
        most = limits.joins_queue_max
        self._halves = Behind(most, most * limits.token_bytes_max)
        self._at = Partition(store, counts, seen, self._move_on)
        self._answers = Answers()
        self._wake = asyncio.Event()

    @property
    def partition(self) -> int:
        """Number of the partition that is written."""
        return self._at.number

    @partition.setter
    def partition(self, number: int) -> None:
        self._at.number = number

    @property
    def known(self) -> int:
        """Last offset of it that there was an answer for."""
        return self._at.known

    @property
    def waiting(self) -> int:
        """Requests that wait for the journal, or to be learned."""
        return self._answers.requests

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
        if self.stopping:
            raise answers.stopping()
        if self.waiting >= self.waiting_max:
            self._counts["refused_busy"] += len(rows)
            raise answers.busy()
        self._check_queue(len(rows))
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        waiting = waiting_for(rows, examples, done, decided=decided)
        self._queue.append(waiting)
        self._uncommitted += len(rows)
        self._answers.requests += 1
        self._wake.set()
        late = loop.call_later(self._limits.feedback_wait_s, _give_up, done)
        try:
            await done  # who goes away cancels it, and nothing else
        except TimeoutError:
            self._counts["feedback_timeouts"] += len(rows)
            if self._withdraw(waiting):
                raise journal_held(
                    self.incident or "the rows before these are not written yet"
                ) from None
            raise answers.unanswered_in_time() from None
        finally:
            late.cancel()
        return [result for result in waiting.results if result is not None]

    def _withdraw(self, waiting: Waiting) -> bool:
        """Take the rows of a request back, if no commit has begun with them: then none will."""
        if waiting not in self._queue:
            return False
        self._queue.remove(waiting)
        self._uncommitted -= len(waiting.rows)
        self._answers.requests -= 1
        return True

    @property
    def queued(self) -> int:
        """Rows committed here that the model lacks, because another process learns them."""
        if self._follows is None:
            return 0
        return max(self.known - self._follows.clock.get(self.partition, 0), 0)

    def _check_queue(self, n: int) -> None:
        most = self._limits.queue_max
        if self._follows is None or self.queued + self._uncommitted + n <= most:
            return
        self._counts["refused_queue"] += n
        raise answers.queue_full(self.queued, most)

    def keep(self, half: NewRow) -> None:
        """Write one side of a stored join behind.  Never waits; beyond the bound it is dropped.

        The bound is ``joins_queue_max`` halves, and so many times ``token_bytes_max`` bytes.
        """
        if self._halves.put(half):
            self._wake.set()
        else:
            self._counts["joins_dropped"] += 1

    @property
    def waiting_max(self) -> int:
        """Requests that may wait for the journal: half of the slots, the rest can predict."""
        return self._limits.ongoing_max // 2

    async def run(self) -> None:
        """Commit whatever waits, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue or len(self._halves):
                batch: list[Waiting] = []
                size = 0
                while self._queue and (not batch or size + len(self._queue[0].rows) <= _BATCH_ROWS):
                    size += len(self._queue[0].rows)
                    batch.append(self._queue.popleft())
                room = max(self._store.journal.batch_rows_max - size, 0)
                await self._commit(self._halves.take(room), batch)

    async def _commit(self, halves: list[NewRow], batch: list[Waiting]) -> None:
        self.writing, self.judged_by = True, self.decisions.seq  # a thread may read more meanwhile
        unanswered: list[tuple[Waiter, Outcome]] = []
        try:
            if halves or any(waiting.joins for waiting in batch):
                await self._write_joins(halves, batch, unanswered)
            else:
                await self._write_whole(batch, unanswered)
        finally:
            self.writing = self.committing = False
            self._uncommitted -= sum(len(waiting.rows) for waiting in batch)
        for event, outcome in unanswered:
            try:
                await self._stand(event.waiting, event.i, outcome)
            except JournalDamaged as error:  # a row or a decision that it took to answer
                self._spoil(event.waiting, event.i, error)

    async def _write_whole(
        self, batch: list[Waiting], unanswered: list[tuple[Waiter, Outcome]]
    ) -> None:
        """Append ordinary rows; ``unanswered`` gets those that nobody will learn now."""
        events = [Waiter(waiting, i) for waiting in batch for i in range(len(waiting.rows))]
        rows = [row for waiting in batch for row in waiting.rows]
        examples = [example for waiting in batch for example in waiting.examples]
        if self.decisions.sources:
            judged = zip(rows, events, strict=True)
            rows = [self._judged(row, event.waiting.decided) for row, event in judged]
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
                stands = self._expect(event, outcome, unanswered)
                if example is not None and stands is not None and stands.payload == row.payload:
                    self.decoded[stands.offset] = example

    async def _write_joins(
        self,
        halves: list[NewRow],
        batch: list[Waiting],
        unanswered: list[tuple[Waiter, Outcome]],
    ) -> None:
        """The same for rows among which are sides of stored joins: each may take several steps."""
        since = self._now_s() - self._label_life_s
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
            rows = [self._judged(row, e.decided) for e in some for row in e.entry.rows]
            try:
                outcomes = iter((await self._write(rows, [None] * len(rows)))[1])
            except ReplayError as error:
                self._refuse(events, error)
                return
            left: list[Written] = []
            for event in some:
                # Without a pause: whoever learns a new row finds who waits for it.
                found = list(islice(outcomes, len(event.entry.rows)))
                left += self._settle(event, found, unanswered)
            events = left + later
        self._refuse(events, JournalUnavailable("other replicas were faster each time"))

    async def _write(
        self, rows: list[NewRow], examples: list[Example | None]
    ) -> tuple[list[NewRow], Sequence[Outcome]]:
        """Append rows with their verdicts, as they are returned; new ones go to the learner.

        ``examples`` become what the rows say then.  Raises ReplayError if nothing was written.
        """
        if self._frozen():
            rows = [msgspec.structs.replace(row, verdict=Verdict.FROZEN) for row in rows]
        else:
            self.committing = True
            if self._filters is not None:
                rows = await filtered(self._filters, rows, examples)
        try:
            appended = await self._at.append(rows)
        except ReplayError:
            if self._filters is not None:
                self._filters.dropped()
            raise
        self.incident = None
        if self._filters is not None:
            self._filters.committed(rows, appended.outcomes)
        fresh = [outcome.row for outcome in appended.outcomes if outcome.new and outcome.row]
        self._take(fresh)
        self._moved(self._at.new_server)
        return rows, appended.outcomes

    def _expect(
        self, event: Waiter, outcome: Outcome, unanswered: list[tuple[Waiter, Outcome]]
    ) -> Row | None:
        """Answer for a row when it is learned: it is returned if it is new and learned here."""
        row = outcome.row
        if outcome.new and row is not None and self._answers.add(row.offset, event):
            return row
        unanswered.append((event, outcome))
        return None

    def _settle(
        self,
        event: Written,
        outcomes: list[Outcome],
        unanswered: list[tuple[Waiter, Outcome]],
    ) -> list[Written]:
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
            self._expect(Waiter(waiting, event.i), outcome, unanswered)
        return [Written(after) for after in entry.after]

    def _judged(self, row: NewRow, decided: bool) -> NewRow:
        """The row with its verdict, which is final unless the model is frozen."""
        if decided or not self.decisions.banned(row.source):
            return row
        return msgspec.structs.replace(row, verdict=Verdict.QUARANTINED)

    def _take(self, fresh: Sequence[Row]) -> None:
        """Hand new rows to the learner, each once, in order; frozen ones are not for it."""
        rows = [row for row in fresh if row.verdict is not Verdict.FROZEN]
        if rows:
            self.to_learn = max(self.to_learn, *(row.offset for row in rows))
        if self._follows is None:
            self.committed.extend(self._answers.expect(rows))

    async def _stand(self, waiting: Waiting, i: int, outcome: Outcome) -> None:
        """Answer for an event that nobody learns now: a repeat, one frozen, queued or waiting."""
        row, now = outcome.row, self._stamp()
        if outcome.damaged is not None:
            self._spoil(waiting, i, outcome.damaged)
            return
        if row is None:
            found = Recorded("waiting", None, now, now, False, None, outcome.since)
            self._answers.give(waiting, i, found)
            return
        if row.partition == self.partition and self._answers.add(
            row.offset, Waiter(waiting, i, True)
        ):
            return  # it is learned together with the first
        # what failed was written before it counted
        if not outcome.new or self._fates.is_there(row):
            await self.look()
        reason, again = self.decisions.failure(row), None
        status = self._fates.status(row, reason)
        if not outcome.new and status in ("frozen", "undone", "released"):
            place = (self._store.journal, self._model, self.decisions, row)
            again = await self._store.surely(history.standing, *place)
        found = Recorded(status, row, now, now, not outcome.new, reason, learned_as=again)
        self._answers.give(waiting, i, found)

    def _spoil(self, waiting: Waiting, i: int, error: JournalDamaged) -> None:
        """Answer for an event of which the store has something, and nobody can say what."""
        self.incident = str(error)
        self._counts["damaged"] += 1
        now = self._stamp()
        self._answers.give(waiting, i, Recorded("damaged", None, now, now, True, str(error)))

    async def look(self) -> None:
        """Read the control rows that are new, as often as it takes."""
        await self._store.surely(self.decisions.read, self._store.journal, self._model)

    def _refuse(self, events: Sequence[Written], error: ReplayError) -> None:
        """Nothing more is written of the events; of a request's others something may have been."""
        self.incident = str(error)
        held = isinstance(error, JournalHeld)
        behind = [event.half for event in events if event.half is not None]
        if held:  # the next commit takes them
            self._halves.put_back(behind)
        else:
            self._counts["joins_dropped"] += len(behind)
        refused = Counter(event.waiting for event in events if event.waiting is not None)
        for waiting, n in refused.items():
            self._counts["refused_journal"] += n
            failure = answers.refusal_of(error, in_part=n < len(waiting.rows))
            self._answers.refuse(waiting, failure)

    async def _move_on(self, old: int) -> int:
        """A new partition.  Rows of the old one that are committed are the adopter's to learn."""
        waiters = self._answers.leave()
        self.committed.clear()
        self.decoded.clear()
        number = await self._sealed(old)
        self._at.number, self._at.known = number, 0
        self.to_learn = 0
        now = self._stamp()
        for waiter in waiters:
            waiting, i, repeat = waiter.waiting, waiter.i, waiter.repeat
            standing = await self._store.surely(
                self._store.journal.find, self._model, waiting.keys[i]
            )
            if standing is not None:
                # Its adopter learns it: nobody here can say yet what will become of it.
                learned = standing.verdict in LEARNED
                status = "queued" if learned else self._fates.status(standing, None)
                self._answers.give(waiting, i, Recorded(status, standing, now, now, repeat))
        return number

    def note_alike(self, rows: Sequence[Row], version: str, own: int) -> None:
        """Rows of this partition were learned one after the other, on top of ``own`` others."""
        self._answers.give_alike(rows, self._fates.status, version, own)

    def note_learned(
        self, row: Row, before: str, reason: str | None, *, undecided: bool = False
    ) -> None:
        """A row of this partition was learned (``reason``: why it could not be).

        ``undecided``: another process has the last word, and has not said it.
        """
        if waiters := self._answers.take(row.offset):
            status, now = self._fates.status(row, reason), self._stamp()
            if undecided:
                status, reason = "queued", None
            for waiter in waiters:
                found = Recorded(status, row, before, now, waiter.repeat, reason)
                self._answers.give(waiter.waiting, waiter.i, found)

    async def write_failed(self, row: Row, reason: str) -> None:
        """Say in the journal that the row could not be learned; the first to say so wins."""
        self.decisions.failed[row.key.hex()] = reason
        key = f"failed:{self._spec[:16]}:{row.key.hex()}"
        await self._store.write(
            self._store.journal.write_control, self._model, "failed", key, reason.encode()
        )


def _give_up(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_exception(TimeoutError())
