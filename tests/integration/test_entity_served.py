"""Offsets by key over HTTP, on the settings that the page of models shows, in one process."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from benchmarks.fixtures.service import Running, launch, own_environment, write_settings

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
NAMES_MAX = 30
PROBES = [
    {"customer": who, "discount": 0.5 * i, "shop": shop}
    for i, (who, shop) in enumerate([("c1", "north"), ("c2", "south"), (17, "north"), ("17", None)])
]


def shown() -> dict[str, Any]:
    """The settings of the page, in one process and with room for a few keys."""
    found = re.search(r"## An offset for each key.*?```yaml\n(.*?)```", PAGE.read_text(), re.S)
    assert found is not None
    limits = {"names_max": NAMES_MAX, "names_share": 1.0}
    data: dict[str, Any] = yaml.safe_load(found[1])
    return {**data, "cluster": "embedded", "port": 0, "limits": limits}


def orders(n: int, source: str, by: float = 1.0) -> list[dict[str, Any]]:
    """Each customer has a level and a slope of his own, each shop a level."""
    draw, events = random.Random(source), []
    for i in range(n):
        who, shop, discount = draw.randrange(20), draw.randrange(2), draw.uniform(0.0, 2.0)
        label = 10.0 + discount + by * (who % 5 + who % 3 * discount + 3.0 * shop)
        features = {
            "customer": 17 if who == 17 else f"c{who}",
            "discount": discount,
            "shop": ("north", "south")[shop],
        }
        event = {"features": features, "label": label, "event_id": f"{source}-{i}"}
        events.append({**event, "source": source})
    return events


class Orders:
    """The model, asked over HTTP."""

    def __init__(self, running: Running) -> None:
        self._url = f"{running.url}/v1/models/orders"

    def post(self, action: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(f"{self._url}/{action}", json=body, timeout=240)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def learn(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.post("feedback", {"events": events})["events"]
        return found

    def answers(self, rows: list[dict[str, Any]]) -> list[float]:
        given = self.post("predict", {"instances": rows})["predictions"]
        return [row["prediction"] for row in given]

    def learned(self) -> int:
        return int(httpx.get(self._url, timeout=240).json()["learned"])


def command(folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "online", *words], capture_output=True, text=True, timeout=300,
        stdin=subprocess.DEVNULL, cwd=folder, env={**os.environ, **own_environment()},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_offsets_are_learned_kept_forgotten_bounded_and_scored(tmp_path: Path) -> None:
    write_settings(tmp_path, shown())
    running = launch(tmp_path)
    try:
        model = Orders(running)
        statuses = {event["status"] for event in model.learn(orders(900, "till"))}
        assert statuses == {"learned"}
        told = orders(60, "later")
        errors = {}
        for name, rows in {
            "known": [one["features"] for one in told],
            "nobody": [{**one["features"], "customer": None, "shop": None} for one in told],
        }.items():
            pairs = zip(model.answers(rows), told, strict=True)
            errors[name] = sum(abs(answer - one["label"]) for answer, one in pairs) / len(told)
        assert errors["known"] < 0.5 * errors["nobody"], errors
        new, alone = {"customer": "new", "discount": 1.0}, {"discount": 1.0}
        # In one request: between two of them, the model may merge what it has learned.
        of_new, of_none = model.answers([new, alone])
        assert of_new == of_none
        of_17, of_text = model.answers([PROBES[2], {**PROBES[2], "customer": "17"}])
        assert of_17 == of_text
        clean = model.answers(PROBES)
        model.learn(orders(80, "bot", by=-9.0))
        assert model.answers(PROBES) != pytest.approx(clean, abs=0.05)
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait(240)
        running = launch(tmp_path)
        model = Orders(running)
        assert model.learned() == 980
        command(tmp_path, "forget", "--source", "bot", "--yes")
        assert model.answers(PROBES) == pytest.approx(clean, rel=1e-9)
        _room_ends(model, running)
        scored = [row for row in PROBES if row["customer"] != 17]
        kept = model.answers(scored)
        model.post("snapshots", {})
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.stop()
    table = {name: [row[name] for row in scored] for name in ("customer", "discount", "shop")}
    table["id"] = list(range(len(scored)))
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    said = ("rescore", "--input", "rows.parquet", "--output", "scores")
    command(tmp_path, *said, "--key", "id")
    parts = sorted((tmp_path / "scores").rglob("*.parquet"))
    scores = {
        row["key"]: row["score"]
        for part in parts
        for row in pq.read_table(part).to_pylist()
        if "score" in row
    }
    assert [scores[key] for key in sorted(scores)] == pytest.approx(kept, rel=1e-9)


def _room_ends(model: Orders, running: Running) -> None:
    """Keys for which there is no room have no offset, are told, and counted."""
    events = [
        {"features": {"customer": f"late{i}", "discount": 1.0}, "label": 99.0} for i in range(30)
    ]
    receipts = model.learn(events)
    verdicts = [receipt["status"] for receipt in receipts]
    room = NAMES_MAX - 23  # twenty customers, two shops, the discount
    assert verdicts == ["learned"] * room + ["clipped"] * (30 - room)
    assert "names_full" in str(receipts[-1])
    first, last, nobody = model.answers(
        [{"customer": who, "discount": 1.0} for who in ("late0", "late29", "nobody")]
    )
    assert last == nobody != first
    counted = httpx.get(f"{running.url}/metrics", timeout=240).text
    (left,) = re.findall(r"^online_names_left_out_total\{[^}]*\} (\S+)", counted, re.M)
    assert float(left) == 30 - room
