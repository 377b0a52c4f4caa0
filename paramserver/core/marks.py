"""Marks (trace contexts) of single rows that are passed on to replicas pulling the rows' effect.

They serve tracing only: they change no value and are lost with the process.  The server passes
their text on without reading it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from paramserver.core.wire import Mark, Version

MARKS_MAX: Final = 64
"""Number of marks that are kept, the newest ones, and so of marks in a message."""
CONTEXT_MAX: Final = 64
"""Characters of a mark's context; marks with longer ones are ignored."""


class Marks:
    """The newest marks, each with the version that first contains its row."""

    def __init__(self) -> None:
        self._held: deque[tuple[Version, Mark]] = deque(maxlen=MARKS_MAX)

    def note(self, marks: Iterable[Mark], version: Version, clock: Mapping[int, int]) -> None:
        """Add the marks of rows that the values of this version contain, by the clock."""
        places = {(held.partition, held.offset) for _, held in self._held}
        for mark in marks:
            if (mark.partition, mark.offset) in places or len(mark.context) > CONTEXT_MAX:
                continue
            if mark.offset <= clock.get(mark.partition, 0):
                self._held.append((version, mark))

    def since(self, since: Version | None, partition: int) -> list[Mark]:
        """Return marks of other partitions' rows that were applied after version ``since``."""
        if since is None:
            return []
        return [
            mark
            for version, mark in self._held
            if version[0] == since[0] and version > since and mark.partition != partition
        ]
