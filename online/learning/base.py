"""A learner has one model in one process: this is what every kind of learner has and answers.

There are three kinds.  They differ in whose rows they learn and in what they send to the parameter
server:

* :mod:`online.learning.merged` learns rows of own partitions, and sends what they have changed;
* :mod:`online.learning.ordered` learns all rows of the model in the journal's commit order, and
  sends its whole state if the server asks this replica for it;
* :mod:`online.learning.overlay` takes what another process has learned in order, learns own rows
  on top, and sends nothing.

The shell in :mod:`online.replica` asks a learner what is wanted, what is due and what a reply has
brought, never of which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from evaluation.metrics import Task
from online.learning.bounds import Bounds, free_names
from online.learning.counters import Tally
from online.learning.deltas import Track, Tracks
from online.learning.scores import increments_of, score_of
from online.learning.source_evidence import Evidence
from online.learning.values_in_parts import Arrival
from online.learning.vocabulary import Vocabulary, words_of
from online.models.base import Before, Model, Prediction, learn_example
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
    """A row that the model could not learn; the model is as it was before it."""

    row: Row
    reason: str


def why_not_taught(row: Row) -> str | None:
    """Why the row teaches nothing, whatever the model; None: it does."""
    return "its content was erased" if codec.is_erased(row.payload) else None


def _lacks_nothing(partition: int, offset: int, key: bytes) -> bool:
    return False


def _as_it_is(answer: Prediction) -> Prediction:
    return answer


class BaseLearner(ABC):
    """Everything that learners have in common: the model that answers, and what is known of it.

    Parameters:
        build: Makes an untrained model; a second copy is built when rows are learned again.
        task: ``binary``, ``multiclass`` or ``regression``.
        spec: Hash of the model's spec; a push with another one is refused.
        rows_max: Rows that are held in memory at most until what they have changed is written down.

    Attributes:
        serving: The copy that answers; while rows are learned again it is not the one that learns.
        mergeable: Whether what replicas learn apart is merged by the server.
        version, clock, durable: The server's values that are here, and how much of each partition
            is in them, and in a published snapshot.
        first: Of several shards, that of shard 0; None: there is one server.
        tracks: Partitions that are learned here.
        ready, want_all: Whether there are values to begin with, and whether the server is asked for
            all of them.
        rewrite, control, frozen, undone: Decisions of operators, as far as the server's replies
            tell of them; the shell sets ``undone`` before rows are learned on.
        untaught: Says of a partition, an offset and a key whether that row has taught nothing that
            stands, though ``undone`` does not have it: it failed, or is left out.
        memory: Past rows that are learned again with fresh ones; None: there are none.
        corrected: Makes the model's answer the one that is given.
        latest: The row at hand, if it was learned.
        waits: Partitions of which the server lacks rows that have to come before what is to be
            sent.
    """

    role: ClassVar[str] = ""
    """The server names one replica of each role; empty: it has none to name."""
    decides: ClassVar[bool] = True
    """Whether a row that fails here has failed for everybody."""
    in_order: ClassVar[bool] = False
    """Whether it is fed all rows of the model as they were committed, not those it asks for."""
    recovers: ClassVar[bool] = False
    """Whether the server can take it back by some rows, to be learned again at half the rate."""

    def __init__(self, build: Callable[[], Model], *, task: Task, spec: str, rows_max: int) -> None:
        self._build, self._task, self._spec, self._rows_max = build, task, spec, rows_max
        self.serving = build()
        self._training = self.serving
        self.mergeable = self.walks = False
        self.memory: Memory | None = None
        self.tally, self.evidence = Tally(), Evidence()
        self.bounds = Bounds(free_names(self.serving), targets=task == "regression")
        self.vocabulary = Vocabulary(words_of(self.serving))
        self.corrected: Callable[[Prediction], Prediction] = _as_it_is
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
        self.untaught: Callable[[int, int, bytes], bool] = _lacks_nothing
        self.arrival = Arrival(None)
        self.waits: set[int] = set()

    def decide(self, control: int, frozen: bool) -> None:
        """Take what is decided up to a control row, unless something newer is known."""
        if control >= self.control:  # a freeze makes no new version: replies may be late
            self.control, self.frozen = control, frozen

    # -- answering ----------------------------------------------------------------------------

    def predict(self, features: Features) -> Prediction:
        """Answer of the local model.  Changes nothing."""
        return self.corrected(self.serving.predict(self.bounds.answered(features)))

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        """Answers of :meth:`predict`, within 1e-12."""
        answered = self.bounds.answered
        return list(map(self.corrected, self.serving.predict_many([answered(x) for x in rows])))

    def score(self, prediction: Prediction) -> dict[str, float] | None:
        """A prediction as it is kept in rows: by the label's JSON text, or ``{"": number}``."""
        return score_of(self._task, prediction)

    @property
    def up_to_date(self) -> bool:
        """Whether what answers is the copy that learns."""
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
        """The version that answers tell, and whose epoch the journal knows: shard 0's."""
        return self.version if self.first is None else self.first

    @abstractmethod
    def includes(self, partition: int, offset: int) -> bool:
        """Whether the answers given now count the row."""

    @abstractmethod
    def known(self) -> dict[int, int]:
        """Last offset of each open partition whose rows are in the answers given now."""

    # -- partitions ---------------------------------------------------------------------------

    def open_partition(self, partition: int) -> None:
        """Learn an own, empty partition from its first row."""
        self.tracks[partition] = Track(next=1, end=None)

    @abstractmethod
    def adopt(self, partition: int, end: int | None) -> None:
        """Learn the rest of a partition that was sealed at ``end``, or (None) that goes on."""

    @abstractmethod
    def abandon(self, partition: int) -> None:
        """Drop what is held of a partition that was sealed by somebody else."""

    @abstractmethod
    def follow(self, partition: int, own: int) -> bool:
        """Learn what another process writes there; whether that is new.

        It is the only one that is followed; ``own``: the partition of this process.
        """

    @abstractmethod
    def lags(self, own: int, last: int) -> bool:
        """Whether rows up to ``last`` of the partition ``own``, or adopted ones, are still work.

        That is, they are to be learned or, where every replica learns all, the server lacks them.
        """

    @abstractmethod
    def leaves(self, own: int, last: int) -> bool:
        """Whether somebody else would have to learn rows up to there if the process ended now."""

    # -- learning -----------------------------------------------------------------------------

    def wanted(self) -> list[tuple[int, int]]:
        """``(partition, offset)`` of the next row of each partition that is asked for rows."""
        return []

    @abstractmethod
    def wants(self, row: Row) -> bool:
        """Whether the row can be learned, or passed over, as a next one."""

    @abstractmethod
    def learn(
        self, row: Row, give_up: str | None = None, example: Example | None = None
    ) -> Failed | None:
        """Learn a row that is one of the next.

        A row that the model raises on leaves it as it was before, and is reported; the pointer
        goes on.  With ``give_up``, the reason why, the model is not asked; undone is passed over.
        ``example`` is what the row's payload says, where somebody has it; None: it is read here.
        """

    def learn_alike(self, rows: Sequence[Row], examples: Sequence[Example]) -> int:
        """Learn rows in one pass; how many.  0: the first is to be learned by itself.

        Where ``walks`` is False nobody need ask.
        """
        return 0

    def _learn(self, row: Row, example: Example, lesson: Lesson = ()) -> None:
        """Teach the copy that learns one row, and count it; what is provisional counts nowhere."""
        if not example.taught:
            before = self._before(example)
            learn_example(self._training, example, row.factor, lesson, self._spec, before)
            self.bounds.add(example, row.source)
            self.vocabulary.add(example, row.source)
        if example.scored:
            self._count(row, example)
        else:
            self.tally.add(row.key, {}, None, row.at)
            if example.moved is None and self._task != "regression":
                self.tally.meet(label_text(example.label))
        self.tally.note(example, row.at, row.source)

    def _before(self, example: Example) -> Before | None:
        """The lesson that the example is learned instead of; None: nothing of it stands."""
        first = example.corrects
        if first is None or first.offset == 0:
            return None
        if self.undone.has(first.partition, first.offset):
            return None
        if self.untaught(first.partition, first.offset, first.key):
            return None
        return first.label, first.weight

    def _count(self, row: Row, example: Example) -> None:
        nothing = self._task == "regression" or is_unlabelled(self._task, example.label)
        label = None if nothing else label_text(example.label)
        self.tally.add(row.key, self._counted(row, example), label, row.at)

    def _counted(self, row: Row, example: Example) -> dict[str, float]:
        """Return what the row adds to the counters."""
        return increments_of(self._task, example, self.tally)

    def _note_evidence(self, row: Row) -> None:
        """Note what the row says of its source, whatever became of the row here."""
        asleep = row.verdict in (Verdict.FROZEN, Verdict.LOST)
        if asleep or self.undone.has(row.partition, row.offset):
            return
        example = self.latest or codec.decode(row.payload)
        self.evidence.add(row, example.judged)

    def _become(self, model: Model | None, values: Blocks) -> None:
        """Have the model, if it is not so already, and all counted beside it, be these values."""
        if model is not None:
            model.reset(values)
        self.tally.reset(values)
        self.bounds.reset(values)
        self.vocabulary.reset(values)

    # -- what the server is sent --------------------------------------------------------------

    @property
    def open_rows(self) -> int:
        """Rows that were learned and are in no delta yet."""
        return 0

    @property
    @abstractmethod
    def due(self) -> bool:
        """Whether this process is to send what it has learned."""

    @abstractmethod
    def outgoing(self, limit: int) -> tuple[list[Push], OrderedState | None]:
        """Return what the server may not have: at most ``limit`` deltas, or a whole state."""

    # -- what comes from the server -----------------------------------------------------------

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

    def wants_values(self, *, learns: bool, rested: bool) -> bool:
        """Whether a reply should have values, though none are missing.

        ``learns``: this process learns itself.  ``rested``: loading those that came last has cost
        no more than its share of the time.
        """
        return False

    @abstractmethod
    def take_part(self, reply: SyncReply) -> Iterator[None]:
        """Take a part of the values, a piece a step; the copy at hand goes on meanwhile."""

    @abstractmethod
    def on_reply(self, reply: SyncReply) -> bool:
        """Take what the server says; returns whether anything changed.

        Replies of an older epoch (a server that lost its place) or version are ignored.
        """

    def prepared(self) -> Iterator[None]:
        """Go over to values that came with a reply and are not in use yet, a step at a time."""
        yield from ()

    def drop_old(self) -> Iterator[None]:
        """Let go of copies that answer no more, a piece a step."""
        yield from self.arrival.drop()

    def is_newest(self, reply: SyncReply) -> bool:
        """Whether a reply that was taken says that what is here is what the server has."""
        return True

    # -- what others are told -----------------------------------------------------------------

    @property
    def needs_process(self) -> bool:
        """Whether this replica is to have the process that learns, where another one does."""
        return True

    @property
    def pulled(self) -> Blocks | None:
        """The server's values of ``version``, not to be changed; None: there are none to tell."""
        return None

    def changes_since(self, version: Version | None) -> Touched | None:
        """Return what was touched in the pulled values after that version; None if unknown."""
        return None
