"""A row that kills every process that learns it, in a real service with two replicas."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.fixtures.service import Running, launch, status, write_settings

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


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """Two replicas of a model for each merge rule, named after it."""
    models = [
        {"name": rule, "task": "binary", "learner": "learner.py:build", "sync": {"merge": rule}}
        for rule in _RULES
    ]
    with tempfile.TemporaryDirectory(prefix="online-deadly-") as name:
        folder = Path(name)
        (folder / "learner.py").write_text(_LEARNER)
        write_settings(folder, {"replicas": 2, "models": models, "limits": {"adopt_s": 4}})
        started = launch(folder)
        try:
            yield started
        finally:
            started.stop()


@pytest.mark.parametrize("rule", _RULES)
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
