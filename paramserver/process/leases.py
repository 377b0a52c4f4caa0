"""Decides when a partition is adopted, and by which replica.  Correctness never depends on this.

An orphan is a partition that is not sealed or not fully applied, whose owner has not been in
contact for the length of a lease, nor has a replica that was asked to adopt it.  A wrong guess only
costs work: the store's seal and the server's clock prevent that two learners of one partition count
twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from paramserver.store import PartitionInfo

_STALL_PART: Final = 3


class Leases:
    """Records contacts and adoptions.  All times are monotonic seconds, passed as arguments.

    Parameters:
        lease_s: Time without contact after which a partition is an orphan.  A partition seen for
            the first time (after a start: every partition) is given a full lease.
        adopt_max: Greatest number of partitions that one replica adopts at a time.
        now_s: Start time of the server.
    """

    def __init__(self, lease_s: float, adopt_max: int, now_s: float) -> None:
        self._lease_s = lease_s
        self._adopt_max = adopt_max
        self._tick_s = now_s
        self._owner_s: dict[int, float] = {}
        self._adopter: dict[int, tuple[str, float]] = {}

    def tick(self, now_s: float) -> None:
        """Note the time; call it often.  After a stall of this process all leases are renewed."""
        if now_s - self._tick_s > self._lease_s / _STALL_PART:
            self._owner_s = dict.fromkeys(self._owner_s, now_s)
            self._adopter = {p: (who, now_s) for p, (who, _) in self._adopter.items()}
        self._tick_s = now_s

    def touch(self, replica: str, partition: int, adopting: Iterable[int], now_s: float) -> None:
        """Record a contact of a replica that writes ``partition`` and is adopting others."""
        self.tick(now_s)
        self._owner_s[partition] = now_s
        for p in adopting:
            self._adopter[p] = (replica, now_s)

    def orphans(
        self,
        partitions: Sequence[PartitionInfo],
        clock: Mapping[int, int],
        closed: Collection[int],
        replica: str,
        own: int,
        now_s: float,
        gone: Collection[int] = (),
        waits: Collection[int] = (),
    ) -> list[int]:
        """Return the partitions that ``replica`` is to adopt, including earlier assignments.

        Parameters:
            own: The replica's own partition.
            gone: Partitions whose owner is known to be dead; they need not wait for the lease.
            waits: Partitions that the replica waits for; they are assigned even beyond
                ``adopt_max``.
        """
        self.tick(now_s)
        waiting = [p for p in partitions if p.id not in closed and not _finished(p, clock)]
        ids = {p.id for p in waiting}
        self._adopter = {p: x for p, x in self._adopter.items() if p in ids}
        self._owner_s = {p: s for p, s in self._owner_s.items() if p in ids or p == own}
        mine = [p for p, (who, s) in self._adopter.items() if who == replica and self._live(s)]
        for partition in waiting:
            p = partition.id
            since = self._owner_s.setdefault(p, now_s)
            if len(mine) >= self._adopt_max and p not in waits:
                continue  # no break, so that the first sight of the others is noted, too
            if p == own or (self._live(since) and p not in gone):
                continue
            if p in self._adopter and self._live(self._adopter[p][1]):
                continue
            self._adopter[p] = (replica, now_s)
            mine.append(p)
        return sorted(mine)

    def _live(self, contact_s: float) -> bool:
        return self._tick_s - contact_s <= self._lease_s


def _finished(partition: PartitionInfo, clock: Mapping[int, int]) -> bool:
    return partition.sealed and clock.get(partition.id, 0) >= partition.end
