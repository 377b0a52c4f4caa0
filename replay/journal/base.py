"""What a journal promises: rows, partitions, control rows, epochs and heads.

The store behind a journal (a SQLite file, a Redis server) is the only place where anything is
agreed.  Every method below is one atomic step of that store.  Leases and clocks say when to act;
none of them carries safety.  ``tests/conformance`` walks every implementation over
:func:`replay.journal.checks.check_journal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Verdict(StrEnum):
    """What was decided about a row before it was written.  It never changes."""

    ACCEPTED = "accepted"
    CLIPPED = "clipped"
    QUARANTINED = "quarantined"
    FROZEN = "frozen"


@dataclass(frozen=True, slots=True)
class NewRow:
    """A row that a writer wants in its partition.

    Attributes
    ----------
    key
        16 bytes, unique within the model: what makes a repeat a repeat.
    event_id, source
        As the caller named them (shown to operators; ``key`` is what is compared).
    verdict, factor
        Decided before writing; ``factor`` in (0, 1] scales a clipped row.
    payload
        An encoded :class:`replay.example.Example`.
    at
        POSIX seconds at which the replica took the event.
    """

    key: bytes
    event_id: str
    source: str
    verdict: Verdict
    payload: bytes
    at: float
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Row:
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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row of an append.

    ``new`` is True if the row stands in the writer's own partition beyond its last known offset:
    written now, or by an earlier attempt whose answer was lost.  Otherwise ``row`` is the row
    that had the key first.
    """

    new: bool
    row: Row


@dataclass(frozen=True, slots=True)
class Appended:
    """Outcomes in the order of the batch, the partition's end, and the model's newest epoch."""

    outcomes: tuple[Outcome, ...]
    end: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Partition:
    """One writer: (model, replica, incarnation).

    ``end`` is the offset of its last row (0 if empty).  ``sealed`` partitions take no more rows.
    """

    id: int
    model: str
    replica: str
    spec: str
    end: int
    sealed: bool


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


class Journal(Protocol):
    """A durable, deduplicated journal.  Safe to call from several threads of a process."""

    @property
    def batch_rows_max(self) -> int:
        """Most rows of one append."""

    def register(self, model: str, replica: str, spec: str, at: float) -> Partition:
        """Open a new, empty partition; its number is given by the store."""

    def append(self, partition: int, known: int, rows: Sequence[NewRow]) -> Appended:
        """Write ``rows`` (1 … ``batch_rows_max``) durably, in order, in one step.

        ``known`` is the last offset that the writer had an answer for.  A key that exists
        elsewhere, or in this partition at or below ``known``, is a duplicate and gets its row
        back; a key found in this partition beyond ``known`` is the writer's own row.  Offsets
        are given after that check, so they have no holes.  A key twice within ``rows`` is
        written once; the second outcome is a duplicate.

        Raises
        ------
        BatchSize, RowInvalid, PartitionUnknown
            Definite.  The call is wrong.
        PartitionSealed
            Definite.  The partition belongs to an adopter now.
        JournalBehind
            Definite.  The partition ends below ``known``: the store has lost rows.
        JournalFull
            Definite.  Free disk space, or a server's memory, is under the low-water mark.
        JournalNotDurable
            Definite.  A server's settings were changed: it could lose what it acknowledges.
        JournalUnavailable
            Indefinite.  Send the same batch again.
        """

    def seal(self, partition: int) -> int:
        """Close the partition for writing and return its end.  Idempotent."""

    def partition(self, partition: int) -> Partition | None:
        """The partition, or None if it is unknown."""

    def partitions(self, model: str) -> tuple[Partition, ...]:
        """All partitions of the model, by id."""

    def read(self, partition: int, first: int, n: int) -> tuple[Row, ...]:
        """Rows ``first … first + n - 1`` as far as they exist, in a short transaction."""

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
        self, model: str, kind: str, key: str, payload: bytes
    ) -> tuple[Control, bool]:
        """Append a control row; the first with a (model, key) wins.

        Returns the row that stands and whether it is the one given.
        """

    def controls(self, model: str, after: int) -> tuple[Control, ...]:
        """Control rows with ``seq > after``, in order."""

    def checkpoint(self) -> int:
        """Move committed pages out of the write-ahead log in a small step; its bytes left."""

    def close(self) -> None:
        """Release the store."""
