"""The local model of a replica, with its partition pointers and the deltas to be sent.

The merging rules are in :mod:`online.learning.merged`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import ClassVar, Final

from evaluation.metrics import Task
from online.learning.base import BaseLearner, cut_together
from online.learning.deltas import (
    Delta,
    Deltas,
    OpenDelta,
    Place,
    Pulled,
    Track,
    ends,
    open_ones,
    stays,
)
from online.learning.shard_divergence import ShardDivergence
from online.learning.values_in_parts import ServerView
from online.models.base import Compensable, Model, Rounding, Sharing, Walking
from paramserver.core import blocks as algebra
from paramserver.core.blocks import Blocks, Touched
from paramserver.core.tables.rows import Rows
from paramserver.core.wire import OrderedState, Push, SyncReply, Version
from paramserver.evidence.generations import Newest
from replay.example import Example
from replay.journal.base import Row
from replay.memory import Memory

WAITS_MAX: Final = 3_000
"""Consecutive exchanges that deltas wait for another partition's rows, which may never come."""


class LocalModel(BaseLearner):
    """The answering model, the partition pointers and the deltas of one model in one replica.

    Parameters:
        build, task, spec: As in :class:`online.learning.base.BaseLearner`.
        retain_bytes: Size of the deltas kept until a published snapshot has them.  Beyond it their
            rows are read from the journal again.
        rows_max: Largest number of rows in one delta.
        compensates: Whether pushes carry their curvature, for the merge rule ``compensated``.
        memory: The rehearsal memory; None: no rehearsal.
    """

    recovers: ClassVar[bool] = True

    def __init__(
        self,
        build: Callable[[], Model],
        *,
        task: Task,
        spec: str,
        retain_bytes: int,
        rows_max: int,
        compensates: bool = False,
        memory: Memory | None = None,
    ) -> None:
        build = partial(_built, build) if compensates else build
        super().__init__(build, task=task, spec=spec, rows_max=rows_max)
        self.memory = memory
        self.mergeable = self.serving.mergeable
        self.walks = isinstance(self.serving, Walking)
        self._open: OpenDelta | None = None
        self._pulled, self._deltas = Pulled(), Deltas(retain_bytes)
        self._newest = Newest()  # of the pulled losses
        self.server = ServerView(build if self.mergeable else None)
        self._targets: dict[int, int] = {}  # by partition: offset at which relearning ends
        self._served: dict[int, int] = {}  # until then: the clock of the answering copy
        self._pending_n = self._waited = self._partition = 0  # the partition of the last delta
        self._divergence: ShardDivergence | None = None

    # -- answering ----------------------------------------------------------------------------

    @property
    def own(self) -> int:
        """Number of own rows in the local model on top of ``version``."""
        return self._pending_n + (len(self._open.rows) if self._open else 0)

    def includes(self, partition: int, offset: int) -> bool:
        if self.undone.has(partition, offset):
            return False
        if self._targets:
            return self._served.get(partition, 0) >= offset
        track = self.tracks.get(partition)
        learned = 0 if track is None else track.next - 1
        return max(learned, self.clock.get(partition, 0)) >= offset

    def known(self) -> dict[int, int]:
        if self._targets:
            return open_ones(self._served)
        own = {p: track.next - 1 for p, track in self.tracks.items()}
        clock = open_ones(self.clock)
        return clock | {p: max(last, clock.get(p, 0)) for p, last in own.items()}

    @property
    def pulled(self) -> Blocks:
        """The server's values of ``version``, without own deltas.  Not to be changed."""
        return self._pulled.blocks

    def changes_since(self, version: Version | None) -> Touched | None:
        return self._pulled.changes_since(version)

    def rest_on(self, version: Version, tables: Mapping[str, Rows]) -> Iterator[None] | None:
        """Read tables where the server of this host has published them; None: that can't be now.

        They are of ``version``.  Whatever changed between it and the local one must be a row of its
        own here, so it must not be newer, and the copy that answers has to be the one that learns.
        The steps that are returned drop own rows that equal the tables'.
        """
        known = version[0] == self.version[0] and version <= self.version
        if not known or not self.up_to_date or self.catching_up:
            return None
        if not isinstance(self._training, Sharing):
            return iter(())
        return chain(self._pulled.rest_on(tables), self._training.rest_on(tables))

    # -- partitions ---------------------------------------------------------------------------

    def adopt(self, partition: int, end: int | None) -> None:
        """Learn the rest of a partition, from the clock of the next pull on.

        ``end``: its last offset if it is sealed.  None: another process writes it, and does not
        learn.
        """
        if partition not in self.tracks:
            self.tracks[partition] = Track(next=0, end=end, held=True)

    def lags(self, own: int, last: int) -> bool:
        """Whether rows of its partitions are not learned yet."""
        held = any(track.held for track in self.tracks.values())
        return held or any(track.next <= end for track, end in ends(self.tracks, own, last))

    def leaves(self, own: int, last: int) -> bool:
        """Whether the server lacks rows of the own partition, which an adopter would learn."""
        return self.clock.get(own, 0) < last

    def wanted(self) -> list[tuple[int, int]]:
        """``(partition, offset)`` of the next row of each track.

        During relearning only rows to be learned again are wanted: predictions come from the old
        copy, which would lack any other row learned meanwhile.
        """
        if not self.ready or self.want_all:
            return []
        ready = [(p, t) for p, t in self.tracks.items() if not t.held]
        if self._targets:
            ready = [(p, t) for p, t in ready if not self._caught_up(p)]
        return [(p, t.next) for p, t in ready if t.end is None or t.next <= t.end]

    def wants(self, row: Row) -> bool:
        """Whether the row is one of :meth:`wanted`."""
        track = self.tracks.get(row.partition)
        if track is None or track.held or track.next != row.offset:
            return False
        if not self.ready or self.want_all or (self._targets and self._caught_up(row.partition)):
            return False
        return track.end is None or row.offset <= track.end

    def _caught_up(self, partition: int) -> bool:
        track = self.tracks.get(partition)
        return track is None or track.next >= self._targets.get(partition, 0)

    def _contained(self) -> dict[int, int]:
        """Last offset of each partition included in the copy that learns."""
        learned = {p: t.next - 1 for p, t in self.tracks.items() if not t.held}
        return {**self.clock, **learned}

    # -- rows of a table, if not all are held ---------------------------------------------------

    def _note_use(self, row: Row, example: Example) -> None:
        if self.cache is not None:
            self.cache.learned(example.features, (row.partition, row.offset))

    def _chosen(self, reply: SyncReply) -> SyncReply:
        """Make room, and return the reply with the rows to hold among its blocks."""
        if self.cache is None:
            return reply
        if not self.catching_up and reply.kind != "all":  # until then no row is added either
            self.cache.make_room(self._may_be_sent, self._pulled.blocks, self._training.rebase)
        return self.cache.chosen(reply)

    def _note_arrived(self, reply: SyncReply) -> None:
        if self.cache is not None:
            self.cache.took(reply)

    def _may_be_sent(self, place: Place) -> bool:
        """Whether the event's delta may have to be applied again: no snapshot may have it."""
        have = min(self.clock.get(place[0], 0), self.durable.get(place[0], 0))
        return place[0] in self.tracks and place[1] > have

    # -- deltas -------------------------------------------------------------------------------

    @property
    def open_rows(self) -> int:
        """Number of offsets in the open delta; 0 if a frozen model keeps it."""
        if self._open is None or self._stays():
            return 0
        return self._open.last - self._open.first + 1

    def _cut(self) -> None:
        if (opened := self._open) is None:
            return
        self._open = None
        model, curved = self._training, {}
        if isinstance(model, Compensable):
            curved = model.curved()
        blocks = cut_together(self)
        curved = {name: keys for name, keys in curved.items() if name in blocks}
        size, n = algebra.size_bytes(blocks) + 200, len(opened.rows)
        size += sum(len(key) + 20 for keys in curved.values() for key in keys)
        bounds = (opened.partition, opened.first, opened.last, n)
        after = (opened.behind, opened.within)
        self._deltas.add(Delta(*bounds, opened.base, blocks, size, curved, *after))
        self._pending_n += n

    def _cut_before(self, row: Row, behind: Place | None = None) -> None:
        if (opened := self._open) is None:
            return
        full = opened.partition != row.partition or len(opened.rows) >= self._rows_max
        if self._divergence is not None:  # a delta must not extend across a shard's clock
            full = full or opened.last in self._divergence.at(opened.partition)
        if full or (behind is not None and not self.server.has(*behind)):
            self._cut()

    def _opened_at(self, row: Row, behind: Place | None = None) -> OpenDelta:
        """Return the open delta; open one at the row if there is none.

        ``behind``: place of the row that this one corrects.
        """
        if self._open is None:
            if row.partition != self._partition and isinstance(self._training, Rounding):
                self._training.drop_rest()  # of rows of another partition, which may be relearned
            self._partition = row.partition
            self._open = OpenDelta(row.partition, row.offset, row.offset, self.version, [], behind)
        elif behind is not None:
            partition, offset = behind
            within = self._open.within
            within[partition] = max(offset, within.get(partition, 0))
        return self._open

    def _pending(self) -> list[Delta]:
        """Own deltas that are not in the values; of partly included ones, the missing parts."""
        pending = self._deltas.pending(self.clock)
        return pending if self._divergence is None else self._divergence.lacking(pending)

    def _ahead(self, partition: int) -> int:
        """The clock of the most advanced shard, if not all shards have reached it; otherwise 0."""
        if self._divergence is None or (track := self.tracks.get(partition)) is None:
            return 0
        ahead = self._divergence.ahead(partition, track.end)
        return ahead if ahead > self.clock.get(partition, 0) else 0

    def _split_by_shard_clocks(self, begun: Collection[tuple[int, Track]]) -> list[int]:
        """Partitions in which a shard's clock, not past the pointer, lies within a delta."""
        if self._divergence is None:
            return []
        unbroken, opened = self._deltas.unbroken, self._open
        return [
            p
            for p, track in begun
            for clock in self._divergence.clocks
            if clock.get(p, 0) < track.next and not unbroken(p, track.next, clock, opened)
        ]

    def _lacking_corrected_rows(self) -> set[int]:
        """Partitions with a delta that corrects rows which the server lacks.

        An earlier server had them.  The rows are learned again, in deltas that can wait for them.
        """
        kept: list[Delta | OpenDelta] = [*self._deltas.pending(self.clock)]
        kept += [] if self._open is None else [self._open]
        has = self.server.has
        return {d.partition for d in kept if not all(has(*x) for x in d.within.items())}

    def _keep_old_copy(self) -> None:
        """Answer from the old copy until relearning passes all shards, so no row counts twice."""
        for partition, track in self.tracks.items():
            if not track.held and track.next <= (ahead := self._ahead(partition)):
                self._targets[partition] = max(ahead + 1, self._targets.get(partition, 0))

    def _reset_tally(self, pending: Sequence[Delta]) -> None:
        self.tally.reset(self._pulled.with_deltas(pending, self.tally.tallied))

    def _relearned_together(self, lost: Collection[int]) -> Collection[int]:
        """Return the partitions to relearn with these: all of them if states are not mergeable."""
        if lost and not self.mergeable:
            return self.tracks.keys()
        return [p for p in lost if p in self.tracks]

    @property
    def due(self) -> bool:
        """Whether deltas are to be sent: always, if there are any."""
        return True

    def outgoing(self, limit: int) -> tuple[list[Push], OrderedState | None]:
        """Return at most ``limit`` deltas, and no state."""
        return self.pushes(limit), None

    def wants_values(self, *, learns: bool, rested: bool) -> bool:
        """Whether the values change elsewhere: by merges, or by another process that learns."""
        return self.mergeable or not learns

    def pushes(self, limit: int) -> list[Push]:
        """Cut the open delta; return the first ``limit`` deltas that the server may lack, in order.

        A frozen model keeps deltas without a learned row.
        """
        if self._open and not self._stays():
            self._cut()
        due = self._deltas.due(self.server.clock, self.tracks, frozen=self.frozen)
        ready = self._ready(due)
        return [d.push(self._spec, self.server.met) for d in ready[:limit]]

    def _ready(self, due: Sequence[Delta]) -> Sequence[Delta]:
        """Deltas whose required rows are on the server; others wait up to ``WAITS_MAX`` times."""
        self.waits = {partition for delta in due for partition, _ in delta.after}
        held: set[int] = set()
        ready: list[Delta] = []
        for delta in due:
            if not all(self.server.has(*place) for place in delta.after):
                held.add(delta.partition)
            if delta.partition not in held:
                ready.append(delta)
        self._waited = self._waited + 1 if held else 0
        return due if self._waited > WAITS_MAX else ready

    def _stays(self) -> bool:
        return self.frozen and self._open is not None and stays(self._open, self.tracks)


def _built(build: Callable[[], Model]) -> Model:
    """Build a model that reports the curvature of its deltas, if it can."""
    model = build()
    if isinstance(model, Compensable):
        model.compensate()
    return model
