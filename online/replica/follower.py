"""The learn loop: learns committed journal rows in offset order.

One turn of the event loop learns one row, or as many as :class:`PassSize` allows, so other tasks
wait no longer than those take together, or than one row takes.
Ordinary rows with the same feature names are learned in one pass: learning each separately would
cost four times as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Sequence

from online.learning.alike import alike
from online.learning.base import LEARNED
from online.replica.killing_rows import Claims
from online.replica.learning_cost import TURN_S, Cost, PassSize
from online.replica.shared import ReplicaParts
from online.replica.writer import Writer
from online.rows.history import is_again
from online.watch.drift import DriftMonitor
from replay.errors import JournalDamaged, JournalUnavailable, ReplayError
from replay.journal.base import Row

log = logging.getLogger(__name__)

_ALIKE_LEAST = 2  # rows of one pass
_READ_ROWS = 256  # rows of one page when the journal is replayed
_UNREAD_S = 0.2  # between two attempts to read rows
_DAMAGED_S = 5.0  # between two attempts to read damaged rows, which an operator may have repaired
_UNWRITTEN_S = 0.2  # between two attempts to record a failed row


class Follower:
    """Feeds committed rows to the learner of one model in one replica.

    Parameters:
        judge: Receives the replica's own rows once they are learned; None: no drift is watched.
    """

    _patience_s = 0.0  # for claims of other processes: no other one adopts the same partition

    def __init__(
        self, shared: ReplicaParts, writer: Writer, *, judge: DriftMonitor | None = None
    ) -> None:
        self._judge = judge
        # Why the rows of a partition can't be learned, by partition; 0 stands for all of them.
        self._damaged: dict[int, str] = {}
        self.failure_unwritten = False  # a failure is not in the journal yet: push nothing
        learner, store = shared.learner, shared.store
        self._learner, self._writer, self._store = learner, writer, store
        self._counts, self._pace, self._control = shared.counts, shared.pace, shared.control
        self._wake, self._updates = shared.wake, shared.settings.sync.updates
        self._change_lock, self._arrivals = shared.change_lock, shared.arrivals
        self.cost = Cost(time.monotonic)
        self._pass_size = PassSize(_ALIKE_LEAST)
        self._claims = Claims(
            lambda *place: store.write(store.journal.claim, *place),
            lambda *place: store.read(store.journal.claims, *place),
            patience_s=self._patience_s,
        )

    async def run(self) -> None:
        """Learn committed rows, for ever."""
        now = asyncio.get_running_loop().time
        turn_s = now()
        while True:
            await self._answer_passed()
            try:
                rows = await self._rows()
                self._damaged.pop(0, None)
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(_UNREAD_S)
                continue
            except JournalDamaged as error:  # rows behind a damaged one have to wait for it
                self._note_damaged(0, error)
                await asyncio.sleep(_DAMAGED_S)
                continue
            if not rows:
                await self._wait()
                self._wake.clear()
                turn_s = now()
                continue
            at = 0
            while at < len(rows):
                row = rows[at]
                if self._change_lock.held:
                    await self._change_lock.unlocked()
                n = self._learn_alike(rows, at)
                if n == 0:
                    await self._arrivals.before(rows, at, self._writer)
                    if not await self._learn(row):
                        break
                    n = 1
                at += n
                rest_s = self._learner.vocabulary.rest_s()
                if rest_s and row.partition == self._writer.partition:  # not for adopted rows
                    await asyncio.sleep(rest_s)
                    turn_s = now()
                if self._judge is not None and self._judge.due:  # in a turn of the loop of its own
                    await asyncio.sleep(0)
                    self._judge.look()
                    turn_s = -math.inf
                if now() - turn_s >= TURN_S / 2.0:
                    await asyncio.sleep(0)
                    turn_s = now()

    async def stop(self, timeout_s: float) -> None:
        """Record that this process has not died at the current row, after :meth:`run` is cancelled.

        If the journal stays unavailable for ``timeout_s`` seconds the claim counts as a death.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._claims.end(learned=False)

    async def catch_up(self, patience_s: float) -> None:
        """Learn the existing rows before the first answer, for at most ``patience_s`` seconds."""

    def fresh_at_s(self, confirmed_s: float | None) -> float | None:
        """Monotonic time at which the local model was last known to be current; None: never.

        ``confirmed_s``: when the server last confirmed the local values.
        """
        return confirmed_s

    def updates_behind(self, versions: int | None) -> int | None:
        """Updates that may be missing here; ``versions``: how many the server is ahead."""
        return versions

    async def _answer_passed(self) -> None:
        """Answer requests whose rows arrived with the server's values before they were learned.

        After a forget, a relearn or a promotion those values count rows of the journal, and the
        learner's pointer unlocked behind them.
        """
        writer, answers = self._writer, self._writer.answers
        track = self._learner.tracks.get(writer.partition)
        if track is not None and (behind := answers.passed(track.next)):
            await answers.answer_rewritten(behind)

    async def _wait(self) -> None:
        """Wait until there may be rows to learn."""
        await self._wake.wait()

    async def _rows(self) -> Sequence[Row]:
        """The next rows to learn: from memory if available, otherwise from the journal."""
        committed, wanted = self._writer.committed, self._learner.wanted()
        if self._damaged and wanted:  # forget damage that was repaired and learned meanwhile
            for learned in self._damaged.keys() - {0, *(partition for partition, _ in wanted)}:
                del self._damaged[learned]
        for partition, offset in wanted:
            n = _READ_ROWS
            if partition == self._writer.partition:
                while committed and committed[0].offset < offset:
                    self._writer.decoded.pop(committed.popleft().offset, None)
                run: list[Row] = []
                while committed and committed[0].offset == offset + len(run):
                    run.append(committed.popleft())
                if run:
                    return run
                # Never beyond the confirmed offset: no request is registered for those rows yet.
                n = min(n, self._writer.known - offset + 1)
                if n < 1:
                    self._damaged.pop(partition, None)
                    continue
            try:
                rows: Sequence[Row] = await self._store.read(
                    self._store.journal.read, partition, offset, n
                )
                self._damaged.pop(partition, None)
            except JournalDamaged as error:
                self._note_damaged(partition, error)
                rows = await self._up_to_damage(partition, offset, n)
            if rows:
                return rows
        return ()

    async def _up_to_damage(self, partition: int, offset: int, n: int) -> Sequence[Row]:
        """Read the rows before a damaged one; it and its successors in the partition wait."""
        while (n := n // 2) > 0:
            with contextlib.suppress(JournalDamaged):
                rows: Sequence[Row] = await self._store.read(
                    self._store.journal.read, partition, offset, n
                )
                return rows
        return ()

    @property
    def incident(self) -> str | None:
        """Why existing rows are not learned; None if there is no such reason."""
        return next(iter(self._damaged.values()), None)

    def _note_damaged(self, partition: int, error: ReplayError) -> None:
        if self._damaged.get(partition) != str(error):
            log.error("%s", error)
        self._damaged[partition] = str(error)

    def _learn_alike(self, rows: Sequence[Row], at: int) -> int:
        """Learn several of this replica's rows from index ``at`` on in one pass.

        The number of rows is chosen by the duration of earlier passes to fill one turn of the
        loop.  Returns how many were learned; 0: the next row has to be learned by itself.
        """
        learner, writer, first = self._learner, self._writer, rows[at]
        if first.partition != writer.partition or not learner.walks:
            return 0
        example = writer.decoded.get(first.offset)
        if example is None or not learner.wants(first):
            return 0
        most = self._pass_size.most(len(example.features))
        some = rows[at : at + most]
        known = [writer.decoded.get(row.offset) for row in some]
        n, decisions = alike(some, known), self._control.decisions
        if n < _ALIKE_LEAST or (decisions.failed and any(map(decisions.failure, some[:n]))):
            return 0
        version, before = "{}.{}".format(*learner.answer_version), learner.own
        begun_s = time.perf_counter()
        examples = [example for example in known[:n] if example is not None]
        n = learner.learn_alike(some[:n], examples)
        if n == 0:
            return 0
        self.cost.note(time.perf_counter() - begun_s, n)
        self._counts["learned"] += n
        for row in some[:n]:
            del writer.decoded[row.offset]
        if self._judge is not None:
            taught = some[:n]
            if any(map(is_again, taught)):
                shown = [(r, e) for r, e in zip(taught, examples, strict=False) if not is_again(r)]
                taught, examples = [r for r, _ in shown], [e for _, e in shown]
            if taught:
                self._judge.learned_all(taught, examples[: len(taught)])
        writer.answers.note_alike(some[:n], version, before)
        self._set_pace()
        self._pass_size.adapt(n, most, time.perf_counter() - begun_s)
        return n

    def _set_pace(self) -> None:
        if open_rows := self._learner.open_rows:
            self._pace.first_row.set()
        if open_rows >= self._updates:
            self._pace.enough()

    async def _learn(self, row: Row) -> bool:
        """Learn one row; return False if a merge has moved the pointer meanwhile."""
        given_up = await self._failure_reason(row)
        if self._change_lock.held:
            await self._change_lock.unlocked()
        if self._moved() or not self._learner.wants(row):
            await self._claims.end(learned=False)
            return False
        before = self._learner.stamp
        known = self._arrivals.example(row)
        if row.partition == self._writer.partition:
            known = self._writer.decoded.pop(row.offset, known)
        begun_s = time.perf_counter()
        failed = self._learner.learn(row, given_up, known)
        self.cost.note(time.perf_counter() - begun_s)
        if failed is not None:
            self._counts["failed"] += 1
            if given_up is None and self._learner.decides:
                await self._write_failed(row, failed.reason)
        self._counts["learned"] += failed is None and row.verdict in LEARNED
        self._set_pace()
        if self._judge is not None and failed is None:
            self._show_judge(self._judge, row)
        if row.partition == self._writer.partition:
            reason = failed.reason if failed else None
            undecided = reason is not None and given_up is None and not self._learner.decides
            self._writer.answers.note_learned(row, before, reason, undecided=undecided)
        await self._claims.end(learned=True)
        track = self._learner.tracks.get(row.partition)
        if track is not None and row.offset == track.end:
            await self._claims.ended(row.partition)
        return True

    def _show_judge(self, judge: DriftMonitor, row: Row) -> None:
        """Pass a learned row of this replica to the drift judge, but no adopted one.

        Rows that an operator had learned again are skipped, too: their predictions are old,
        perhaps by a poisoned model, and say nothing about the present one.  An action on them would
        undo what the operator has just done.
        """
        if is_again(row):
            return
        track, example = self._learner.tracks.get(row.partition), self._learner.latest
        if example is None or not example.scored:
            return
        if track is not None and track.end is None:
            judge.learned(row.partition, row.offset, example, row.at)

    def _moved(self) -> bool:
        """Whether the learner was given other values since the current rows were read."""
        return False

    async def _failure_reason(self, row: Row) -> str | None:
        """Why the row must not be learned: a control row says so, or learners have died at it."""
        if (reason := self._control.decisions.failure(row)) is not None:
            return reason
        if row.partition == self._writer.partition:
            return None
        if (reason := await self._claims.begin(row)) is not None:
            await self._write_failed(row, reason)
        return reason

    async def _write_failed(self, row: Row, reason: str) -> None:
        """Record a failed row, before it is answered or pushed: repeats need the same answer."""
        self.failure_unwritten = True
        while True:
            try:
                await self._control.write_failed(row, reason)
                break
            except ReplayError as error:  # the record may be there and damaged, too
                self._note_damaged(0, error)
                await asyncio.sleep(_UNWRITTEN_S)
        self.failure_unwritten = False
        self._damaged.pop(0, None)
