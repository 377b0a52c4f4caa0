"""An operator uses the page of a service in headless Chromium: each act asks, counts, and does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import pytest
from edge_world import World

from online.audit.checking import all_lines
from online.audit.log import entry_of
from online.monitoring.series import FOLDER, Series
from online.service.embedded import Embedded
from online.settings.config import load
from online.settings.places import open_journal

BROWSER: Final = Path(__file__).parent.parent / "browser"
CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")
TOKENS: Final = {
    "predict": "ask-0123456789abcdefghijkl", "feedback": "say-0123456789abcdefghijkl",
    "admin": "admin-0123456789abcdefghijkl",
}  # fmt: skip


def missing() -> str | None:
    if shutil.which("node") is None:
        return "node is not installed"
    if CHROMIUM is None:
        return "chromium is not installed"
    place = Path(os.environ.get("PLAYWRIGHT", str(BROWSER / "story"))).parent / "node_modules"
    for package in ("playwright-core", "axe-core"):
        if not (place / package).exists():
            return f"{package} is missing: npm install --prefix tests/browser"
    return None


pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """Six models and one that chooses; the first has snapshots, and events that were set aside.

    The second has releases for devices.
    """
    models: list[dict[str, Any]] = [
        {"name": f"model-{i}", "task": "binary", "learner": "logreg"} for i in range(6)
    ]
    models[1] |= {
        "drift": {"reference_rows": 200, "window_rows": 200}, "confidence": 0.9, "slices": ["x"],
    }  # fmt: skip
    state = tmp_path_factory.mktemp("page") / "state"
    data: dict[str, Any] = {
        "models": [*models, {"name": "shop", "task": "choose"}], "tokens": TOKENS,
        "cluster": "embedded", "port": 0, "state_dir": str(state), "limits": {"report_wait_s": 240},
    }  # fmt: skip
    with contextlib.closing(Series(state / FOLDER, "model-1")) as series:  # before a restart
        for minute in range(50):
            quality = {"n": 20 * minute, "accuracy": 0.8, "no_change": 0.5, "majority": 0.6}
            series.add(
                {"model": "model-1", "quality": quality, "replicas": {}, "learned": 20 * minute},
                time.time() - 60.0 * (52 - minute),
            )
    releases = World(state / "edge", "model-1")
    releases.publish(1, time.time() - 3600)
    releases.publish(2, time.time() - 60, percent=10)
    releases.folder.report(2, "phone", "used")
    with Embedded(load(None, data, {}), lambda _: None) as running:
        running.start()
        headers = {"authorization": f"Bearer {TOKENS['admin']}"}
        with httpx.Client(base_url=running.url, headers=headers, timeout=240) as ask:

            def post(path: str, body: Any = None) -> None:
                ask.post(f"/v1/models/{path}", json=body).raise_for_status()

            post("model-0/snapshots")
            for i in range(6):
                rows = [
                    {"features": {"x": float(j % 7), "y": j / 40}, "label": j % 3 > 0}
                    for j in range(40 * (6 - i))
                ]
                post(f"model-{i}/feedback", {"events": rows})
            for turn in range(2):  # more rows, of another world in the second half
                rows = [
                    {"features": {"x": j % 7 + 9.0 * turn, "y": j % 11 / 11}, "label": j % 7 > 2}
                    for j in range(300)
                ]
                post("model-1/feedback", {"events": rows})
            for source, name, n in (("ghost", "gone", 30), ("bot", "held", 3)):
                post("model-0/sources", {"source": source, "banned": True})
                row = {"features": {"x": 1.0}, "label": True, "source": source}
                rows = [{**row, "event_id": f"{name}-{j}"} for j in range(n)]
                post("model-0/feedback", {"events": rows})
                if source == "ghost":  # more than a page of them is decided
                    post("model-0/quarantine/discard", {"source": source})
        yield running


def acts(service: Embedded) -> list[str]:
    with contextlib.closing(open_journal(service._parts.settings)) as journal:
        return [entry_of(line).act for line in all_lines(journal)]


def test_an_operator_uses_the_page(service: Embedded) -> None:
    before = len(acts(service))
    words = [service.url, CHROMIUM, TOKENS["predict"], TOKENS["admin"]]
    shots = os.environ.get("SCREENSHOTS")
    done = subprocess.run(
        ["node", BROWSER / "page_story.mjs", *words, *([shots] if shots else [])],
        capture_output=True, text=True, timeout=540,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    print(f"first contentful paint after {seen['paint']:.0f} ms")
    assert seen["errors"] == []
    assert seen["findings"] == [], "serious findings of axe-core"
    assert (seen["rows"], seen["focus"]) == (7, "act-cancel")
    assert [row[:2] for row in seen["releases"]] == [
        ["2", "10 % of devices"], ["1", "the other devices"],
    ]  # fmt: skip
    assert (
        "Release 2 is reported to be used by 1 device, and to have failed on 0." in seen["devices"]
    )
    assert seen["report"]["of"].startswith("on the last hour; drag over")
    assert re.fullmatch(r"on .* to .*, as selected in the chart", seen["report"]["selected"])
    assert seen["report"]["redrawn"] == seen["report"]["selected"], "the chart is drawn anew"
    assert seen["report"]["all"] == seen["report"]["of"]
    assert seen["report"]["title"].endswith("model-1")
    assert "rows" in seen["report"]["text"]
    assert [row[1] for row in seen["choices"]] == ["reward", "choice"]
    assert seen["choices"][0][3:] == ["1", "learned"]
    assert re.fullmatch(r"(news|sport) \(\d+ % of 2 actions\)", seen["choices"][1][3])
    assert seen["moved"][0] in ("x", "y")
    assert seen["moved"][-1] == "act"
    assert seen["labels"] == ["true", "false"]
    assert {row[0] for row in seen["slices"]} == {"x"}
    assert re.fullmatch(r"\d+(\.\d+)? %", seen["slices"][0][4]), seen["slices"]
    assert sorted(seen["influence"]) == ["x", "y"]
    assert seen["idle"], "no empty chart stands beside the score"
    assert seen["axes"] == [["accuracy"], ["rows / s", "ms"]]
    assert seen["calibration"].startswith("Calibration: predicted 0.")
    assert seen["live"][1] == "answer"
    assert json.loads(seen["live"][2])["y"] == 0.5
    assert seen["live"][3] in ("true", "false")
    promoted = seen["promoted"]
    assert "better on 1,200 rows" in promoted["text"]
    assert "3 rows behind" in promoted["text"]
    assert promoted["before"] == 0, "nothing is asked before the yes"
    assert promoted["asked"] == [["/v1/models/model-2/promote", {"back": False}]]
    assert (promoted["open"], promoted["progress"]) == (True, False)
    assert promoted["came"].startswith("Decided.")
    disabled, title, text = seen["lacks"]
    assert disabled
    assert title == "The service has no matplotlib. Install it where it runs: pip"
    assert title in text
    said = {name: text for name, (text, _) in seen["acts"].items()}
    came = {name: text for name, (_, text) in seen["acts"].items()}
    assert "has learned 240 events" in said["Freeze model-0"]
    assert came["Freeze model-0"] == "Every replica has seen it."
    assert came["Release held-0"] == "1 event released."
    assert came["Discard all of bot"] == "2 events discarded."
    back = f"Roll back to {seen['name']}"
    assert "This undoes 27" in said[back], "240 learned, 33 set aside"
    assert came[back].split()[0] == said[back].split("This undoes ")[1].split()[0]
    assert acts(service)[before:] == [
        "freeze", "unfreeze", "decide", "decide", "decide", "pin", "rollback",
    ]  # fmt: skip


class Prefixed:
    """A reverse proxy that serves another address under a prefix, as it comes, piece by piece."""

    def __init__(self, behind: str, prefix: str) -> None:
        self._behind, self._prefix = urlsplit(behind), prefix
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}{prefix}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(
                    target=self._pass_on, args=self._server.accept()[:1], daemon=True
                ).start()

    def _pass_on(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (some := caller.recv(65536)):
                    return
                head += some
            method, target, rest = head.split(b" ", 2)
            if not target.startswith(self._prefix.encode()):
                caller.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                return
            target = b"/" + target[len(self._prefix) :]
            head = b" ".join((method, target, rest)).replace(
                b"\r\n", b"\r\nconnection: close\r\n", 1
            )
            place = (self._behind.hostname, self._behind.port)
            with socket.create_connection(place) as service:
                service.sendall(head.replace(b"keep-alive", b"close"))
                while some := service.recv(65536):
                    caller.sendall(some)

    def close(self) -> None:
        self._server.close()


def test_the_page_follows_by_a_stream_behind_a_proxy_and_asks_where_there_is_none(
    service: Embedded,
) -> None:
    proxy = Prefixed(service.url, "/learning/here/")
    try:
        words = [proxy.url, CHROMIUM, TOKENS["admin"], service.url]
        done = subprocess.run(
            ["node", BROWSER / "page_follow.mjs", *words],
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
    finally:
        proxy.close()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["errors"] == []
    assert (seen["stream"]["live"], seen["stream"]["models"]) == (1, 0)
    assert seen["polls"]["models"] > 1
    for way in ("stream", "polls"):
        assert seen[way]["outside"] == 0, "nothing is asked beside the prefix"
        assert f"{proxy.url}v1/models/model-5/predict" in seen[way]["curl"]
    beside = seen["beside"]
    assert beside["outside"] == 0, "the other pages, too"
    assert max(beside["paper"]) < 64, "dark where the rest is dark"
    assert beside["tried"].startswith("200")
    assert beside["scope"] == f"{proxy.url}edge/"
    assert beside["address"] == f"{proxy.url}edge/demo?model=model-2"
