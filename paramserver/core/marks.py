"""Marks of rows that travel with values: who takes the values of a row gets its mark, too.

They are told to nobody else, change no value, and are lost with the process: a help for looking
on.  What a mark says is its sender's; the server only hands it on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final

from paramserver.core.wire import Mark, Version

MARKS_MAX: Final = 64
"""Marks that are held, the newest ones; a message has no more either."""
CONTEXT_MAX: Final = 64
"""Characters of what a mark says; a longer one is not held."""


class Marks:
    """Marks of the newest rows that carry one, by the version that has them."""

    def __init__(self) -> None:
        self._held: deque[tuple[Version, Mark]] = deque(maxlen=MARKS_MAX)

    def note(self, marks: Iterable[Mark], version: Version, clock: Mapping[int, int]) -> None:
        """Take marks of rows that are in the values of this version."""
        places = {(held.partition, held.offset) for _, held in self._held}
        for mark in marks:
            if (mark.partition, mark.offset) in places or len(mark.context) > CONTEXT_MAX:
                continue
            if mark.offset <= clock.get(mark.partition, 0):
                self._held.append((version, mark))

    def since(self, since: Version | None, partition: int) -> list[Mark]:
        """Marks of rows of others that the values got after the version ``since``."""
        if since is None:
            return []
        return [
            mark
            for version, mark in self._held
            if version[0] == since[0] and version > since and mark.partition != partition
        ]
