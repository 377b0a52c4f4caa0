"""The interface and the common parts of all learners; a learner holds one model in one process.

There are three kinds.  They differ in whose rows they learn and in what they send to the parameter
server:

* :mod:`online.learning.merged` learns rows of its own partitions, and sends deltas;
* :mod:`online.learning.ordered` learns all rows of the model in the journal's commit order, and
  sends its whole state if the server asks this replica for it;
* :mod:`online.learning.overlay` takes what another process has learned in order, learns its own
  rows on top, and sends nothing.

The loops in :mod:`online.replica` ask a learner which rows it wants, what is to be sent and what a
reply changed, but never which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from evaluation.metrics import Task
from online.errors import not_answered
from online.learning.bounds import Bounds, free_names
from online.learning.cached_rows import CachedRows
from online.learning.counters import TALLIED, Tally
from online.learning.deltas import Track, Tracks
from online.learning.scores import increments_of, score_of
from online.learning.source_evidence import Evidence
from online.learning.values_in_parts import ServerView
from online.learning.vocabulary import Vocabulary, words_of
from online.models.base import Before, Model, Prediction, learn_example
from online.models.errors import NotAnswered
from paramserver.core.blocks import Blocks, Touched
from paramserver.core.rewrites import Undone
from paramserver.core.wire import OrderedState, Push, SyncReply, Version
from replay import codec
from replay.example import Example, Features, is_unlabelled, label_text
from replay.journal.base import Row, Verdict
from replay.memory import Lesson, Memory

LEARNED: Final = (Verdict.ACCEPTED, Verdict.CLIPPED)
"""Verdicts of rows that teach the model something."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A row that the model could not learn; the model is as it was before the row."""

    row: Row
    reason: str


def why_not_taught(row: Row) -> str | None:
    """Why no model can learn the row; None if it can be learned."""
    return "its content was erased" if codec.is_erased(row.payload) else None


def _answer(model: Model, features: Features, field: str) -> Prediction:
    """Return the model's answer, none if it has learned nothing.  RequestError 422: it raises."""
    try:
        return model.predict(features)
    except NotAnswered as error:
        if not error.taught:
            return Prediction(None, None)
        raise not_answered(str(error), field) from None


def _answers(model: Model, rows: Sequence[Features]) -> list[Prediction]:
    try:
        return model.predict_many(rows)
    except NotAnswered:  # for one of them
        return [_answer(model, x, f"instances[{i}]") for i, x in enumerate(rows)]


