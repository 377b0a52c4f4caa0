"""The interface that the parameter server needs from the store behind the journal.

All agreement between processes is reached in the store.  The types are structural (protocols), so
this package need not import any journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class PartitionInfo(Protocol):
    """One writer's rows 1 … ``end``; a ``sealed`` partition accepts no more.

    Rows up to ``trimmed`` have been removed.
    """

    @property
    def id(self) -> int: ...
    @property
    def replica(self) -> str: ...
    @property
    def end(self) -> int: ...
    @property
    def sealed(self) -> bool: ...
    @property
    def trimmed(self) -> int: ...


class HeadInfo(Protocol):
    """Epoch of a lineage's newest server and its newest published snapshot (None: none)."""

    @property
    def epoch(self) -> int: ...
    @property
    def snapshot(self) -> str | None: ...


class ControlInfo(Protocol):
    """A control row.  ``seq`` counts from 1; a second row with the same ``key`` is not written."""

    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def payload(self) -> bytes: ...


class LineInfo(Protocol):
    """A line of the store's log of decisions, whose text is opaque to this package."""

    @property
    def number(self) -> int: ...
    @property
    def text(self) -> bytes: ...


class FollowedInfo(Protocol):
    """Rows in commit order, up to the row with the number ``upto``."""

    @property
    def upto(self) -> int: ...


class Store(Protocol):
    """Atomic operations of the store.  Any may raise; ``head`` then shows what is in force."""

    def head(self, model: str, spec: str) -> HeadInfo:
        """Return the lineage's epoch and newest snapshot (0 and None before its first server)."""

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        """Compare-and-set the epoch from ``expected`` to ``expected + 1``; return the new one."""

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        """Point the head at a published snapshot, unless ``epoch`` is no longer the newest."""

    def partition(self, partition: int) -> PartitionInfo | None:
        """Return the partition, or None if it is unknown."""

    def partitions(self, model: str) -> Sequence[PartitionInfo]:
        """Return all partitions of the model, by id."""

    def follow(self, model: str, after: int, n: int) -> FollowedInfo:
        """Return at most ``n`` rows of the model after number ``after`` in commit order.

        If ``after`` is beyond all rows, ``upto`` is the newest number.
        """

    def controls(self, model: str, after: int) -> Sequence[ControlInfo]:
        """Return the control rows with ``seq > after``, in order."""

    def write_control(
        self, model: str, kind: str, key: str, payload: bytes, fence: tuple[str, int] | None = None
    ) -> tuple[ControlInfo, bool]:
        """Append a control row unless the key has one already.

        Parameters:
            fence: A spec and an epoch; nothing is written unless the epoch is the lineage's newest.

        Returns:
            The row with that key, and whether it was written now.
        """

    def newest_line(self) -> LineInfo | None:
        """Return the last line of the log of decisions; None if there was never one."""

    def run(self, model: str, spec: str, epoch: int, ms: int) -> int:
        """Add ``ms`` to the total running time of the model's servers; return the total in ms."""

    def trim(
        self,
        model: str,
        spec: str,
        epoch: int,
        upto: Mapping[int, int],
        before: float,
        n: int,
        *,
        ahead: float,
        ran: float,
    ) -> int:
        """Remove at most ``n`` old rows, none above ``upto``; return how many were removed.

        A row is old if it was received before ``before`` (POSIX seconds), or after ``ahead`` (by a
        clock that was wrong), and was written before the total running time reached ``ran`` (ms).
        Nothing is removed unless ``epoch`` is the newest of the lineage.
        """

    def expire(self, model: str, before: float, n: int, *, ahead: float, ran: float) -> int:
        """Remove at most ``n`` old halves of rows (old as in :meth:`trim`); return how many."""
