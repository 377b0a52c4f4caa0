"""The journal's size, its growth, and whether its room suffices for a week."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from online.settings.config import Settings
from replay.journal.base import Usage

MEASURE_S: Final = 60.0  # growth is unknown before this time has passed
TREND_S: Final = 600.0  # growth raises no alarm before this time: a burst is no trend
ALARM_RATIO: Final = 0.8
ALARM_DAYS: Final = 7.0
_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Room:
    """The journal's room at one moment.

    Attributes:
        at_s: Monotonic seconds.
        usage: Usage as reported by the journal.
        free: Bytes of the disk that may be filled before feedback is refused; None: the journal is
            not on a disk of this machine.
        reserve: Bytes of the disk that are still free when feedback is refused.
    """

    at_s: float
    usage: Usage
    free: int | None
    reserve: int = 0

    @property
    def bound(self) -> int | None:
        """Size in bytes at which feedback is refused; None: there is no bound."""
        bounds = [] if self.usage.size_max is None else [self.usage.size_max]
        if self.free is not None:
            bounds.append(self.usage.size + max(self.free, 0))
        return min(bounds, default=None)


def describe(first: Room, now: Room) -> dict[str, Any]:
    """Room as plain data; growth is the daily mean since ``first`` (None: still measuring)."""
    elapsed_s, bound = now.at_s - first.at_s, now.bound
    size = now.usage.size
    rows_a_day = bytes_a_day = days_left = None
    if elapsed_s >= MEASURE_S:
        rows_a_day = (now.usage.rows - first.usage.rows) * _DAY_S / elapsed_s
        bytes_a_day = (size - first.usage.size) * _DAY_S / elapsed_s
        if bound is not None and bytes_a_day > 0:
            days_left = max(bound - size, 0) / bytes_a_day
    ratio = None if bound is None else 1.0 if bound <= 0 else min(size / bound, 1.0)
    return {
        "size": size,
        "bound": bound,
        "capped": now.usage.size_max is not None and bound == now.usage.size_max,
        "used_ratio": ratio,
        "rows": now.usage.rows,
        "waiting": now.usage.halves,
        "measured_s": round(elapsed_s, 1),
        "rows_per_day": rows_a_day,
        "bytes_per_day": bytes_a_day,
        "days_left": days_left,
        "alarm": _alarm(ratio, days_left if elapsed_s >= TREND_S else None, now),
    }


def _alarm(ratio: float | None, days_left: float | None, now: Room) -> str | None:
    capped = now.usage.size_max is not None and now.bound == now.usage.size_max
    less = ", or keep less: a shorter dedupe_window, fewer snapshots"
    remedy = ("Raise limits.journal_mb_max" if capped else "Free disk space") + less
    if ratio is not None and ratio >= ALARM_RATIO:
        room = f"{(now.bound or 0) / 2**20:,.0f} MB"
        return (
            f"the journal takes {ratio:.0%} of its {room}; when full, feedback is refused. {remedy}"
        )
    if now.free is not None and now.free < now.reserve:  # something else may have filled it
        left = f"{max(now.free, 0) / 2**20:,.0f} MB of the journal's disk are left"
        return f"{left} until feedback is refused. Free disk space{less}"
    if days_left is not None and days_left < ALARM_DAYS:
        text = f"at the rate of this process's life the journal is full in {days_left:.1f} days"
        return f"{text}. {remedy}"
    return None


def journal_room(settings: Settings) -> Callable[[], tuple[int, int]] | None:
    """Return what reads ``free`` and ``reserve`` of a :class:`Room`; None: it is on no disk."""
    if settings.journal != "sqlite":
        return None
    low = settings.limits.disk_low_mb << 20
    return lambda: (shutil.disk_usage(settings.state_dir).free - low, low)
