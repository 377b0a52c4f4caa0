"""No label within the window is a negative, over HTTP and over kills, until a label comes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from benchmarks.faults import conversions_killed
from online.commands.operate import status as command
from online.service.embedded import Embedded
from online.settings.config import load


def until(condition: Callable[[], bool], what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120.0
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def test_a_prediction_without_a_label_is_a_negative_until_one_comes(tmp_path: Path) -> None:
    model = {"name": "clicks", "task": "binary", "learner": "logreg", "conversion_window": 0.2}
    data = {"state_dir": str(tmp_path / "state"), "port": 0, "cluster": "embedded"}
    with Embedded(load(None, {**data, "models": [model]}, {}), lambda _: None) as service:
        service.start()
        place = f"{service.url}/v1/models/clicks"

        def post(action: str, **body: Any) -> httpx.Response:
            return httpx.post(f"{place}/{action}", json=body, timeout=120)

        def found() -> dict[str, Any]:
            shown: dict[str, Any] = httpx.get(place, timeout=120).json()["conversions"]
            return shown

        asked = [post("predict", features={"a": 1.0}).json()["id"]]
        asked.append(post("predict", features={"a": 1.0}, id="visit-1").json()["id"])
        many = post("predict", instances=[{"b": 1.0}] * 2, ids=True).json()["predictions"]
        until(lambda: found()["defaulted"] == 4, found)
        assert (found()["waiting"], found()["corrected"]) == (0, 0)
        for id_ in (*asked, many[0]["id"]):
            told = post("feedback", id=id_, label=True)
            assert (told.status_code, told.json()["status"]) == (200, "learned")
            assert ":" in told.json()["corrects"]
            assert post("feedback", id=id_, label=True).json()["status"] == "duplicate"
            assert post("feedback", id=id_, label=False).status_code == 409
        assert (found()["defaulted"], found()["corrected"]) == (4, 3)
        status = httpx.get(place, timeout=120).json()
        assert status["learned"] == 7
        assert status["quality"]["n"] == 4, "an event is judged once"
        metrics = httpx.get(f"{service.url}/metrics", timeout=120).text
        assert "online_labels_defaulted_total" in metrics
        shown = io.StringIO()
        command._show_model(Console(file=shown, width=200), status)
        assert "conversions: 0 wait, 4 without a label within" in shown.getvalue()
        assert "3 corrected later" in shown.getvalue()


@pytest.mark.parametrize("rounds", [2, pytest.param(100, marks=pytest.mark.long)])
def test_after_kills_no_label_by_default_counts_twice_or_stays(rounds: int) -> None:
    found = conversions_killed.run(rounds, seed=8, clients=4)
    assert (found.lost, found.twice, found.wrong) == ([], [], []), found
    assert found.good, found
    kinds = found.early + found.defaulted + found.corrected + found.lost_halves
    assert found.predictions == kinds > 0, found
