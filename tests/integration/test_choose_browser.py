"""Somebody clicks on the page of choices in headless Chromium: the model learns what is liked."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Final

import httpx
import pytest
from test_page_browser import BROWSER, CHROMIUM, missing

from online.service.embedded import Embedded
from online.settings.config import load
from online.settings.tokens import ROLES

TOKEN: Final = "admin-0123456789abcdefghijkl"


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_the_page_learns_from_clicks(tmp_path: Path) -> None:
    data = {
        "cluster": "embedded", "port": 0, "state_dir": str(tmp_path),
        "tokens": dict.fromkeys(ROLES, TOKEN),
        "models": [{"name": "shop", "task": "choose"}],
    }  # fmt: skip
    shots = os.environ.get("SCREENSHOTS")
    with Embedded(load(None, data, {}), lambda _: None) as service:
        service.start()
        words = [service.url, str(CHROMIUM), TOKEN, "50", *([shots] if shots else [])]
        done = subprocess.run(
            ["node", BROWSER / "choose_story.mjs", *words],
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        status = service.model.status()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["errors"], seen["findings"]) == ([], [])
    assert seen["fresh"] == [0, True], "of equal ones none is the best, and no click is no course"
    assert seen["demo"] == "/demo/choose?model=shop"
    assert status["learned"] >= 50
    assert seen["best"] == ["coffee", "beer"], seen["share"]
    assert set(seen["actions"]) == set(status["choices"]["actions"])
    for words in ("choose, rewards", "mean reward over", "best single", "share explored"):
        assert words in seen["told"]


def test_without_a_model_that_chooses_there_is_no_such_page(tmp_path: Path) -> None:
    data = {
        "cluster": "embedded", "port": 0, "state_dir": str(tmp_path),
        "models": [{"name": "shop", "task": "regression", "learner": "linear"}],
    }  # fmt: skip
    with Embedded(load(None, data, {}), lambda _: None) as service:
        service.start()
        answer = httpx.get(f"{service.url}/demo/choose", timeout=120)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_choices")
