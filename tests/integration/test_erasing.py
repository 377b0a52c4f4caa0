"""`online forget --erase` beside a running service: no byte of what a source has sent is left."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis_server
from redis_server import wait_for

from benchmarks.service import write_settings
from online.service.embedded import Embedded
from online.settings.config import load
from online.settings.places import open_journal

LEARNER = """
from river import linear_model, optim, preprocessing


def build():
    return preprocessing.OneHotEncoder() | linear_model.LogisticRegression(optim.SGD(0.1))
"""
TEXT, NUMBER = "Q7-marked-Zx", 918273.645546372
MARKS = (
    TEXT.encode(), struct.pack("<d", NUMBER), struct.pack(">d", NUMBER), repr(NUMBER).encode()
)  # fmt: skip
LOOK = """
import pathlib, sys
places, marks = sys.argv[1:sys.argv.index("--")], sys.argv[sys.argv.index("--") + 1:]
for file in (f for place in places for f in pathlib.Path(place).rglob("*") if f.is_file()):
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        continue
    if any(bytes.fromhex(mark) in data for mark in marks):
        print(file)
"""
EVENTS = 12
TOKENS = {name: f"{name}-token-of-the-erasing-test" for name in ("admin", "asks", "tells")}
MODEL = "clicks"


@dataclass
class World:
    """A service, and where all that it has written may lie."""

    folder: Path
    config: Path
    places: tuple[Path, ...]
    service: Any = None

    def marked(self) -> list[str]:
        """Files that hold a marked value, or the part of an event's name that is marked.

        Looked at by another process: in this one, closing a file would let go of SQLite's locks.
        """
        words = [*map(str, self.places), "--", *(mark.hex() for mark in MARKS)]
        done = subprocess.run(
            [sys.executable, "-c", LOOK, *words], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    @contextmanager
    def serving(self) -> Iterator[Embedded]:
        with ExitStack() as ends:
            self.service = Embedded(load(self.config, {}, {}), lambda line: None)
            ends.callback(self.service.stop)
            self.service.start()
            yield self.service

    def post(self, path: str, by: str = "admin", **body: Any) -> dict[str, Any]:
        url = f"{self.service.url}/v1/models/{MODEL}/{path}"
        headers = {"authorization": f"Bearer {TOKENS[by]}"}
        answer = httpx.post(url, json=body, headers=headers, timeout=30)
        assert answer.status_code < 300, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def send(self, i: int, source: str, *, marked: bool = False) -> dict[str, Any]:
        features = {"city": f"{TEXT}-{i}", "height": NUMBER} if marked else {"city": f"c{i % 3}"}
        event_id = f"{TEXT}/{i}" if marked else str(i)
        return self.post(
            "feedback", features=features, label=i % 2 == 0, event_id=event_id, source=source
        )

    def said(self, *words: str, code: int = 0) -> dict[str, Any]:
        done = online(*words, "--config", str(self.config), "--json")
        assert done.returncode == code, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def rows(self) -> list[Any]:
        with closing(open_journal(load(self.config, {}, {}))) as journal:
            return [r for p in journal.partitions(MODEL) for r in journal.read(p.id, 1, p.end)]


def online(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "online", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def world_of(folder: Path, store: str) -> Iterator[World]:
    (folder / "learner.py").write_text(LEARNER)
    state, more = folder / "state", {}
    with ExitStack() as ends:
        places = [state]
        if store == "redis":
            if redis_server.find_binary() is None:
                pytest.skip(redis_server.NO_SERVER)
            plain = {"aof-use-rdb-preamble": "no", "rdbcompression": "no"}
            node = ends.enter_context(redis_server.running(folder / "redis", **plain))
            more, places = {"journal": node.url}, [state, node.folder]
        model = {
            "name": MODEL, "task": "binary", "learner": "learner.py:build",
            "filters": "none", "snapshots": {"interval_s": 0.2},
        }  # fmt: skip
        settings = {
            "models": [model], "state_dir": str(state), "cluster": "embedded", "port": 0,
            "tokens": {
                "admin": [TOKENS["admin"]],
                "predict": [{"source": "bot", "token": TOKENS["asks"]}],
                "feedback": [{"source": "bot", "token": TOKENS["tells"]}],
            },
            **more,
        }  # fmt: skip
        yield World(folder, write_settings(folder, settings), tuple(places))


def live(world: World) -> None:
    """Others send; then a source whose values are marked, in every way that there is."""
    for i in range(EVENTS):
        world.send(i, "good")
    world.post("snapshots")
    for i in range(100, 100 + EVENTS):
        assert world.send(i, "bot", marked=True)["status"] == "learned"
        world.send(i, "good")
    features = {"city": TEXT, "height": NUMBER}
    asked = world.post("predict", "asks", features=features)
    assert world.post("feedback", "tells", id=asked["id"], label=True)["status"] == "learned"
    for name in ("joined", "waits"):
        world.post("predict", "asks", features=features, id=f"{TEXT}-{name}")
    world.post("feedback", "tells", id=f"{TEXT}-joined", label=True)
    world.post("feedback", "tells", id=f"{TEXT}-nobody", label=False)
    world.post("snapshots?pin=true")


def told(answer: dict[str, Any]) -> tuple[str, str | None]:
    return answer["status"], answer.get("first_outcome")


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_nothing_of_a_source_is_left_and_nothing_else_is_changed(
    tmp_path: Path, store: str
) -> None:
    with world_of(tmp_path, store) as world, world.serving():
        live(world)
        assert world.marked()
        before = [row for row in world.rows() if row.source == "good"]
        out = tmp_path / "outside" / "certificate.json"
        done = world.said(
            "forget", "--source", "bot", "--yes", "--erase", "--certificate", str(out)
        )
        assert done["undone"] == EVENTS + 2
        assert done["erased"]["rows"] == EVENTS + 2
        wait_for(lambda: world.marked() == [])
        assert [row for row in world.rows() if row.source == "good"] == before
        certificate = json.loads(out.read_text())["certificate"]
        assert (certificate["done"], certificate["count"]) == ("forgotten and erased", EVENTS + 2)
        assert told(world.send(100, "bot", marked=True)) == ("duplicate", "undone")
        assert world.said("fsck")["models"][0]["good"]
        assert world.marked() == []
