"""Measures the cost of learning, and sizes the passes that learn several rows by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_WINDOW_S: Final = 30.0
_LEAST_S: Final = 10.0
SHARE_MAX: Final = 0.25
"""Above this share of a core for rows that every replica learns, one process should learn them."""
TURN_S: Final = 0.0005
"""Seconds that a pass over several rows, and so a turn of the event loop, should take."""

_FEW: Final = 8
_LONGER: Final = 1.7
"""A pass of fewer than ``_FEW`` rows may take so many turns: there its fixed cost matters most."""

_NUMBERS: Final = 256  # feature values in one pass at first, before its duration is known
_NUMBERS_MAX: Final = 1 << 16
_NUMBERS_A_ROW: Final = 16  # fixed cost of a row, in feature values that take as long


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


class PassSize:
    """How many rows one pass learns, so that it takes one turn of the event loop, or nearly two.

    Parameters:
        least: Fewest rows of a pass.
    """

    def __init__(self, least: int) -> None:
        self._least, self._numbers = least, _NUMBERS

    def most(self, features: int) -> int:
        """Return how many rows of so many features one pass may learn."""
        return max(self._numbers // (features + _NUMBERS_A_ROW), self._least)

    def adapt(self, n: int, most: int, took_s: float) -> None:
        """Adjust the size by the duration of a pass over ``n`` rows, of at most ``most``.

        The steps are small, because other load on the machine distorts single measurements.
        """
        turn_s = TURN_S * _LONGER if n < _FEW else TURN_S
        if took_s > turn_s:
            self._numbers = max(int(self._numbers * max(turn_s / took_s, 0.8)), 1)
        elif n == most:
            self._numbers = min(int(self._numbers * min(turn_s / took_s, 1.25)) + 1, _NUMBERS_MAX)
