"""When to ask whom to adopt a partition.  Safety never depends on any of this.

An orphan is a partition with rows to come or not yet in the clock whose owner, and whoever was
asked to adopt it, has not been in contact for a lease.  A wrong guess costs work: two learners of
one partition are told apart by the store's seal and the server's clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from paramserver.store import PartitionInfo

_STALL_PART: Final = 3


class Leases:
    """Contacts and adoptions, with the time as an argument (monotonic seconds).

    Parameters:
        lease_s: A partition is an orphan after so long without contact.  A partition that is seen
            for the first time (all of them, after a start) gets one lease.
        adopt_max: Adoptions of one replica at the same time.
        now_s: When the server started.
    """

    def __init__(self, lease_s: float, adopt_max: int, now_s: float) -> None:
        self._lease_s = lease_s
        self._adopt_max = adopt_max
        self._tick_s = now_s
        self._owner_s: dict[int, float] = {}
        self._adopter: dict[int, tuple[str, float]] = {}

    def tick(self, now_s: float) -> None:
        """To be called often.  After a stall of our own everybody's lease is renewed."""
        if now_s - self._tick_s > self._lease_s / _STALL_PART:
            self._owner_s = dict.fromkeys(self._owner_s, now_s)
            self._adopter = {p: (who, now_s) for p, (who, _) in self._adopter.items()}
        self._tick_s = now_s

    def touch(self, replica: str, partition: int, adopting: Iterable[int], now_s: float) -> None:
        """A replica was in contact: it writes ``partition`` and learns ``adopting`` again."""
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
        """Partitions that ``replica`` is asked to adopt, those that it was given before included.

        Parameters:
            gone: Partitions whose owner is known not to live: their owner's lease is not waited
                for.
            waits: Partitions that what the replica has learned waits for: however many it adopts
                already.
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
                continue  # not a break: the others' first sight is noted too
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
