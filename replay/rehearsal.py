"""The rule for how many stored rows are replayed with each fresh row, and how many of them recent.

Reasons for the defaults: three replayed rows per fresh one were better than one on short streams
(Split-MNIST, 5,000 rows, 500 items: 86.4 against 84.3 % accuracy, 71 against 63 % at the worst
point), and not better on long ones (60,000 rows, 500 items), where the model overfits a small
buffer.  The ratio of stream length to buffer capacity decides: 10 in the former, 120 in the latter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from replay.errors import SettingInvalid

ROWS_MAX = 100
"""Greatest number of replayed rows per fresh one, to bound the cost of a learning step."""

PASSES_MAX = 10
"""Greatest number of passes of a learning step."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The rule, a stateless value.

    Attributes:
        rows_short, rows_long: Replayed rows per fresh one, on short and on long streams; ≥ 0.  More
            rows reduce forgetting and cost one learning step each.
        passes_short, passes_long: Number of times a step learns its fresh rows, each time with
            newly drawn replayed rows, on short and on long streams; ≥ 1.
        short, long: A stream is short up to ``short`` times the buffer's capacity, and long from
            ``long`` times on; in between the values are interpolated linearly in the logarithm of
            the length.  0 < short < long.
        recent, recent_alarm: Share of the replayed rows taken from the recent compartment, in
            [0, 1]: normally, and at a drift alarm.
        alarm_rows: Number of fresh rows after an alarm in which the share returns linearly; > 0.
    """

    rows_short: float = 3.0
    rows_long: float = 1.0
    passes_short: float = 2.0
    passes_long: float = 1.0
    short: float = 10.0
    long: float = 120.0
    recent: float = 0.5
    recent_alarm: float = 0.8
    alarm_rows: int = 2_000

    def __post_init__(self) -> None:
        for name, value in (("rows_short", self.rows_short), ("rows_long", self.rows_long)):
            if not 0 <= value <= ROWS_MAX:
                raise SettingInvalid(name, repr(value), f"give 0 to {ROWS_MAX} rows")
        for name, value in (("passes_short", self.passes_short), ("passes_long", self.passes_long)):
            if not 1 <= value <= PASSES_MAX:
                raise SettingInvalid(name, repr(value), f"give 1 to {PASSES_MAX} passes")
        if not 0 < self.short < self.long < math.inf:
            both = f"{self.short!r}, {self.long!r}"
            raise SettingInvalid("short, long", both, "give 0 < short < long")
        for name, value in (("recent", self.recent), ("recent_alarm", self.recent_alarm)):
            if not 0 <= value <= 1:
                raise SettingInvalid(name, repr(value), "give a share from 0 to 1")
        if self.alarm_rows < 1:
            raise SettingInvalid("alarm_rows", str(self.alarm_rows), "give 1 row or more")

    def rows(self, n: int, capacity: int) -> float:
        """Return the mean number of replayed rows for the ``n``-th fresh row.

        >>> rule = Rehearsal()
        >>> [round(rule.rows(n, 500), 2) for n in (1, 5_000, 17_320, 60_000, 10**9)]
        [3.0, 3.0, 2.0, 1.0, 1.0]
        """
        return self.rows_short + self._way(n, capacity) * (self.rows_long - self.rows_short)

    def passes(self, n: int, capacity: int) -> float:
        """Return the mean number of passes for the ``n``-th fresh row.

        >>> [round(Rehearsal().passes(n, 500), 2) for n in (1, 5_000, 17_320, 60_000)]
        [2.0, 2.0, 1.5, 1.0]
        """
        return self.passes_short + self._way(n, capacity) * (self.passes_long - self.passes_short)

    def _way(self, n: int, capacity: int) -> float:
        """Return the interpolation weight of the long-stream values, in [0, 1]."""
        memories = min(max(n / capacity, self.short), self.long)
        return math.log(memories / self.short) / math.log(self.long / self.short)

    def whole_rows(self, n: int, capacity: int, rng: Random) -> int:
        """Return :meth:`rows` rounded up or down at random, so that the mean is exact."""
        return int(self.rows(n, capacity) + rng.random())

    def whole_passes(self, n: int, capacity: int, rng: Random) -> int:
        """Return :meth:`passes` rounded up or down at random, so that the mean is exact."""
        return int(self.passes(n, capacity) + rng.random())

    def recent_share(self, since_alarm: int | None) -> float:
        """Return the share of recent items, given the fresh rows since the last alarm, or None.

        >>> [Rehearsal().recent_share(n) for n in (None, 0, 1_000, 2_000, 9_999)]
        [0.5, 0.8, 0.65, 0.5, 0.5]
        """
        left = 0.0 if since_alarm is None else max(0.0, 1 - since_alarm / self.alarm_rows)
        return left * self.recent_alarm + (1 - left) * self.recent
