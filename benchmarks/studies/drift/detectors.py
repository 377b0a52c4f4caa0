"""Drift detectors where the change is known: error streams, injected drift, marked files.

Four tables, each with two controls (no alarm ever; an alarm every so many rows): without them a
high hit rate or a short delay means nothing.  Definitions are in
:mod:`benchmarks.studies.drift.scoring`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from benchmarks.studies.drift.scoring import Episode, score
from evaluation.drift.alarm import Change, Direction
from evaluation.drift.detectors import DETECTORS, Detector

Progress = Callable[[str], None]
Make = Callable[[], Detector]

IN_CONTROL: Final = 5_000
AFTER: Final = 3_000
WINDOW: Final = 2_000
"""Rows after a change (after its end, if it is gradual) in which an alarm is a hit."""
NULL_ROWS: Final = 100_000
PERIOD: Final = 48
MTFA_MIN: Final = 100_000


class Never:
    """A control: no alarm."""

    def update(self, x: float) -> Change | None:
        """Return no change, whatever ``x`` is."""
        return None


class Every:
    """A control: an alarm every so many rows, whatever they are."""

    def __init__(self, rows: int) -> None:
        self._rows, self._n = rows, 0

    def update(self, x: float) -> Change | None:
        """An alarm at each multiple."""
        self._n += 1
        return Change("up", 0.0, 1.0, 1, 1) if self._n % self._rows == 0 else None


CONTROLS: Final[Mapping[str, Make]] = {
    "never": Never,
    "every 500": lambda: Every(500),
    "every 50": lambda: Every(50),
}
ALL: Final[Mapping[str, Make]] = {**DETECTORS, **CONTROLS}


@dataclass(frozen=True, slots=True)
class Course:
    """How the error rate goes, and river ADWIN's published delay there (reference figures)."""

    name: str
    before: float
    after: float
    width: int
    asked: float | None


COURSES: Final = (
    Course(".20 to .35", 0.20, 0.35, 0, 213),
    Course(".20 to .30 in 1,000", 0.20, 0.30, 1_000, 1_076),
    Course(".05 to .15", 0.05, 0.15, 0, 204),
    Course(".20 to .10", 0.20, 0.10, 0, None),
)


@dataclass(frozen=True, slots=True)
class Line:
    """A detector on the error streams: mean delay and missed share on each course, and no change.

    ``improved_as_down`` is the share of first alarms at the falling rate that say so.
    ``mtfa`` is rows per false alarm in streams without a change, ``>`` if there was none;
    ``season`` the same with a rate that goes up and down by .05 every 48 rows.
    """

    what: str
    abrupt: str
    gradual: str
    low_rate: str
    improvement: str
    improved_as_down: float
    false_per_1k: float
    mtfa: str
    season: str
    update_us: float
    good: bool


def stream(course: Course, seed: int) -> Iterator[float]:
    """Errors: ``IN_CONTROL`` rows, then the change and ``AFTER`` rows (more if it is gradual)."""
    draw = Random(seed).random
    for row in range(1, IN_CONTROL + course.width + AFTER + 1):
        gone = row - IN_CONTROL
        if gone <= 0:
            p = course.before
        else:
            part = min(gone / course.width, 1.0) if course.width else 1.0
            p = course.before + part * (course.after - course.before)
        yield float(draw() < p)


def null(seed: int, *, rate: float = 0.2, swing: float = 0.0, rows: int = NULL_ROWS) -> list[float]:
    """Errors without a change; ``swing`` moves the rate up and down every ``PERIOD`` rows."""
    draw = Random(seed).random
    rates = [rate + swing * math.sin(2.0 * math.pi * i / PERIOD) for i in range(PERIOD)]
    return [float(draw() < rates[i % PERIOD]) for i in range(rows)]


def alarms(detector: Detector, values: Sequence[float]) -> list[tuple[int, Direction]]:
    """Rows, from 1, and directions of the alarms."""
    found = []
    for row, x in enumerate(values, 1):
        change = detector.update(x)
        if change is not None:
            found.append((row, change.direction))
    return found


def bernoulli(
    *,
    seeds: Sequence[int] = range(100),
    null_seeds: Sequence[int] = range(10),
    null_rows: int = NULL_ROWS,
    makes: Mapping[str, Make] = ALL,
    progress: Progress = lambda line: None,
) -> list[Line]:
    """The error streams.  The time of an update is taken where nothing changes."""
    streams = {c.name: [list(stream(c, seed)) for seed in seeds] for c in COURSES}
    still = [null(seed, rows=null_rows) for seed in null_seeds]
    seasonal = [null(seed, swing=0.05, rows=null_rows) for seed in null_seeds]
    found = []
    for name, make in makes.items():
        progress(f"error streams: {name}")
        found.append(_line(name, make, streams, still, seasonal))
    return found


def _line(
    name: str,
    make: Make,
    streams: Mapping[str, list[list[float]]],
    still: list[list[float]],
    seasonal: list[list[float]],
) -> Line:
    shown: list[str] = []
    good, downs, improved = True, 0, 0
    for course in COURSES:
        episodes = []
        for values in streams[course.name]:
            rows = alarms(make(), values)
            last = IN_CONTROL + course.width + WINDOW
            episodes.append(Episode(len(values), [r for r, _ in rows], IN_CONTROL + 1, last))
            hits = [way for row, way in rows if IN_CONTROL < row <= last]
            if course.after < course.before and hits:
                improved += 1
                downs += hits[0] == "down"
        scored = score(episodes)
        shown.append(_delay(scored.mtd, scored.mdr))
        if course.asked is not None:
            good = good and scored.mdr == 0.0 and (scored.mtd or 0.0) <= course.asked
    begun = time.process_time()
    false = score([Episode(len(v), [r for r, _ in alarms(make(), v)]) for v in still])
    seconds = time.process_time() - begun
    season = score([Episode(len(v), [r for r, _ in alarms(make(), v)]) for v in seasonal])
    rare = false.mtfa is None or false.mtfa > MTFA_MIN
    abrupt, gradual, low_rate, improvement = shown
    return Line(
        what=name,
        abrupt=abrupt,
        gradual=gradual,
        low_rate=low_rate,
        improvement=improvement,
        improved_as_down=downs / improved if improved else 0.0,
        false_per_1k=false.false_per_1k,
        mtfa=_rate(false.mtfa, false.in_control),
        season=_rate(season.mtfa, season.in_control),
        update_us=1e6 * seconds / sum(map(len, still)),
        good=good and rare,
    )


def _delay(mtd: float | None, mdr: float | None) -> str:
    return f"{'-' if mtd is None else f'{mtd:,.0f}'} / {mdr or 0.0:.2f}"


def _rate(mtfa: float | None, rows: int) -> str:
    return f"> {rows:,}" if mtfa is None else f"{mtfa:,.0f}"
