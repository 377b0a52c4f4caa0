"""What the server last heard of each replica."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from paramserver.wire import SyncRequest

_SHARE: Final = "learn_share"
DRIFT: Final = "drift_state"


@dataclass(frozen=True, slots=True)
class _Contact:
    """The last that was heard of a replica."""

    at_s: float
    partition: int
    report: dict[str, float] | None
    control: int
    role: str


class Contacts:
    """What was last heard of each replica, for ``keep_s`` seconds."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._last: dict[str, _Contact] = {}

    def __len__(self) -> int:
        return len(self._last)

    def note(self, request: SyncRequest, now_s: float) -> None:
        """A replica was in contact."""
        contact = _Contact(now_s, request.partition, request.report, request.control, request.role)
        self._last[request.replica] = contact

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

    def shown(self, now_s: float) -> dict[str, dict[str, Any]]:
        """All that is known, as plain data."""
        return {
            replica: {
                "age_s": now_s - contact.at_s,
                "partition": contact.partition,
                "report": contact.report,
                "control": contact.control,
            }
            for replica, contact in self._last.items()
        }
