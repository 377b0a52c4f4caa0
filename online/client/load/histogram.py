"""A histogram of durations in constant memory."""

from __future__ import annotations

import math
from collections import Counter


class Histogram:
    """Log-linear histogram of durations, as HdrHistogram: precise to 1/256 of a value or 1 µs."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()  # by the bucket's lower edge in µs
        self._max = 0
        self.count = 0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count a duration; a negative one counts as 0."""
        us = max(int(seconds * 1e6), 0)
        shift = max(us.bit_length() - 9, 0)
        self._counts[us >> shift << shift] += count
        self.count += count
        self._max = max(self._max, us)

    def merge(self, other: Histogram) -> None:
        """Add all durations of another histogram."""
        self._counts.update(other._counts)
        self.count += other.count
        self._max = max(self._max, other._max)

    def ms(self, share: float) -> float:
        """Percentile in ms (``share`` in [0, 1]), rounded up to its bucket's edge; 0 if empty."""
        rank, seen = math.ceil(share * self.count), 0
        for edge in sorted(self._counts):
            seen += self._counts[edge]
            if seen >= rank:
                width = 1 << max(edge.bit_length() - 9, 0)
                return min(edge + width - 1, self._max) / 1e3
        return self._max / 1e3

    def bars(self) -> tuple[tuple[float, int], ...]:
        """Pairs ``(upper edge in ms, count)`` by powers of two, in ascending order."""
        bars: Counter[int] = Counter()
        for edge, count in self._counts.items():
            bars[edge.bit_length()] += count
        if not bars:
            return ()
        return tuple((2**b / 1e3, bars[b]) for b in range(min(bars), max(bars) + 1))
