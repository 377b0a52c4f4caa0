"""This benchmark measures what judging adds to the time of feedback.

Feedback goes to two models of one service, in turns, one of them not watched.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from dataclasses import dataclass

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import service
from evaluation.streams import open_stream
from replay.example import Features, Label

COST_MAX = 1.15
"""Times that feedback may take with it."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Median time of a feedback, in ms: medians of the turns, and of the turns' ratios."""

    what: str
    rows: int
    watched_ms: float
    without_ms: float
    ratio: float
    least: float
    most: float
    asked: str
    good: bool


def run(turns: int = 7, rows: int = 1_000) -> Judged:
    """Phishing, predicted and then taught, one row after the other, ``turns`` of each model."""
    stream = list(open_stream("phishing").rows)
    model = {"task": "binary", "learner": "logreg"}
    models = [{**model, "name": "watched", "drift": {"reference_rows": 500, "window_rows": 500}},
              {**model, "name": "without", "drift": {"watch": False}}]  # fmt: skip
    found: list[tuple[float, float]] = []
    with service({"replicas": 1, "models": models}) as running:
        data = itertools.cycle(stream)
        for turn in range(turns + 1):
            pair = [_turn(running.url, name, list(itertools.islice(data, rows)))
                    for name in ("watched", "without")]  # fmt: skip
            if turn:  # the first one warms up, and fills the reference
                found.append((pair[0], pair[1]))
    ratios = [a / b for a, b in found]
    ratio = statistics.median(ratios)
    return Judged(
        "feedback, logistic regression, 9 features", rows * turns,
        statistics.median(a for a, _ in found), statistics.median(b for _, b in found),
        ratio, min(ratios), max(ratios), f"ratio <= {COST_MAX}", ratio <= COST_MAX,
    )  # fmt: skip


def _turn(url: str, name: str, rows: list[tuple[Features, Label]]) -> float:
    took = []
    path = f"/v1/models/{name}"
    with contextlib.closing(Connection(url)) as client:
        for features, label in rows:
            _, answer = client.post(f"{path}/predict", {"features": features})
            begun = time.perf_counter()
            code, receipt = client.post(f"{path}/feedback", {"id": answer["id"], "label": label})
            took.append((time.perf_counter() - begun) * 1e3)
            assert code == 200, receipt
    return statistics.median(took)
