"""Trees in three replicas: each learns all rows in order, or one process learns a forest for all.

Rows are sent at a fixed rate over HTTP, predicted first, while another client asks for predictions
at a fixed rate and notes how long each takes.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from river import forest, tree

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, service, settle
from evaluation.streams import open_stream
from online.settings.config import data_dir
from replay import codec
from replay.example import Features, Label
from replay.journal.sqlite.journal import SqliteJournal

_REPLICAS = 3
_NEAR_S = 0.25  # around a new version: a prediction that may have waited for its loading
_ASKED = 500  # rows whose predictions are compared


def hoeffding() -> Any:
    """A Hoeffding tree with river's defaults."""
    return tree.HoeffdingTreeClassifier()


def arf() -> Any:
    """An adaptive random forest of ten trees."""
    return forest.ARFClassifier(n_models=10, seed=7)


@dataclass(frozen=True, slots=True)
class Trees:
    """A model in several replicas beside the plain library's on the same rows.

    ``equal``: predictions of every replica are those of the library after the journal's rows in
    their order, bit for bit (None: they need not be).  ``p99_ms`` of all predictions, and
    ``p99_apart_ms`` of those that were not near a new version.
    """

    setting: str
    rows: int
    accuracy: float
    single: float
    equal: bool | None
    rows_per_s: float
    p50_ms: float
    p99_ms: float
    p99_apart_ms: float
    versions: int


class _Asking:
    """Predictions at a fixed rate: when, how long, of which version."""

    def __init__(self, url: str, features: Features, rate: float) -> None:
        self._url, self._features, self._rate = url, features, rate
        self._stop = threading.Event()
        self.seen: list[tuple[float, float, str]] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(Connection(self._url)) as client:
            due = time.monotonic()
            while not self._stop.wait(max(due - time.monotonic(), 0.0)):
                status, answer = client.post("/v1/models/m/predict", {"features": self._features})
                assert status == 200, answer
                version = answer["version"].partition("+")[0]
                self.seen.append((due, time.monotonic() - due, version))  # late starts count
                due += 1 / self._rate

    def waits(self) -> tuple[list[float], list[float], int]:
        """All, those apart from new versions, and how many versions there were."""
        news = [b[0] for a, b in itertools.pairwise(self.seen) if a[2] != b[2]]
        apart = [took for at, took, _ in self.seen if all(abs(at - n) > _NEAR_S for n in news)]
        return [took for _, took, _ in self.seen], apart, len(news)


CASES = (
    ("hoeffding", "ordered", "elec2", 400.0),
    ("arf", "ordered", "elec2", 100.0),
    ("arf", "overlay", "elec2", 100.0),
    ("arf", "overlay", "insects", 100.0),
)
"""Model, who learns, stream, rows a second."""


def run(factory: str, merge: str, name: str, rate: float, rows: int | None) -> Trees:
    """A model in three replicas on a stream, at a fixed rate."""
    stream = open_stream(name, data_dir())
    data = list(itertools.islice(stream.rows, rows))
    model = {"name": "m", "task": stream.task, "learner": f"benchmarks.quality.trees:{factory}"}
    settings = {"replicas": _REPLICAS, "models": [{**model, "sync": {"merge": merge}}]}
    build = {"hoeffding": hoeffding, "arf": arf}[factory]
    with service(settings) as running:
        url = next(iter(running.replica_urls().values()))
        begun = time.monotonic()
        with _Asking(url, data[0][0], 50.0) as asking:
            right = _play(running.url, data, rate)
        seconds = time.monotonic() - begun
        settle(running, "m", len(data))
        equal = _equal(running, build(), data) if merge == "ordered" else None
    waits, apart, versions = asking.waits()
    return Trees(
        f"{factory}, {name}, {_REPLICAS} replicas, merge {merge}, {rate:g} rows/s",
        len(data),
        right / len(data),
        _single(build(), data),
        equal,
        len(data) / seconds,
        statistics.median(waits) * 1e3,
        _p99(waits) * 1e3,
        _p99(apart) * 1e3,
        versions,
    )


def _play(url: str, data: list[tuple[Features, Label]], rate: float) -> int:
    """How many of the rows were predicted right before they were learned."""
    right = 0
    with contextlib.closing(Connection(url)) as client:
        due = time.monotonic()
        for features, label in data:
            time.sleep(max(due - time.monotonic(), 0.0))
            due += 1 / rate
            _, answer = client.post("/v1/models/m/predict", {"features": features})
            right += answer["prediction"] == label
            status, receipt = client.post(
                "/v1/models/m/feedback", {"id": answer["id"], "label": label}
            )
            assert status == 200, receipt
    return right


def _single(model: Any, data: list[tuple[Features, Label]]) -> float:
    right = 0
    for features, label in data:
        right += model.predict_one(features) == label
        model.learn_one(features, label)
    return right / len(data)


def _equal(running: Running, model: Any, data: list[tuple[Features, Label]]) -> bool:
    """Whether each replica answers as the library does after the journal's rows."""
    place = Path(running.state_dir) / "journal.db"
    with contextlib.closing(SqliteJournal(place)) as journal:
        for row in journal.follow("m", 0, len(data) + 1).rows:
            example = codec.decode(row.payload)
            model.learn_one(dict(example.features), example.label)
    asked = [features for features, _ in data[-_ASKED:]]
    expected = [{str(k).lower(): p for k, p in model.predict_proba_one(x).items()} for x in asked]
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        answers = [_ask(url, asked) for url in running.replica_urls().values()]
        if all(answer == expected for answer in answers):
            return True
    return False


def _ask(url: str, asked: list[Features]) -> list[Any]:
    with contextlib.closing(Connection(url)) as client:
        _, answer = client.post("/v1/models/m/predict", {"instances": asked})
    return [row["probabilities"] for row in answer["predictions"]]


def _p99(waits: list[float]) -> float:
    return sorted(waits)[min(int(len(waits) * 0.99), len(waits) - 1)] if waits else 0.0
