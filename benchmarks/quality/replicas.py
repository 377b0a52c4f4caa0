"""This benchmark measures what several replicas cost in accuracy.

All traffic goes to one of four, or is spread over two or four.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, service, settle
from evaluation.metrics import Task
from evaluation.streams import open_stream
from online.models.base import Model
from online.models.loading.load import load
from online.settings.config import data_dir
from replay.example import Features, Label

_BACK = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A service's prequential accuracy beside single learners on the same rows.

    ``shares`` are the parts of the events that each replica took; ``rows_late`` how many rows'
    labels a prediction lacked in the mean, and ``late_accuracy`` what a single learner scores
    whose labels come that late.
    """

    setting: str
    rows: int
    accuracy: float
    single: float
    shares: list[float]
    rows_late: float
    late_accuracy: float
    rows_per_s: float


@dataclass(frozen=True, slots=True)
class Case:
    """A stream, and a linear model with its rate."""

    stream: str = "elec2"
    task: Task = "binary"
    learner: str = "logreg"
    lr: float = 0.05

    def settings(self, replicas: int, merge: str, interval_ms: float = 20.0) -> dict[str, Any]:
        """Return the settings of a service with this model."""
        sync = {"merge": merge, "interval_ms": interval_ms, "updates": 100_000}
        if interval_ms == 20.0:
            del sync["updates"]
        model: dict[str, Any] = {"name": "m", "task": self.task, "learner": self.learner}
        model |= {"params": {"lr": self.lr}, "sync": sync}
        return {"replicas": replicas, "models": [model]}

    def build(self) -> Model:
        """The same model by itself."""
        params = {"lr": self.lr}
        return load(
            self.learner, params, task=self.task, classes=None, key=b"", base_dir=Path()
        ).model


CASES = (
    Case(),
    Case(lr=0.8),
    Case(stream="insects", task="multiclass", learner="softmax", lr=0.0125),
)
"""Elec2 at the rate of the merge table and at a single learner's best, INSECTS at its best."""


def single(case: Case, rows: Iterable[tuple[Features, Label]], late: int) -> float:
    """Accuracy of one learner that gets each label ``late`` rows after its turn."""
    model, waiting = case.build(), deque[tuple[Features, Label]]()
    right = n = 0
    for features, label in rows:
        right += model.predict(features).label == label
        n += 1
        waiting.append((features, label))
        if len(waiting) > late:
            model.learn(*waiting.popleft(), 1.0)
    return right / n


def solo(rows: int | None = None, merge: str = "auto") -> Accuracy:
    """All traffic on one of four replicas, round the balancer."""
    case = CASES[0]
    stream = open_stream(case.stream, data_dir())
    data = list(islice(stream.rows, rows))
    with service(case.settings(4, merge)) as running:
        url = min(running.replica_urls().values())
        right = 0
        begun = time.monotonic()
        with contextlib.closing(Connection(url)) as client:
            for features, label in data:
                _, answer = client.post("/v1/models/m/predict", {"features": features})
                right += answer["prediction"] == label
                body = {"id": answer["id"], "label": label}
                status, receipt = client.post("/v1/models/m/feedback", body)
                assert status == 200, receipt
        seconds = time.monotonic() - begun
        shares = _shares(running, len(data))
    alone = single(case, data, 0)
    name = f"4 replicas, all on one, merge {merge}"
    n = len(data)
    return Accuracy(name, n, right / n, alone, shares, 0.0, alone, n / seconds)


class _Dealer:
    """Rows handed out in order to whichever client is free, and what came of them."""

    def __init__(self, data: list[tuple[Features, Label]]) -> None:
        self._rows = iter(enumerate(data))
        self._lock = threading.Lock()
        self.seen: dict[int, str] = {}
        self.right = 0
        self.known: Counter[int] = Counter()
        self.asked: Counter[int] = Counter()

    def next(self) -> tuple[int, tuple[Features, Label]] | None:
        with self._lock:
            return next(self._rows, None)

    def work(self, url: str, seed: int) -> None:
        rng = random.Random(seed)
        with contextlib.closing(Connection(url)) as client:
            while (dealt := self.next()) is not None:
                i, (features, label) = dealt
                back = rng.choice(_BACK)
                body: dict[str, Any] = {"features": features}
                if (seen := self.seen.get(i - back)) is not None:
                    body["after"] = seen
                _, answer = client.post("/v1/models/m/predict", body)
                status, receipt = client.post(
                    "/v1/models/m/feedback", {"id": answer["id"], "label": label}
                )
                assert status == 200, receipt
                with self._lock:
                    self.seen[i] = receipt["seen"]
                    self.right += answer["prediction"] == label
                    if i >= back:
                        self.asked[back] += 1
                        self.known[back] += bool(answer.get("includes"))

    def rows_late(self) -> float:
        """Mean number of earlier rows that a prediction lacked: the sum over k of P(k rows back
        is not included), between the sampled k by straight lines."""
        missing = {k: 1 - self.known[k] / self.asked[k] for k in _BACK if self.asked[k]}
        total, before, last = 0.0, 0, 1.0
        for k in sorted(missing):
            total += (k - before) * (missing[k] + (last if before else missing[k])) / 2
            before, last = k, missing[k]
        return total


def spread(
    rows: int | None = None,
    *,
    case: Case = CASES[0],
    merge: str = "auto",
    replicas: int = 2,
    clients: int = 4,
    interval_ms: float = 20.0,
) -> Accuracy:
    """Rows dealt in order to a few connections through the balancer, as fast as they go."""
    stream = open_stream(case.stream, data_dir())
    data = list(islice(stream.rows, rows))
    with service(case.settings(replicas, merge, interval_ms)) as running:
        dealer = _Dealer(data)
        threads = [
            threading.Thread(target=dealer.work, args=(running.url, i)) for i in range(clients)
        ]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - begun
        shares = _shares(running, len(data))
    late, n = dealer.rows_late(), len(data)
    return Accuracy(
        setting=f"{case.stream}, rate {case.lr:g}, {replicas} replicas, merge {merge}, "
        f"every {interval_ms:g} ms",
        rows=n,
        accuracy=dealer.right / n,
        single=single(case, data, 0),
        shares=shares,
        rows_late=late,
        late_accuracy=single(case, data, round(late)),
        rows_per_s=n / seconds,
    )


def _shares(running: Running, learned: int) -> list[float]:
    status = settle(running, "m", learned)
    counts = [report.get("learned", 0.0) for report in status["replicas"].values()]
    return sorted((round(c / learned, 3) for c in counts), reverse=True)
