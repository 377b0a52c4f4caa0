"""Is the confidence sequence right at every look, and how soon does it decide?

Pairs of equal models, looked at at each row by three rules: the sequence of
:mod:`evaluation.comparison`, the interval of a fixed number of rows (mean ± 1.96 standard errors,
what most tools show), and the latter with 99 % of confidence.  Then pairs whose difference drifts:
does the interval cover the running mean of the true difference at *all* rows?
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from evaluation.comparison import Comparison
from evaluation.summary import ROWS_MIN

PAIRS: Final = 200
ROWS: Final = 5_000
ALPHA: Final = 0.05
FALSE_MAX: Final = 10
"""Of 200 pairs: what a probability of 5 % allows on the average."""

Progress = Callable[[str], None]
Chances = Callable[[int], tuple[float, float]]
"""At row i: the probability that A and that B is right."""


@dataclass(frozen=True, slots=True)
class Line:
    """A rule on one kind of pairs.

    Attributes:
        wrong: Pairs of which the interval missed the truth at one row or more.
        decided: Pairs of which it excluded 0 at one row or more; ``median_row``: the first such
            row.
        width: Of the interval after the last row, mean over the pairs.
    """

    what: str
    rule: str
    pairs: int
    rows: int
    wrong: int
    covered: float
    decided: int
    median_row: int | None
    width: float
    asked: str
    good: bool | None


class Naive:
    """Mean ± z standard errors, as if rows had been counted beforehand."""

    def __init__(self, z: float) -> None:
        self._z = z
        self._n, self._mean, self._squares = 0, 0.0, 0.0

    def add(self, a: float, b: float) -> None:
        """The scores of a row."""
        d = a - b
        self._n += 1
        gap = d - self._mean
        self._mean += gap / self._n
        self._squares += gap * (d - self._mean)

    def interval(self) -> tuple[float, float]:
        """From and to; everything before enough rows have come."""
        if self._n < ROWS_MIN:
            return -math.inf, math.inf
        reach = self._z * math.sqrt(self._squares / (self._n - 1) / self._n)
        return self._mean - reach, self._mean + reach


class Sequence(Comparison):
    """The confidence sequence, with the same verbs."""

    def interval(self) -> tuple[float, float]:
        """Return where the interval begins and where it ends."""
        found = self.now().interval
        return (-math.inf, math.inf) if found is None else (found.low, found.high)


RULES: Final[dict[str, Callable[[], Any]]] = {
    "confidence sequence": lambda: Sequence(ALPHA),
    "naive 95 %": lambda: Naive(1.959964),
    "naive 99 %": lambda: Naive(2.575829),
}


def equal(row: int) -> tuple[float, float]:
    """Two models, right in 85 % of rows."""
    return 0.85, 0.85


def better(row: int) -> tuple[float, float]:
    """A is 5 points better."""
    return 0.85, 0.80


def drifting(row: int) -> tuple[float, float]:
    """A is better at first, B later, then A again; both have a season."""
    season = 0.05 * math.sin(row / 50.0)
    return 0.8 + season + 0.1 * math.cos(row * math.pi / 2_000.0), 0.8 - season


KINDS: Final[tuple[tuple[str, Chances], ...]] = (
    ("equal", equal),
    ("A 5 points better", better),
    ("drifting", drifting),
)


def run(
    *, pairs: int = PAIRS, rows: int = ROWS, seed: int = 1, progress: Progress | None = None
) -> list[Line]:
    """All rules on all kinds of pairs, each rule on the same rows."""
    out = []
    for kind, (name, chances) in enumerate(KINDS):
        if progress:
            progress(f"{pairs} pairs, {name}")
        found: dict[str, list[_Watched]] = {rule: [] for rule in RULES}
        for pair in range(pairs):
            drawn = list(_draw(chances, rows, random.Random(f"{seed} {kind} {pair}")))
            for rule, make in RULES.items():
                found[rule].append(_watch(make(), drawn))
        out += [_line(name, rule, rows, watched) for rule, watched in found.items()]
    return out


def _draw(chances: Chances, rows: int, rng: random.Random) -> Iterator[tuple[float, float, float]]:
    """Scores of A and B, and the true mean difference up to the row."""
    total = 0.0
    for i in range(rows):
        p, q = chances(i)
        total += p - q
        yield float(rng.random() < p), float(rng.random() < q), total / (i + 1)


@dataclass(frozen=True, slots=True)
class _Watched:
    missed: bool
    decided: int | None
    width: float


def _watch(rule: Any, drawn: list[tuple[float, float, float]]) -> _Watched:
    missed, decided, low, high = False, None, -1.0, 1.0
    for i, (a, b, truth) in enumerate(drawn):
        rule.add(a, b)
        low, high = rule.interval()
        missed = missed or not low <= truth <= high
        if decided is None and not low <= 0.0 <= high:
            decided = i + 1
    return _Watched(missed, decided, high - low)


def _line(name: str, rule: str, rows: int, watched: list[_Watched]) -> Line:
    pairs = len(watched)
    wrong = sum(w.missed for w in watched)
    first = sorted(w.decided for w in watched if w.decided is not None)
    asked, good = "", None
    if rule in RULES and rule.startswith("confidence"):
        most = FALSE_MAX * pairs // PAIRS
        asked, good = f"<= {most} wrong", wrong <= most
    return Line(
        name, rule, pairs, rows, wrong, 1 - wrong / pairs, len(first),
        first[len(first) // 2] if first else None,
        sum(w.width for w in watched) / pairs, asked, good,
    )  # fmt: skip
