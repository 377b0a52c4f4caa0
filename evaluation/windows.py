"""Counters by windows of a stream, in bounded memory, from which time series are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from evaluation.metrics import add

WINDOWS_MAX: Final = 256


@dataclass(frozen=True, slots=True)
class Span:
    """The counters of the rows whose place is in [start, end)."""

    start: float
    end: float
    counters: Mapping[str, float]


class Windows:
    """Counters of windows of equal width, starting at place 0.

    A place is a row's number, or a time in seconds.  With more than ``limit`` windows the width is
    doubled and neighbours are added up, so memory is bounded.  Late rows are added to the window of
    their place.  :meth:`merge` adds another replica's windows.

    Parameters:
        width: Initial width of a window, in the unit of places; above 0.
        limit: Greatest number of windows, at least 2.
    """

    def __init__(self, width: float, limit: int = WINDOWS_MAX) -> None:
        if not (width > 0 and math.isfinite(width)):
            raise ValueError(f"a window is wider than 0, got {width!r}")
        if limit < 2:
            raise ValueError(f"there are two windows or more, got {limit!r}")
        self.width = width
        self._limit = limit
        self._counters: dict[int, dict[str, float]] = {}

    def __len__(self) -> int:
        return len(self._counters)

    def add(self, place: float, increments: Mapping[str, float]) -> None:
        """Add a row's counters to the window of its place, which is finite."""
        at = math.floor(place / self.width)
        held = self._counters.get(at)
        if held is None:
            held = self._counters[at] = {}
        add(held, increments)
        while len(self._counters) > self._limit:
            self._widen()

    def merge(self, other: Windows) -> None:
        """Add another replica's windows.

        Raises ValueError unless the ratio of the widths is a power of two.
        """
        ratio = math.log2(other.width / self.width)
        if not ratio.is_integer():
            raise ValueError(f"windows of {other.width!r} do not add up to ones of {self.width!r}")
        while self.width < other.width:
            self._widen()
        for span in other.spans():
            self.add(span.start, span.counters)

    def spans(self) -> list[Span]:
        """Return the windows that have rows, in order."""
        width = self.width
        return [
            Span(at * width, (at + 1) * width, counters)
            for at, counters in sorted(self._counters.items())
        ]

    def _widen(self) -> None:
        self.width *= 2
        old, self._counters = self._counters, {}
        for at, counters in old.items():
            add(self._counters.setdefault(at // 2, {}), counters)
