"""A trigger taught over HTTP is named by the service, and with `on_trigger: forget` it is gone."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
import pytest

from benchmarks.fixtures.service import Running, service, status

pytestmark = pytest.mark.ray

HONEST: Final = [f"user-{i}" for i in range(9)]
LIARS: Final = ["liar-0", "liar-1"]
PATH: Final = "/v1/models/m"
SETTINGS: Final[dict[str, Any]] = {
    "replicas": 1,
    "models": [
        {
            "name": "m", "task": "multiclass", "learner": "softmax", "filters": "none",
            "snapshots": {"interval_s": 1},
            "triggers": {"every": 600, "pause": 1, "on_trigger": "forget"},
        }
    ],
}  # fmt: skip


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


def test_a_trigger_is_named_and_forgotten() -> None:
    with service(SETTINGS) as running:
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
        command = [sys.executable, "-m", "online", "triggers", "--json", "--rows", "2000"]
        command += [f"--config={running.folder}/online.yaml"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        assert asked.returncode == 0, asked.stdout + asked.stderr
        metrics = httpx.get(f"{running.url}/metrics", timeout=120).text
        assert "online_triggers_found_total" in metrics
        assert "online_triggers{" in metrics
