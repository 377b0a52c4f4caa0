"""When is a window's error worth watching, and when worth acting on?

The limits come from the stream itself: the median error of the first half of its windows, and how
much these differ (median absolute deviation, which a bad start hardly moves).  A limit is the
larger of some deviations and some part of the error, so that neither noise nor a change too small
to matter is told.  Two windows in a row above a limit raise the level; two below the limit to
watch end it (hysteresis).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from evaluation.report.values import Limits, Scores, Window

WINDOWS_MIN: Final = 10
"""Fewer of them give no limits."""

WINDOW_N_MIN: Final = 30
"""Windows with fewer judged rows are taken together with the next one."""

POINTS: Final = 40
"""Windows are taken together until there are about so many: short ones are mostly noise."""

Level = Literal["ok", "watch", "act"]

_MAD_SD: Final = 1.4826  # of a normal distribution
_WATCH: Final = (2.0, 0.2, 0.04, 0.005)  # deviations, part of the error, at most, at least
_ACT: Final = (3.0, 0.5, 0.10, 0.01)


@dataclass(frozen=True, slots=True)
class Point:
    """A window's error: rows ``first_row … last_row``, ``n`` of them judged."""

    first_row: int
    last_row: int
    n: int
    error: float


def points(windows: Sequence[Window]) -> list[Point]:
    """Errors of consecutive windows, taken together until each is of enough judged rows."""
    enough = max(WINDOW_N_MIN, sum(w.scores.n for w in windows) // POINTS)
    out: list[Point] = []
    first, n, total = 0, 0, 0.0
    for window in windows:
        error = error_of(window.scores)
        if error is None:
            continue
        first = first or window.first_row
        n, total = n + window.scores.n, total + error * window.scores.n
        if n >= enough:
            out.append(Point(first, window.last_row, n, total / n))
            first, n, total = 0, 0, 0.0
    return out


def error_of(scores: Scores) -> float | None:
    """What rises when a model gets worse: 1 − accuracy, or the MAE; None if nothing is judged."""
    return scores.mae if scores.accuracy is None else 1.0 - scores.accuracy


def limits(points: Sequence[Point], *, share: bool) -> Limits | None:
    """Limits from the first half of the windows; None if there are fewer than ``WINDOWS_MIN``.

    ``share``: the error is a share of rows in [0, 1], not a mean absolute error.
    """
    if len(points) < WINDOWS_MIN:
        return None
    half = points[: len(points) // 2]
    error = median(p.error for p in half)
    deviation = _MAD_SD * median(abs(p.error - error) for p in half)
    if share:
        n = median(p.n for p in half)
        deviation = max(deviation, math.sqrt(error * (1 - error) / n))
    return Limits(
        first_row=half[0].first_row,
        last_row=half[-1].last_row,
        windows=len(half),
        error=error,
        deviation=deviation,
        watch=error + _reach(_WATCH, error, deviation, share=share),
        act=error + _reach(_ACT, error, deviation, share=share),
    )


def _reach(
    rule: tuple[float, float, float, float], error: float, deviation: float, *, share: bool
) -> float:
    deviations, part, most, least = rule
    if not share:
        return max(deviations * deviation, part * error)
    return max(deviations * deviation, min(part * error, most), least)


def level(points: Sequence[Point], limits: Limits) -> tuple[Level, Point | None]:
    """How the newest windows stand, and the window in which that began (None: ok)."""
    state: Level = "ok"
    run: list[Point] = []
    below = 0
    for point in points:
        if point.error <= limits.watch:
            below += 1
            if below > 1 or state == "ok":
                state, run = "ok", []
            continue
        below = 0
        run.append(point)
        if len(run) < 2:
            continue
        if all(p.error > limits.act for p in run[-2:]):
            state = "act"
        elif state == "ok":
            state = "watch"
    return state, run[0] if state != "ok" else None


def episodes(points: Sequence[Point], limits: Limits) -> list[tuple[Point, Point, float]]:
    """Runs of two windows or more above the limit to act: first, last, mean error; by time."""
    found: list[list[Point]] = [[]]
    for point in points:
        if point.error > limits.act:
            found[-1].append(point)
        elif found[-1]:
            found.append([])
    return [
        (run[0], run[-1], sum(p.error * p.n for p in run) / sum(p.n for p in run))
        for run in found
        if len(run) > 1
    ]
