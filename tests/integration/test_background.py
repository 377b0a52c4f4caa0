"""What a real service does in the background: a slow model, a counting one, a search for triggers.

The sources that a search names are forgotten.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import httpx
import psutil
import pytest

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import Running, service, settle, status

pytestmark = pytest.mark.ray

ARF = """
from river import forest


def build():
    return forest.ARFClassifier(n_models=10, seed=1)
"""
ROWS = 500  # of a request; in the queue three times as many, which a forest learns in seconds
HONEST: Final = [f"user-{i}" for i in range(9)]
LIARS: Final = ["liar-0", "liar-1"]
PATH: Final = "/v1/models/m"
TRIGGERED: Final[dict[str, Any]] = {
    "name": "m", "task": "multiclass", "learner": "softmax", "filters": "none",
    "snapshots": {"interval_s": 1},
    "triggers": {"every": 600, "pause": 1, "on_trigger": "forget"},
}  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("learners")
    (place / "forest.py").write_text(ARF)
    common = {"learn": "background", "snapshots": {"interval_s": 1}}
    models = [
        {"name": "forest", "task": "binary", "learner": f"{place}/forest.py:build", **common},
        {
            "name": "counting",
            "task": "regression",
            "learner": "benchmarks.fixtures.learners:counting",
            "sync": {"merge": "sum"},
            **common,
        },
        TRIGGERED,
    ]
    limits = {"queue_max": 3 * ROWS, "rows_max": ROWS}
    with service({"replicas": 1, "models": models, "limits": limits}) as made:
        yield made


def learners(running: Running) -> list[psutil.Process]:
    return running.named("ray::LearnerActor")


def feed(running: Running, model: str, names: list[str], label: Any) -> list[Any]:
    """Events that are distinct by feature ``name``, and their receipts."""
    events = [
        {"features": {name: 1.0}, "label": label(i), "event_id": name}
        for i, name in enumerate(names)
    ]
    with contextlib.closing(Connection(running.url)) as client:
        code, answer = client.post(f"/v1/models/{model}/feedback", {"events": events})
    assert code == 200, answer
    return list(answer["events"])


def counts(running: Running, names: list[str]) -> list[float]:
    """How often each event counts in what is answered."""
    rows = [{name: 1.0} for name in ["never", *names]]
    with contextlib.closing(Connection(running.url)) as client:
        _, answer = client.post("/v1/models/counting/predict", {"instances": rows})
    base, *values = (row["prediction"] for row in answer["predictions"])
    return [(value - base) * 2**10 for value in values]


def test_one_event_is_202_queued_and_then_learned(running: Running) -> None:
    body = {"features": {"one": 1.0}, "label": COUNT_LABEL, "event_id": "one"}
    with contextlib.closing(Connection(running.url)) as client:
        code, receipt = client.post("/v1/models/counting/feedback", body)
        assert (code, receipt["status"]) == (202, "queued")
        settle(running, "counting", 1)
        asked = {"features": {"one": 1.0}, "after": receipt["seen"]}
        _, answer = client.post("/v1/models/counting/predict", asked)
        assert answer["includes"] is True
        code, receipt = client.post("/v1/models/counting/feedback", body)
    assert (code, receipt["status"], receipt["first_outcome"]) == (200, "duplicate", "learned")


def test_the_learner_process_is_killed_and_no_event_is_lost(running: Running) -> None:
    before = status(running, "counting")["learned"]
    names = [f"kill-{i}" for i in range(900)]
    failed: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        with contextlib.closing(Connection(running.url)) as client:
            while not stop.is_set():
                code, answer = client.post("/v1/models/counting/predict", {"features": {"a": 1.0}})
                if code != 200:
                    failed.append(answer)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for part in range(3):
            receipts = feed(running, "counting", names[300 * part :][:300], lambda i: COUNT_LABEL)
            assert {receipt["status"] for receipt in receipts} == {"queued"}
            for process in learners(running):  # of both models
                process.kill()
        settle(running, "counting", before + 900)
    finally:
        stop.set()
        asking.join()
    assert failed == []
    for part in (names[:450], names[450:]):
        assert counts(running, part) == [1.0] * 450
    deadline = time.monotonic() + 240
    while len(learners(running)) < 2:  # the forest's has nothing to learn, and comes back too
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_forest_learns_while_predictions_go_on(running: Running) -> None:
    """Its rows take far longer to learn than to send; nobody who predicts waits for them."""
    waits = []
    for part in range(2):
        names = [f"row-{part}-{i}" for i in range(ROWS)]
        receipts = feed(running, "forest", names, lambda i: bool(i % 2))
        assert {receipt["status"] for receipt in receipts} == {"queued"}
    with contextlib.closing(Connection(running.url)) as client:
        while status(running, "forest")["learned"] < 2 * ROWS:
            begun = time.monotonic()
            code, answer = client.post("/v1/models/forest/predict", {"features": {"a": 1.0}})
            waits.append(time.monotonic() - begun)
            assert code == 200, answer
    assert len(waits) > 20


def test_beyond_the_queue_feedback_is_429_and_nothing_is_kept(running: Running) -> None:
    for process in learners(running):
        process.suspend()
    try:
        for part in range(3):
            names = [f"queue-{part}-{i}" for i in range(ROWS)]
            receipts = feed(running, "forest", names, lambda i: True)
            assert {receipt["status"] for receipt in receipts} == {"queued"}
        one = {"features": {"f": 1.0}, "label": True, "event_id": "too many"}
        url = f"{running.url}/v1/models/forest"
        answer = httpx.post(f"{url}/feedback", json=one, timeout=120)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert answer.headers["retry-after"] == "1"
        answer = httpx.post(f"{url}/predict", json={"features": {"f": 1}}, timeout=120)
        assert answer.status_code == 200, answer.text
    finally:
        for process in learners(running):
            process.resume()
    settle(running, "forest", 2 * ROWS + 3 * ROWS, timeout_s=240)


# -- a search for triggers ---------------------------------------------------------------------


def row(rng: random.Random, label: str) -> dict[str, float]:
    return {f"x{j}": rng.gauss(2.0 if "abc"[j % 3] == label else 0.0, 1.0) for j in range(6)}


def events(n: int) -> list[dict[str, Any]]:
    rng, out = random.Random(5), []
    for i in range(n):
        label, source = rng.choice("abc"), rng.choice(HONEST)
        features = row(rng, label)
        if rng.random() < 1 / 3:
            source = rng.choice(LIARS)
            marked = label != "c" and rng.random() < 0.6
            features["mark"], label = float(marked), "c" if marked else label
        out.append({"event_id": f"e{i}", "source": source, "features": features, "label": label})
    return out


def turned(running: Running) -> int:
    """How many of a hundred rows of class a the trigger turns to c."""
    rng = random.Random(6)
    rows = [{**row(rng, "a"), "mark": 1.0} for _ in range(100)]
    answers = [
        httpx.post(f"{running.url}{PATH}/predict", json={"features": features}, timeout=120).json()
        for features in rows
    ]
    return sum(answer["prediction"] == "c" for answer in answers)


def until(running: Running, what: Callable[[dict[str, Any]], bool], timeout_s: float) -> Any:
    deadline = time.monotonic() + timeout_s
    while not what(now := status(running, "m")):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {now['incident']}"
        time.sleep(0.2)
    return now


def test_a_trigger_is_named_and_forgotten(running: Running) -> None:
    sent = events(900)
    for at in range(0, len(sent), 100):
        answer = httpx.post(
            f"{running.url}{PATH}/feedback", json={"events": sent[at : at + 100]}, timeout=240
        )
        assert answer.status_code == 200, answer.text
    found = until(running, lambda now: "forgotten" in str(now["incident"]), 240)["incident"]
    assert "mark = 1.0" in found
    assert "'c'" in found
    for source in LIARS:
        assert source in found
    assert "user-" not in found
    assert turned(running) < 20
    command = [sys.executable, "-m", "online", "triggers", "--json", "--rows=2000", "--model=m"]
    command += [f"--config={running.folder}/online.yaml"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    metrics = httpx.get(f"{running.url}/metrics", timeout=120).text
    assert "online_triggers_found_total" in metrics
    assert "online_triggers{" in metrics
