"""Measures the cost of learning: microseconds per row, and the share of a processor core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_WINDOW_S: Final = 30.0
_LEAST_S: Final = 10.0
SHARE_MAX: Final = 0.25
"""Above this share of a core for rows that every replica learns, one process should learn them."""


class Cost:
    """Measures the time that learning takes.

    Parameters:
        monotonic_s: A monotonic clock, in seconds.
    """

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._now_s = monotonic_s
        self._rows, self._all_s = 0, 0.0
        self._begun_s, self._busy_s, self._last = monotonic_s(), 0.0, 0.0

    def note(self, seconds: float, rows: int = 1) -> None:
        """Record that ``rows`` rows took ``seconds`` together."""
        self._rows += rows
        self._all_s += seconds
        now_s = self._now_s()
        if now_s - self._begun_s > _WINDOW_S:
            self._last = self._busy_s / (now_s - self._begun_s)
            self._begun_s, self._busy_s = now_s, 0.0
        self._busy_s += seconds

    def report(self) -> dict[str, float]:
        """Return ``learn_us`` per row since the start, and ``learn_share`` of a core over 30 s."""
        if not self._rows:
            return {}
        took_s = self._now_s() - self._begun_s
        now = self._busy_s / took_s if took_s > _LEAST_S else 0.0
        share = max(now, self._last if took_s < _WINDOW_S else 0.0)
        return {
            "learn_us": round(self._all_s / self._rows * 1e6, 1),
            "learn_share": round(share, 4),
        }
