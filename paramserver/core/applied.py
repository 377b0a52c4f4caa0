"""Records of a server's newest pushes: which partition they came from and which keys they touched.

For replicas that fetch the values in parts, :class:`PartialPulls` records the keys touched since
their last request.  So such a replica need not start over, however many pushes were applied
meanwhile.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from paramserver.core.blocks import Touched, add_touched
from paramserver.core.wire import Version

PULLS_MAX: Final = 8
"""Number of replicas fetching values in parts whose touched keys are recorded."""


@dataclass(frozen=True, slots=True)
class Applied:
    """One applied push: the version count after it, its partition, its rows, its touched keys."""

    count: int
    partition: int
    rows: int
    touched: Touched


class AppliedPushes:
    """The newest applied pushes of one epoch.

    Parameters:
        most: Number of pushes to remember.
    """

    def __init__(self, most: int) -> None:
        self._newest: deque[Applied] = deque(maxlen=most)

    def note(self, applied: Applied) -> None:
        """Record the newest push."""
        self._newest.append(applied)

    def by_others(self, partition: int, after: int) -> list[Applied]:
        """Return pushes of other partitions after a version count, newest first.

        Pushes without learned rows are left out.
        """
        others = []
        for applied in reversed(self._newest):
            if applied.count <= after:
                break
            if applied.rows > 0 and applied.partition != partition:
                others.append(applied)
        return others

    def reaches(self, after: int, now: int) -> bool:
        """Whether it is known what was touched between two version counts."""
        return (self._newest[0].count - 1 if self._newest else now) <= after <= now

    def touched_since(self, after: int, now: int) -> Touched | None:
        """Return the keys touched between two version counts, or None if no longer known."""
        if not self.reaches(after, now):
            return None
        touched: Touched = {}
        for applied in reversed(self._newest):
            if applied.count <= after:
                break
            add_touched(touched, applied.touched)
        return touched


class PartialPulls:
    """Records the touched keys for each replica that fetches the values in parts.

    A record holds at most all keys of the values.  Beyond ``PULLS_MAX`` the replica whose record
    began first is dropped.
    """

    def __init__(self) -> None:
        self._by_reader: dict[str, tuple[Version, Touched]] = {}  # in order of the last begin

    def begin(self, reader: str, version: Version) -> None:
        """Start to record touched keys for a replica whose values are all of ``version``."""
        self._by_reader.pop(reader, None)
        self._by_reader[reader] = (version, {})
        if len(self._by_reader) > PULLS_MAX:
            del self._by_reader[next(iter(self._by_reader))]

    def ask(self, reader: str, since: Version | None) -> None:
        """Drop the replica's record if it began at another version than the one requested."""
        begun = self._by_reader.get(reader)
        if begun is not None and begun[0] != since:
            del self._by_reader[reader]

    def note(self, touched: Touched) -> None:
        """Add the keys that a push has touched to every record."""
        for _, more in self._by_reader.values():
            add_touched(more, touched)

    def touched_since(self, reader: str, since: Version | None) -> Touched | None:
        """Return the keys touched since that version, or None without a record from then."""
        begun = self._by_reader.get(reader)
        return begun[1] if begun is not None and begun[0] == since else None
