"""How much is learned again for each fresh row, and how much of it is recent.

The figures behind the defaults: three replayed rows for a fresh one were better than one on short
streams (Split-MNIST, 5,000 rows, memory 500: 86.4 against 84.3 % accuracy, 71 against 63 % in the
worst moment), and no better on long ones (60,000 rows, memory 500), where a small memory is learned
by heart.  What counts is the length of the stream in memories: 10 there, 120 here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from replay.errors import SettingInvalid

ROWS_MAX = 100
"""Most replayed rows for a fresh one: what a learner's step may cost is bounded."""

PASSES_MAX = 10
"""Most passes of a step."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The rule; pure, it keeps nothing.

    Attributes:
        rows_short, rows_long: Replayed rows for each fresh one, at the start and on long streams; ≥
            0.  More remembers better and costs one learning step each.
        passes_short, passes_long: How many times a step learns its fresh rows, each time with newly
            drawn ones; ≥ 1.
        short, long: Streams up to ``short`` memories get ``rows_short`` and ``passes_short``, from
            ``long`` memories on the other two; between them it goes over evenly in the logarithm of
            the length.  0 < short < long.
        recent, recent_alarm: Share of the replayed rows that is taken from the recent compartment,
            in [0, 1]: usually, and at a drift alarm.
        alarm_rows: Fresh rows after an alarm in which the share goes back, evenly; > 0.
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
        """Replayed rows for the ``n``-th fresh row, on average, with ``capacity`` items kept.

        >>> rule = Rehearsal()
        >>> [round(rule.rows(n, 500), 2) for n in (1, 5_000, 17_320, 60_000, 10**9)]
        [3.0, 3.0, 2.0, 1.0, 1.0]
        """
        return self.rows_short + self._way(n, capacity) * (self.rows_long - self.rows_short)

    def passes(self, n: int, capacity: int) -> float:
        """Passes of the step that learns the ``n``-th fresh row, on average.

        >>> [round(Rehearsal().passes(n, 500), 2) for n in (1, 5_000, 17_320, 60_000)]
        [2.0, 2.0, 1.5, 1.0]
        """
        return self.passes_short + self._way(n, capacity) * (self.passes_long - self.passes_short)

    def _way(self, n: int, capacity: int) -> float:
        """How far the stream is on the way from short to long, in [0, 1]."""
        memories = min(max(n / capacity, self.short), self.long)
        return math.log(memories / self.short) / math.log(self.long / self.short)

    def whole_rows(self, n: int, capacity: int, rng: Random) -> int:
        """:meth:`rows` as a number to draw, rounded up or down by chance: right on average."""
        return int(self.rows(n, capacity) + rng.random())

    def whole_passes(self, n: int, capacity: int, rng: Random) -> int:
        """:meth:`passes` rounded up or down by chance: right on average."""
        return int(self.passes(n, capacity) + rng.random())

    def recent_share(self, since_alarm: int | None) -> float:
        """Share of recent items, ``since_alarm`` ≥ 0 fresh rows after the last alarm (None: none).

        >>> [Rehearsal().recent_share(n) for n in (None, 0, 1_000, 2_000, 9_999)]
        [0.5, 0.8, 0.65, 0.5, 0.5]
        """
        left = 0.0 if since_alarm is None else max(0.0, 1 - since_alarm / self.alarm_rows)
        return left * self.recent_alarm + (1 - left) * self.recent
