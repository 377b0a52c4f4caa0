"""Control limits for the error of a window: when to watch, and when to act.

Rows are grouped in the order in which they come, into windows of about a fortieth of the rows so
far.  The normal error is learned from windows that were normal when they came: their median error,
and its deviation (median absolute deviation, but at least that expected by chance).  A limit lies
above the normal error by the larger of some deviations and some fraction of the error, so that
neither noise nor an unimportant change exceeds it.

A degraded model cannot raise a limit: its windows are not normal, and the normal error is the best
one since a quarter of the normal rows had come.  So a model that degrades gradually is compared
with its best period.  A limit is also never above the error of the better of two baselines.

Two consecutive windows above a limit raise the level.  Two windows below half of the distance from
the normal error to the watch limit end it.  A raised level does not become normal by lasting long.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from evaluation.report.values import Limits, Scores

WINDOWS_MIN: Final = 10
"""Least number of windows for limits."""

WINDOW_N_MIN: Final = 30
"""Initial number of scored rows in a window."""

POINTS: Final = 40
"""The size of windows doubles so that there are between this many and twice as many."""

SETTLED: Final = 20
"""Number of normal windows from which on the best period is kept."""

LASTS: Final = 4
"""A best period expires when there are this many times as many normal rows as at its time."""

Level = Literal["ok", "watch", "act"]

_MAD_SD: Final = 1.4826  # standard deviation / MAD of a normal distribution
_WATCH: Final = (2.75, 0.2, 0.03, 0.005)  # deviations, fraction of the error, at most, at least
_ACT: Final = (3.5, 0.5, 0.05, 0.01)
_UPPER: Final = 2.5  # deviations / √n: 2 standard errors of a median (1.25 / √n), about 97 %
_ENDS: Final = 0.5  # fraction of the distance from the normal error to the watch limit


@dataclass(frozen=True, slots=True)
class Point:
    """The mean error of a window: rows ``first_row … last_row``, ``n`` of them scored.

    ``squares`` is the sum of the rows' squared errors.
    """

    first_row: int
    last_row: int
    n: int
    error: float
    squares: float = math.nan

    def with_next(self, other: Point) -> Point:
        """Return this window merged with the next one."""
        n = self.n + other.n
        error = (self.error * self.n + other.error * other.n) / n
        return Point(self.first_row, other.last_row, n, error, self.squares + other.squares)


@dataclass(frozen=True, slots=True)
class _Normal:
    """The normal error at the time when ``rows`` normal rows had come.

    ``beyond`` is the variance of a window's mean beyond chance, ``variance`` that of a row.
    """

    rows: int
    error: float
    beyond: float
    variance: float


@dataclass(frozen=True, slots=True)
class Episode:
    """A past run of windows above the act limit."""

    first_row: int
    last_row: int
    error: float


def error_of(scores: Scores) -> float | None:
    """Return the error: 1 − accuracy, or the MAE in regression; None without scored rows."""
    return scores.mae if scores.accuracy is None else 1.0 - scores.accuracy


class ControlChart:
    """A control chart of the error: limits, the present level, and since when it holds.

    Parameters:
        share: Whether the error is a share of rows in [0, 1], not an absolute error.

    Attributes:
        level: The level of the newest complete windows.
        limits: The limits; None before ``WINDOWS_MIN`` windows.
        over: The newest past period with the level ``act``, or None.
    """

    def __init__(self, *, share: bool) -> None:
        self._share = share
        self.judged = 0
        self._size = WINDOW_N_MIN
        self._first_row = self._n = 0  # of the open window
        self._sum = self._squares = 0.0
        self._rules: list[float] = []  # errors of each baseline so far
        self._normal: list[Point] = []
        self._best: deque[_Normal] = deque()  # the best first; later ones are newer and worse
        self._late: list[Point] = []  # windows since the first one above the watch limit
        self._below: list[Point] = []  # the newest windows below it, after a rise
        self.level: Level = "ok"
        self.limits: Limits | None = None
        self.over: Episode | None = None

    def add(self, row: int, error: float, rules: Sequence[float] = ()) -> None:
        """Add the error of one scored row, and those of the baselines in ``rules``."""
        if not self._n:
            self._first_row = row
        self.judged += 1
        self._n += 1
        self._sum += error
        self._squares += error * error
        self._rules = [a + b for a, b in zip(self._rules or [0.0] * len(rules), rules, strict=True)]
        if self._n < self._size:
            return
        mean = self._sum / self._n
        self._close(Point(self._first_row, row, self._n, mean, self._squares))
        self._n, self._sum, self._squares = 0, 0.0, 0.0
        while self.judged >= 2 * self._size * POINTS:
            self._size *= 2
            self._normal = _paired(self._normal)
            self._limit()

    @property
    def since(self) -> Point | None:
        """The first window of the raised level; None if the level is ok."""
        return self._late[0] if self.level != "ok" else None

    @property
    def error_since(self) -> float | None:
        """The mean error since then; None if the level is ok."""
        return _mean([*self._late, *self._below]) if self.level != "ok" else None

    @property
    def missing(self) -> int:
        """The number of scored rows that are still needed for limits."""
        return max(WINDOWS_MIN * WINDOW_N_MIN - self.judged, 1)

    def _close(self, point: Point) -> None:
        limits = self.limits
        if limits is None:
            self._normal.append(point)
            self._learn()
            return
        ends = limits.watch
        if self.level != "ok":
            ends = min(limits.error + _ENDS * (limits.watch - limits.error), limits.watch)
        if point.error <= ends:
            self._is_below(point)
        else:
            self._is_above(point, limits)

    def _is_below(self, point: Point) -> None:
        self._below.append(point)
        if self.level != "ok" and len(self._below) < 2:
            return
        if self.level == "act":
            self.over = Episode(self._late[0].first_row, self._late[-1].last_row, _mean(self._late))
        single = self._late if self.level == "ok" else []  # a single bad window counts as normal
        self._normal += [*single, *self._below]
        self.level, self._late, self._below = "ok", [], []
        self._learn()

    def _is_above(self, point: Point, limits: Limits) -> None:
        in_a_row = bool(self._late) and not self._below
        self._late += [*self._below, point]
        self._below = []
        if not in_a_row:
            return
        if all(p.error > limits.act for p in self._late[-2:]):
            self.level = "act"
        elif self.level == "ok":
            self.level = "watch"
        if len(self._late) > 2 * POINTS:  # merge all but the first and the last to save memory
            self._late = [self._late[0], *_paired(self._late[1:-1]), self._late[-1]]

    def _learn(self) -> None:
        """Update the normal error from the normal windows, and the limits."""
        normal = self._normal
        if len(normal) < WINDOWS_MIN:
            return
        error = median(p.error for p in normal)
        spread = (_MAD_SD * median(abs(p.error - error) for p in normal)) ** 2
        variance = self._variance()
        by_chance = variance / self._size
        deviation = math.sqrt(max(spread, by_chance))
        error += _UPPER * deviation / math.sqrt(len(normal))
        rows, best = sum(p.n for p in normal), self._best
        if len(normal) < SETTLED:
            best.clear()
        while best and (best[-1].error >= error or best[-1].rows > rows):
            best.pop()
        best.append(_Normal(rows, error, max(spread - by_chance, 0.0), variance))
        while best[0].rows * LASTS < rows:
            best.popleft()
        self._limit()

    def _limit(self) -> None:
        """Compute the limits for the present window size from the best period so far."""
        if not self._best:
            return
        best = self._best[0]
        error, deviation = best.error, math.sqrt(best.beyond + best.variance / self._size)
        watch, act = (error + self._reach(rule, error, deviation) for rule in (_WATCH, _ACT))
        if self._rules:
            rule = min(self._rules) / self.judged
            chance = math.sqrt(rule * (1.0 - rule) / self._size) if self._share else 0.0
            watch = min(watch, rule + _WATCH[0] * chance)
            act = min(act, rule + _ACT[0] * chance)
        self.limits = Limits(
            first_row=self._normal[0].first_row,
            last_row=self._normal[-1].last_row,
            windows=len(self._normal),
            error=error,
            deviation=deviation,
            watch=min(watch, act),
            act=act,
        )

    def _variance(self) -> float:
        """Return the variance of the rows' errors within normal windows."""
        n = sum(p.n for p in self._normal)
        mean = _mean(self._normal)
        # No error in a few hundred rows does not mean an error rate of 0: add one error.
        more = 1.0 if self._share else 0.0
        variance = (sum(p.squares for p in self._normal) + more) / (n + more) - mean * mean
        return variance if 0.0 < variance < math.inf else 0.0

    def _reach(
        self, rule: tuple[float, float, float, float], error: float, deviation: float
    ) -> float:
        deviations, part, most, least = rule
        if not self._share:
            return max(deviations * deviation, part * error)
        return max(deviations * deviation, min(part * error, most), least)


def _mean(points: Sequence[Point]) -> float:
    return sum(p.error * p.n for p in points) / sum(p.n for p in points)


def _paired(points: Sequence[Point]) -> list[Point]:
    """Merge pairs of neighbours; with an odd number the first one stays alone."""
    odd = len(points) % 2
    pairs = zip(points[odd::2], points[odd + 1 :: 2], strict=True)
    return [*points[:odd], *(a.with_next(b) for a, b in pairs)]