class BaseLearner(ABC):
    """The state that all learners share: the answering model, and what is known of the server.

    Parameters:
        build: Makes an untrained model; a second copy is built when rows are learned again.
        task: ``binary``, ``multiclass`` or ``regression``.
        spec: Hash of the model's spec; the server refuses a push with another one.
        rows_max: Largest number of rows in memory before their changes are cut into a delta or
            written into the state.

    Attributes:
        serving: The copy that answers; while rows are learned again, not the copy that learns.
        mergeable: Whether the server merges what replicas learn separately.
        walks: Whether the model can learn rows with the same feature names in one pass
            (:meth:`learn_alike`).
        version, clock, durable: The pulled values' version; the last offset of each partition in
            them; and the same for the last published snapshot.
        first: Shard 0's version if the server is sharded; otherwise None.
        tracks: The partitions that are learned here.
        ready, want_all: Whether initial values are here, and whether all values are requested.
        rewrite, control, frozen, undone: Operators' decisions as reported by the server's replies;
            the caller sets ``undone`` before further rows are learned.
        untaught: Returns for a partition, an offset and a key whether that row has taught nothing
            although ``undone`` does not contain it: it failed, or is left out.
        memory: Past rows that are rehearsed with fresh ones; None: no rehearsal.
        corrected: Converts the model's prediction into the one that is answered.
        latest: The last row that was learned; None if the current row was not.
        waits: Partitions with rows that the server lacks and needs before the deltas to be sent.
    """

    role: ClassVar[str] = ""
    """Role under which the server may name one replica; empty: it names none."""
    decides: ClassVar[bool] = True
    """Whether a row that fails here counts as failed for all replicas."""
    in_order: ClassVar[bool] = False
    """Whether it is fed all rows of the model in commit order, not only those it asks for."""
    recovers: ClassVar[bool] = False
    """Whether the server can roll back some rows, to be learned again at half the rate."""

    def __init__(self, build: Callable[[], Model], *, task: Task, spec: str, rows_max: int) -> None:
        self._build, self._task, self._spec, self._rows_max = build, task, spec, rows_max
        self.serving = build()
        self._training = self.serving
        self.mergeable = self.walks = False
        self.memory: Memory | None = None
        self.tally, self.evidence = Tally(), Evidence()
        self.bounds = Bounds(free_names(self.serving), targets=task == "regression")
        self.vocabulary = Vocabulary(words_of(self.serving))
        self.corrected: Callable[[Prediction], Prediction] = lambda answer: answer
        self.latest: Example | None = None
        self.version: Version = (0, 0)
        self.first: Version | None = None
        self.clock: dict[int, int] = {}
        self.durable: dict[int, int] = {}
        self.tracks: Tracks = {}
        self.ready, self.want_all = False, True
        self.relearned = 0
        self.rewrite, self.control, self.frozen = 0, 0, False
        self.undone = Undone()
        self.untaught: Callable[[int, int, bytes], bool] = lambda *row: False
        self.server = ServerView(None)
        self.waits: set[int] = set()
        self.cache: CachedRows | None = None  # which rows of a table are held; None: all

    def decide(self, control: int, frozen: bool) -> None:
        """Take the decisions up to a control row, unless newer ones are known."""
        if control >= self.control:  # a freeze makes no version, so replies may be out of order
            self.control, self.frozen = control, frozen

    # -- answering ----------------------------------------------------------------------------

    def predict(self, features: Features) -> Prediction:
        """Predict with the local model.  Changes nothing.  RequestError: the model raises."""
        return self.corrected(_answer(self.serving, self.bounds.answered(features), "features"))

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Predict for several rows; equal to :meth:`predict` within 1e-12."""
        given = list(map(self.bounds.answered, rows))
        return list(map(self.corrected, _answers(self.serving, given)))

    def score(self, prediction: Prediction) -> dict[str, float] | None:
        """A prediction in the form kept in rows: by the label's JSON text, or ``{"": number}``."""
        return score_of(self._task, prediction)

    @property
    def up_to_date(self) -> bool:
        """Whether the copy that answers is the copy that learns."""
        return self.serving is self._training

    @property
    @abstractmethod
    def own(self) -> int:
        """Rows in the local model on top of ``version``."""

    @property
    def stamp(self) -> str:
        """``epoch.count+own``: the local model with its own rows on top."""
        return f"{self.answer_version[0]}.{self.answer_version[1]}+{self.own}"

    @property
    def answer_version(self) -> Version:
        """The version that answers report, and whose epoch the journal knows: shard 0's."""
        return self.version if self.first is None else self.first

    @abstractmethod
    def includes(self, partition: int, offset: int) -> bool:
        """Whether predictions made now include the row."""

    @abstractmethod
    def known(self) -> dict[int, int]:
        """Last offset of each open partition that predictions made now include."""

    # -- partitions ---------------------------------------------------------------------------

    def open_partition(self, partition: int) -> None:
        """Learn a new, empty partition of this process from its first row."""
        self.tracks[partition] = Track(next=1, end=None)

    @abstractmethod
    def adopt(self, partition: int, end: int | None) -> None:
        """Learn the rest of a partition that was sealed at ``end``, or (None) is still open."""

    @abstractmethod
    def abandon(self, partition: int) -> None:
        """Drop the state of a partition that another process has sealed."""

    @abstractmethod
    def follow(self, partition: int, own: int) -> bool:
        """Learn the rows that another process writes into a partition; return whether it is new.

        Only one such partition is followed at a time; ``own``: the partition of this process.
        """

    @abstractmethod
    def lags(self, own: int, last: int) -> bool:
        """Whether rows up to ``last`` of the partition ``own``, or adopted rows, are unfinished.

        They still have to be learned or, if every replica learns all rows, the server lacks them.
        """

    @abstractmethod
    def leaves(self, own: int, last: int) -> bool:
        """Whether rows up to ``last`` would be left to other processes if this one ended now."""

    # -- learning -----------------------------------------------------------------------------

    def wanted(self) -> list[tuple[int, int]]:
        """``(partition, offset)`` of the next row of each partition from which rows are wanted."""
        return []

    @abstractmethod
    def wants(self, row: Row) -> bool:
        """Whether the row is a next one, to be learned or skipped."""

    @abstractmethod
    def learn(
        self, row: Row, give_up: str | None = None, example: Example | None = None
    ) -> Failed | None:
        """Learn one of the next rows.

        If the model raises, its state is restored, the row is reported as failed, and the pointer
        moves on.  With ``give_up``, a reason, the row fails without calling the model.  Undone rows
        are skipped.  ``example`` is the row's decoded payload, if the caller has it; None: it is
        decoded here.
        """

    def learn_alike(self, rows: Sequence[Row], examples: Sequence[Example]) -> int:
        """Learn rows in one pass; return how many.  0: learn the first one by itself.

        Callers may skip the call if ``walks`` is False.
        """
        return 0

    def _learn(self, row: Row, example: Example, lesson: Lesson = ()) -> None:
        """Teach one row to the copy that learns, and count it; provisional labels do not count."""
        if not example.taught:
            before = self._before(example)
            learn_example(self._training, example, row.factor, lesson, self._spec, before)
            self.bounds.add(example, row.source)
            self.vocabulary.add(example, row.source)
        self._tally(row, example)

    def _tally(self, row: Row, example: Example) -> None:
        """Count one learned row."""
        counts = example.scored and self.tally.weigh(example)
        nothing = self._task == "regression" or is_unlabelled(self._task, example.label)
        label = None if nothing else label_text(example.label)
        increments = self._counted(row, example) if counts else {}
        self.tally.add(row.key, increments, label if counts else None, row.at)
        if not (counts or label is None or example.moved is not None):
            self.tally.meet(label)
        self.tally.note(example, row.at, row.source, counts=counts)

    def _before(self, example: Example) -> Before | None:
        """The earlier lesson that the example replaces; None: nothing of it is in the model."""
        first = example.corrects
        if first is None or first.offset == 0:
            return None
        if self.undone.has(first.partition, first.offset):
            return None
        if self.untaught(first.partition, first.offset, first.key):
            return None
        return first.label, first.weight

    def _counted(self, row: Row, example: Example) -> dict[str, float]:
        """Return the row's increments of the prequential counters."""
        return increments_of(self._task, example, self.tally)

    def _note_evidence(self, row: Row) -> None:
        """Record the row's evidence about its source, even if the row was not learned here."""
        asleep = row.verdict in (Verdict.FROZEN, Verdict.LOST)
        if asleep or self.undone.has(row.partition, row.offset):
            return
        example = self.latest or codec.decode(row.payload)
        self.evidence.add(row, example.judged)

    def _reset_to(self, model: Model | None, values: Blocks) -> None:
        """Reset the model (None: it is already), and all counters beside it, to these values."""
        if model is not None:
            model.reset(values)
        self.tally.reset(values)
        self.bounds.reset(values)
        self.vocabulary.reset(values)

    # -- state sent to the server -------------------------------------------------------------

    @property
    def open_rows(self) -> int:
        """Number of learned rows that are in no delta yet."""
        return 0

    @property
    @abstractmethod
    def due(self) -> bool:
        """Whether this process has to send what it has learned."""

    @abstractmethod
    def outgoing(self, limit: int) -> tuple[list[Push], OrderedState | None]:
        """Return what the server may lack: at most ``limit`` deltas, or a whole state."""

    # -- replies of the server ----------------------------------------------------------------

    @property
    def since(self) -> Version | None:
        """The version whose changes are requested; None: all values are."""
        if (coming := self.server.values) is not None:
            return coming.since
        return None if self.want_all else self.version

    @property
    def catching_up(self) -> bool:
        """Whether values are missing, or arriving in parts."""
        return self.want_all or self.server.values is not None

    def wants_values(self, *, learns: bool, rested: bool) -> bool:
        """Whether a reply should carry values although none are missing.

        ``learns``: this process learns itself.  ``rested``: enough time has passed since the last
        load to keep its share of the time within bounds.
        """
        return False

    @abstractmethod
    def take_part(self, reply: SyncReply) -> Iterator[None]:
        """Load a part of the values, one piece per step, while the present copy goes on."""

    @abstractmethod
    def on_reply(self, reply: SyncReply) -> bool:
        """Take a reply of the server; return whether anything changed.

        Replies of an older epoch (of a server that was replaced) or an older version are ignored.
        """

    def prepared(self) -> Iterator[None]:
        """Switch to values that have arrived but are not in use yet, one step at a time."""
        yield from ()

    def drop_old(self) -> Iterator[None]:
        """Free copies that no longer answer, one piece per step."""
        yield from self.server.drop()

    def is_newest(self, reply: SyncReply) -> bool:
        """Whether the local values are the server's current ones, according to its reply."""
        return True

    # -- state that other processes ask for ----------------------------------------------------

    @property
    def needs_process(self) -> bool:
        """Whether this replica should host the learning process, if learning is in background."""
        return True

    @property
    def pulled(self) -> Blocks | None:
        """The server's values of ``version``, not to be changed; None: not available."""
        return None

    def changes_since(self, version: Version | None) -> Touched | None:
        """Return what has changed in the pulled values after that version; None if unknown."""
        return None


def cut_together(learner: BaseLearner) -> Blocks:
    """Return the open deltas of the model and of all counters beside it, and reset them.

    Raises ValueError if the model has a block of a name that the counters use.
    """
    out = learner._training.cut()
    if taken := out.keys() & TALLIED:
        raise ValueError(f"a model's block is named {min(taken)!r}, which counters use")
    for part in (learner.tally, learner.evidence, learner.bounds, learner.vocabulary):
        out |= part.cut()
    return out
