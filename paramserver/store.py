"""This module says what the parameter server needs from the store behind the journal.

The store is the one place where anything is agreed.  Types are structural, so that any journal
fits without this package knowing it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class PartitionInfo(Protocol):
    """One writer's rows: 1 … ``end``; a ``sealed`` partition takes no more.

    Rows up to ``trimmed`` are gone.
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
    """A decision about history; ``seq`` counts from 1, ``key`` is what makes a repeat one."""

    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def payload(self) -> bytes: ...


class LineInfo(Protocol):
    """A line of the store's log of decisions, which this package can't read."""

    @property
    def number(self) -> int: ...
    @property
    def text(self) -> bytes: ...


class FollowedInfo(Protocol):
    """Rows in commit order, up to the row with the number ``upto``."""

    @property
    def upto(self) -> int: ...


class Store(Protocol):
    """Atomic steps of the store.  Any of them may raise; ``head`` then tells what is so."""

    def head(self, model: str, spec: str) -> HeadInfo:
        """Epoch and newest snapshot of the lineage (0 and None before its first server)."""

    def begin_epoch(self, model: str, spec: str, expected: int) -> int:
        """Compare-and-set the epoch from ``expected`` to ``expected + 1``; return the new one."""

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        """Point the head at a published snapshot, unless ``epoch`` is no longer the newest."""

    def partition(self, partition: int) -> PartitionInfo | None:
        """The partition, or None if it is unknown."""

    def partitions(self, model: str) -> Sequence[PartitionInfo]:
        """All partitions of the model, by id."""

    def follow(self, model: str, after: int, n: int) -> FollowedInfo:
        """At most ``n`` rows of the model after number ``after`` of the store's commit order.

        With an ``after`` behind all rows ``upto`` is the newest number.
        """

    def controls(self, model: str, after: int) -> Sequence[ControlInfo]:
        """Control rows with ``seq > after``, in order."""

    def write_control(
        self,
        model: str,
        kind: str,
        key: str,
        payload: bytes,
        fence: tuple[str, int] | None = None,
    ) -> tuple[ControlInfo, bool]:
        """Append a control row, unless the key has one; the row that stands, and if it is new.

        ``fence``: a spec and an epoch; nothing is written unless it is the lineage's newest.
        """

    def newest_line(self) -> LineInfo | None:
        """The last line of the log of decisions; None if there was never one."""

    def run(self, model: str, spec: str, epoch: int, ms: int) -> int:
        """Add milliseconds to the time for which the model's servers have run; the sum."""

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
        """Remove at most ``n`` rows, none above ``upto``; how many.

        They were taken before ``before``, or after ``ahead`` by a clock that was wrong, and
        written before the running time was ``ran``.  Nothing is removed unless ``epoch`` is the
        newest of the lineage.
        """

    def expire(self, model: str, before: float, n: int, *, ahead: float, ran: float) -> int:
        """Remove at most ``n`` halves of rows that are as old as that; how many."""
