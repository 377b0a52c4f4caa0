"""One model in one replica: the shell around the learner.  No Ray and no HTTP.

Three loops share the replica's event loop, so the learner needs no lock:

* *commit* writes the rows that wait, many in one step, on a thread of its own;
* *learn* learns committed rows in the order of their offsets, one a turn of the loop;
* *sync* pushes deltas to the parameter server and pulls what others did.

A handler only waits for its row; if it is cancelled nothing else changes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from online.config import Limits, ModelSettings
from online.errors import RequestError
from online.learner import Failed, Learner
from paramserver.errors import (
    BlockError,
    FormatRefused,
    ParamServerError,
    PushRefused,
    RequestRefused,
)
from paramserver.wire import FORMAT, SyncReply, SyncRequest
from replay.errors import (
    JournalBehind,
    JournalFull,
    JournalUnavailable,
    PartitionSealed,
    ReplayError,
)
from replay.example import Label
from replay.journal.base import Journal, NewRow, Outcome, Row

log = logging.getLogger("online.replica")

_BATCH_ROWS = 256  # rows of one commit; one request's rows are never split
_PUSHES = 64  # deltas of one exchange
_READ_ROWS = 256  # rows of one page when the journal is learned again
_SYNC_TIMEOUT_S = 5.0
_IDLE_FACTOR = 5  # an idle replica asks this many times less often
_OPAQUE_SHARE = 0.02  # of the time may go into writing down a model that travels whole


class ParameterServerClient(Protocol):
    """The way to the parameter server."""

    async def sync(self, request: SyncRequest, timeout_s: float) -> SyncReply:
        """Push and pull in one step.  Raises ParamServerError, which says if it is definite."""


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


class ModelReplica:
    """Local model, journal writer and exchange of one model.

    Parameters
    ----------
    replica
        Name of this process; a new one a start.
    client, journal
        The parameter server and the store.
    now_s, monotonic_s
        Wall clock (POSIX seconds) and monotonic clock.
    """

    def __init__(
        self,
        settings: ModelSettings,
        limits: Limits,
        learner: Learner,
        journal: Journal,
        client: ParameterServerClient,
        *,
        replica: str,
        spec: str,
        now_s: Callable[[], float] = time.time,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.limits, self.learner = settings, limits, learner
        self.replica = replica
        self.counts: Counter[str] = Counter()
        self._newest_target: Label | None = None
        self.partition = 0
        self.known = 0
        self.waiting_rows = 0
        self.incident: str | None = None
        self._journal, self._client, self._spec = journal, client, spec
        self.now_s, self._monotonic_s = now_s, monotonic_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="journal-read")
        self._queue: deque[_Waiting] = deque()
        self._committed: deque[Row] = deque()
        self._waiters: dict[int, list[tuple[_Waiting, int, bool]]] = {}
        self._failed: dict[str, str] = {}
        self._control_seq = 0
        self._store_epoch = 0
        self._wake_commit, self._wake_learn = asyncio.Event(), asyncio.Event()
        self._first_row, self._sync_now = asyncio.Event(), asyncio.Event()
        self._fresh_at: float | None = None
        self._behind: int | None = None
        self._cut_cost_s, self._cut_at = 0.0, 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    # -- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take a partition and the newest values; returns when the replica can answer."""
        await self._register()
        while not self.learner.ready:
            if not await self._exchange([]):
                await asyncio.sleep(0.1)
        loops = (self._commit_loop, self._learn_loop, self._sync_loop)
        self._tasks = [asyncio.create_task(self._forever(loop)) for loop in loops]

    async def stop(self, timeout_s: float) -> None:
        """Commit and push what is there, as far as the time allows, and seal the partition."""
        self._stopping = True
        deadline = self._monotonic_s() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                while (
                    self._queue
                    or self._committed
                    or self.learner.clock.get(self.partition, 0) < self.known
                ):
                    self._sync_now.set()
                    await asyncio.sleep(0.01)
                await self._in_journal(self._journal.seal, self.partition)
        except (TimeoutError, ReplayError) as error:
            left = deadline - self._monotonic_s()
            log.warning("stopped with rows for an adopter: %r, %.1f s left", error, left)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.shutdown(wait=True)
        self._reader.shutdown(wait=True)
        self._journal.close()

    async def _forever(self, loop: Callable[[], Any]) -> None:
        """A loop that outlives what it did not expect; what happened is logged and shown."""
        while True:
            try:
                await loop()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self.counts["internal_errors"] += 1
                self.incident = f"{loop.__name__}: {error!r}"
                log.exception("model %s", self.settings.name)
                await asyncio.sleep(0.2)

    async def _in_journal(self, step: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, step, *args)

    async def _register(self) -> None:
        while True:
            try:
                partition = await self._in_journal(
                    self._journal.register,
                    self.settings.name,
                    self.replica,
                    self._spec,
                    self.now_s(),
                )
                break
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(0.2)
        self.partition, self.known = partition.id, 0
        self.learner.open_partition(partition.id)

    # -- what answers are made of ------------------------------------------------------------

    @property
    def version(self) -> str:
        """``epoch.count`` of the values that the local model stands on."""
        return f"{self.learner.version[0]}.{self.learner.version[1]}"

    @property
    def age_ms(self) -> float | None:
        """Since the sending of the last pull that was confirmed as current; None: never."""
        return None if self._fresh_at is None else (self._monotonic_s() - self._fresh_at) * 1e3

    @property
    def updates_behind(self) -> int | None:
        """Versions that the server is ahead; None without contact."""
        return self._behind

    def report(self) -> dict[str, float]:
        """Counters and gauges of this replica; disposable."""
        gauges: dict[str, float] = {"waiting_rows": self.waiting_rows, "own": self.learner.own}
        gauges["behind_rows"] = self.behind_rows
        if (age := self.age_ms) is not None:
            gauges["age_ms"] = round(age, 1)
        gauges["relearned"] = self.learner.relearned
        return {name: float(value) for name, value in {**self.counts, **gauges}.items()}

    @property
    def behind_rows(self) -> int:
        """Committed rows of this replica's partitions, adopted ones too, still to be learned."""
        rows = 0
        for partition, track in self.learner.tracks.items():
            end = self.known if partition == self.partition else track.end or 0
            rows += max(end - track.next + 1, 0)
        return rows

    def note_label(self, label: Label) -> None:
        """A label has come (regression: the tally does not keep targets)."""
        if self.settings.task == "regression":
            self._newest_target = label

    @property
    def newest_label(self) -> Label | None:
        """Newest label known here: learned anywhere; in regression, sent to this replica."""
        return self.learner.tally.newest() if self._newest_target is None else self._newest_target

    # -- feedback ----------------------------------------------------------------------------

    async def record(self, rows: Sequence[NewRow]) -> list[Recorded]:
        """Write rows durably in one step, learn them, and say what became of each.

        Raises RequestError: 429 ``busy`` before anything was written, 503 ``journal_full``
        (definite), 503 ``journal_unavailable`` (indefinite: repeat with the same id).
        """
        if self._stopping:
            raise RequestError(
                503, "stopping", "this replica is stopping", None, "Send it again", 1
            )
        if self.waiting_rows and self.waiting_rows + len(rows) > self.waiting_rows_max:
            self.counts["refused_busy"] += len(rows)
            hint = "Send it again after Retry-After; nothing was recorded"
            raise RequestError(
                429, "busy", "too much feedback waits for the journal", None, hint, 1
            )
        done = asyncio.get_running_loop().create_future()
        waiting = _Waiting(tuple(rows), done, [None] * len(rows), len(rows))
        self._queue.append(waiting)
        self.waiting_rows += len(rows)
        self._wake_commit.set()
        try:
            await asyncio.wait_for(asyncio.shield(done), self.limits.feedback_wait_s)
        except TimeoutError:
            self.counts["feedback_timeouts"] += len(rows)
            hint = "It may have been recorded: repeat it with the same id"
            message = "the journal did not answer in time"
            raise RequestError(503, "journal_unavailable", message, None, hint, 1) from None
        return [result for result in waiting.results if result is not None]

    @property
    def waiting_rows_max(self) -> int:
        """Rows that may wait for the journal: at most half of the request slots, or one request."""
        return max(self.limits.ongoing_max // 2, self.limits.rows_max)

    async def find(self, key: bytes) -> Row | None:
        """The row that has the key (for repeats of expired tokens)."""
        loop = asyncio.get_running_loop()
        row: Row | None = await loop.run_in_executor(
            self._reader, self._journal.find, self.settings.name, key
        )
        return row

    async def _commit_loop(self) -> None:
        while True:
            await self._wake_commit.wait()
            self._wake_commit.clear()
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
                appended = await self._in_journal(
                    self._journal.append, self.partition, self.known, rows
                )
                break
            except PartitionSealed:
                # Somebody thought this replica dead and learns its rows: start a new partition.
                self.counts["sealed"] += 1
                await self._new_incarnation()
            except JournalUnavailable as error:
                self.counts["journal_retries"] += 1
                log.warning("journal: %s", error)
                await asyncio.sleep(pause_s)  # the same batch again: its rows are known by key
                pause_s = min(pause_s * 2, 1.0)
            except (JournalFull, JournalBehind) as error:
                self.incident = str(error)
                self._refuse(batch, error)
                return
        self.known = appended.end
        places = [(waiting, i) for waiting in batch for i in range(len(waiting.rows))]
        for (waiting, i), outcome in zip(places, appended.outcomes, strict=True):
            await self._place(waiting, i, outcome)
        self._wake_learn.set()
        if appended.epoch != self._store_epoch:  # a server has started: do not wait to meet it
            self._store_epoch = appended.epoch
            self._sync_now.set()

    async def _place(self, waiting: _Waiting, i: int, outcome: Outcome) -> None:
        row = outcome.row
        if outcome.new:
            self._committed.append(row)
            self._waiters.setdefault(row.offset, []).append((waiting, i, False))
        elif row.partition == self.partition and row.offset in self._waiters:
            # A repeat of a row that is not learned yet waits with it.
            self._waiters[row.offset].append((waiting, i, True))
        else:
            reason = await self._failed_reason(row)
            self._answer(waiting, i, row, reason, repeat=True)

    def _refuse(self, batch: list[_Waiting], error: ReplayError) -> None:
        hint = "Nothing was recorded. Free disk space" if isinstance(error, JournalFull) else None
        for waiting in batch:
            self.counts["refused_journal"] += len(waiting.rows)
            self._finish(waiting, len(waiting.rows))
            if not waiting.done.done():
                code = "journal_full" if isinstance(error, JournalFull) else "journal_behind"
                waiting.done.set_exception(RequestError(503, code, str(error), None, hint, 30))
                waiting.done.exception()  # the handler may be gone: that is no surprise

    async def _new_incarnation(self) -> None:
        old = self.partition
        self._committed.clear()
        for waiters in self._waiters.values():  # committed, and the adopter learns them
            for waiting, i, repeat in waiters:
                row = waiting.rows[i]
                standing = await self.find(row.key)
                if standing is not None:
                    self._answer(waiting, i, standing, None, repeat=repeat)
        self._waiters.clear()
        self.learner.abandon(old)
        await self._register()

    # -- learning ----------------------------------------------------------------------------

    async def _learn_loop(self) -> None:
        while True:
            rows = await self._rows()
            if not rows:
                await self._wake_learn.wait()
                self._wake_learn.clear()
                continue
            for row in rows:
                track = self.learner.tracks.get(row.partition)
                if track is None or track.held or track.next != row.offset:
                    break  # a merge moved the pointer meanwhile
                if self.learner.want_all:
                    break
                await self._learn(row)
                await asyncio.sleep(0)

    async def _rows(self) -> Sequence[Row]:
        """The next rows to learn: from memory if they are there, else from the journal."""
        for partition, offset in self.learner.wanted():
            if partition == self.partition:
                while self._committed and self._committed[0].offset < offset:
                    self._committed.popleft()
                if self._committed and self._committed[0].offset == offset:
                    return [self._committed.popleft()]
                if offset > self.known:
                    continue
            loop = asyncio.get_running_loop()
            rows: Sequence[Row] = await loop.run_in_executor(
                self._reader, self._journal.read, partition, offset, _READ_ROWS
            )
            if rows:
                return rows
        return ()

    async def _learn(self, row: Row) -> None:
        before = self.version
        own_before = self.learner.own
        failed = self.learner.learn(row)
        if failed is not None:
            await self._write_failed(failed)
        self.counts["learned"] += failed is None
        if self.learner.open_rows >= self.settings.sync.updates:
            self._sync_now.set()
        self._first_row.set()
        if row.partition == self.partition:
            for waiting, i, repeat in self._waiters.pop(row.offset, ()):
                reason = failed.reason if failed else None
                self._answer(waiting, i, row, reason, f"{before}+{own_before}", repeat=repeat)

    async def _write_failed(self, failed: Failed) -> None:
        self.counts["failed"] += 1
        key = f"failed:{failed.row.key.hex()}"
        self._failed[key] = failed.reason
        await self._in_journal(
            self._journal.write_control, self.settings.name, "failed", key, failed.reason.encode()
        )

    async def _failed_reason(self, row: Row) -> str | None:
        controls = await self._in_journal(
            self._journal.controls, self.settings.name, self._control_seq
        )
        for control in controls:
            self._control_seq = control.seq
            if control.kind == "failed":
                self._failed[control.key] = control.payload.decode()
        return self._failed.get(f"failed:{row.key.hex()}")

    def _answer(
        self,
        waiting: _Waiting,
        i: int,
        row: Row,
        reason: str | None,
        before: str | None = None,
        *,
        repeat: bool,
    ) -> None:
        now = f"{self.version}+{self.learner.own}"
        status = "failed" if reason else "learned"
        waiting.results[i] = Recorded(status, row, before or now, now, repeat, reason)
        self._finish(waiting, 1)
        if waiting.open == 0 and not waiting.done.done():
            waiting.done.set_result(None)

    def _finish(self, waiting: _Waiting, n: int) -> None:
        waiting.open -= n
        self.waiting_rows -= n

    # -- exchange with the parameter server --------------------------------------------------

    async def _sync_loop(self) -> None:
        interval_s = self.settings.sync.interval_ms / 1e3
        idle_s = interval_s
        while True:
            await self._pause(interval_s, idle_s)
            pushes = self._due_pushes()
            moved = await self._exchange(pushes)
            if moved is None:
                await asyncio.sleep(min(max(idle_s, 0.1), 1.0))
            idle_s = interval_s if pushes or moved else min(idle_s * 2, interval_s * _IDLE_FACTOR)

    async def _pause(self, interval_s: float, idle_s: float) -> None:
        """Until the next exchange is due: the interval after a first row, or enough rows."""
        self._first_row.clear()
        if not self.learner.open_rows and not self._sync_now.is_set():
            waits = [asyncio.ensure_future(e.wait()) for e in (self._first_row, self._sync_now)]
            await asyncio.wait(waits, timeout=idle_s, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self.learner.open_rows:
            try:
                await asyncio.wait_for(self._sync_now.wait(), interval_s)
            except TimeoutError:
                pass
        self._sync_now.clear()

    def _due_pushes(self) -> list[Any]:
        now = self._monotonic_s()
        if not self.learner.mergeable and not self._stopping:
            # Its state travels whole: not more often than its cost allows, or the snapshots need.
            due_s = max(self.settings.snapshots.interval_s / 2, self._cut_cost_s / _OPAQUE_SHARE)
            if now - self._cut_at < due_s:
                return []
        pushes = self.learner.pushes(_PUSHES)
        self._cut_at = self._monotonic_s()
        self._cut_cost_s = self._cut_at - now
        return pushes

    async def _exchange(self, pushes: list[Any]) -> bool | None:
        """One push and pull.  None: no contact; otherwise whether anything changed."""
        learner = self.learner
        request = SyncRequest(
            format=FORMAT,
            replica=self.replica,
            partition=self.partition,
            pushes=pushes,
            since=learner.since,
            values=learner.mergeable or learner.want_all,
            adopting=[p for p, t in learner.tracks.items() if t.end is not None],
            report=self.report(),
        )
        sent_at = self._monotonic_s()
        try:
            reply = await self._client.sync(request, _SYNC_TIMEOUT_S)
        except ParamServerError as error:
            self.counts["server_unreachable"] += 1
            self._behind = None
            if isinstance(error, (BlockError, FormatRefused, PushRefused, RequestRefused)):
                self.incident = f"the parameter server refuses a push: {error}"
            log.info("parameter server: %s", error)
            return None
        changed = learner.on_reply(reply)
        if learner.want_all:
            self._sync_now.set()
        else:
            self._fresh_at = sent_at - reply.confirmed_ms / 1e3
            self._behind = max(reply.count - learner.version[1], 0)
        for partition in reply.orphans:
            await self._adopt(partition)
        if len(pushes) == _PUSHES:
            self._sync_now.set()
        self._wake_learn.set()
        return changed or bool(reply.orphans)

    async def _adopt(self, partition: int) -> None:
        if partition == self.partition or partition in self.learner.tracks:
            return
        try:
            end = await self._in_journal(self._journal.seal, partition)
        except ReplayError as error:
            log.warning("could not seal partition %d: %s", partition, error)
            return
        self.counts["adopted"] += 1
        log.info("adopting partition %d up to %d", partition, end)
        self.learner.adopt(partition, end)
        self._sync_now.set()
