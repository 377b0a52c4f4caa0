"""The learn loop of models learned in order: all partitions' rows, in commit order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from online.learning.ordered import OrderedLearner
from online.replica.follower import Follower
from online.replica.shared import ReplicaParts
from online.replica.writer import Writer
from online.watch.drift import DriftMonitor
from replay.journal.base import Row

_PAGE_ROWS: Final = 256
_IDLE_FACTOR: Final = 5  # an idle journal is polled at up to this multiple of the interval


@dataclass(frozen=True, slots=True)
class _Page:
    """A page of journal rows.

    Attributes:
        last: ``seq`` of its last row.
        upto: ``seq`` up to which the model has no other rows.
        asked_s: When it was requested, if it reached the journal's end; None: more rows follow.
    """

    last: int
    upto: int
    asked_s: float | None


class OrderedFollower(Follower):
    """Feeds an :class:`online.learning.ordered.OrderedLearner` with all rows of its model.

    Rows of this process are learned as soon as they are committed, after all rows of others before
    them; without own rows, the journal is polled once an interval.

    Parameters:
        learner: The learner of ``shared``.

    Attributes:
        caught_up: Set once all rows that existed at some poll are learned.
    """

    _patience_s = 5.0

    def __init__(
        self,
        shared: ReplicaParts,
        writer: Writer,
        learner: OrderedLearner,
        *,
        judge: DriftMonitor | None = None,
    ) -> None:
        super().__init__(shared, writer, judge=judge)
        self._ordered, self._model = learner, shared.settings.name
        self._now_s = shared.clocks.monotonic_s
        self._interval_s = self._pause_s = shared.settings.sync.interval_ms / 1e3
        self._fresh_s: float | None = None
        self._behind: int | None = None
        self.caught_up = asyncio.Event()
        self._before: int | None = None  # rows up to this seq are older than this process
        self._copy = 0  # the learner's state counter when the current rows were read
        self._page: _Page | None = None  # the page whose rows are being learned

    async def catch_up(self, patience_s: float) -> None:
        """Learn the rows since the loaded snapshot, for at most ``patience_s`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self.caught_up.wait()

    def fresh_at_s(self, confirmed_s: float | None) -> float | None:
        """When the journal was last read to an end that is learned by now; None: never."""
        return self._fresh_s

    def updates_behind(self, versions: int | None) -> int | None:
        """Rows after those learned, at most; None before the first poll."""
        return self._behind

    async def _wait(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause_s):  # wait_for may swallow a cancellation
                await self._wake.wait()
        self._pause_s = min(self._pause_s * 2, self._interval_s * _IDLE_FACTOR)

    async def _rows(self) -> Sequence[Row]:
        learner, writer = self._ordered, self._writer
        self._copy = learner.began
        if not learner.follows:
            self._page = None
            return ()
        self._finish_page()
        if self.caught_up.is_set():
            await self._claims.survived()
        if run := self._from_memory():
            return run
        if self._before is None:
            newest = await self._store.read(self._store.journal.follow, self._model, 2**62, 1)
            self._before = newest.upto
        asked_s, position = self._now_s(), learner.position
        page = await self._store.read(self._store.journal.follow, self._model, position, _PAGE_ROWS)
        if page.trimmed > position and learner.lacks(
            await self._store.read(self._store.journal.partitions, self._model)
        ):
            return ()
        rows: Sequence[Row] = page.rows
        upto: int = page.upto
        for i, row in enumerate(rows):
            if row.partition == writer.partition and row.offset > writer.known:
                # Not confirmed yet: no request is registered for it.
                rows, upto = rows[:i], rows[i - 1].seq if i else position
                break
        last = rows[-1].seq if rows else position
        ended = len(page.rows) < _PAGE_ROWS and len(rows) == len(page.rows)
        self._page = _Page(last, upto, asked_s if ended else None)
        self._behind = max(page.upto - position, 0)
        if not rows:
            self._finish_page()
            return ()
        self._pause_s = self._interval_s
        return rows

    def _from_memory(self) -> list[Row]:
        """Own rows that directly follow the learner's position in commit order."""
        committed, position = self._writer.committed, self._ordered.position
        while committed and committed[0].seq <= position:
            committed.popleft()
        run: list[Row] = []
        while committed and committed[0].seq == position + 1 + len(run):
            run.append(committed.popleft())
        return run

    def _finish_page(self) -> None:
        page, self._page = self._page, None
        if page is None or self._ordered.position < page.last:
            return  # the learner was given older values meanwhile: the page is read again
        self._ordered.pass_to(page.upto)
        if page.asked_s is not None:
            self._fresh_s, self._behind = page.asked_s, 0
            self.caught_up.set()

    def _moved(self) -> bool:
        return self._ordered.began != self._copy

    async def _failure_reason(self, row: Row) -> str | None:
        """Claim rows older than this process, which may have killed another one."""
        if (reason := self._control.decisions.failure(row)) is not None:
            return reason
        if self._before is None or row.seq > self._before:
            return None
        if row.partition == self._writer.partition:
            return None
        reason = await self._claims.begin(row)
        if reason is not None:
            await self._write_failed(row, reason)
        elif self._claims.careful(row.partition):  # another process may have given up the row
            reason = (await self._control.current()).failure(row)
        return reason
