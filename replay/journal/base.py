"""The interface of a journal: rows, partitions, control rows, epochs and heads.

All agreement between processes is reached in the store behind a journal (a SQLite file or a Redis
server).  Every method below is one atomic step of that store.  Leases and clocks only decide when a
process acts; correctness never depends on them.  ``tests/conformance`` runs
:func:`journal_checks.check_journal` against every implementation.
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
    """The decision about a row, made before it is written.  It never changes.

    ``LOST`` marks a placeholder for a row that a model has learned and that the store has lost,
    because it was restored from an older copy.
    """

    ACCEPTED = "accepted"
    CLIPPED = "clipped"
    QUARANTINED = "quarantined"
    FROZEN = "frozen"
    LOST = "lost"

    __hash__ = str.__hash__  # Enum's own is written in Python, and is called for every row


class Half(StrEnum):
    """One half of a row in a stored join: the prediction, or the label for it."""

    PREDICTION = "prediction"
    LABEL = "label"


class Only(msgspec.Struct, frozen=True, gc=False):
    """A precondition of a row: it is written only if nothing relevant was written meanwhile.

    Attributes:
        control, kinds: There must be no control row of these kinds with a number above ``control``,
            the last one that the writer knew.
        absent: There must be no row with this key; empty: no such condition.
    """

    control: int = 0
    kinds: tuple[str, ...] = ()
    absent: bytes = b""


class NewRow(msgspec.Struct, frozen=True, gc=False):
    """A row to append to a partition, or (with ``half``) one half of a row to store.

    Attributes:
        key: 16 bytes, unique within the model, by which repeated events are recognised.
        event_id, source: As the caller named them.  They are shown to operators; only ``key`` is
            compared.
        verdict, factor: Decided before writing; ``factor`` in (0, 1] scales a clipped row.
        payload: An encoded :class:`replay.example.Example`, or an encoded half of one.
        at: Time at which the replica received the event (POSIX seconds).
        half: If set, the payload is stored under the key until a row with that key is written.  If
            the store already has another half under the key, it stores nothing and returns that
            half (:attr:`Outcome.met`): the sender of the second half then decides on the joined row
            and appends it as an ordinary row.
        over: Payload of the stored half that this row or half replaces.  Nothing is written unless
            exactly that half is stored.  A half with ``over`` and an empty payload removes the
            stored half.
        only: Further precondition for a new key, or None.
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
    """A half that is stored under a key; ``at``: time of receipt (POSIX seconds)."""

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
    """The result of appending one row.

    ``new`` is True if the row is in the writer's own partition beyond its last known offset:
    written now, or by an earlier attempt whose reply was lost.  Otherwise ``row`` is the earlier
    row with the same key.  If ``row`` is None there is no row with the key:

    * ``since``: the given half is stored; the time at which it was received (POSIX seconds);
    * ``met``: another half is stored under the key; nothing was written;
    * ``gone``: ``over`` was given and no half is stored, or ``only`` does not hold; nothing was
      written;
    * none of these: the limit on stored halves is reached; nothing was written.

    If ``damaged`` is set, the entry under the key is damaged and nothing was written for this row;
    the other rows of the batch are not affected.  A half is never ``new``, because it gets no
    offset.
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
    """Rows of a model in commit order, up to ``seq = upto``.

    Up to ``seq = trimmed`` rows may be missing because retention has removed them; above it none
    is missing.
    """

    rows: tuple[Row, ...]
    upto: int
    trimmed: int = 0


@dataclass(frozen=True, slots=True)
class Predicted:
    """Stored predictions that wait for their label, with their keys, oldest first.

    ``upto`` is the time of receipt of the last half examined, of either kind; None: there was none,
    so the end is reached.  ``ran_ms`` is the running time since each was written (0 if unknown).
    """

    waiting: tuple[tuple[bytes, Stored], ...]
    upto: float | None
    ran_ms: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Partition:
    """The rows of one writer (model, replica, incarnation).

    ``end`` is the offset of the last row (0 if empty).  ``sealed`` partitions accept no more rows.
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
    """Space used by the journal.

    Attributes:
        size: Size of the whole store in bytes (files or memory).
        size_max: Its bound; None: only the free disk space limits it.
        rows, halves: Numbers of rows and halves stored for one model.
    """

    size: int
    size_max: int | None
    rows: int
    halves: int


