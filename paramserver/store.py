"""What the parameter server needs from the store behind the journal.

The store is the one place where anything is agreed.  Types are structural, so that any journal
fits without this package knowing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class PartitionInfo(Protocol):
    """One writer's rows: 1 … ``end``; a ``sealed`` partition takes no more."""

    @property
    def id(self) -> int: ...
    @property
    def replica(self) -> str: ...
    @property
    def end(self) -> int: ...
    @property
    def sealed(self) -> bool: ...


class HeadInfo(Protocol):
    """Epoch of a lineage's newest server and its newest published snapshot (None: none)."""

    @property
    def epoch(self) -> int: ...
    @property
    def snapshot(self) -> str | None: ...


class ControlInfo(Protocol):
    """A decision about history; ``seq`` counts from 1."""

    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> str: ...


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

    def controls(self, model: str, after: int) -> Sequence[ControlInfo]:
        """Control rows with ``seq > after``, in order."""
