"""Honest numbers that are hard to bound: what bounds cost where nobody attacks.

Made streams of two plain numbers and three that are *log-normal*, *Pareto 1.5*, *zeros* (99 of
100), *counters*, or of a *unit* that is a hundred times smaller from the middle on.  Labels follow
all but the counters, with some noise.  And real streams in their order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.fixtures.several_replicas import Dealt
from evaluation.streams import open_stream
from online.settings.config import data_dir
from online.settings.model import ModelSettings
from replay import codec
from replay.example import Features, Label

ROWS: Final = 4_000
LEARNERS: Final[Mapping[str, Mapping[str, str]]] = {"logreg": {"scale": "plain"}, "linear": {}}
IN_ORDER: Final = {"elec2": ("binary", "logreg"), "insects": ("multiclass", "softmax")}
POINTS: Final = 0.2
"""Of accuracy below no bounds."""
RECOVERED: Final = 1_000
"""Rows from the middle on after which nothing is clipped any more."""

_SOURCES: Final = 20
_ROUNDING: Final = 1e-9

Drawn = Callable[[random.Random, int], tuple[float, float]]
"""The number, and what it says of the label."""
Row = tuple[Features, Label]


def _log_normal(draw: random.Random, n: int) -> tuple[float, float]:
    x = draw.lognormvariate(0.0, 1.0)
    return x, math.log(x)


def _pareto(draw: random.Random, n: int) -> tuple[float, float]:
    x = draw.paretovariate(1.5)
    return x, math.log(x) - 1.0 / 1.5


def _zeros(draw: random.Random, n: int) -> tuple[float, float]:
    return (draw.uniform(40.0, 60.0), 3.0) if draw.random() < 0.01 else (0.0, 0.0)


def _counter(draw: random.Random, n: int) -> tuple[float, float]:
    return 1e6 + n, 0.0


def _unit(draw: random.Random, n: int) -> tuple[float, float]:
    x = draw.gauss(0.0, 1.0)
    return x * (100.0 if 2 * n >= ROWS else 1.0), x


KINDS: Final[Mapping[str, Drawn]] = {
    "log-normal": _log_normal, "Pareto 1.5": _pareto, "zeros": _zeros, "counters": _counter,
    "unit": _unit,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hard:
    """One kind of numbers, or a stream in its order.

    ``below``: points of accuracy below no filters and bounds, in all answers; ``late``: in those
    from :data:`RECOVERED` rows behind the middle on.  ``clipped``: rows, ``last``: the last one.
    """

    what: str
    learner: str
    seed: int
    replicas: int
    unbounded: float
    accuracy: float
    below: float
    late: float
    clipped: int
    last: int
    good: bool


def made(kind: str, seed: int, rows: int = ROWS) -> list[Row]:
    """The rows of a stream."""
    draw, out = random.Random(seed), list[Row]()
    for n in range(rows):
        drawn = [KINDS[kind](draw, n) for _ in range(3)]
        a, b = draw.gauss(0.0, 1.0), draw.gauss(0.0, 1.0)
        signs = zip((1.0, -1.0, 0.5), drawn, strict=True)
        told = a - b + sum(sign * says for sign, (_, says) in signs) + draw.gauss(0.0, 0.5)
        numbers = {f"x{i}": x for i, (x, _) in enumerate(drawn)}
        out.append(({"a": a, "b": b, **numbers}, told > 0.0))
    return out


def played(
    rows: Sequence[Row], given: Mapping[str, object], replicas: int, seed: int
) -> tuple[list[bool], list[int]]:
    """Which answers were right, and which rows were clipped."""
    loop = Dealt(ModelSettings.model_validate({"name": "m", **given}), replicas)
    right, clipped, draw = list[bool](), list[int](), random.Random(seed)
    for n, (features, label) in enumerate(rows):
        replica = loop.replicas[(loop.n + 1) % replicas]
        right.append(replica.learner.predict(features).label == label)
        row = loop.step(f"s{draw.randrange(_SOURCES)}", features, label)
        if codec.decode(row.payload).raw is not None:
            clipped.append(n)
    return right, clipped


def run(
    seeds: Sequence[int] = (0, 1, 2), kinds: Sequence[str] = tuple(KINDS),
    learners: Sequence[str] = tuple(LEARNERS), replicas: Sequence[int] = (1, 2),
) -> Iterator[Hard]:  # fmt: skip
    """Each kind with each learner."""
    settled = ROWS // 2 + RECOVERED
    for kind in kinds:
        for learner in learners:
            given = {"task": "binary", "learner": learner, "params": dict(LEARNERS[learner])}
            for many in replicas:
                for seed in seeds:
                    rows = made(kind, seed)
                    bare, _ = played(rows, {**given, "filters": "none"}, many, seed)
                    found, clipped = played(rows, {**given, "filters": "default"}, many, seed)
                    below, late = _below(bare, found), _below(bare[settled:], found[settled:])
                    last = max(clipped, default=0)
                    moved = kind != "unit" or last < settled
                    yield Hard(
                        kind, learner, seed, many, _percent(bare), _percent(found), below, late,
                        len(clipped), last, below <= POINTS + _ROUNDING and moved,
                    )  # fmt: skip


def in_order(streams: Sequence[str] = tuple(IN_ORDER)) -> Iterator[Hard]:
    """Run whole streams in their order; no row should be clipped.  Raises StreamUnusable."""
    for name in streams:
        task, learner = IN_ORDER[name]
        rows = list(open_stream(name, data_dir()).rows)
        given = {"task": task, "learner": learner}
        bare, _ = played(rows, {**given, "filters": "none"}, 1, 0)
        found, clipped = played(rows, {**given, "filters": "default"}, 1, 0)
        half, last = len(rows) // 2, max(clipped, default=0)
        yield Hard(
            f"{name}, {len(rows):,} rows", learner, 0, 1, _percent(bare), _percent(found),
            _below(bare, found), _below(bare[half:], found[half:]), len(clipped), last, not clipped,
        )  # fmt: skip


def _percent(right: Sequence[bool]) -> float:
    return 100.0 * sum(right) / len(right)


def _below(bare: Sequence[bool], found: Sequence[bool]) -> float:
    return _percent(bare) - _percent(found)