@dataclass(frozen=True, slots=True)
class Examined:
    """The result of verifying everything in a store.

    Attributes:
        damage: Descriptions of the damage.
        good: Number of entries that match their checksum.
        unchecked: Number of rows of an older format without a checksum.
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
    """A control row: a decision such as rollback, forget or freeze; ``seq`` counts from 1."""

    seq: int
    model: str
    kind: str
    key: str
    payload: bytes


class Line(msgspec.Struct, frozen=True):
    """One line of the store's log of decisions; ``number`` counts from 1, over all models.

    The store does not interpret ``text``, which the signer of the lines provides.
    """

    number: int
    text: bytes


class Journal(Protocol):
    """A durable, deduplicated journal.  Safe to call from several threads of a process."""

    near_keys: bool = False
    """Whether similar event ids have neighbouring keys; never changes, or repeats would be new."""

    @property
    def batch_rows_max(self) -> int:
        """Greatest number of rows in one append."""

    @property
    def lost(self) -> int:
        """Number of acknowledged rows known to be lost, if the store keeps a second record."""
        return 0

    def accept_lost(self) -> None:
        """Continue without the lost rows: :attr:`lost` is 0 from now on."""
        return

    def restore_ids(self, model: str) -> int:
        """Restore lost entries in the model's index of event ids; return how many were missing.

        Repeated events are recognised by this index.  A store that keeps the ids in its rows cannot
        lose it separately, and need not implement this.
        """
        return 0

    def register(self, model: str, replica: str, spec: str, at: float) -> Partition:
        """Create a new, empty partition; the store assigns its number."""

    def register_lost(self, model: str, spec: str, number: int, end: int, seq: int) -> None:
        """Create the partition of this number, sealed at ``end``, whose rows are all lost.

        It is for a store that was restored from an older copy: later partitions get other numbers,
        and later rows a ``seq`` above the given one.  An existing partition is not changed.
        """

    def append(
        self, partition: int, known: int, rows: Sequence[NewRow], epoch: int = 0
    ) -> Appended:
        """Write ``rows`` (1 … ``batch_rows_max``) durably, in order, in one step.

        A key that exists in another partition, or in this one at or below ``known``, is a
        duplicate, and the outcome holds the existing row.  A key that exists in this partition
        beyond ``known`` is a row that the writer itself wrote, but got no reply for.  Offsets are
        assigned after that check, so they have no gaps.  A key that occurs twice in ``rows`` is
        written once; the second outcome is a duplicate.  Halves get no offset.  Writing a row
        removes the half that is stored under its key in the same step.

        Repeating the batch after a lost reply gives the same outcomes, unless another writer has
        written under the keys of its halves meanwhile.  A half whose key also has a row in the
        batch gets that row as its outcome.

        Parameters:
            partition: The writer's partition.
            known: Last offset that the writer got a reply for.
            rows: Rows and halves.
            epoch: Newest epoch of the model that the writer has seen.

        Raises:
            BatchSize, RowInvalid, PartitionUnknown: Definite.  The call is wrong.
            PartitionSealed: Definite.  Another process has adopted the partition.
            JournalBehind: Definite.  The partition ends below ``known``: the store has lost rows.
            EpochBehind: Definite.  The model's newest epoch is below ``epoch``: the store has lost
                rows.  This is noticed in a new partition, too.
            JournalFull: Definite.  Free disk space, a server's memory or the journal's size is at
                its bound: no new rows or halves are accepted.
            JournalNotDurable: Definite.  A server's settings were changed so that it could lose
                acknowledged rows.
            JournalUnavailable: Indefinite.  Send the same batch again.
        """

    def seal(self, partition: int) -> int:
        """Close the partition for writing and return its end.  Idempotent."""

    def partition(self, partition: int) -> Partition | None:
        """Return the partition, or None if it is unknown."""

    def partitions(self, model: str) -> tuple[Partition, ...]:
        """Return all partitions of the model, by id."""

    def read(self, partition: int, first: int, n: int) -> tuple[Row, ...]:
        """Return rows ``first … first + n - 1`` as far as they exist, in short transactions.

        The result starts at ``first`` and has no gaps, so it is empty if ``first`` was trimmed.
        """

    def follow(self, model: str, after: int, n: int) -> Followed:
        """Return at most ``n`` rows of the model with ``seq > after``, in commit order.

        ``upto`` is the last row's ``seq`` if there are ``n`` rows, otherwise the newest ``seq`` of
        the store, which may be another model's.  No row with a ``seq`` up to it is committed later.
        Trimmed rows are left out; ``trimmed`` is the ``seq`` of the newest of them.
        """

    def find(self, model: str, key: bytes) -> Row | None:
        """Return the row with that key, or None."""

    def head(self, model: str, spec: str) -> Head:
        """Return epoch and newest snapshot of the lineage (0 and None before its first server)."""

    def lineages(self, model: str) -> tuple[str, ...]:
        """Return the spec hashes that have ever had a server, by their last change of epoch."""

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        """Compare-and-set the epoch from ``expected`` to ``expected + 1``; return the new one.

        Raises EpochLost (definite) if another server has taken an epoch meanwhile.
        """

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        """Point the head at a published snapshot.

        Raises EpochLost (definite) unless ``epoch`` is the newest.
        """

    def write_control(
        self,
        model: str,
        kind: str,
        key: str,
        payload: bytes,
        fence: tuple[str, int] | None = None,
        line: Line | None = None,
    ) -> tuple[Control, bool]:
        """Append a control row unless the model has one with the same key.

        Parameters:
            fence: A spec and an epoch, which must be the lineage's newest.
            line: A line of the log of decisions, written in the same step if the row is new.

        Returns:
            The row with that key, and whether it was written now.

        Raises:
            EpochLost: Definite: the fence's epoch is not the newest.  Nothing was written.
            LineTaken: Definite: the line's number is not the next.  Nothing was written.
        """

    def controls(self, model: str, after: int) -> tuple[Control, ...]:
        """Return the control rows with ``seq > after``, in order."""

    def write_line(self, line: Line) -> None:
        """Append a line to the log.  Raises LineTaken (definite) unless its number is the next."""

    def newest_line(self) -> Line | None:
        """Return the last line of the log; None if there was never one."""

    def lines(self, after: int, n: int) -> tuple[Line, ...]:
        """Return at most ``n`` lines with a number above ``after``, in order."""

    def trim_lines(self, anchor: Line) -> None:
        """Replace the lines up to the anchor's number by the anchor.

        Raises LineTaken (definite) if the log is shorter, or has an anchor there already.
        """

    def claim(self, partition: int, offset: int) -> int:
        """Record that a learner is about to learn the row; return how many did so before.

        A learner that dies leaves its claim behind, so rows at which learners died can be found.
        Offset 0 stands for the adoption of the partition.  Raises PartitionUnknown (definite);
        after JournalUnavailable the claim may have been recorded.
        """

    def claims(self, partition: int, offset: int) -> int:
        """Return the number of claims of the row."""

    def run(self, model: str, spec: str, epoch: int, ms: int) -> int:
        """Add ``ms`` to the total running time of the model's servers; return the total in ms.

        Each row and half is written with the total at its time, so that its age is known even if
        clocks are wrong.  Raises EpochLost (definite) unless ``epoch`` is the lineage's newest.  A
        lineage that is not the model's newest adds nothing.  After JournalUnavailable the time may
        have been added.
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
        """Remove at most ``n`` old rows with their ids; return how many were removed.

        Of partition ``p`` the oldest rows up to offset ``upto[p]`` are removed, up to the first one
        that is not old by both clocks, so that no gaps arise.

        Parameters:
            before, ahead: By the wall clock, a row is old if it was received before ``before``
                (POSIX seconds), or after ``ahead``: its clock was wrong, so it does not count.
            ran: By the running time, a row is old if it was written before that was ``ran`` (ms).

        Raises:
            EpochLost: Definite: ``epoch`` is not the lineage's newest.  A lineage that is not the
                model's newest removes nothing.
        """

    def expire(
        self, model: str, before: float, n: int, *, ahead: float = math.inf, ran: float = math.inf
    ) -> int:
        """Remove at most ``n`` halves that are old by both clocks, as in :meth:`trim`; how many."""

    def predicted(self, model: str, after: float, before: float, n: int) -> Predicted:
        """Examine up to ``n`` halves, oldest first, and return the predictions among them.

        Only halves received after ``after`` and before ``before`` (POSIX seconds) are examined.
        Waiting labels and damaged halves count in ``n`` but are not returned.
        """

    def usage(self, model: str) -> Usage:
        """Return the space used, without scanning the rows."""

    def stand_in(self, partition: int, offset: int, row: NewRow) -> bool:
        """Replace a damaged row by ``row`` at the same partition, offset and ``seq``, in one step.

        The damaged row's key no longer leads to it.  Returns False, and changes nothing, if the row
        there is not damaged.  Raises JournalDamaged if there is no row.
        """

    def erasing(self) -> Erasing:
        """Return the operations that remove payloads permanently."""

    def examine(self, progress: Callable[[int, int], None]) -> Examined:
        """Verify everything stored, of all models; changes nothing.

        Parameters:
            progress: Called with the number of rows examined so far, and their total.
        """

    def checkpoint(self) -> int:
        """Move committed pages out of the write-ahead log in a small step; return bytes left."""
        return 0  # a server rewrites its log itself

    def close(self) -> None:
        """Close the store behind the journal."""
