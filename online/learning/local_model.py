"""This module has what is in a replica's local model, its next rows, and the deltas that it owes.

No rule of merging is here: see :mod:`online.learning.merged`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from evaluation.metrics import Task
from online.learning.bounds import Bounds, free_names
from online.learning.counters import TALLIED, Tally
from online.learning.deltas import Delta, Deltas, Opened, Pulled, Track, Tracks, open_ones, stays
from online.learning.source_evidence import Evidence
from online.learning.values_in_parts import Arrival
from online.learning.vocabulary import Vocabulary, words_of
from online.models.base import Compensable, Model, Prediction, Walking
from paramserver import blocks as algebra
from paramserver.blocks import Blocks, Touched
from paramserver.rewrites import Undone
from paramserver.wire import Push, Version
from replay.example import Example, Features, label_text
from replay.journal.base import Row
from replay.memory import Memory


def score_of(task: Task, prediction: Prediction) -> dict[str, float] | None:
    """A prediction as it is kept in rows: by the label's JSON text, or ``{"": number}``."""
    if prediction.probabilities is not None:
        return {label_text(k): v for k, v in prediction.probabilities.items()}
    if prediction.label is None:
        return None
    if task == "regression":
        return {"": float(prediction.label)}
    return {label_text(prediction.label): 1.0}


