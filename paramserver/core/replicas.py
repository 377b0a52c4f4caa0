"""This module remembers what the server last heard of each replica."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Final

from paramserver.core.wire import SyncRequest

_SHARE: Final = "learn_share"
_PROBE_S: Final = 0.25
"""Events that come within it after a probe belong to it."""
_PROBES_MAX: Final = 1024
DRIFT: Final = "drift_state"


@dataclass(frozen=True, slots=True)
class _Contact:
    """The last that was heard of a replica."""

    at_s: float
    partition: int
    report: dict[str, float] | None
    control: int
    role: str


class Replicas:
    """A record that holds what was last heard of each replica, for ``keep_s`` seconds."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._last: dict[str, _Contact] = {}
        self._epoch, self._epoch_s = 0, 0.0
        self._probes: deque[tuple[int, float]] = deque(maxlen=_PROBES_MAX)

    def __len__(self) -> int:
        return len(self._last)

    def note(self, request: SyncRequest, now_s: float) -> None:
        """A replica was in contact."""
        contact = _Contact(now_s, request.partition, request.report, request.control, request.role)
        self._last[request.replica] = contact

    def wrote(self, epoch: int, events: int, now_s: float) -> None:
        """The server's values have so many events now.  Each is a probe: replicas tell theirs."""
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
        """For how long the server has had what a replica's answers lack.

        0: they lack nothing; None: it does not say.  Up to ``_PROBE_S`` too long.
        """
        if report is None or "served_events" not in report:
            return None
        if report["served_epoch"] < self._epoch:
            return now_s - self._epoch_s
        lacks = (at_s for events, at_s in self._probes if events > report["served_events"])
        return now_s - next(lacks, now_s)

    def drop_old(self, now_s: float) -> None:
        """Forget replicas not heard of for ``keep_s``."""
        old = now_s - self._keep_s
        self._last = {r: c for r, c in self._last.items() if c.at_s >= old}

    def all_act_on(self, control: int, since_s: float) -> bool:
        """Whether every replica heard of since then acts on the control row."""
        return all(c.control >= control for c in self._last.values() if c.at_s >= since_s)

    def keeper(self, role: str, since_s: float) -> str | None:
        """The replica of a role, of those heard of since then, that is longest there."""
        of_role = [(r, c) for r, c in self._last.items() if c.role == role]
        live = [(c.partition, r) for r, c in of_role if c.at_s >= since_s]
        return min(live)[1] if live else None

    def metrics(self) -> dict[str, float]:
        """Numbers for a snapshot: how many replicas, and the largest of what learning takes.

        And the state of the stream as the replica that is worst off sees it, if one watches it.
        """
        reports = [c.report or {} for c in self._last.values()]
        shares = [report.get(_SHARE, 0.0) for report in reports]
        made = {"replicas": float(len(self._last)), _SHARE: max(shares, default=0.0)}
        if drifts := [report[DRIFT] for report in reports if DRIFT in report]:
            made[DRIFT] = max(drifts)
        return made

    def reports(self, now_s: float) -> dict[str, dict[str, float]]:
        """Newest counters of the replicas that sent some."""
        old = now_s - self._keep_s
        return {
            replica: contact.report
            for replica, contact in self._last.items()
            if contact.report is not None and contact.at_s >= old
        }

    def summary(self, now_s: float) -> dict[str, dict[str, Any]]:
        """All that is known, as plain data."""
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
