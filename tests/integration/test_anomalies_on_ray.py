"""Anomalies in two replicas of Ray, in a folder that one process has begun: each row once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.fixtures.service import launch, settle, write_settings
from online.service.embedded import Embedded
from online.settings.config import load

# In short: a folder that goes to Ray and back, and rows that two learners have in one order.
pytestmark = [pytest.mark.ray, pytest.mark.long]

MODEL = {"name": "pumps", "task": "anomaly"}
ODD, USUAL = {"a": 9.0, "b": -9.0}, {"a": 0.1, "b": 0.0}


def rows(begin: int, end: int) -> list[dict[str, Any]]:
    draw = random.Random(begin)
    return [
        {"features": {"a": draw.gauss(0, 1), "b": draw.gauss(0, 1)}, "event_id": f"row-{i}"}
        for i in range(begin, end)
    ]


def post(url: str, verb: str, body: dict[str, Any]) -> Any:
    return httpx.post(f"{url}/v1/models/pumps/{verb}", json=body, timeout=240).json()


def statuses(url: str, events: list[dict[str, Any]]) -> set[str]:
    return {one["status"] for one in post(url, "feedback", {"events": events})["events"]}


def scores(url: str) -> list[float]:
    found = post(url, "predict", {"instances": [USUAL, ODD]})["predictions"]
    return [row["score"] for row in found]


def test_a_folder_that_one_process_began_goes_on_in_two_replicas(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = {"models": [MODEL], "cluster": "embedded", "port": 0, "state_dir": str(state)}
    with Embedded(load(None, first, {}), lambda _: None) as running:
        running.start()
        assert statuses(running.url, rows(0, 300)) == {"learned"}
        before = scores(running.url)
    assert 2.0 * before[0] < before[1], "it has just begun to tell rows apart"

    write_settings(tmp_path, {"models": [MODEL], "replicas": 2})
    service = launch(tmp_path)
    try:
        urls = list(service.replica_urls().values())
        settle(service, "pumps", 300)
        assert [scores(url) for url in urls] == [before, before]
        for i, url in enumerate(urls):
            assert statuses(url, rows(300 + 50 * i, 350 + 50 * i)) == {"learned"}
        settle(service, "pumps", 400)
        assert scores(urls[0]) == scores(urls[1]), "learned in the order of commits everywhere"
        labelled = [{**row, "label": False} for row in rows(300, 350)]
        assert statuses(urls[1], labelled) == {"learned"}
        assert statuses(urls[0], labelled) == {"duplicate"}
        assert statuses(urls[0], rows(0, 300)) == {"duplicate"}
        told = settle(service, "pumps", 450)
        assert (told["anomaly"]["rows"], told["quality"]["n"]) == (400, 50)
        assert told["anomaly"]["unlabelled"] == 350
    finally:
        service.stop()
