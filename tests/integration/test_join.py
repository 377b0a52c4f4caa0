"""Two replicas: prediction and label meet wherever they were sent; a row that kills both."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.fixtures.service import Running, launch, settle, status, write_settings

pytestmark = pytest.mark.ray

_LEARNER = '''
import os
import signal

from river import linear_model, optim


def build():
    """A model that ends its process at a marker, as a fault in a library would."""
    model = linear_model.LogisticRegression(optim.SGD(0.1))
    learn = model.learn_one

    def learn_one(x, y, **more):
        if x.get("deadly") == 1.0:
            os.kill(os.getpid(), signal.SIGKILL)
        learn(x, y, **more)

    model.learn_one = learn_one
    return model
'''
_RULES = ("auto", "ordered")
_BOUND_S = 240.0
_SETTINGS: dict[str, Any] = {
    "replicas": 2,
    "models": [
        {
            "name": "clicks", "task": "binary", "learner": "logreg", "label_wait": "2s",
            "confidence": 0.9, "slices": ["group"],
        },
        {"name": "shop", "task": "choose", "choose": {"floor": 0.1}},
        *(
            {"name": rule, "task": "binary", "learner": "learner.py:build", "sync": {"merge": rule}}
            for rule in _RULES
        ),
    ],
    "limits": {"token_bytes_max": 2048, "adopt_s": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="online-join-") as name:
        (Path(name) / "learner.py").write_text(_LEARNER)
        write_settings(Path(name), _SETTINGS)
        started = launch(Path(name))
        try:
            yield started
        finally:
            started.stop()


def post(url: str, action: str, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = httpx.post(f"{url}/v1/models/clicks/{action}", json=body, timeout=120)
    data: dict[str, Any] = answer.json()
    return answer.status_code, data


def learned(running: Running) -> int:
    found: int = httpx.get(f"{running.url}/v1/models/clicks", timeout=120).json()["learned"]
    return found


def counted(running: Running, name: str) -> float:
    """A counter, over all replicas, asked where each of them is sure of its own."""
    total = 0.0
    for url in running.replica_urls().values():
        known = httpx.get(f"{url}/v1/models/clicks", timeout=120).json()
        total += known["replicas"][known["answered_by"]].get(name, 0.0)
    return total


def test_both_replicas_choose_the_same_under_an_id_and_each_takes_the_reward(
    running: Running,
) -> None:
    urls = [f"{url}/v1/models/shop" for url in running.replica_urls().values()]
    barrier = threading.Barrier(2)

    def choose(url: str, own: str | None) -> dict[str, Any]:
        if own is not None:
            barrier.wait(240)
        body = {"context": {"x": 1.0}, "actions": [{"id": i} for i in "abcd"], "id": own}
        answer: dict[str, Any] = httpx.post(f"{url}/choose", json=body, timeout=120).json()
        return answer

    def reward(url: str, answer: dict[str, Any]) -> str:
        body = {"id": answer["id"], "reward": float(answer["action"] == "a")}
        receipt = httpx.post(f"{url}/reward", json=body, timeout=120).json()
        status: str = receipt["status"]
        return status

    for i in range(20):
        with ThreadPoolExecutor(2) as pool:
            one, two = pool.map(choose, urls, [f"order-{i}"] * 2)
        assert (one["action"], one["ranking"]) == (two["action"], two["ranking"])
        assert sorted([one.get("repeated", False), two.get("repeated", False)]) == [False, True]
        sealed = choose(urls[i % 2], None)
        for answer in (one, sealed):
            assert reward(urls[1 - i % 2], answer) == "learned"
            assert reward(urls[i % 2], answer) == "duplicate"
    settle(running, "shop", 40)


def test_labels_that_race_their_predictions_are_learned_once(running: Running) -> None:
    here, there = list(running.replica_urls().values())
    before, found = learned(running), Counter[str]()
    barrier = threading.Barrier(2)

    def predict(i: int) -> None:
        barrier.wait(240)
        status, answer = post(here, "predict", features={"a": i / 40}, id=f"race-{i}")
        assert (status, answer["id"]) == (200, f"race-{i}")

    def label(i: int) -> None:
        barrier.wait(240)
        status, receipt = post(there, "feedback", id=f"race-{i}", label=i % 2 == 0)
        assert (status, receipt["status"]) in ((200, "learned"), (202, "waiting"))
        found[receipt["status"]] += 1

    with ThreadPoolExecutor(2) as pool:
        for i in range(40):
            for done in [pool.submit(predict, i), pool.submit(label, i)]:
                done.result(240)
    settle(running, "clicks", before + 40)
    for i in range(40):
        url = (here, there)[i % 2]
        status, receipt = post(url, "feedback", id=f"race-{i}", label=i % 2 == 0)
        assert (status, receipt["status"], receipt["first_outcome"]) == (
            200, "duplicate", "learned",
        )  # fmt: skip
    assert post(here, "feedback", id="race-0", label=False)[0] == 409
    settle(running, "clicks", before + 40)
    print(dict(found))


def test_a_label_without_a_prediction_is_unknown_after_its_wait(running: Running) -> None:
    begun = time.monotonic()
    status, receipt = post(running.url, "feedback", id="nothing", label=True)
    assert (status, receipt["status"]) == (202, "waiting")
    while status == 202:
        assert time.monotonic() < begun + 240
        time.sleep(0.1)
        status, receipt = post(running.url, "feedback", id="nothing", label=True)
    assert time.monotonic() - begun > 2
    assert (status, receipt["error"]["code"]) == (404, "unknown_id")


def test_a_row_too_wide_for_a_token_takes_its_label(running: Running) -> None:
    before = learned(running)
    wide = {f"feature-{i}": i / 3 for i in range(200)}
    _, answer = post(running.url, "predict", features=wide)
    assert answer["id"].startswith("join-")
    _, many = post(running.url, "predict", instances=[wide, {"a": 1.0}], ids=True)
    short, token = (row["id"] for row in many["predictions"])
    assert short.startswith("join-")
    assert len(token) > 64
    for own in (answer["id"], short, token):
        status, receipt = post(running.url, "feedback", id=own, label=True)
        assert (status, receipt["status"]) in ((200, "learned"), (202, "waiting"))
    settle(running, "clicks", before + 3)


@pytest.mark.parametrize("own", ["", "x" * 65, "two words", "ä"])
def test_no_other_ids(running: Running, own: str) -> None:
    status, answer = post(running.url, "predict", features={"a": 1.0}, id=own)
    assert (status, answer["error"]["field"]) == (422, "id")
    assert post(running.url, "feedback", id=own, label=True)[0] == 404


def test_predictions_do_not_wait_for_joins(running: Running) -> None:
    """Each answer is there before the prediction is written; all are written in the end."""
    before = counted(running, "joins_kept")
    with httpx.Client(timeout=120) as client:
        url = f"{running.url}/v1/models/clicks/predict"
        for i in range(200):
            answer = client.post(url, json={"features": {"a": 1.0}, "id": f"many-{i}"})
            assert answer.json()["id"] == f"many-{i}"
    deadline = time.monotonic() + 240
    while counted(running, "joins_kept") < before + 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert counted(running, "joins_dropped") == 0


def test_replicas_share_how_sure_they_are_whichever_took_the_label(running: Running) -> None:
    here, there = list(running.replica_urls().values())
    before = learned(running)
    for i in range(20):
        row = {"a": i / 20, "group": i % 2}
        status, said = post(here, "predict", features=row, id=f"sure-{i}" if i % 3 else None)
        assert status == 200
        assert said["label_set"]
        status, receipt = post(there, "feedback", id=said["id"], label=i % 2 == 0)
        assert receipt["status"] in ("learned", "waiting")
    settle(running, "clicks", before + 20)
    known = [httpx.get(f"{url}/v1/models/clicks", timeout=120).json() for url in (here, there)]
    assert known[0]["confidence"] == known[1]["confidence"]
    assert known[0]["confidence"]["n"] == before + 20  # every row was answered first
    groups = [{v: scores["n"] for v, scores in one["slices"]["group"].items()} for one in known]
    assert groups[0] == groups[1] == {"0": 10, "1": 10, "missing": before}
    for url in (here, there):
        _, said = post(url, "predict", features={"a": 0.5, "group": 1}, explain=True)
        why = said["explanation"]
        added = why["base"] + sum(why["contributions"].values())
        assert added == pytest.approx(why["output"], abs=1e-9)


@pytest.mark.parametrize("rule", ["auto", pytest.param("ordered", marks=pytest.mark.long)])
def test_the_event_fails_and_everything_else_is_learned_once(running: Running, rule: str) -> None:
    url = f"{running.url}/v1/models/{rule}"
    good = [
        {"features": {"a": float(i)}, "label": i % 2 == 0, "event_id": f"good-{i}"}
        for i in range(20)
    ]
    bad = {"features": {"deadly": 1.0}, "label": True, "event_id": "bad"}
    with httpx.Client(timeout=120) as client:
        assert client.post(f"{url}/feedback", json={"events": good[:10]}).status_code == 200
        begun = time.monotonic()
        with contextlib.suppress(httpx.HTTPError):  # its process is gone
            client.post(f"{url}/feedback", json={"events": [*good[10:15], bad]})
        unanswered = _until_failed(client, url, bad, begun)
        took_s = time.monotonic() - begun
        events = {"events": [*good, bad]}
        answer = client.post(f"{url}/feedback", json=events).json()["events"]
        assert [e["status"] for e in answer[:15]] == ["duplicate"] * 15
        assert {e["first_outcome"] for e in answer[:15]} == {"learned"}
        assert {e["status"] for e in answer[15:20]} == {"learned"}
        assert (answer[20]["status"], answer[20]["first_outcome"]) == ("duplicate", "failed")
        assert "died" in answer[20]["reason"]
        predicted = client.post(f"{url}/predict", json={"features": {"a": 1.0}})
        assert predicted.status_code == 200
    _until_learned(running, rule, 20)
    print(f"failed after {took_s:.1f} s; {unanswered} requests unanswered meanwhile")


def _until_failed(client: httpx.Client, url: str, bad: dict[str, Any], begun: float) -> int:
    """Ask again until the event has failed; how many requests got no answer."""
    unanswered = 0
    while True:
        assert time.monotonic() - begun < _BOUND_S, "it kills for ever"
        try:
            answer = client.post(f"{url}/feedback", json=bad, timeout=5)
            if answer.status_code == 422 and answer.json()["first_outcome"] == "failed":
                return unanswered
            unanswered += answer.status_code >= 500
        except httpx.HTTPError:
            unanswered += 1
        time.sleep(0.1)


def _until_learned(running: Running, rule: str, learned: int) -> None:
    deadline = time.monotonic() + 240
    while True:
        found = set()
        for url in running.replica_urls().values():
            with contextlib.suppress(httpx.HTTPError, KeyError):
                found.add(httpx.get(f"{url}/v1/models/{rule}", timeout=10).json()["learned"])
        if found == {learned} and status(running, rule)["server"] is not None:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
