"""A model that keeps older defaults: today's learn beside it, are compared, and may be promoted."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import pytest
from operated import MODEL, folder, good, online, refused

from benchmarks.fixtures.service import Running, launch, settle, status, write_settings

pytestmark = [pytest.mark.ray, pytest.mark.long]

N = 120


def told(running: Running) -> list[str]:
    return ["--config", str(running.folder / "online.yaml")]


def learn(running: Running) -> None:
    """Rows whose numbers are far off now and then: a limited scaler reads them better."""
    events = [
        {
            "features": {"a": (i * 7 % 11 - 5.0) * (1000.0 if i % 10 == 0 else 1.0)},
            "label": ("no", "yes")[i * 7 % 11 > 5],
            "event_id": str(i),
        }
        for i in range(N)
    ]
    answer = httpx.post(
        f"{running.url}/v1/models/clicks/feedback", json={"events": events}, timeout=120
    )
    assert {event["status"] for event in answer.json()["events"]} == {"learned"}, answer.text
    settle(running, "clicks", N)


def until(running: Running, spec: str) -> dict[str, Any]:
    """The status once the model of this spec serves."""
    deadline = time.monotonic() + 240
    while (found := status(running, "clicks"))["spec"] != spec[:16]:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    return found


def test_todays_defaults_are_compared_and_promoted_by_an_operator() -> None:
    with folder() as place:
        model = {**MODEL, "params": {"scale": "plain"}}
        write_settings(place, {"replicas": 1, "models": [model]})
        running = launch(place)
        try:
            learn(running)
            before = status(running, "clicks")
            assert before["challenger"] is None
            done = json.loads(good("models", "upgrade", "clicks", "--json", *told(running)))
            found = done["challenger"]
            assert (done["on"], done["params"]) == (True, {"scale": "limited"})
            assert (found["state"], found["learned"], found["rows"]) == ("learning", N, N), found
            assert found["params"] == {"scale": "limited"}
            assert 0.0 <= found["champion"] <= 1.0
            assert 0.0 <= found["challenger"] <= 1.0
            again = good("models", "upgrade", *told(running))
            assert "log loss" in again
            assert "online promote" in again
            stands = status(running, "clicks")
            assert stands["spec"] == before["spec"], "what serves is an operator's to say"
            assert stands["learned"] == N

            assert "serves, version" in good("promote", "--yes", *told(running))
            until(running, found["spec"])
            assert "has today's defaults" in refused("models", "upgrade", *told(running))
            assert "no challenger" in good("models", "upgrade", "--stop", *told(running))
            deadline = time.monotonic() + 240
            while status(running, "clicks")["challenger"] is not None:
                assert time.monotonic() < deadline, "what served before still learns"
                time.sleep(0.1)
        finally:
            running.stop()
        write_settings(place, {"replicas": 1, "models": [MODEL]})  # as a folder of before says it
        running = launch(place)
        try:
            stands = status(running, "clicks")
            assert (stands["spec"], stands["challenger"]) == (found["spec"], None)
            assert settle(running, "clicks", N)["learned"] == N
            assert online("models", "upgrade", "nobody", *told(running)).returncode == 1
        finally:
            running.stop()
