"""Records the server's last contact with each replica, and what the replica reported."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from paramserver.core.wire import SyncRequest

_SHARE: Final = "learn_share"
_PROBE_S: Final = 0.25
"""Events that are applied within this time after a probe do not begin a new one."""
_PROBES_MAX: Final = 1024
DRIFT: Final = "drift_state"


@dataclass(frozen=True, slots=True)
class _Contact:
    """The last request of a replica."""

    at_s: float
    partition: int
    report: dict[str, float] | None
    control: int
    role: str


class Replicas:
    """The last contact of each replica, kept for ``keep_s`` seconds."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._last: dict[str, _Contact] = {}
        self._epoch, self._epoch_s = 0, 0.0
        self._probes: deque[tuple[int, float]] = deque(maxlen=_PROBES_MAX)

    def __len__(self) -> int:
        return len(self._last)

    def note(self, request: SyncRequest, now_s: float) -> None:
        """Record a request of a replica."""
        contact = _Contact(now_s, request.partition, request.report, request.control, request.role)
        self._last[request.replica] = contact

    def wrote(self, epoch: int, events: int, now_s: float) -> None:
        """Record that the values contain that many events now.

        Such times are probes: compared with the events that replicas report to have in their
        answers, they tell how long a replica has lacked an event.
        """
        if epoch != self._epoch:
            self._epoch, self._epoch_s = epoch, now_s
            self._probes.clear()
        if self._probes:
            last, at_s = self._probes[-1]
            if events <= last:
                return
            if now_s - at_s < _PROBE_S:
                self._probes[-1] = (events, at_s)
                return
        self._probes.append((events, now_s))

    def _unserved_s(self, report: dict[str, float] | None, now_s: float) -> float | None:
        """Return for how long the server has had an event that a replica's answers lack, in s.

        0: they lack none; None: the replica does not report it.  Up to ``_PROBE_S`` too long.
        """
        if report is None or "served_events" not in report:
            return None
        if report["served_epoch"] < self._epoch:
            return now_s - self._epoch_s
        behind = (at_s for events, at_s in self._probes if events > report["served_events"])
        return now_s - next(behind, now_s)

    def drop_old(self, now_s: float) -> None:
        """Remove replicas without contact for ``keep_s``."""
        old = now_s - self._keep_s
        self._last = {r: c for r, c in self._last.items() if c.at_s >= old}

    def all_act_on(self, control: int, since_s: float) -> bool:
        """Return whether every replica in contact since ``since_s`` acts on the control row."""
        return all(c.control >= control for c in self._last.values() if c.at_s >= since_s)

    def keeper(self, role: str, since_s: float) -> str | None:
        """Return the oldest replica with that role among those in contact since ``since_s``.

        The oldest is the one with the lowest partition number.
        """
        of_role = [(r, c) for r, c in self._last.items() if c.role == role]
        live = [(c.partition, r) for r, c in of_role if c.at_s >= since_s]
        return min(live)[1] if live else None

    def metrics(self) -> dict[str, float]:
        """Return metrics for a snapshot: the number of replicas and the largest learning share.

        If replicas watch for drift, the worst drift state that one of them reported is included.
        """
        reports = [c.report or {} for c in self._last.values()]
        shares = [report.get(_SHARE, 0.0) for report in reports]
        made = {"replicas": float(len(self._last)), _SHARE: max(shares, default=0.0)}
        if drifts := [report[DRIFT] for report in reports if DRIFT in report]:
            made[DRIFT] = max(drifts)
        return made

    def reports(self, now_s: float) -> dict[str, dict[str, float]]:
        """Return the newest counters of each replica that sent any."""
        old = now_s - self._keep_s
        return {
            replica: contact.report
            for replica, contact in self._last.items()
            if contact.report is not None and contact.at_s >= old
        }

    def summary(self, now_s: float) -> dict[str, dict[str, Any]]:
        """Return everything known about each replica as plain data."""
        return {
            replica: {
                "age_s": now_s - contact.at_s,
                "partition": contact.partition,
                "report": contact.report,
                "control": contact.control,
                "unserved_s": self._unserved_s(contact.report, now_s),
            }
            for replica, contact in self._last.items()
        }
