"""When is a window's error worth watching, and when worth acting on?

The rows are judged in the order in which they come, in windows of about a fortieth of what has come
so far.  What is normal is learned from the windows that were normal when they came: their median
error, and how much they differ (median absolute deviation, at least what chance makes of so many
rows).  A limit is the larger of some deviations and some part of the error, so that neither noise
nor a change too small to matter is told.

A broken model can't move a limit: its windows are no normal ones, and what is normal is the best of
what it was since a quarter of the normal rows had come, so one that gets worse bit by bit is
measured against its best time.  Nor can a limit be above what the better of two rules without a
model gets wrong.

Two windows in a row above a limit raise the level; two that are no further from normal than half of
the way to the limit to watch end it.  What was raised stays so however much more of the same comes.
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
"""Fewer of them give no limits."""

WINDOW_N_MIN: Final = 30
"""Judged rows of a window at first."""

POINTS: Final = 40
"""Windows double in size with the stream, so that it has from so many to twice as many."""

SETTLED: Final = 20
"""Normal windows before the best time counts: a few are no measure of one."""

LASTS: Final = 4
"""A best time is one until so many times as many normal rows have come as it was the best of."""

Level = Literal["ok", "watch", "act"]

_MAD_SD: Final = 1.4826  # of a normal distribution
_WATCH: Final = (2.75, 0.2, 0.03, 0.005)  # deviations, part of the error, at most, at least
_ACT: Final = (3.5, 0.5, 0.05, 0.01)
_UPPER: Final = 2.5  # standard errors of a median (1.25 deviations / root of n): about 97 %
_ENDS: Final = 0.5  # of the way from what is normal to the limit to watch


@dataclass(frozen=True, slots=True)
class Point:
    """A window's error: rows ``first_row … last_row``, ``n`` of them judged.

    ``squares`` is the sum of the rows' squared errors.
    """

    first_row: int
    last_row: int
    n: int
    error: float
    squares: float = math.nan

    def with_next(self, other: Point) -> Point:
        """Both as one window."""
        n = self.n + other.n
        error = (self.error * self.n + other.error * other.n) / n
        return Point(self.first_row, other.last_row, n, error, self.squares + other.squares)


@dataclass(frozen=True, slots=True)
class _Normal:
    """The values that were normal when so many normal rows had come.

    Variance of a window's mean ``beyond`` chance, and of a row.
    """

    rows: int
    error: float
    beyond: float
    variance: float


@dataclass(frozen=True, slots=True)
class Episode:
    """A run of windows above the limit to act, which is over."""

    first_row: int
    last_row: int
    error: float


def error_of(scores: Scores) -> float | None:
    """Return what rises when a model gets worse: 1 − accuracy, or the MAE.

    It is None if nothing is judged.
    """
    return scores.mae if scores.accuracy is None else 1.0 - scores.accuracy


class Course:
    """The error of a stream as it comes: limits, level, and since when.

    Parameters:
        share: The error is a share of rows in [0, 1], not an absolute error.

    Attributes:
        level: How the newest whole windows stand.
        limits: None before ``WINDOWS_MIN`` windows.
        over: The newest time in which it was to be acted on, if that is over.
    """

    def __init__(self, *, share: bool) -> None:
        self._share = share
        self.judged = 0
        self._size = WINDOW_N_MIN
        self._first_row = self._n = 0  # of the open window
        self._sum = self._squares = 0.0
        self._rules: list[float] = []  # rows that each rule without a model got wrong
        self._normal: list[Point] = []
        self._best: deque[_Normal] = deque()  # the best first, each after it newer and worse
        self._late: list[Point] = []  # since the first one above the limit to watch
        self._below: list[Point] = []  # the newest ones, after a rise
        self.level: Level = "ok"
        self.limits: Limits | None = None
        self.over: Episode | None = None

    def add(self, row: int, error: float, rules: Sequence[float] = ()) -> None:
        """Take one judged row, by its number; ``rules``: the same of rules without a model."""
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
        """First window of what raised the level; None: ok."""
        return self._late[0] if self.level != "ok" else None

    @property
    def error_since(self) -> float | None:
        """Mean error from there on; None: ok."""
        return _mean([*self._late, *self._below]) if self.level != "ok" else None

    @property
    def missing(self) -> int:
        """Judged rows that are still needed for limits."""
        return max(WINDOWS_MIN * WINDOW_N_MIN - self.judged, 1)

    # -- inside ----------------------------------------------------------------------------------

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
        single = self._late if self.level == "ok" else []  # one bad window is noise: it is normal
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
        if len(self._late) > 2 * POINTS:  # only the first and the last are asked for
            self._late = [self._late[0], *_paired(self._late[1:-1]), self._late[-1]]

    def _learn(self) -> None:
        """Learn what is normal from what was normal so far, and the limits that follow."""
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
        """Limits of windows as long as they are now, from the best time so far."""
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
        # None wrong in a few hundred does not mean none ever: one more than there were.
        more = 1.0 if self._share else 0.0
        found = (sum(p.squares for p in self._normal) + more) / (n + more) - mean * mean
        return found if 0.0 < found < math.inf else 0.0

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
    """Neighbours as one; an odd one at the beginning stays by itself."""
    odd = len(points) % 2
    pairs = zip(points[odd::2], points[odd + 1 :: 2], strict=True)
    return [*points[:odd], *(a.with_next(b) for a, b in pairs)]