class LocalModel:
    """A model that answers, pointers and deltas of one model in one replica.

    Parameters
    ----------
    build
        Makes an untrained model; a second copy is built when rows are learned again.
    task
        ``binary``, ``multiclass`` or ``regression``.
    spec
        Hash of the model's spec; a push with another one is refused.
    retain_bytes
        Deltas kept until a published snapshot has them.  Beyond it the journal is the copy.
    rows_max
        Rows of one delta at most.
    compensates
        Whether pushes tell their curvature, for the merge rule ``compensated``.
    memory
        What is kept to be learned again; None: nothing is.
    """

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
        self._build = build
        self._task = task
        self._spec = spec
        self._rows_max = rows_max
        self.memory = memory
        self.latest: Example | None = None  # of the row at hand, if it was learned
        self.serving = build()
        self._training = self.serving
        self.mergeable = self.serving.mergeable
        self._walks = isinstance(self.serving, Walking)
        self.tally, self.evidence = Tally(), Evidence()
        self.bounds = Bounds(free_names(self.serving))
        self.vocabulary = Vocabulary(words_of(self.serving))
        self.version: Version = (0, 0)
        self.clock: dict[int, int] = {}
        self.durable: dict[int, int] = {}
        self.tracks: Tracks = {}
        self.ready = False
        self.want_all = True
        self.relearned = 0
        self.rewrite, self.control, self.frozen = 0, 0, False  # as the server's replies say
        self.undone = Undone()  # as of ``control``; the shell sets it before it learns on
        self._open: Opened | None = None
        self._pulled, self._deltas = Pulled(), Deltas(retain_bytes)
        self.arrival = Arrival(build if self.mergeable else None)
        self._targets: dict[int, int] = {}  # by partition: where relearning it ends
        self._served: dict[int, int] = {}  # until then: the clock of what answers
        self._pending_n = 0

    # -- answering ----------------------------------------------------------------------------

    def predict(self, features: Features) -> Prediction:
        """Answer of the local model.  Changes nothing."""
        return self.serving.predict(self.bounds.answered(features))

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Answers of :meth:`predict`, within 1e-12."""
        return self.serving.predict_many([self.bounds.answered(x) for x in rows])

    @property
    def own(self) -> int:
        """Own rows in the local model on top of ``version``."""
        return self._pending_n + (len(self._open.rows) if self._open else 0)

    @property
    def up_to_date(self) -> bool:
        """Whether what answers is the copy that learns."""
        return self.serving is self._training

    def includes(self, partition: int, offset: int) -> bool:
        """Whether the answers given now count the row."""
        if self.undone.has(partition, offset):
            return False
        if self._targets:
            return self._served.get(partition, 0) >= offset
        track = self.tracks.get(partition)
        learned = 0 if track is None else track.next - 1
        return max(learned, self.clock.get(partition, 0)) >= offset

    def known(self) -> dict[int, int]:
        """Last offset of each open partition whose rows are in the answers given now."""
        if self._targets:
            return open_ones(self._served)
        own = {p: track.next - 1 for p, track in self.tracks.items()}
        clock = open_ones(self.clock)
        return clock | {p: max(last, clock.get(p, 0)) for p, last in own.items()}

    def score(self, prediction: Prediction) -> dict[str, float] | None:
        """A prediction as it is kept in rows: by the label's JSON text, or ``{"": number}``."""
        return score_of(self._task, prediction)

    @property
    def pulled(self) -> Blocks:
        """The server's values of ``version``, without own deltas.  Not to be changed."""
        return self._pulled.blocks

    def changes_since(self, version: Version | None) -> Touched | None:
        """Return what was touched in the pulled values after that version; None if unknown."""
        return self._pulled.changes_since(version)

    # -- partitions ---------------------------------------------------------------------------

    def open_partition(self, partition: int) -> None:
        """Learn an own, empty partition from its first row."""
        self.tracks[partition] = Track(next=1, end=None)

    def adopt(self, partition: int, end: int | None) -> None:
        """Learn the rest of a partition, from the clock of the next pull on.

        ``end``: of a sealed one.  None: another process writes it, and learns nothing.
        """
        if partition not in self.tracks:
            self.tracks[partition] = Track(next=0, end=end, held=True)

    def wanted(self) -> list[tuple[int, int]]:
        """``(partition, offset)`` of the next row of each track.

        While rows are learned again, only those: what is answered comes from the old copy, and
        it would lack every other row that is learned meanwhile.
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
        """Last offset, by partition, of what the copy that learns has in it."""
        learned = {p: t.next - 1 for p, t in self.tracks.items() if not t.held}
        return {**self.clock, **learned}

    # -- deltas -------------------------------------------------------------------------------

    @property
    def open_rows(self) -> int:
        """Offsets in the open delta; 0 if a frozen model keeps it here."""
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
        blocks = {**model.cut(), **self.tally.cut(), **self.evidence.cut(), **self.bounds.cut()}
        blocks |= self.vocabulary.cut()
        curved = {name: keys for name, keys in curved.items() if name in blocks}
        size, n = algebra.size_bytes(blocks) + 200, len(opened.rows)
        size += sum(len(key) + 20 for keys in curved.values() for key in keys)
        self._deltas.add(
            Delta(opened.partition, opened.first, opened.last, n, opened.base, blocks, size, curved)
        )
        self._pending_n += n

    def _cut_before(self, row: Row) -> None:
        opened = self._open
        if opened and (opened.partition != row.partition or len(opened.rows) >= self._rows_max):
            self._cut()

    def _opened_at(self, row: Row) -> Opened:
        """The open delta, which begins with the row if there is none."""
        if self._open is None:
            self._open = Opened(row.partition, row.offset, row.offset, self.version)
        return self._open

    def _reset_tally(self, pending: Sequence[Delta]) -> None:
        self.tally.reset(self._pulled.with_deltas(pending, TALLIED))

    def _together(self, lost: Collection[int]) -> Collection[int]:
        """Return the partitions to learn again with these: a whole state holds all rows."""
        if lost and not self.mergeable:
            return self.tracks.keys()
        return [p for p in lost if p in self.tracks]

    def pushes(self, limit: int) -> list[Push]:
        """Cut the open delta; the first ``limit`` deltas that the server may not have, in order.

        A frozen model keeps what holds no learned row.
        """
        if self._open and not self._stays():
            self._cut()
        due = self._deltas.due(self.arrival.clock, self.tracks, frozen=self.frozen)
        return [d.push(self._spec, self.arrival.met) for d in due[:limit]]

    def _stays(self) -> bool:
        return self.frozen and self._open is not None and stays(self._open, self.tracks)

    @property
    def since(self) -> Version | None:
        """Version to ask changes from; None asks for everything."""
        if (coming := self.arrival.values) is not None:
            return coming.since
        return None if self.want_all else self.version

    @property
    def catching_up(self) -> bool:
        """Whether values are missing, or on their way."""
        return self.want_all or self.arrival.values is not None


def _built(build: Callable[[], Model]) -> Model:
    """A model that tells the curvature of its deltas, if it can."""
    model = build()
    if isinstance(model, Compensable):
        model.compensate()
    return model
