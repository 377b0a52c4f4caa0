"""Learning in order: the model's rows of all partitions, as they were committed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from online.learning.ordered import OrderedLearner
from online.replica.follower import Follower
from online.replica.shared import Shared
from online.replica.writer import Writer
from online.watch.drift import Judge
from replay.journal.base import Row

_PAGE_ROWS: Final = 256
_IDLE_FACTOR: Final = 5  # a journal in which nothing happens is read this many times less often


@dataclass(frozen=True, slots=True)
class _Page:
    """Rows read: the last one's ``seq``, up to where there are no others, and when it was asked
    for (None: more are left)."""

    last: int
    upto: int
    asked_s: float | None


class OrderedFollower(Follower):
    """Feeds an :class:`online.learning.ordered.OrderedLearner` with all rows of its model.

    Own rows are learned as soon as they are committed, after all rows of others before them; rows
    of others alone are looked for once an interval.

    Parameters:
        learner: The learner of ``shared``.
    Attributes:
        caught_up: Set when the rows of all partitions are learned that there were at a look.
    """

    _patience_s = 5.0

    def __init__(
        self,
        shared: Shared,
        writer: Writer,
        learner: OrderedLearner,
        *,
        judge: Judge | None = None,
    ) -> None:
        super().__init__(shared, writer, judge=judge)
        self._ordered, self._model = learner, shared.settings.name
        self._now_s = shared.clocks.monotonic_s
        self._interval_s = self._pause_s = shared.settings.sync.interval_ms / 1e3
        self._fresh_s: float | None = None
        self._behind: int | None = None
        self.caught_up = asyncio.Event()
        self._before: int | None = None  # rows up to here are older than this process
        self._copy = 0  # of the model, when the rows at hand were asked for
        self._page: _Page | None = None  # whose rows are being learned

    async def catch_up(self, patience_s: float) -> None:
        """Learn the rows since the snapshot that was begun with."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                await self.caught_up.wait()

    def fresh_at_s(self, confirmed_s: float | None) -> float | None:
        """Tell when the journal was last read to an end that is learned by now; None: never."""
        return self._fresh_s

    def updates_behind(self, versions: int | None) -> int | None:
        """Rows after those that are learned, at most; None before the first look."""
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
                # its answer is still to come: nobody waits for it yet
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
        """Own rows that come next in the order: no other row is between."""
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
            return  # older values have come meanwhile: it is read again
        self._ordered.pass_to(page.upto)
        if page.asked_s is not None:
            self._fresh_s, self._behind = page.asked_s, 0
            self.caught_up.set()

    def _moved(self) -> bool:
        return self._ordered.began != self._copy

    async def _given_up(self, row: Row) -> str | None:
        """Rows from before this process may have ended another one: they are claimed."""
        if (reason := self._control.decisions.failure(row)) is not None:
            return reason
        if self._before is None or row.seq > self._before:
            return None
        if row.partition == self._writer.partition:
            return None
        reason = await self._claims.begin(row)
        if reason is not None:
            await self._write_failed(row, reason)
        elif self._claims.careful(row.partition):  # another process may have given it up
            reason = (await self._control.current()).failure(row)
        return reason
