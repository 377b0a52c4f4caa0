"""The last pushes that a server has applied: what they touched, and whose they were.

Beside them stands what was touched since a replica that fetches many values asked last.  However
many pushes there were meanwhile, it need not begin anew.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from paramserver.core.blocks import Touched, add_touched
from paramserver.core.wire import Version

WALKS_MAX: Final = 8
"""Replicas that fetch values in parts, of which is kept what was touched since they asked last."""


@dataclass(frozen=True, slots=True)
class Applied:
    """One applied push: the count that it made, whose it was, its rows, and what it touched."""

    count: int
    partition: int
    rows: int
    touched: Touched


class AppliedPushes:
    """The newest pushes of one epoch, as many as are remembered.

    Parameters:
        most: Pushes that are remembered; of older ones nothing is known.
    """

    def __init__(self, most: int) -> None:
        self._newest: deque[Applied] = deque(maxlen=most)

    def note(self, applied: Applied) -> None:
        """Remember the push that made the newest count."""
        self._newest.append(applied)

    def by_others(self, partition: int, after: int) -> list[Applied]:
        """Pushes with rows of other partitions since a count, the newest first."""
        others = []
        for applied in reversed(self._newest):
            if applied.count <= after:
                break
            if applied.rows > 0 and applied.partition != partition:
                others.append(applied)
        return others

    def touched_since(self, after: int, now: int) -> Touched | None:
        """All that was touched between two counts; None: that is not known any more."""
        oldest = self._newest[0].count - 1 if self._newest else now
        if not oldest <= after <= now:
            return None
        touched: Touched = {}
        for applied in reversed(self._newest):
            if applied.count <= after:
                break
            add_touched(touched, applied.touched)
        return touched


class Walks:
    """Notes what was touched since each of the replicas that fetch values in parts asked last.

    Of one it is no more than there are keys, and the values' own names; the one that asked longest
    ago leaves for another.
    """

    def __init__(self) -> None:
        self._by_reader: dict[str, tuple[Version, Touched]] = {}  # who asked last stands last

    def begin(self, reader: str, version: Version) -> None:
        """All that this replica has is of that version: what is touched from now on is kept."""
        self._by_reader.pop(reader, None)
        self._by_reader[reader] = (version, {})
        if len(self._by_reader) > WALKS_MAX:
            del self._by_reader[next(iter(self._by_reader))]

    def ask(self, reader: str, since: Version | None) -> None:
        """Forget what is kept for another version than that: nobody asks for it again."""
        begun = self._by_reader.get(reader)
        if begun is not None and begun[0] != since:
            del self._by_reader[reader]

    def note(self, touched: Touched) -> None:
        """A push has touched this."""
        for _, more in self._by_reader.values():
            add_touched(more, touched)

    def touched_since(self, reader: str, since: Version | None) -> Touched | None:
        """Tell what was touched since it had the values of that version; None: not known here."""
        begun = self._by_reader.get(reader)
        return begun[1] if begun is not None and begun[0] == since else None
