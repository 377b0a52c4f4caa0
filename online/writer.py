"""The journal writer of one partition: many requests, one commit, one answer each.

Rows that wait are written together on a thread of its own.  What was committed is handed to the
learner in order; a request is answered when the last of its rows has been learned.  A handler
that goes away changes nothing: learning follows what was committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from online.config import Limits
from online.errors import RequestError
from replay.errors import JournalFull, JournalUnavailable, PartitionSealed, ReplayError
from replay.journal.base import Journal, NewRow, Outcome, Row

log = logging.getLogger("online.writer")

_BATCH_ROWS = 256  # rows of one commit; one request's rows are never split


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of one event.

    ``status`` is ``learned`` or ``failed``; ``row`` the row that stands.  ``repeat``: the row was
    there before, and ``status`` is the outcome of its first sending.
    """

    status: str
    row: Row
    version_before: str
    version: str
    repeat: bool
    reason: str | None = None


@dataclass(slots=True, eq=False)
class _Waiting:
    """The rows of one request and what became of each."""

    rows: tuple[NewRow, ...]
    done: asyncio.Future[None]
    results: list[Recorded | None]
    open: int


class Writer:
    """Writes one model's feedback into this process's partition.

    Parameters
    ----------
    model, spec
        Its name, and the hash of its spec: a row that one model fails on another may learn.
    stamp
        The local model's version as answers state it.
    moved
        Called when rows were committed; True: the store knows a server that is new.
    sealed
        Awaited when somebody sealed the partition: it opens another and returns its number.
    """

    def __init__(
        self,
        model: str,
        spec: str,
        limits: Limits,
        journal: Journal,
        counts: Counter[str],
        *,
        stamp: Callable[[], str],
        moved: Callable[[bool], None],
        sealed: Callable[[int], Awaitable[int]],
    ) -> None:
        self.partition = 0
        self.known = 0
        self.stopping = False
        self.incident: str | None = None
        self.committed: deque[Row] = deque()
        self.waiting = 0
        self._model, self._spec = model, spec
        self._limits, self._journal, self._counts = limits, journal, counts
        self._stamp, self._moved, self._sealed = stamp, moved, sealed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="journal-read")
        self._queue: deque[_Waiting] = deque()
        self._waiters: dict[int, list[tuple[_Waiting, int, bool]]] = {}
        self._failed: dict[str, str] = {}
        self._control_seq = 0
        self._store_epoch = 0
        self._wake = asyncio.Event()

    # -- the store ---------------------------------------------------------------------------

    async def write(self, step: Callable[..., Any], *args: Any) -> Any:
        """A writing step of the journal, on the writer's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, step, *args)

    async def read(self, step: Callable[..., Any], *args: Any) -> Any:
        """A reading step of the journal; it waits for no commit of ours."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, step, *args)

    async def find(self, key: bytes) -> Row | None:
        """The row that has the key (for repeats of expired tokens)."""
        row: Row | None = await self.read(self._journal.find, self._model, key)
        return row

    def close(self) -> None:
        """End the threads and release the store."""
        self._thread.shutdown(wait=True)
        self._reader.shutdown(wait=True)
        self._journal.close()

    @property
    def idle(self) -> bool:
        """Whether nothing waits for a commit."""
        return not self._queue and not self.waiting

    # -- feedback ----------------------------------------------------------------------------

    async def record(self, rows: Sequence[NewRow]) -> list[Recorded]:
        """Write rows durably in one step, wait until they are learned, say what became of each.

        Raises RequestError: 429 ``busy`` before anything was written, 503 ``journal_full``
        (definite), 503 ``journal_unavailable`` (indefinite: repeat with the same id).
        """
        if self.stopping:
            message = "this replica is stopping"
            raise RequestError(503, "stopping", message, None, "Send it again", 1)
        if self.waiting >= self.waiting_max:
            self._counts["refused_busy"] += len(rows)
            hint = "Send it again after Retry-After; nothing was recorded"
            message = "too much feedback waits for the journal"
            raise RequestError(429, "busy", message, None, hint, 1)
        done = asyncio.get_running_loop().create_future()
        waiting = _Waiting(tuple(rows), done, [None] * len(rows), len(rows))
        self._queue.append(waiting)
        self.waiting += 1
        self._wake.set()
        try:
            await asyncio.wait_for(asyncio.shield(done), self._limits.feedback_wait_s)
        except TimeoutError:
            self._counts["feedback_timeouts"] += len(rows)
            hint = "It may have been recorded: repeat it with the same id"
            message = "the journal did not answer in time"
            raise RequestError(503, "journal_unavailable", message, None, hint, 1) from None
        return [result for result in waiting.results if result is not None]

    @property
    def waiting_max(self) -> int:
        """Requests that may wait for the journal: half of the slots, the rest can predict."""
        return self._limits.ongoing_max // 2

    async def run(self) -> None:
        """Commit whatever waits, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = [self._queue.popleft()]
                size = len(batch[0].rows)
                while self._queue and size + len(self._queue[0].rows) <= _BATCH_ROWS:
                    size += len(self._queue[0].rows)
                    batch.append(self._queue.popleft())
                await self._commit(batch)

    async def _commit(self, batch: list[_Waiting]) -> None:
        rows = [row for waiting in batch for row in waiting.rows]
        pause_s = 0.02
        while True:
            try:
                appended = await self.write(self._journal.append, self.partition, self.known, rows)
                break
            except PartitionSealed:
                # Somebody thought this replica dead and learns its rows.
                self._counts["sealed"] += 1
                await self._move_on()
            except JournalUnavailable as error:
                self._counts["journal_retries"] += 1
                log.warning("journal: %s", error)
                await asyncio.sleep(pause_s)  # the same batch again: its rows are known by key
                pause_s = min(pause_s * 2, 1.0)
            except ReplayError as error:
                self._refuse(batch, error)
                return
        self.incident = None
        self.known = appended.end
        places = [(waiting, i) for waiting in batch for i in range(len(waiting.rows))]
        repeats = []
        for (waiting, i), outcome in zip(places, appended.outcomes, strict=True):
            # New rows first and without a pause: whoever learns one finds who waits for it.
            if outcome.new:
                self.committed.append(outcome.row)
                self._waiters.setdefault(outcome.row.offset, []).append((waiting, i, False))
            else:
                repeats.append((waiting, i, outcome))
        new_server = appended.epoch != self._store_epoch
        self._store_epoch = appended.epoch
        self._moved(new_server)
        for waiting, i, outcome in repeats:
            await self._repeat(waiting, i, outcome)

    async def _repeat(self, waiting: _Waiting, i: int, outcome: Outcome) -> None:
        row = outcome.row
        if row.partition == self.partition and row.offset in self._waiters:
            self._waiters[row.offset].append((waiting, i, True))  # learned together with it
            return
        for control in await self.read(self._journal.controls, self._model, self._control_seq):
            self._control_seq = control.seq
            if control.kind == "failed":
                self._failed[control.key] = control.payload.decode()
        reason = self._failed.get(self._failed_key(row))
        now = self._stamp()
        self._answer(waiting, i, Recorded("", row, now, now, True, reason))

    def _refuse(self, batch: list[_Waiting], error: ReplayError) -> None:
        self.incident = str(error)
        full = isinstance(error, JournalFull)
        hint = "Nothing was recorded. Free disk space" if full else "Nothing was recorded"
        for waiting in batch:
            self._counts["refused_journal"] += len(waiting.rows)
            self.waiting -= 1
            if not waiting.done.done():
                code = "journal_full" if full else "journal_refused"
                waiting.done.set_exception(RequestError(503, code, str(error), None, hint, 30))
                waiting.done.exception()  # the handler may be gone: that is no surprise

    async def _move_on(self) -> None:
        """A new partition.  Rows of the old one that are committed are the adopter's to learn."""
        old, waiters = self.partition, self._waiters
        self.committed.clear()
        self._waiters = {}
        self.partition, self.known = await self._sealed(old), 0
        now = self._stamp()
        for waiting, i, repeat in (entry for entries in waiters.values() for entry in entries):
            standing = await self.find(waiting.rows[i].key)
            if standing is not None:
                self._answer(waiting, i, Recorded("", standing, now, now, repeat))

    def note_learned(self, row: Row, before: str, reason: str | None) -> None:
        """A row of this partition was learned (``reason``: why it could not be)."""
        for waiting, i, repeat in self._waiters.pop(row.offset, ()):
            self._answer(waiting, i, Recorded("", row, before, self._stamp(), repeat, reason))

    async def write_failed(self, row: Row, reason: str) -> None:
        """Say in the journal that the row could not be learned; the first to say so wins."""
        key = self._failed_key(row)
        self._failed[key] = reason
        await self.write(self._journal.write_control, self._model, "failed", key, reason.encode())

    def _failed_key(self, row: Row) -> str:
        return f"failed:{self._spec[:16]}:{row.key.hex()}"

    def _answer(self, waiting: _Waiting, i: int, recorded: Recorded) -> None:
        waiting.results[i] = replace(recorded, status="failed" if recorded.reason else "learned")
        waiting.open -= 1
        if waiting.open == 0:
            self.waiting -= 1
            if not waiting.done.done():
                waiting.done.set_result(None)
