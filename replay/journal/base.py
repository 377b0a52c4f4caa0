"""This module says what a journal promises: rows, partitions, control rows, epochs and heads.

The store behind a journal (a SQLite file, a Redis server) is the only place where anything is
agreed.  Every method below is one atomic step of that store.  Leases and clocks say when to act;
none of them carries safety.  ``tests/conformance`` walks every implementation over
:func:`journal_checks.check_journal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import msgspec

from replay.errors import JournalDamaged

if TYPE_CHECKING:
    from replay.journal.erasing import Erasing


class Verdict(StrEnum):
    """A verdict is what was decided about a row before it was written.  It never changes.

    ``LOST`` is no row that anybody has sent: it stands where one was, in a store that has come back
    older than a model that had learned it.
    """

    ACCEPTED = "accepted"
    CLIPPED = "clipped"
    QUARANTINED = "quarantined"
    FROZEN = "frozen"
    LOST = "lost"

    __hash__ = str.__hash__  # an enumeration's own is written in Python, and asked a row


class Half(StrEnum):
    """One side of a stored join: what was predicted, or the label that came for it."""

    PREDICTION = "prediction"
    LABEL = "label"


class Only(msgspec.Struct, frozen=True, gc=False):
    """A row is written only if nothing has come since whoever made it looked.

    Attributes:
        control, kinds: Last control row that was known: there must be no newer one of these kinds.
        absent: The key of another row, which must not stand; empty: of none.
    """

    control: int = 0
    kinds: tuple[str, ...] = ()
    absent: bytes = b""


class NewRow(msgspec.Struct, frozen=True, gc=False):
    """A row that a writer wants in its partition, or (with ``half``) one side of a row.

    Attributes:
        key: 16 bytes, unique within the model: what makes a repeat a repeat.
        event_id, source: As the caller named them (shown to operators; ``key`` is what is
            compared).
        verdict, factor: Decided before writing; ``factor`` in (0, 1] scales a clipped row.
        payload: An encoded :class:`replay.example.Example`, or an encoded half of one.
        at: POSIX seconds at which the replica took the event.
        half: Set: the store keeps the payload under the key until a row takes the key.  If another
            half stands there it keeps nothing and says which (:attr:`Outcome.met`): whoever brings
            the second half decides about the joined row, and then appends it as a row of its own.
        over: The payload of the half that this one, or this row, takes the place of.  Nothing is
            written unless exactly that half stands.  With it a half whose own payload is empty
            removes what stands.
        only: What has to hold besides, of a row whose key nothing has yet; None: nothing.
    """

    key: bytes
    event_id: str
    source: str
    verdict: Verdict
    payload: bytes
    at: float
    factor: float = 1.0
    half: Half | None = None
    over: bytes | None = None
    only: Only | None = None


class Stored(msgspec.Struct, frozen=True, gc=False):
    """A half that stands under a key; ``at``: when it was taken (POSIX seconds)."""

    half: Half
    event_id: str
    source: str
    payload: bytes
    at: float


class Row(msgspec.Struct, frozen=True, gc=False):
    """A committed row.  ``seq`` is the store-wide commit order, ``offset`` counts 1, 2, 3 …"""

    seq: int
    partition: int
    offset: int
    key: bytes
    event_id: str
    source: str
    verdict: Verdict
    factor: float
    payload: bytes
    at: float


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """An outcome says what became of one row of an append.

    ``new`` is True if the row stands in the writer's own partition beyond its last known offset:
    written now, or by an earlier attempt whose answer was lost.  Otherwise ``row`` is the row
    that had the key first.  Where ``row`` is None nothing has the key yet:

    * ``since`` is when the half given was taken, which is kept (POSIX seconds);
    * ``met`` is another half that stands there: nothing was kept or written;
    * ``gone``: ``over`` was given, and no half stands there, or what ``only`` says does not hold:
      nothing was kept or written;
    * none of them: the store has no room for more halves and keeps nothing.

    Or what stands under the key is ``damaged``: nothing was written for this one, and the others
    are as they are.  A half is never ``new``: it gets no offset.
    """

    new: bool
    row: Row | None
    since: float | None = None
    met: Stored | None = None
    gone: bool = False
    damaged: JournalDamaged | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """Outcomes in the order of the batch, the partition's end, and the model's newest epoch."""

    outcomes: tuple[Outcome, ...]
    end: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Followed:
    """Rows of a model in commit order: all that were asked for with ``seq`` up to ``upto``.

    Rows above ``trimmed`` have all been there; below it some were removed by retention.
    """

    rows: tuple[Row, ...]
    upto: int
    trimmed: int = 0


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions that wait for their label, with their keys, the oldest first.

    ``upto`` is when the last half that was looked at was taken, whatever it is; None: there was
    none, so this is the end.
    """

    waiting: tuple[tuple[bytes, Stored], ...]
    upto: float | None


