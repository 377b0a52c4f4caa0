"""Learning follows the journal: committed rows in the order of their offsets.

A turn of the loop learns one row, or as many as take about ``_TURN_S`` together: the others on the
loop wait no longer than that, or than one row takes.  Ordinary rows that have the same names are
learned in one pass: each of them alone would cost four times as much.
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
from online.replica.learning_cost import Cost
from online.replica.shared import Shared
from online.replica.writer import Writer
from online.rows.history import is_again
from online.watch.drift import Judge
from replay.errors import JournalDamaged, JournalUnavailable
from replay.journal.base import Row

log = logging.getLogger(__name__)

_TURN_S = 0.0005
_NUMBERS = 256  # of the rows of one pass, before it is known how long they take
_NUMBERS_MAX = 1 << 16
_NUMBERS_A_ROW = 16  # so many more numbers would take the time that a row takes whatever it has
_ALIKE_LEAST = 2  # rows of one pass
_READ_ROWS = 256  # rows of one page when the journal is learned again
_UNREAD_S = 0.2  # between two attempts to read rows
_DAMAGED_S = 5.0  # between two looks at damaged rows: somebody may have put them right
_UNWRITTEN_S = 0.2  # between two attempts to write down a failed row


class Follower:
    """Feeds the learner of one model in one replica.

    Parameters:
        judge: Is shown the replica's own rows once they are learned; None: nobody is.
    """

    _patience_s = 0.0  # with claims of others: nobody else adopts a partition of ours

    def __init__(
        self,
        shared: Shared,
        writer: Writer,
        *,
        judge: Judge | None = None,
    ) -> None:
        self._judge = judge
        # by partition (0: of all), why its rows can't be learned
        self._damaged: dict[int, str] = {}
        self.unsaid = False  # a row has failed and that is not in the journal yet: push nothing
        learner, store = shared.learner, shared.store
        self._learner, self._writer, self._store = learner, writer, store
        self._counts, self._pace, self._control = shared.counts, shared.pace, shared.control
        self._wake, self._updates = shared.wake, shared.settings.sync.updates
        self._still = shared.still
        self.cost = Cost(time.monotonic)
        self._numbers = _NUMBERS
        self._claims = Claims(
            lambda *place: store.write(store.journal.claim, *place),
            lambda *place: store.read(store.journal.claims, *place),
            patience_s=self._patience_s,
        )

    async def run(self) -> None:
        """Learn whatever is committed, for ever."""
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
            except JournalDamaged as error:  # what lies behind it is not learned without it
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
                if self._still.held:
                    await self._still.moves()
                n = self._learn_alike(rows, at)
                if n == 0:
                    if not await self._learn(row):
                        break
                    n = 1
                at += n
                rest_s = self._learner.vocabulary.rest_s()
                if rest_s and row.partition == self._writer.partition:  # not what a dead one left
                    await asyncio.sleep(rest_s)
                    turn_s = now()
                if self._judge is not None and self._judge.due:  # a turn of its own
                    await asyncio.sleep(0)
                    self._judge.look()
                    turn_s = -math.inf
                if now() - turn_s >= _TURN_S / 2.0:
                    await asyncio.sleep(0)
                    turn_s = now()

    async def stop(self, timeout_s: float) -> None:
        """After :meth:`run` was cancelled: this process has not died at the row at hand.

        Without a journal for so long that is not said, and it counts as a death.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._claims.end(learned=False)

    async def catch_up(self, patience_s: float) -> None:
        """Learn what is there before the first answer is given, if that takes no longer."""

    def fresh_at_s(self, confirmed_s: float | None) -> float | None:
        """Monotonic time at which the local model had all that there was; None: never.

        ``confirmed_s``: when the server last confirmed the values that are here.
        """
        return confirmed_s

    def updates_behind(self, versions: int | None) -> int | None:
        """Updates that may be missing here; ``versions``: those that the server is ahead."""
        return versions

    async def _answer_passed(self) -> None:
        """Answer those whose rows the server's values had before they were learned here.

        A forget, a relearning or a promotion counts what is in the journal; the pointer goes on
        behind that.
        """
        writer, answers = self._writer, self._writer.answers
        track = self._learner.tracks.get(writer.partition)
        if track is not None and (behind := answers.passed(track.next)):
            await answers.stand_for(behind)

    async def _wait(self) -> None:
        """Until there may be rows to learn."""
        await self._wake.wait()

    async def _rows(self) -> Sequence[Row]:
        """The next rows to learn: from memory if they are there, else from the journal."""
        committed, wanted = self._writer.committed, self._learner.wanted()
        if self._damaged and wanted:  # what was put right while it was read is learned by now
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
                # not those whose answer is still to come: nobody waits for them yet
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
        """Rows before a damaged one: only it, and what follows it in its partition, has to wait."""
        while (n := n // 2) > 0:
            with contextlib.suppress(JournalDamaged):
                rows: Sequence[Row] = await self._store.read(
                    self._store.journal.read, partition, offset, n
                )
                return rows
        return ()

    @property
    def incident(self) -> str | None:
        """Why rows are not learned although they are there; None if none is."""
        return next(iter(self._damaged.values()), None)

    def _note_damaged(self, partition: int, error: JournalDamaged) -> None:
        if self._damaged.get(partition) != str(error):
            log.error("%s", error)
        self._damaged[partition] = str(error)

    def _learn_alike(self, rows: Sequence[Row], at: int) -> int:
        """Learn rows of this replica in one pass, those from ``at`` on.

        So many as a turn of the loop is enough for, by what the last ones took.  Returns how many;
        0: the next one has to be learned by itself.
        """
        learner, writer, first = self._learner, self._writer, rows[at]
        if first.partition != writer.partition or not learner.walks:
            return 0
        example = writer.decoded.get(first.offset)
        if example is None or not learner.wants(first):
            return 0
        size = len(example.features) + _NUMBERS_A_ROW
        most = max(self._numbers // size, _ALIKE_LEAST)
        some = rows[at : at + most]
        known = [writer.decoded.get(row.offset) for row in some]
        n = alike(some, known)
        if n < _ALIKE_LEAST or any(map(self._control.decisions.failure, some[:n])):
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
            shown = [(r, e) for r, e in zip(some[:n], examples, strict=False) if not is_again(r)]
            if shown:
                self._judge.learned_all(*zip(*shown, strict=True))
        writer.answers.note_alike(some[:n], version, before)
        self._set_pace()
        self._suit(n, most, time.perf_counter() - begun_s)
        return n

    def _suit(self, n: int, most: int, took_s: float) -> None:
        """Take so many rows at a time that a turn is long enough, by what ``n`` of them took.

        A little more or less each time: what else the machine does now and then says little.
        """
        if took_s > _TURN_S:
            self._numbers = max(int(self._numbers * max(_TURN_S / took_s, 0.8)), 1)
        elif n == most:
            self._numbers = min(int(self._numbers * min(_TURN_S / took_s, 1.25)) + 1, _NUMBERS_MAX)

    def _set_pace(self) -> None:
        if open_rows := self._learner.open_rows:
            self._pace.first_row.set()
        if open_rows >= self._updates:
            self._pace.enough()

    async def _learn(self, row: Row) -> bool:
        """Learn one row; False if a merge has moved the pointer meanwhile."""
        given_up = await self._given_up(row)
        if self._still.held:
            await self._still.moves()
        if self._moved() or not self._learner.wants(row):
            await self._claims.end(learned=False)
            return False
        before = self._learner.stamp
        known = None
        if row.partition == self._writer.partition:
            known = self._writer.decoded.pop(row.offset, None)
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

    def _show_judge(self, judge: Judge, row: Row) -> None:
        """Rows of this replica; those that it adopted were another's.

        Nor those that an operator has learned again: what was answered to them then, perhaps by a
        model that had learned lies, is no sign of what is wrong now, and an action on it would undo
        what the operator has just done.
        """
        if is_again(row):
            return
        track, example = self._learner.tracks.get(row.partition), self._learner.latest
        if example is None or not example.scored:
            return
        if track is not None and track.end is None:
            judge.learned(row.partition, row.offset, example, row.at)

    def _moved(self) -> bool:
        """Whether other values were begun with since the rows at hand were asked for."""
        return False

    async def _given_up(self, row: Row) -> str | None:
        """Why the row must not be learned: the journal says so, or learners have died at it."""
        if (reason := self._control.decisions.failure(row)) is not None:
            return reason
        if row.partition == self._writer.partition:
            return None
        if (reason := await self._claims.begin(row)) is not None:
            await self._write_failed(row, reason)
        return reason

    async def _write_failed(self, row: Row, reason: str) -> None:
        """Neither answered nor pushed before it is written: a repeat has to get the same answer."""
        self.unsaid = True
        while True:
            try:
                await self._control.write_failed(row, reason)
                break
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(_UNWRITTEN_S)
        self.unsaid = False
