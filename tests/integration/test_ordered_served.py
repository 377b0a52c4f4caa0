"""A tree in several replicas over HTTP: each is the plain library's tree, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from river import datasets, tree

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, launch, settle, write_settings
from replay import codec
from replay.journal.sqlite.journal import SqliteJournal

pytestmark = pytest.mark.ray

STREAM = list(itertools.islice(datasets.Phishing(), 400))
SENDERS = 6
MODEL = {"name": "tree", "task": "binary", "learner": "model.py:build"}
EARLY: dict[str, Any] = {"grace_period": 20, "delta": 0.2, "tau": 0.2}  # splits in few rows
CODE = (
    "from river import tree\n\n\n"
    f"def build():\n    return tree.HoeffdingTreeClassifier(**{EARLY})\n"
)


def send(running: Running, share: list[int], unsure: list[int]) -> None:
    """Feedback of these rows, one a request; what a killed replica did not answer is repeated."""
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(contextlib.closing(Connection(running.url)))
        for i in share:
            features, label = STREAM[i]
            body = {"features": features, "label": label, "event_id": str(i)}
            deadline = time.monotonic() + 240
            while time.monotonic() < deadline:
                try:
                    code, answer = client.post("/v1/models/tree/feedback", body)
                except Exception:  # whatever a connection to a killed process ends with
                    unsure.append(i)
                    client = stack.enter_context(contextlib.closing(Connection(running.url)))
                    time.sleep(0.1)  # what starts needs the processor
                    continue
                if code == 200:
                    assert answer["status"] in ("learned", "duplicate"), answer
                    break
            else:
                raise AssertionError(f"no answer for row {i}")


def plain(place: Path) -> tuple[Any, int]:
    """The library's tree after the journal's rows in the order of their commits."""
    model = tree.HoeffdingTreeClassifier(**EARLY)
    with contextlib.closing(SqliteJournal(place / "state" / "journal.db")) as journal:
        rows = journal.follow("tree", 0, 10_000).rows
    for row in rows:
        example = codec.decode(row.payload)
        model.learn_one(dict(example.features), example.label)
    return model, len({row.partition for row in rows})


def same(running: Running, model: Any, url: str) -> None:
    """Predictions of one replica are the model's, to the last bit."""
    asked = [x for x, _ in datasets.Phishing()]
    with contextlib.closing(Connection(url)) as client:
        _, answer = client.post("/v1/models/tree/predict", {"instances": asked[:500]})
    for x, got in zip(asked, answer["predictions"], strict=False):
        expected = model.predict_proba_one(x)
        assert got["probabilities"] == {str(k).lower(): expected.get(k, 0.0) for k in expected}


def wait_equal(running: Running, model: Any) -> None:
    deadline = time.monotonic() + 240
    while True:
        try:
            for url in running.replica_urls().values():
                same(running, model, url)
            return
        except (AssertionError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("replicas", "killed"),
    [
        (2, True),
        pytest.param(3, True, marks=pytest.mark.long),
        pytest.param(3, False, marks=pytest.mark.long),
    ],
)
def test_each_replica_is_the_plain_tree(replicas: int, killed: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="online-ordered-") as name:
        place = Path(name)
        (place / "model.py").write_text(CODE)
        write_settings(place, {"replicas": replicas, "models": [MODEL]})
        running = launch(place)
        try:
            unsure: list[int] = []
            shares = [list(range(s, len(STREAM), SENDERS)) for s in range(SENDERS)]
            senders = [
                threading.Thread(target=send, args=(running, share, unsure)) for share in shares
            ]
            for sender in senders:
                sender.start()
            if killed:
                while settle_now(running) < len(STREAM) // 3:
                    time.sleep(0.05)
                victim = next(iter(running.replica_urls()))
                os.kill(int(victim.partition(":")[0]), signal.SIGKILL)
            for sender in senders:
                sender.join()
            assert settle(running, "tree", len(STREAM))["learned"] == len(STREAM)
            model, partitions = plain(place)
            assert partitions >= replicas
            assert model.n_branches > 5, "a tree, not a leaf"
            wait_equal(running, model)
        finally:
            running.stop()
        # One process takes the folder up, which starts in a second.
        write_settings(place, {"cluster": "embedded", "models": [MODEL]})
        running = launch(place)
        try:
            assert settle(running, "tree", len(STREAM))["learned"] == len(STREAM)
            wait_equal(running, model)
        finally:
            running.stop()


def settle_now(running: Running) -> int:
    """Rows learned so far, as any replica says."""
    with contextlib.closing(Connection(running.url)) as client:
        _, answer = client.get("/v1/models/tree")
    return int(answer["learned"])
