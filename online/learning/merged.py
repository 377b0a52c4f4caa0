"""The learner of mergeable models: own rows on top of the server's values.

Learning follows the offsets of committed rows, never requests.  The local model is always

    values pulled  +  own deltas that the pulled clock does not contain  +  the open delta

so each own row counts once, whatever was lost, repeated or restarted.  If at a merge a partition's
deltas do not form an unbroken chain from its clock to the last row learned (the server restarted,
another process pushed, a bound was reached), they are dropped and the rows are learned again, while
the old copy goes on predicting.  If the server's values were rewritten (a rollback), the new values
answer at once, and the rows after their clock are learned again.

No Ray, no I/O, no clock: :mod:`online.replica.replica` feeds rows, sends and receives.
The rules of the protocol are in docs/architecture.md, "Exactly once".
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain
from typing import cast

from online.learning.base import LEARNED, Failed, why_not_taught
from online.learning.bounds import numbers_of
from online.learning.counters import DIGEST
from online.learning.deltas import CLOSED, OpenDelta, Place, finish, moved, restart, touched_by
from online.learning.local_model import LocalModel
from online.learning.ranges import BOUNDED
from online.learning.shard_divergence import shard_divergence
from online.learning.vocabulary import NAMED
from online.models.base import Mendable, Model, Walking, why_not_revised
from online.models.errors import NothingLearned
from paramserver.clients.sharded_client import ShardedReply
from paramserver.core.blocks import Blocks, Touched
from paramserver.core.wire import SyncReply
from paramserver.filters.sources import keep_bounds, of_sources
from replay import codec
from replay.example import Example
from replay.journal.base import Row
from replay.memory import Lesson


class Learner(LocalModel):
    """Learns rows, and merges the server's replies.

    Parameters as in :class:`online.learning.local_model.LocalModel`.
    """

    # -- learning -----------------------------------------------------------------------------

    def learn(
        self, row: Row, give_up: str | None = None, example: Example | None = None
    ) -> Failed | None:
        assert self.wants(row), f"row {row.offset} of {row.partition} is none of {self.wanted()}"
        failed = behind = self.latest = None
        learned = row.verdict in LEARNED and not self.undone.has(row.partition, row.offset)
        if learned and (why := give_up or why_not_taught(row)) is not None:
            failed, learned = Failed(row, why), False
        if learned:
            example = example or codec.decode(row.payload)
            behind = _corrected_place(row, example, self._training)
        self._cut_before(row, behind)
        opened = self._opened_at(row, behind)
        if learned and example is not None:
            failed = self._learn_or_restore(row, opened, example)
        self._note_evidence(row)
        opened.last = row.offset
        self.tracks[row.partition].next += 1
        if self._divergence is not None and row.offset == self._ahead(row.partition):
            self._rebuild((), self._served)  # until here, rows that some shards had counted twice
        self._switch()
        return failed

    def learn_alike(self, rows: Sequence[Row], examples: Sequence[Example]) -> int:
        """Learn the next rows of a partition in one pass, as :meth:`learn` one by one would.

        The rows are :func:`~online.learning.alike.alike`, and the first is one of :meth:`wanted`.
        Returns how many were learned.  0: nothing was changed, and the first has to be learned by
        itself.
        """
        model, first = cast(Walking, self._training), rows[0]
        one_by_one = self.memory is not None or self._targets
        if one_by_one or first.partition in self.undone.ranges or not self.walks:
            return 0
        self._cut_before(first)
        room = self._rows_max - (len(self._open.rows) if self._open else 0)
        rows, examples = rows[:room], examples[:room]
        features = [example.features for example in examples]
        if not self.vocabulary.knows(features):
            return 0
        weights = [example.weight * row.factor for row, example in zip(rows, examples, strict=True)]
        if not model.learn_alike(examples, weights):
            return 0
        opened = self._opened_at(first)
        targets = self._task == "regression"
        numbers = [numbers_of(example, targets=targets) for example in examples]
        if not self.bounds.add_alike(numbers):
            for row, example in zip(rows, examples, strict=True):
                self.bounds.add(example, row.source)
        together = self._task == "binary" and self.tally.add_binary(rows, examples)
        if not together:
            for row, example in zip(rows, examples, strict=True):
                self._tally(row, example)
        for row, example in zip(rows, examples, strict=True):
            if example.judged is not None:
                self.evidence.add(row, example.judged)
        if together and self.tally.views:
            for row, example in zip(rows, examples, strict=True):
                self.tally.note(example, row.at, row.source)
        opened.rows += [(row, example, ()) for row, example in zip(rows, examples, strict=True)]
        opened.last = rows[-1].offset
        self.tracks[opened.partition].next += len(rows)
        self.latest = examples[-1]
        return len(rows)

    def _learn_or_restore(self, row: Row, opened: OpenDelta, example: Example) -> Failed | None:
        memory = self.memory
        lesson: Lesson = ()
        score = example.score
        if example.moved is not None or example.provisional:
            memory = None  # such rows are neither kept nor learned together with rehearsed ones
        if memory is not None:
            lesson = memory.lesson(example.label)
            if score is None and memory.distil:
                score = self.score(self.serving.predict(example.features))
        try:
            self._learn(row, example, lesson)
        except Exception as error:  # a model may be foreign code, which can raise anything
            if not isinstance(error, NothingLearned):
                self._restore(example, lesson)
            return Failed(row, f"{type(error).__name__}: {error}"[:500])
        opened.rows.append((row, example, lesson))
        self._note_use(row, example)
        self.latest = example
        if memory is not None:
            memory.keep(row, example, score)
        return None

    def _restore(self, failed: Example, lesson: Lesson) -> None:
        """Restore the model to before the failed row: values, kept deltas, then the open rows."""
        rows = self._open.rows if self._open else []
        if isinstance(self._training, Mendable):  # restore touched values only
            examples = (failed, *(e for _, e, _ in rows))
            names = dict.fromkeys(name for e in examples for name in _names(e))
            for drawn in chain(lesson, *(again for _, _, again in rows)):
                names |= dict.fromkeys(x for item in drawn.items for x in item.features)
            self._mend(self._training, names)
        else:
            self._reset_to(self._training, self._values())
        for row, example, again in rows:
            self._learn(row, example, again)

    def _mend(self, model: Mendable, names: Collection[str]) -> None:
        pending = self._pending()
        model.mend(self._pulled.with_deltas(pending, model.touched(names)), names)
        self.bounds.mend(self._pulled.with_deltas(pending, self.bounds.touched(names)), names)
        named = self.vocabulary.touched()
        self.vocabulary.mend(self._pulled.with_deltas(pending, named))
        self._reset_tally(pending)

    def _values(self) -> Blocks:
        """Return the pulled values with all own deltas on top."""
        return self._pulled.with_deltas(self._pending())

    def _switch(self) -> None:
        """Answer from the copy that learns, as soon as it includes all rows of the old one."""
        if all(map(self._caught_up, self._targets)):
            self._targets, self.serving = {}, self._training
            if self.cache is not None:
                self.cache.joined()

    def abandon(self, partition: int) -> None:
        if partition not in self.tracks:
            return
        served = self._contained()
        del self.tracks[partition]
        if self._open and self._open.partition == partition:
            self._open = None
        self._deltas.drop([partition])
        self._rebuild(self._relearned_together([partition]), served)

    def follow(self, partition: int, own: int) -> bool:
        """Learn the rows that another process writes there; drop the one followed before."""
        for other, track in list(self.tracks.items()):
            if track.end is None and other not in (partition, own):
                self.abandon(other)
        if partition in self.tracks:
            return False
        self.adopt(partition, None)
        return True

    # -- merging ------------------------------------------------------------------------------

    def take_part(self, reply: SyncReply) -> Iterator[None]:
        """Take a part of the values, one piece per step; the present copy goes on meanwhile.

        Pushes go to its server from now on if deltas can be merged into any values.
        """
        if self._is_old(reply):
            return
        if self.mergeable and reply.rewrite == self.rewrite:
            self.server.note(reply, _clock(reply))
            self.decide(reply.control, reply.frozen)
        else:
            self.want_all = True
        yield from self.server.take(reply)

    def drop_old(self) -> Iterator[None]:
        if self.serving is self._training:
            yield from self.server.drop()

    def _is_old(self, reply: SyncReply) -> bool:
        """Whether a newer version is here, or a newer server is known."""
        if (reply.epoch, reply.count) < max(self.version, (self.server.epoch, 0)):
            return True
        self.server.epoch = reply.epoch
        return False

    def on_reply(self, reply: SyncReply) -> bool:
        """Take the server's state; return whether anything changed.

        Replies of an older epoch (of a server that was replaced) or an older version are ignored.
        """
        if self._is_old(reply):
            return False
        reply = self._chosen(reply)
        coming = self.server.complete(reply)
        whole = reply.kind == "all" or coming is not None
        if not whole and (self.want_all or reply.epoch != self.version[0]):
            self.want_all = True
            return False
        if not whole and reply.since is not None and reply.since > self.version:
            return False  # changes relative to values that are not here
        clock = _clock(reply)
        if reply.rewrite != self.rewrite:
            self._drop_learned(clock)
        explain = self._deltas.explain
        if reply.kind == "none" and not explain(self.clock, clock, self.tracks.keys()):
            self.want_all = True
            return False
        changed = (reply.epoch, reply.count) != self.version or whole
        served, opened = self._contained(), self._open
        diverged_before, self._divergence = self._divergence, shard_divergence(reply, self.tracks)
        rebuild = whole or diverged_before is not None or self._divergence is not None
        if opened and (rebuild or clock.get(opened.partition, 0) >= opened.first):
            self._cut()
        own = [d for d in self._deltas.pending(self.clock) if d.last <= clock.get(d.partition, 0)]
        touched: Touched = {}
        if coming is None:
            touched = self._pulled.take(reply, own)
        else:
            self.server.leave(self._pulled, self._training)
            self._pulled = coming.pulled
        self._note_arrived(reply)
        keep_bounds(self._pulled.blocks, {}, self.evidence.sources_max, self._newest)
        self._pulled.note((reply.epoch, reply.count), touched, whole=whole)
        others = moved(self.clock, clock, {p for p, t in self.tracks.items() if not t.held})
        self.version, self.clock = (reply.epoch, reply.count), clock
        self.first = reply.first if isinstance(reply, ShardedReply) else None
        self.durable, self.rewrite = dict(reply.durable), reply.rewrite
        self.server.note(reply, clock, taken=whole)
        self.decide(reply.control, reply.frozen)
        self.want_all = False
        finish(self.tracks, clock, self.durable, reply.closed, from_peer=bool(reply.peer))
        self._deltas.settle(self.tracks.keys(), self.clock, self.durable)
        lost = self._broken()
        if whole and others and not self.mergeable:
            lost = self.tracks.keys()  # whole states include rows that the values do not
        if rebuild or lost:
            self._rebuild(lost, served, None if coming is None else coming.model)
        else:
            fresh = self._pulled.with_deltas(self._deltas.pending(clock), touched)
            self.tally.rebase(fresh)
            self.bounds.rebase(fresh)
            self.vocabulary.rebase(fresh)
            self.evidence.rebase(fresh)
            self._training.rebase(fresh)
            self._pending_n = sum(d.n for d in self._deltas.pending(clock))
            self._switch()
        self.ready = True
        return changed

    def _drop_learned(self, clock: Mapping[int, int]) -> None:
        """Drop what was learned on values that were rewritten since; continue from the clock."""
        self._open = None
        self._deltas.drop(self.tracks.keys())
        self._targets = {}
        self.relearned += restart(self.tracks, clock)

    def _broken(self) -> Collection[int]:
        """Partitions whose deltas do not form an unbroken chain from clock + 1 to the pointer."""
        unbroken, begun = self._deltas.unbroken, [t for t in self.tracks.items() if not t[1].held]
        lost = [p for p, t in begun if not unbroken(p, t.next, self.clock, self._open)]
        unusable = self._lacking_corrected_rows().union(self._split_by_shard_clocks(begun))
        return self._relearned_together([*lost, *(unusable - {*lost})])

    def _rebuild(
        self, lost: Collection[int], served: dict[int, int], copy: Model | None = None
    ) -> None:
        """Build a new copy from values and kept deltas; relearn the rows of ``lost`` partitions.

        Until that is done, the old copy, which includes the rows of ``served``, goes on predicting.
        ``copy``: a new copy that already has the values.
        """
        if not self._targets:
            self._served = served
        if self._open and self._open.partition in lost:
            self._open = None
        self._cut()
        self._deltas.drop(lost)
        for partition in lost:
            track = self.tracks[partition]
            self._targets[partition] = max(track.next, self._targets.get(partition, 0))
            restart = self.clock.get(partition, 0) + 1
            self.relearned += max(track.next - restart, 0)
            track.next = restart
        self._keep_old_copy()
        pending = self._pending()
        if copy is None:
            self._training = self._build()
            self._reset_to(self._training, self._values())
        else:
            self._training = copy
            copy.rebase(self._pulled.with_deltas(pending, touched_by(pending)))
            self._reset_tally(pending)
            ranged: Touched = {**BOUNDED, DIGEST: None}
            self.bounds.reset(self._pulled.with_deltas(pending, ranged))
            self.vocabulary.reset(self._pulled.with_deltas(pending, NAMED))
        self._pending_n = sum(d.n for d in pending)
        blocks = (self._pulled.blocks, *(d.blocks for d in pending))
        judged: Touched = {name: None for held in blocks for name in of_sources(held)}
        self.evidence.reset(self._pulled.with_deltas(pending, judged))
        self._switch()


def _corrected_place(row: Row, example: Example, model: Model) -> Place | None:
    """The place of the row in another partition that this one corrects; None: there is none.

    A snapshot that includes a correction without the corrected row could not be restored.  For a
    model that cannot replace an earlier label, this matters only if the first row carries evidence
    about its source.
    """
    first = example.corrects
    if first is None or first.offset == 0 or first.partition == row.partition:
        return None
    known = first.evidence or why_not_revised(model) is None
    return (first.partition, first.offset) if known else None


def _clock(reply: SyncReply) -> dict[int, int]:
    return {**reply.clock, **dict.fromkeys(reply.closed, CLOSED)}


def _names(example: Example) -> Collection[str]:
    """Names of the features that learning the example touches."""
    return example.features if example.moved is None else example.moved.columns
