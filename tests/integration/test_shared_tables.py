"""Two replicas that read one table of their host, over HTTP, with kills and a standstill."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from benchmarks.fixtures.connection import Connection
from benchmarks.fixtures.service import Running, launch, settle, status, write_settings
from online.service import processes
from paramserver.process.shared_tables import ROWS_LEAST

pytestmark = pytest.mark.ray

MODEL: Final = "words"
SETTINGS: Final[dict[str, Any]] = {
    "replicas": 2,
    "limits": {"standstill_s": 600},
    "models": [
        {
            "name": MODEL, "task": "regression", "learner": "fm", "filters": "none",
            "params": {"table": True, "k": 4, "text": ["text"]},
            "sync": {"share_tables": True}, "snapshots": {"interval_s": 1},
        },
    ],
}  # fmt: skip
WORDS: Final = 3 * ROWS_LEAST


class World:
    """The service of this file, and how many events it has learned."""

    def __init__(self, folder: Path, **more: Any) -> None:
        write_settings(folder, SETTINGS | more)
        self.running: Running = launch(folder)
        self.memory = processes.shared_dir(self.running.state_dir)
        self.draw = random.Random(3)
        self.learned = 0

    def post(self, verb: str, body: dict[str, Any], url: str | None = None) -> Any:
        with contextlib.closing(Connection(url or self.running.url)) as client:
            code, answer = client.post(f"/v1/models/{MODEL}/{verb}", body)
        assert code == 200, answer
        return answer

    def text(self) -> str:
        return " ".join(f"w{self.draw.randrange(WORDS)}" for _ in range(60))

    def feed(self, n: int, url: str | None = None) -> None:
        events = [{"features": {"text": self.text()}, "label": float(i % 5)} for i in range(n)]
        receipts = self.post("feedback", {"events": events}, url)["events"]
        assert {receipt["status"] for receipt in receipts} == {"learned"}
        self.learned += n

    def answers(self, url: str | None = None) -> list[float]:
        draw = random.Random(7)
        rows = [
            {"text": " ".join(f"w{draw.randrange(WORDS)}" for _ in range(60))} for _ in range(50)
        ]
        answer = self.post("predict", {"instances": rows}, url)
        return [row["prediction"] for row in answer["predictions"]]

    def settled(self) -> dict[str, Any]:
        return settle(self.running, MODEL, self.learned)

    @property
    def server(self) -> psutil.Process:
        return psutil.Process(status(self.running, MODEL)["server"]["pid"])

    def read(self) -> dict[str, set[str]]:
        """The arrays in shared memory that each replica has mapped, by its URL."""
        found = {}
        for name, url in self.running.replica_urls().items():
            maps = Path(f"/proc/{name.partition(':')[0]}/maps").read_text()
            lines = (line for line in maps.splitlines() if str(self.memory) in line)
            found[url] = {line.split()[5] for line in lines if "array-" in line}
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("shared"))
    try:
        yield made
    finally:
        made.running.stop()
    assert not made.memory.exists(), "shared memory is given back"


def until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 240
    while True:
        with contextlib.suppress(OSError, psutil.Error, AssertionError, KeyError, TypeError):
            if condition():
                return
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def both_read(world: World) -> bool:
    read = world.read()
    return len(read) == 2 and all(read.values()) and len(set(map(frozenset, read.values()))) == 1


def both_read_more(world: World) -> bool:
    """Whether both read one server's arrays, after one more event: what is new is published."""
    world.feed(1)
    return both_read(world)


def agree(world: World) -> list[float]:
    """The answers of both replicas, which are the same."""
    world.settled()
    first, second = map(world.answers, world.running.replica_urls().values())
    assert first == pytest.approx(second, abs=1e-5)
    return first


def test_two_replicas_read_one_table_and_answer_alike(world: World) -> None:
    for _ in range(12):
        world.feed(40)
    assert world.settled()["server"]["shared"]["reason"] == ""
    until(lambda: both_read_more(world), "both read the arrays of one server")
    agree(world)


def test_a_replica_that_was_killed_begins_with_the_published_table(world: World) -> None:
    name = next(iter(world.running.replica_urls()))
    psutil.Process(int(name.partition(":")[0])).kill()
    until(lambda: name not in world.running.replica_urls() and both_read(world), "a new one reads")
    agree(world)


def test_predictions_and_own_writes_go_on_while_the_server_stands_still(world: World) -> None:
    server, before = world.server, agree(world)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        urls = [*world.running.replica_urls().values()]
        for url in urls:
            assert world.answers(url) == pytest.approx(before, abs=1e-5)
        world.feed(40, urls[0])
        assert world.answers(urls[0]) != pytest.approx(before, abs=1e-5), "its own writes"
        assert world.answers(urls[1]) == pytest.approx(before, abs=1e-5)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    agree(world)


def test_each_event_counts_once_when_the_server_is_killed(world: World) -> None:
    for _ in range(2):
        server = world.server
        world.feed(40)
        server.kill()
        for _ in range(5):
            world.feed(10)
            world.answers()
        until(lambda pid=server.pid: world.server.pid != pid, "another server")
        found = world.settled()
        assert found["learned"] == world.learned
        until(lambda: both_read_more(world), "both read the new server's arrays")
        agree(world)


def test_a_service_in_one_process_reads_its_servers_table(tmp_path: Path) -> None:
    world = World(tmp_path, cluster="embedded", replicas=1)
    try:
        for _ in range(6):
            world.feed(40)

        def reads() -> bool:
            world.feed(1)
            maps = Path(f"/proc/{world.running.process.pid}/maps").read_text()
            lines = [line.split() for line in maps.splitlines() if str(world.memory) in line]
            return {"rw-s", "r--s"} <= {line[1] for line in lines if "array-" in line[5]}

        until(reads, "one mapping to write, one to read")
        assert world.settled()["server"]["shared"]["reason"] == ""
        assert world.answers() == pytest.approx(world.answers(), abs=1e-6)
    finally:
        world.running.stop()
    assert not world.memory.exists()
