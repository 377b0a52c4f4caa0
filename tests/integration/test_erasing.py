"""`online forget --erase` beside a running service: no byte of what a source has sent is left."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis_server
from redis_server import wait_for

from benchmarks.fixtures.service import launch, write_settings
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
        """Files that hold a marked value, or the part of an event's name that is marked."""
        found = []
        for file in (f for place in self.places for f in place.rglob("*") if f.is_file()):
            with suppress(FileNotFoundError):
                data = file.read_bytes()
                found += [str(file)] if any(mark in data for mark in MARKS) else []
        return found

    @contextmanager
    def serving(self) -> Iterator[None]:
        self.service = launch(self.folder)
        try:
            yield
        finally:
            self.service.stop()

    def post(self, path: str, by: str = "admin", **body: Any) -> dict[str, Any]:
        url = f"{self.service.url}/v1/models/{MODEL}/{path}"
        headers = {"authorization": f"Bearer {TOKENS[by]}"}
        answer = httpx.post(url, json=body, headers=headers, timeout=120)
        assert answer.status_code < 300, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def send(self, i: int, source: str, *, marked: bool = False) -> dict[str, Any]:
        features = {"city": f"{TEXT}-{i}", "height": NUMBER} if marked else {"city": f"c{i % 3}"}
        event_id = f"{TEXT}/{i}" if marked else str(i)
        return self.post(
            "feedback", features=features, label=i % 2 == 0, event_id=event_id, source=source
        )

    def said(self, *words: str, code: int = 0) -> Any:
        done = online(*words, "--config", str(self.config), "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def rows(self) -> list[Any]:
        with closing(open_journal(load(self.config, {}, {}))) as journal:
            return [r for p in journal.partitions(MODEL) for r in journal.read(p.id, 1, p.end)]


def online(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "online", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


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
        world.post("predict", "asks", features=features, id=name)
    world.post("feedback", "tells", id="joined", label=True)
    world.post("feedback", "tells", id="nobody", label=False)
    world.post("snapshots?pin=true")


def told(answer: dict[str, Any]) -> tuple[str, str | None]:
    return answer["status"], answer.get("first_outcome")


def answers(world: World) -> list[float]:
    probes = [{"city": f"c{i}"} for i in range(3)]
    found = [world.post("predict", features=features) for features in probes]
    return [float(answer["probabilities"]["true"]) for answer in found]


FORGET = ("forget", "--source", "bot", "--yes", "--erase")
DRIVER = """
import importlib, os, signal, sys
how, module, name, *words = sys.argv[1:]
target = importlib.import_module(module)
*path, last = name.split(".")
for part in path:
    target = getattr(target, part)
original = getattr(target, last)

def instead(*args, **named):
    if how == "skip":
        return 0
    if how == "refuse":
        from online.errors import StartRefused
        raise StartRefused("nobody can tell", "")
    if how == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    found = original(*args, **named)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(target, last, instead)
sys.argv = ["online", *words]
from online.commands.cli import main
main()
"""
POINTS = [
    ("after", "online.rebuild.erase", "decide"),
    ("after", "online.commands.change.erasing", "Erasing._withdraw"),
    ("after", "online.rebuild.erase", "Erasure.rows"),
    ("before", "online.commands.change.erasing", "Erasing._settle"),
    ("after", "online.rebuild.certify", "write"),
]


def changed(world: World, *how: str) -> int:
    """Run the command with one of its steps skipped, or killed there; its exit code."""
    words = [*how, *FORGET, "--config", str(world.config)]
    command = [sys.executable, "-c", DRIVER, *words]
    return subprocess.run(command, capture_output=True, timeout=240, check=False).returncode


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Answers of a twin that the source has never sent anything."""
    with world_of(tmp_path_factory.mktemp("twin"), "sqlite") as twin, twin.serving():
        for i in [*range(EVENTS), *range(100, 100 + EVENTS)]:
            twin.send(i, "good")
        return answers(twin)


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_nothing_of_a_source_is_left_and_nothing_else_is_changed(
    tmp_path: Path, wanted: list[float], store: str
) -> None:
    with world_of(tmp_path, store) as world:
        with world.serving():
            live(world)
            assert answers(world) != pytest.approx(wanted, rel=0, abs=1e-12)
            before = [row for row in world.rows() if row.source == "good"]
            kept = world.said("snapshot", "list")[0]["name"]
            out = tmp_path / "outside" / "certificate.json"
            done = world.said(*FORGET, "--certificate", str(out))
            assert (done["undone"], done["erased"]["rows"]) == (EVENTS + 2, EVENTS + 2)
            wait_for(lambda: world.marked() == [])
            assert answers(world) == pytest.approx(wanted, rel=0, abs=1e-12)
            back = online("rollback", "--to", kept, "--yes", "--config", str(world.config))
            assert (back.returncode, "no snapshot" in back.stderr) == (1, True), back.stderr
            assert [row for row in world.rows() if row.source == "good"] == before
            certificate = json.loads(out.read_text())["certificate"]
            assert (certificate["done"], certificate["count"]) == (
                "forgotten and erased",
                EVENTS + 2,
            )
            assert told(world.send(100, "bot", marked=True)) == ("duplicate", "undone")
            again = world.post("feedback", "tells", id="joined", label=False)
            assert told(again) == ("duplicate", "undone"), (
                "which label it was nobody knows any more"
            )
            world.said("fsck")
            assert world.marked() == []
            # what it sends from now on is set aside; that is erased, too
            assert world.send(500, "bot", marked=True)["status"] == "quarantined"
            assert world.marked()
            done = world.said(*FORGET)
            assert (done["undone"], done["erased"]["rows"]) == (0, EVENTS + 3)
            wait_for(lambda: world.marked() == [])
            assert told(world.send(500, "bot", marked=True)) == ("duplicate", "quarantined")
            assert world.marked() == []
            world.said("fsck")
            world.said("certificates", "verify", str(out))
            assert len(world.said("certificates", "list")) == 2
        with world.serving():
            assert answers(world) == pytest.approx(wanted, rel=0, abs=1e-12)
            assert told(world.send(101, "bot", marked=True)) == ("duplicate", "undone")
            assert world.marked() == []


@pytest.mark.parametrize(("store", "points"), [("sqlite", POINTS), ("redis", POINTS[2:4])])
def test_an_erasing_that_is_killed_is_ended_by_the_same_command(
    tmp_path: Path, store: str, points: Sequence[tuple[str, str, str]]
) -> None:
    with world_of(tmp_path, store) as world, world.serving():
        live(world)
        for point in points:
            assert changed(world, *point) == -signal.SIGKILL, point
            if point[0] == "before":
                assert world.marked(), "without that step it is found"
            assert world.said("fsck")[0]["erasing"] == ["bot"]
        assert world.said(*FORGET)["erased"]["rows"] == EVENTS + 2
        wait_for(lambda: world.marked() == [])
        (row,) = world.said("certificates", "list")
        assert (row["done"], row["count"]) == ("forgotten and erased", EVENTS + 2)
        assert world.said("fsck")[0]["erasing"] == []
        assert changed(world, "refuse", "online.rebuild.certify", "forgotten") == 0
        assert [row["count"] for row in world.said("certificates", "list")] == [EVENTS + 2, 0]
        out = tmp_path / "good.json"
        for undone in (2 * EVENTS, 0):  # once more, for the certificate alone
            words = ("forget", "--source", "good", "--yes", "--certificate", str(out))
            assert world.said(*words)["undone"] == undone
            found = json.loads(out.read_text())["certificate"]
            assert (found["done"], found["count"]) == ("forgotten", 2 * EVENTS)
            world.said("certificates", "verify", str(out))


@pytest.mark.parametrize(
    ("step", "where"),
    [
        ("online.commands.change.erasing Erasing._withdraw", ".snapshot"),
        ("online.commands.change.erasing Erasing._settle", "journal.db"),
    ],
)
def test_with_a_step_left_out_something_is_found(tmp_path: Path, step: str, where: str) -> None:
    with world_of(tmp_path, "sqlite") as world, world.serving():
        live(world)
        assert changed(world, "skip", *step.split()) == 0
        assert all(where in name for name in world.marked())
        assert world.marked()
