"""A model with two parameter servers and two replicas, over HTTP, while servers are killed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from operated import online

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.learners import COUNT_LABEL
from benchmarks.fixtures.service import Running, launch, settle, status, write_settings

pytestmark = pytest.mark.ray

SETTINGS: dict[str, Any] = {
    "replicas": 2,
    "models": [
        {
            "name": "counting", "task": "regression",
            "learner": "benchmarks.fixtures.learners:counting",
            "sync": {"merge": "sum"}, "shards": 2, "filters": "none",
        },
        {
            "name": "films", "task": "regression", "learner": "fm", "shards": 2,
            "params": {"table": True, "k": 4},
        },
    ],
}  # fmt: skip


class World:
    """The service of this file, which tests start again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_settings(folder, SETTINGS)
        self.running: Running = launch(folder)
        self.learned = 0

    def post(self, model: str, verb: str, body: dict[str, Any]) -> Any:
        with contextlib.closing(Connection(self.running.url)) as client:
            code, answer = client.post(f"/v1/models/{model}/{verb}", body)
        assert code == 200, answer
        return answer

    def feed(self, names: list[str], **more: Any) -> list[str]:
        """Send an event for each name; what became of them."""
        events = [
            {"features": {name: 1.0}, "label": COUNT_LABEL, "event_id": name, **more}
            for name in names
        ]
        receipts = self.post("counting", "feedback", {"events": events})["events"]
        self.learned += sum(receipt["status"] == "learned" for receipt in receipts)
        return [receipt["status"] for receipt in receipts]

    def counts(self, names: list[str]) -> list[float]:
        """How often each event counts in the answers of one replica."""
        found: list[float] = []
        for first in range(0, len(names), 900):
            rows = [{name: 1.0} for name in ["never", *names[first : first + 900]]]
            answer = self.post("counting", "predict", {"instances": rows})
            base, *values = (row["prediction"] for row in answer["predictions"])
            found += [(value - base) * 2**10 for value in values]
        return found

    def settled(self) -> dict[str, Any]:
        return settle(self.running, "counting", self.learned)

    def shard(self, number: int) -> dict[str, Any]:
        """What is told of a shard; a server that is away tells nothing."""
        server = status(self.running, "counting")["server"] or {"shards": [{"state": "away"}] * 2}
        found: dict[str, Any] = server["shards"][number]
        return found

    def snapshot(self) -> str:
        """Name of a snapshot whose rows the other shard has in one, too; nothing is learned now."""
        while True:
            name: str = self.post("counting", "snapshots", {})["name"]
            other = self.shard(1)
            published = (other["snapshot"] or "0-0").split("-")[1]
            if int(published) == other["count"]:
                return name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("sharded"))
    try:
        yield made
    finally:
        made.running.stop()


@contextlib.contextmanager
def fed(world: World, name: str) -> Iterator[tuple[list[str], list[Any]]]:
    """Feedback and predictions go on meanwhile: the ids that were learned, and what went wrong."""
    sent: list[str] = []
    odd: list[Any] = []
    stop = threading.Event()

    def feed() -> None:
        while not stop.is_set():
            names = [f"{name}-{len(sent) + i}" for i in range(20)]
            try:
                told = world.feed(names)
                assert set(told) == {"learned"}, told
                world.counts(names[:1])
            except Exception as error:
                odd.append(error)
                return
            sent.extend(names)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield sent, odd
    finally:
        stop.set()
        thread.join()
    assert not odd, "feedback and predictions went on"


def test_each_event_counts_once_whichever_shard_is_killed(world: World) -> None:
    with fed(world, "kill") as (sent, odd):
        for shard in (1, 0, 1):
            before = world.shard(shard)
            psutil.Process(before["pid"]).kill()
            while not odd:
                now = world.shard(shard)
                if now["state"] == "serving" and now["epoch"] > before["epoch"]:
                    break
    found = world.settled()
    # The number of learned rows stands on shard 0: a shard that was killed may still be told some.
    deadline = time.monotonic() + 120.0
    while min(counts := world.counts(sent)) < 1.0 and time.monotonic() < deadline:
        assert max(counts) == 1.0, "none counts twice meanwhile"
    assert set(counts) == {1.0}, Counter(counts)
    one, other = found["server"]["shards"]
    assert (one["state"], other["state"]) == ("serving", "serving")