@dataclass(frozen=True, slots=True)
class Partition:
    """One writer: (model, replica, incarnation).

    ``end`` is the offset of its last row (0 if empty).  ``sealed`` partitions take no more rows.
    Rows up to ``trimmed`` were removed by retention.
    """

    id: int
    model: str
    replica: str
    spec: str
    end: int
    sealed: bool
    trimmed: int = 0


@dataclass(frozen=True, slots=True)
class Usage:
    """Room that the journal takes: ``size`` of the whole store in bytes (files or memory), its
    bound (None: the disk's free space is the bound), and rows and halves kept of one model."""

    size: int
    size_max: int | None
    rows: int
    halves: int


@dataclass(frozen=True, slots=True)
class Examined:
    """The result that a look at everything in a store has shown.

    ``damage``: what is not as it was written, in words.  ``good``: entries that match their
    checksum.  ``unchecked``: rows of a format without one, of which nobody can tell.
    """

    damage: tuple[str, ...]
    good: int
    unchecked: int


@dataclass(frozen=True, slots=True)
class Head:
    """Epoch of a lineage's server and the name of its newest published snapshot (None: none)."""

    epoch: int
    snapshot: str | None


@dataclass(frozen=True, slots=True)
class Control:
    """A decision about history: rollback, forget, freeze, failed …; ``seq`` counts from 1."""

    seq: int
    model: str
    kind: str
    key: str
    payload: bytes


class Line(msgspec.Struct, frozen=True):
    """One line of the store's log of decisions; ``number`` counts from 1, over all models.

    The store knows nothing of ``text``: whoever signs the lines gives it.
    """

    number: int
    text: bytes


