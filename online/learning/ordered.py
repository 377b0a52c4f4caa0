"""The learner of models that are not merged: every replica learns all rows, in commit order.

Each replica learns all committed rows of the model, of all partitions, in the order of their
``seq``.  So replicas that have learned up to the same row are equal, and a replica that has learned
its own newest row reads its own writes.  The parameter server keeps clocks and snapshots: the
replica that it names the keeper sends its state now and then, from which new replicas start.

    local model = values at a position of the order  +  the rows after it, in order

No Ray, no I/O, no clock, as in :mod:`online.learning.base`, whose methods it implements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Final

from evaluation.metrics import Task
from online.learning.base import LEARNED, BaseLearner, Failed, cut_together, why_not_taught
from online.learning.deltas import CLOSED, Track, open_ones
from online.learning.values_in_parts import PartialValues
from online.models.base import Model
from online.models.errors import NothingLearned
from paramserver.core import blocks as algebra
from paramserver.core.admission import Keeper
from paramserver.core.blocks import Blocks, Touched
from paramserver.core.wire import OrderedState, Push, SyncReply, Version
from paramserver.evidence.generations import Newest
from paramserver.filters.sources import keep_bounds
from replay import codec
from replay.example import Example
from replay.journal.base import Partition, Row, Verdict

BEGIN: Final = 0
"""The position before every row."""
_SPANS: Final = 64


class _Written:
    """A model's values at a position of the order, and what has changed since the initial ones.

    ``since``: rows that the copy that learns has on top of ``values``.
    """

    def __init__(self, values: Blocks, began: int, epoch: int) -> None:
        self.values = values
        self.since: list[tuple[Row, Example]] = []
        self._epoch = epoch  # of the server that gave the initial values
        self._began = began  # their position; changes since then, each up to a later position:
        self._spans: list[tuple[int, Touched]] = []
        self._newest = Newest()

    def add(self, position: int, done: Blocks, sources_max: int, keeper: Keeper | None) -> Blocks:
        """Move the values to a new position by ``done``, the changes of the rows since.

        Returns the replacements for entries removed from full tables.
        """
        touched = algebra.merge(self.values, done, 1.0)
        keep_bounds(self.values, touched, sources_max, self._newest)
        left: Touched = {} if keeper is None else keeper.settle(self.values, done, 0, position)
        algebra.add_touched(touched, left)
        self.since = []
        self._spans.append((position, touched))
        if len(self._spans) > _SPANS:
            (_, first), (end, second), *later = self._spans
            algebra.add_touched(first, second)
            self._spans = [(end, first), *later]
        return algebra.select(self.values, left)

    def changed(self, kept: int, epoch: int) -> tuple[int, Blocks]:
        """Return a base position, and what a server of ``epoch`` at ``kept`` lacks since then."""
        while self._spans and self._spans[0][0] <= kept:
            self._began, _ = self._spans.pop(0)  # a server behind this position gets all values
        if kept < self._began or (kept == self._began and epoch != self._epoch):
            return BEGIN, algebra.copy(self.values)
        changed = Touched()
        for _, touched in self._spans:
            algebra.add_touched(changed, touched)
        return kept, algebra.copy(algebra.select(self.values, changed))


class OrderedLearner(BaseLearner):
    """The local model of one replica, and the position up to which it has learned.

    Parameters:
        build, task, spec: As in :class:`online.learning.base.BaseLearner`.
        rows_max: Largest number of rows to learn again if the model raises on one: after that many
            rows the state is copied in memory.

    Attributes:
        position: ``seq`` up to which the copy that learns includes every row.
        keeper: Whether the server asks this replica for its state.
    """

    role: ClassVar[str] = "ordered"
    in_order: ClassVar[bool] = True

    def __init__(self, build: Callable[[], Model], *, task: Task, spec: str, rows_max: int) -> None:
        super().__init__(build, task=task, spec=spec, rows_max=rows_max)
        self.position = BEGIN
        self.keeper = False
        self.began = 0  # how many times initial values were taken
        self._rewritten = False  # decisions are known, but the rewritten values are not here yet
        self._learned: dict[int, int] = {}  # last offset of each partition, of what learns
        self._served: dict[int, int] = {}  # the same of the answering copy, during relearning
        self._target = BEGIN  # position at which relearning ends
        self._newest = self._newest_awake = BEGIN  # ``seq`` of the last row; of one not frozen
        self._kept = BEGIN  # position of the server's values
        self._known: tuple[int, Version, int] = (BEGIN, (0, 0), 0)  # position, version, learned
        self._standing = 0  # number of rows learned in the values of ``version``
        self._written = _Written({}, BEGIN, 0)
        self.tables_keeper: Keeper | None = None  # bounds tables where there is no server

    # -- answering ----------------------------------------------------------------------------

    @property
    def own(self) -> int:
        """Number of rows in the local model on top of ``version``, of any replica."""
        return max(self.tally.digest[0] - self._standing, 0)

    def includes(self, partition: int, offset: int) -> bool:
        if self._rewritten or self.undone.has(partition, offset):
            return False
        contained = self._served if self._target > self.position else self._learned
        return contained.get(partition, 0) >= offset

    def known(self) -> dict[int, int]:
        return open_ones(self._served if self._target > self.position else self._learned)

    # -- partitions ---------------------------------------------------------------------------

    def adopt(self, partition: int, end: int | None) -> None:
        """Track a partition sealed here; every replica learns its rows in commit order."""
        self.tracks[partition] = Track(self._learned.get(partition, 0) + 1, end)

    def abandon(self, partition: int) -> None:
        """Stop tracking a partition of this process that another process has sealed."""
        self.tracks.pop(partition, None)

    def follow(self, partition: int, own: int) -> bool:
        """Return False, since all partitions are always learned."""
        return False

    def lags(self, own: int, last: int) -> bool:
        """Whether the server, by its clock, lacks rows of the own partition."""
        return self.clock.get(own, 0) < last

    def leaves(self, own: int, last: int) -> bool:
        """Whether the server waits for this replica's state; other replicas have all rows."""
        return self.due

    # -- learning -----------------------------------------------------------------------------

    @property
    def follows(self) -> bool:
        """Whether rows can be learned now: initial values are here."""
        return self.ready and not self.want_all

    def wants(self, row: Row) -> bool:
        """Whether the row is the next one of the order, to be learned or skipped.

        If rows were trimmed from the journal, the caller must have called :meth:`lacks`.
        """
        return self.follows and row.seq > self.position

    def lacks(self, partitions: Sequence[Partition]) -> bool:
        """Whether trimmed rows are missing from the values; if so, newer values are requested."""
        gone = any(p.trimmed > self._learned.get(p.id, 0) for p in partitions)
        self.want_all |= gone
        return gone

    def rows_ahead(self, partitions: Sequence[Partition]) -> int:
        """Return how many rows of the journal are still to be learned."""
        begun = ((p.end, max(p.trimmed, self._learned.get(p.id, 0))) for p in partitions)
        return sum(max(end - last, 0) for end, last in begun)

    def learn(
        self, row: Row, give_up: str | None = None, example: Example | None = None
    ) -> Failed | None:
        """Learn the next row of the order."""
        assert self.wants(row), f"row {row.seq} is not the next one after {self.position}"
        failed = self.latest = None
        fresh = row.offset > self._learned.get(row.partition, 0)
        wanted = row.verdict in LEARNED and not self.undone.has(row.partition, row.offset)
        if fresh and wanted and (why := give_up or why_not_taught(row)) is not None:
            failed = Failed(row, why)
        elif fresh and wanted:
            failed = self._learn_or_restore(row, example or self._example(row))
        if fresh:
            self._note_evidence(row)
            self._learned[row.partition] = row.offset
            if (track := self.tracks.get(row.partition)) is not None:
                track.next = row.offset + 1
            self._newest = row.seq
            if row.verdict not in (Verdict.FROZEN, Verdict.LOST):
                self._newest_awake = row.seq
        self.pass_to(row.seq)
        if len(self._written.since) >= self._rows_max:
            self._write_down()
        return failed

    def pass_to(self, position: int) -> None:
        """Move the position forward; no row of the model is left before it."""
        self.position = max(self.position, position)
        if self.position >= self._target and self.serving is not self._training:
            self.serving, self._served = self._training, {}
        self._stand()

    def _learn_or_restore(self, row: Row, example: Example) -> Failed | None:
        try:
            self._learn(row, example)
        except Exception as error:  # a model may be foreign code, which can raise anything
            if not isinstance(error, NothingLearned):
                self._restore()
            return Failed(row, f"{type(error).__name__}: {error}"[:500])
        self._written.since.append((row, example))
        self.latest = example
        return None

    def _example(self, row: Row) -> Example:
        """Return the decoded row, with the answer given before."""
        return codec.decode(row.payload)

    def _restore(self) -> None:
        """Restore the model to before the failed row: the values, then the rows since."""
        self._reset_to(self._training, self._written.values)
        for row, example in self._written.since:
            self._learn(row, example)

    def _write_down(self) -> None:
        """Copy the present state into the values, from which the model can be restored or sent."""
        done = cut_together(self)
        left = self._written.add(self.position, done, self.evidence.sources_max, self.tables_keeper)
        if left:
            self._training.rebase(left)

    # -- exchange -----------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the server asks this replica for what it lacks."""
        return self.keeper and self.unsent

    def outgoing(self, limit: int) -> tuple[list[Push], OrderedState | None]:
        """Return no deltas, because such a model is never merged, and the state."""
        return [], self.state()

    @property
    def unsent(self) -> bool:
        """Whether the server's values lack rows that are here; for a frozen model, learned ones."""
        newest = self._newest_awake if self.frozen else self._newest
        return self.follows and self.serving is self._training and newest > self._kept

    def state(self) -> OrderedState:
        """Return the state for the server: what has changed since its values, or everything."""
        self._write_down()
        epoch = self.server.met[0]
        base, blocks = self._written.changed(self._kept, epoch)
        return OrderedState(
            epoch,
            self._spec,
            base,
            self.position,
            {p: last for p, last in self._learned.items() if last < CLOSED},
            algebra.to_wire(blocks),
        )

    def take_part(self, reply: SyncReply) -> Iterator[None]:
        if self._is_old(reply):
            return
        if self.ready and reply.rewrite != self.rewrite:
            self.want_all = True
        yield from self.server.take(reply)

    def _is_old(self, reply: SyncReply) -> bool:
        if (reply.epoch, reply.count) < max(self._known[1], (self.server.epoch, 0)):
            return True
        self.server.epoch = reply.epoch
        return False

    def on_reply(self, reply: SyncReply) -> bool:
        """Take a reply of the server; return whether anything changed.

        Its values are taken only at the start, or after a decision that rewrote them.
        """
        if self._is_old(reply):
            return False
        coming = self.server.complete(reply)
        values = self._values_of(reply, coming)
        whole = values is not None
        if not whole and (self.want_all or reply.rewrite != self.rewrite):
            self.want_all = True
            self._rewritten = self.ready and reply.rewrite != self.rewrite
            return False
        changed = whole or (reply.epoch, reply.count) != self._known[1]
        clock = {**reply.clock, **dict.fromkeys(reply.closed, CLOSED)}
        if values is not None:
            self._begin_at(reply, values, clock)
        self.clock, self.durable, self._kept = clock, dict(reply.durable), reply.position
        self._known = (reply.position, (reply.epoch, reply.count), reply.learned)
        self.keeper = reply.keeper
        self.server.note(reply, clock, taken=whole)
        self.decide(reply.control, reply.frozen)
        self._settle(reply)
        self._stand()
        self.ready = True
        return changed

    def _values_of(self, reply: SyncReply, coming: PartialValues | None) -> Blocks | None:
        """The complete initial values that have arrived; None: none, or not all of them."""
        if coming is not None:
            return coming.pulled.with_deltas(())
        return algebra.from_wire(reply.blocks) if reply.kind == "all" else None

    def _stand(self) -> None:
        """Report the server's newest version as soon as all of its rows are learned here."""
        position, version, learned = self._known
        if version != self.version and self.position >= position:
            self.version, self._standing = version, learned

    def _settle(self, reply: SyncReply) -> None:
        """Drop adopted partitions that both server and snapshot include."""
        for partition, track in list(self.tracks.items()):
            durable = min(self.clock.get(partition, 0), self.durable.get(partition, 0))
            if partition in reply.closed or (track.end is not None and durable >= track.end):
                del self.tracks[partition]

    def _begin_at(
        self, reply: SyncReply, values: Blocks, clock: Mapping[int, int], copy: Model | None = None
    ) -> None:
        """Start a new copy from the server's values; until it catches up, the old one answers.

        ``copy``: a copy that already has the values.  If the values were rewritten, the old copy
        does not go on.
        """
        self.began += 1
        rewritten = reply.rewrite != self.rewrite
        self.rewrite = reply.rewrite
        ahead = max(self.position, self._target) > reply.position
        goes_on = self.ready and not rewritten and ahead
        if goes_on and self.serving is self._training:
            self._served, self._target = dict(self._learned), self.position
        elif not goes_on:
            self._served, self._target = {}, BEGIN
        if self.ready:
            known = self._learned.keys() & clock.keys()
            self.relearned += sum(max(self._learned[p] - clock[p], 0) for p in known)
        self._training = copy or self._build()
        self._reset_to(self._training if copy is None else None, values)
        self.evidence.reset(values)
        self._written = _Written(values, reply.position, reply.epoch)
        self._learned, self.position = dict(clock), reply.position
        self._newest = self._newest_awake = reply.position
        for partition, track in self.tracks.items():
            track.next = self._learned.get(partition, 0) + 1
        self.want_all = self._rewritten = False
        self._known = (reply.position, (reply.epoch, reply.count), reply.learned)
        if not goes_on:
            self.serving = self._training