def test_a_table_is_cut_and_answers_as_one(world: World) -> None:
    def rating(user: int, film: int) -> float:
        return 5.0 if user == film else 1.0

    for _ in range(30):
        events = [
            {"features": {"user": f"u{u}", "film": f"f{f}"}, "label": rating(u, f)}
            for u in range(3)
            for f in range(3)
        ]
        world.post("films", "feedback", {"events": events})
    settle(world.running, "films", 270)
    alike, unlike = world.post(
        "films", "predict",
        {"instances": [{"user": "u1", "film": "f1"}, {"user": "u1", "film": "f2"}]},
    )["predictions"]  # fmt: skip
    assert alike["prediction"] > unlike["prediction"]


def test_a_rollback_is_of_all_shards(world: World) -> None:
    kept, undone = [f"kept-{i}" for i in range(40)], [f"undone-{i}" for i in range(40)]
    world.feed(kept)
    world.settled()
    name = world.snapshot()
    world.feed(undone)
    world.settled()
    assert set(world.counts([*kept, *undone])) == {1.0}
    answer = world.post("counting", "rollback", {"to": name})
    assert answer["undone"] == 40
    world.learned -= 40
    world.settled()
    assert set(world.counts(kept)) == {1.0}
    assert set(world.counts(undone)) == {0.0}
    after = [f"after-{i}" for i in range(20)]
    world.feed(after)
    world.settled()
    assert set(world.counts([*kept, *after])) == {1.0}
    psutil.Process(world.shard(1)["pid"]).kill()
    world.feed(["later"])
    world.settled()
    assert set(world.counts([*kept, *after, "later"])) == {1.0}
    assert set(world.counts(undone)) == {0.0}


def test_a_source_is_forgotten_by_all_shards(world: World) -> None:
    bad, good = [f"bad-{i}" for i in range(20)], [f"good-{i}" for i in range(20)]
    world.feed(bad, source="bot")
    world.feed(good)
    world.settled()
    config = str(world.folder / "online.yaml")
    words = ("forget", "--source", "bot", "--yes", "--model", "counting")
    done = online(*words, "--config", config)
    assert done.returncode == 0, done.stderr
    world.learned -= 20
    world.settled()
    assert set(world.counts(good)) == {1.0}
    assert set(world.counts(bad)) == {0.0}


def test_what_reads_one_servers_snapshots_as_the_model_is_refused(world: World) -> None:
    config = str(world.folder / "online.yaml")
    for what, *words in (
        ("erasing", "forget", "--source", "x", "--erase"),
        ("without a source", "rollback", "--to", "1-0", "--without-source", "x"),
    ):
        done = online(*words, "--yes", "--model", "counting", "--config", config)
        assert done.returncode == 1, done.stdout
        assert f"{what} needs a model with one" in done.stderr, done.stderr


def test_another_number_of_servers_serves_while_the_model_answers(world: World) -> None:
    config = str(world.folder / "online.yaml")
    with fed(world, "cut") as (sent, _):
        done = online("models", "reshard", "counting", "--shards", "3", "--config", config)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3 parameter servers serve, instead of 2" in done.stdout
    found = world.settled()
    assert len(found["server"]["shards"]) == 3, found["server"]
    counts = world.counts(sent)
    assert set(counts) == {1.0}, Counter(counts)
    said = online("models", "reshard", "counting", "--shards", "3", "--config", config)
    assert said.returncode == 1
    assert "has 3 parameter servers" in said.stderr, said.stderr
    good = online("fsck", "--config", config)
    assert good.returncode == 0, good.stdout + good.stderr


def test_a_start_has_what_all_shards_have(world: World) -> None:
    """Of one process, which starts in a second."""
    before = [f"before-{i}" for i in range(40)]
    world.feed(before)
    world.settled()
    world.running.stop()
    models = [{**model, "shards": 3 - i} for i, model in enumerate(SETTINGS["models"])]
    write_settings(world.folder, {"cluster": "embedded", "models": models})
    world.running = launch(world.folder)
    found = world.settled()
    assert len(found["server"]["shards"]) == 3
    assert set(world.counts(before)) == {1.0}
