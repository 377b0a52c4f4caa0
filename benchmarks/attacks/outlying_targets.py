"""One event with a target that is far off, in regression: what it costs the answers behind it.

Twelve sources send the rows of a stream in order, from another place with each seed, and a stranger
some events, each with the features of an earlier row: one label of a million or -1e100, five of a
million, or (*known*) one just within what is believed.  *Error* is the mean absolute one of the
answers to the five hundred rows behind the first of them, asked one by one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from benchmarks.fixtures import datasets
from benchmarks.fixtures.several_replicas import Dealt
from online.learning.ranges import REACH
from online.models.loading.from_settings import load_model
from online.settings.config import Settings, data_dir
from online.settings.model import ModelSettings
from replay.example import Features

KINDS: Final = ("1e6", "-1e100", "five", "known")
FILTERS: Final = ("none", "default")
MODELS: Final[Mapping[str, Mapping[str, Any]]] = {
    "ratings, fm": {"learner": "fm", "params": {"table": True}},
    "ratings, entity": {"learner": "linear", "entity": ["user", "film"]},
    "price, linear": {"learner": "linear"},
    "price, linreg": {"learner": "linreg"},
    "demand, linear": {"learner": "linear"},
}
RATIO_MAX: Final = 1.1
"""Of the error behind one event of a million, or of -1e100, to that without it."""

_BEFORE: Final = 1_000
_SPAN: Final = 500
_PLACES: Final = 4_000  # rows from the place of one seed to that of the next
_SOURCES: Final = 12

Row = tuple[Features, float]


@dataclass(frozen=True, slots=True)
class Costly:
    """Errors without filters and with the default ones, off and under attack."""

    stream: str
    kind: str
    seed: int
    replicas: int
    off_none: float
    none: str
    off: float
    default: float
    ratio: float
    good: bool


def rows_of(stream: str, seed: int, count: int = _BEFORE + _SPAN) -> list[Row]:
    """So many rows in order, from another place with each seed.  Raises StreamUnusable."""
    begin = seed * _PLACES
    if stream.startswith("ratings"):
        some = datasets.ratings(data_dir())[begin : begin + count]
        return [({"user": one.user, "film": one.film}, one.stars) for one in some]
    column = "nswprice" if stream.startswith("price") else "nswdemand"
    rows = datasets.elec2_column(data_dir(), column)
    return [(x, float(y)) for x, y in islice(rows, begin, begin + count)]


def run(
    seeds: Sequence[int] = (0, 1, 2),
    models: Sequence[str] = tuple(MODELS)[:4],
    replicas: Sequence[int] = (1, 2),
    kinds: Sequence[str] = KINDS,
) -> Iterator[Costly]:
    """Each attack on each model, in this process."""
    for stream in models:
        for seed in seeds:
            rows = rows_of(stream, seed)
            for many in replicas:
                off = {f: error(stream, rows, f, many, seed, []) for f in FILTERS}
                for kind in kinds:
                    sent = _labels(kind, [y for _, y in rows[:_BEFORE]])
                    found = {f: error(stream, rows, f, many, seed, sent) for f in FILTERS}
                    ratio = found["default"] / off["default"]
                    good = ratio <= RATIO_MAX or kind not in KINDS[:2]
                    yield Costly(
                        stream, kind, seed, many, off["none"], f"{found['none']:.3g}",
                        off["default"], found["default"], ratio, good,
                    )  # fmt: skip


def _labels(kind: str, before: Sequence[float]) -> list[float]:
    if kind == "known":
        return [max(before) + 0.99 * REACH * (max(before) - min(before))]
    return [1e6] * 5 if kind == "five" else [float(kind)]


def error(
    stream: str, rows: Sequence[Row], filters: str, replicas: int, seed: int,
    labels: Sequence[float],
) -> float:  # fmt: skip
    """Mean absolute error of the answers behind the labels of a stranger."""
    told = {"name": "m", "task": "regression", "filters": filters, **MODELS[stream]}
    settings = ModelSettings.model_validate(told)
    whole, draw, off = Settings(models=(settings,)), random.Random(seed), 0.0
    loop = Dealt(settings, replicas, build=lambda: load_model(settings, whole, bytes(32)).model)
    for n, (features, label) in enumerate(rows):
        if n == _BEFORE:
            for one in labels:
                loop.step("stranger", rows[draw.randrange(_BEFORE)][0], one)
        if n >= _BEFORE:
            answer = loop.replicas[0].learner.predict(features).label
            off += abs(float(answer or 0.0) - label)
        loop.step(f"s{draw.randrange(_SOURCES)}", features, label)
    return off / (len(rows) - _BEFORE)