class Journal(Protocol):
    """A durable, deduplicated journal.  Safe to call from several threads of a process."""

    @property
    def batch_rows_max(self) -> int:
        """Most rows of one append."""

    @property
    def lost(self) -> int:
        """Rows that were answered, as far as the store has a second note of it, and are gone."""
        return 0

    def accept_lost(self) -> None:
        """Go on without them: :attr:`lost` is 0 from now on."""
        return

    def restore_ids(self, model: str) -> int:
        """Let the ids of a model lead to its rows again, where a store lost them; how many did not.

        They are what tells a repeat; a store that has them in its rows can't lose them alone.
        """
        return 0

    def register(self, model: str, replica: str, spec: str, at: float) -> Partition:
        """Open a new, empty partition; its number is given by the store."""

    def register_lost(self, model: str, spec: str, number: int, end: int, seq: int) -> None:
        """Make the partition of this number, sealed at ``end``, of which all rows are gone.

        For a store that has come back older than it was: partitions that are opened later get
        other numbers, and rows that are written later a ``seq`` above this one.  A partition that
        is known stays as it is.
        """

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        """Write ``rows`` (1 … ``batch_rows_max``) durably, in order, in one step.

        ``known`` is the last offset that the writer had an answer for.  A key that exists
        elsewhere, or in this partition at or below ``known``, is a duplicate and gets its row
        back; a key found in this partition beyond ``known`` is the writer's own row.  Offsets
        are given after that check, so they have no holes.  A key twice within ``rows`` is
        written once; the second outcome is a duplicate.  Halves get no offset.  A half that
        stands when a row takes its key is removed in the same step.  The same batch again, after
        a lost answer, gets the same outcomes, unless somebody else has written under the keys of
        its halves meanwhile; a half in one batch with a row of its key is answered with the row.

        Raises:
            BatchSize, RowInvalid, PartitionUnknown: Definite.  The call is wrong.
            PartitionSealed: Definite.  The partition belongs to an adopter now.
            JournalBehind: Definite.  The partition ends below ``known``: the store has lost rows.
            EpochBehind: Definite.  The model's newest epoch is below ``epoch``, the newest that the
                writer has seen: the store has lost rows, also where the partition is new.
            JournalFull: Definite.  Free disk space, a server's memory or the size is at its bound:
                no new rows and halves.
            JournalNotDurable: Definite.  A server's settings were changed: it could lose what it
                acknowledges.
            JournalUnavailable: Indefinite.  Send the same batch again.
        """

    def seal(self, partition: int) -> int:
        """Close the partition for writing and return its end.  Idempotent."""

    def partition(self, partition: int) -> Partition | None:
        """The partition, or None if it is unknown."""

    def partitions(self, model: str) -> tuple[Partition, ...]:
        """All partitions of the model, by id."""

    def read(self, partition: int, first: int, n: int) -> tuple[Row, ...]:
        """Rows ``first … first + n - 1`` as far as they exist, in a short transaction.

        Nothing if ``first`` was trimmed: what comes back starts at ``first`` and has no holes.
        """

    def follow(self, model: str, after: int, n: int) -> Followed:
        """The model's rows with ``seq > after``, of all partitions, in commit order; at most ``n``.

        ``upto`` is the last row's ``seq`` if there are ``n``, and otherwise the newest of the
        store, which may be another model's.  No row with a ``seq`` up to it is committed later.
        Trimmed rows are left out: the newest one's ``seq`` is ``trimmed``.
        """

    def find(self, model: str, key: bytes) -> Row | None:
        """The row that has the key, or None."""

    def head(self, model: str, spec: str) -> Head:
        """Epoch and newest snapshot of the lineage (epoch 0 and None before its first server)."""

    def lineages(self, model: str) -> tuple[str, ...]:
        """Spec hashes that have ever had a server, newest epoch change last."""

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        """Compare-and-set the epoch from ``expected`` to ``expected + 1``; return the new one.

        Raises EpochLost (definite) if another server was faster.
        """

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        """Point the head at a published snapshot; EpochLost unless ``epoch`` is the newest."""

    def write_control(
        self,
        model: str,
        kind: str,
        key: str,
        payload: bytes,
        fence: tuple[str, int] | None = None,
        line: Line | None = None,
    ) -> tuple[Control, bool]:
        """Append a control row; the first with a (model, key) wins.

        Returns the row that stands and whether it is the one given.  ``fence`` is a spec and an
        epoch: EpochLost (definite, nothing written) unless it is the lineage's newest epoch.
        ``line`` is written in the same step as a row that is new, and not with another one;
        LineTaken (definite, nothing written) unless its number is the log's next.
        """

    def controls(self, model: str, after: int) -> tuple[Control, ...]:
        """Control rows with ``seq > after``, in order."""

    def write_line(self, line: Line) -> None:
        """Append a line to the log; LineTaken (definite) unless its number is the next."""

    def newest_line(self) -> Line | None:
        """The last line of the log; None if there was never one."""

    def lines(self, after: int, n: int) -> tuple[Line, ...]:
        """The lines with a number above ``after``, in order; at most ``n``."""

    def trim_lines(self, anchor: Line) -> None:
        """Remove the lines up to the anchor's number; the anchor stands in their place.

        LineTaken (definite) if the log does not reach so far, or has an anchor there already.
        """

    def claim(self, partition: int, offset: int) -> int:
        """Count one more learner that is about to learn the row; how many there were before it.

        0 for the first one.  Offset 0 stands for the adoption of the partition.  A learner that
        dies leaves its claim.  PartitionUnknown (definite) for a number that was never given;
        after JournalUnavailable the claim may count.
        """

    def claims(self, partition: int, offset: int) -> int:
        """How many claims of the row there are; 0 for one that nobody has claimed."""

    def run(self, model: str, spec: str, epoch: int, ms: int) -> int:
        """Add ``ms`` milliseconds to the time for which the model's servers have run; the sum.

        Each row and half is written with the sum of its time, by which its age is known whatever
        clocks say.  EpochLost (definite) unless ``epoch`` is the lineage's newest; a lineage that
        is not the model's newest adds nothing.  After JournalUnavailable it may count.
        """

    def trim(
        self,
        model: str,
        spec: str,
        epoch: int,
        upto: Mapping[int, int],
        before: float,
        n: int,
        *,
        ahead: float = math.inf,
        ran: float = math.inf,
    ) -> int:
        """Remove at most ``n`` rows with their ids, the oldest of each partition; how many.

        Removed are rows of partition ``p`` up to offset ``upto[p]`` that both clocks call old,
        without leaving holes: the first one that must stay ends it.  The wall clock does if they
        were taken before ``before`` (POSIX seconds), or after ``ahead``: then it was wrong, and
        says nothing.  The running time does if they were written before it was ``ran`` (ms).
        EpochLost (definite) unless ``epoch`` is the lineage's newest.  A lineage that is not the
        model's newest removes nothing.
        """

    def expire(
        self, model: str, before: float, n: int, *, ahead: float = math.inf, ran: float = math.inf
    ) -> int:
        """Remove at most ``n`` halves that both clocks call old, as for :meth:`trim`; how many."""

    def predicted(self, model: str, after: float, before: float, n: int) -> Predicted:
        """Look at no more than ``n`` halves, the oldest first: which of them are predictions.

        They were taken after ``after`` and before ``before`` (POSIX seconds).  What is damaged is
        left out, and counts in ``n`` all the same, as do labels that wait.
        """

    def usage(self, model: str) -> Usage:
        """Room taken, without a walk over the rows."""

    def stand_in(self, partition: int, offset: int, row: NewRow) -> bool:
        """Put ``row`` where a damaged one stands, in one step, at its place in every order.

        What led to the damaged one by its id leads there no more.  False: what stands there is
        good, and nothing is changed.  Raises JournalDamaged: nothing stands there.
        """

    def erasing(self) -> Erasing:
        """The steps by which payloads are removed for good."""

    def examine(self, progress: Callable[[int, int], None]) -> Examined:
        """Verify all that is stored, of all models; changes nothing.

        ``progress`` is called with how many rows were looked at, and of how many.
        """

    def checkpoint(self) -> int:
        """Move committed pages out of the write-ahead log in a small step; its bytes left."""
        return 0  # a server rewrites its log itself

    def close(self) -> None:
        """Release the store behind the journal."""
