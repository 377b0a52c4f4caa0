"""A server whose clock is wrong removes nothing that is promised, and nothing stays for it."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
import redis_server

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "worlds"))

from server_world import LINEAGE, sync

from paramserver.process import trimming
from paramserver.process.actor import Host, ParameterServer, ServerSettings
from paramserver.snapshots.store import Retention
from replay.journal.base import Journal, NewRow, Verdict
from replay.journal.redis.journal import RedisJournal
from replay.journal.sqlite.journal import SqliteJournal

DAY_S = 86_400.0
MONTH_S = 30 * DAY_S
STEP_S = 3600.0
KEEP_S = 8 * DAY_S
ROWS = 300

Open = Callable[[str], AbstractContextManager[Journal]]


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str | None]:
    if redis_server.find_binary() is None:
        yield None
        return
    with redis_server.running(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(params=["sqlite", "redis"])
def open_(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str | None) -> Open:
    if request.param == "redis":
        if redis_url is None:
            pytest.skip(redis_server.NO_SERVER)
        url, prefix = redis_url, tmp_path.name
        return lambda name: closing(RedisJournal(url, prefix=f"{prefix}{name}"))
    return lambda name: closing(
        SqliteJournal(tmp_path / f"{name}.db", disk_low_mb=0, synchronous="OFF")
    )


class Machine:
    """Servers one after the other on one store, with a true time and a clock that is wrong."""

    def __init__(self, journal: Journal, folder: Path) -> None:
        self.journal, self.folder = journal, folder
        self.true_s, self.wrong_s = 1.7e9, 0.0
        self.up_s = 500.0  # of the machine: a new start begins anywhere
        self.partition = journal.register("prices", "r1", LINEAGE.spec, self.true_s).id
        self.server: Any = None
        self.end = 0

    def start(self, wrong_s: float = 0.0) -> None:
        """A new server; its clock is ahead by so much, or behind."""
        self.wrong_s = wrong_s
        settings = ServerSettings(
            retention=Retention(1, 0, 0, 0), keep_rows_s=KEEP_S, running_s=STEP_S
        )
        host = Host(monotonic=lambda: self.up_s, wall=lambda: self.true_s + self.wrong_s)
        self.server = ParameterServer(
            LINEAGE, lambda: self.journal, str(self.folder), settings, host=host, background=False
        )
        assert self.server.restore(), self.server.status()["reason"]

    def append(self, n: int, key: int = 0) -> list[bool]:
        """Rows as a replica on this machine stamps them; which of them are new."""
        at = self.true_s + self.wrong_s
        rows = [
            NewRow((key + i).to_bytes(16, "big"), f"e{i}", "s", Verdict.ACCEPTED, b"\x01", at)
            for i in range(n)
        ]
        answer = self.journal.append(self.partition, self.end, rows)
        first, self.end = self.end + 1, answer.end
        if self.end >= first:
            sync(self.server, (self.partition, first, self.end))
            self.server.snapshot()
        return [outcome.new for outcome in answer.outcomes]

    def run(self, seconds: float) -> None:
        """The service runs for so long, and publishes now and then."""
        until_s = self.true_s + seconds
        while self.true_s < until_s:
            step_s = min(STEP_S, until_s - self.true_s)
            self.true_s, self.up_s = self.true_s + step_s, self.up_s + step_s
            self.server.snapshot_if_due()

    def look(self) -> int:
        """Rows that are gone after whatever may go has gone."""
        self.append(1, key=1_000_000 + self.end)
        state = self.journal.partition(self.partition)
        assert state is not None
        return state.trimmed


def live(machine: Machine, r: random.Random) -> None:
    """A life of the folder with whatever clocks, and what is promised at each time."""
    stamped_s = r.choice((0.0, MONTH_S, -MONTH_S, 400 * DAY_S))
    machine.start(stamped_s)
    assert machine.append(ROWS) == [True] * ROWS
    ran_s = 0.0
    for _ in range(4):
        if r.random() < 0.5:  # nobody runs it
            machine.true_s += r.choice((DAY_S, MONTH_S, 3 * MONTH_S))
            machine.up_s = r.choice((5.0, 1e6))
        machine.start(r.choice((0.0, MONTH_S, 400 * DAY_S, -MONTH_S)))
        hours = r.uniform(1.0, 40.0)
        machine.run(hours * STEP_S)
        ran_s += hours * STEP_S
        assert ran_s < KEEP_S
        assert machine.look() == 0, f"after {ran_s / DAY_S:.1f} days of running"
        assert machine.append(ROWS) == [False] * ROWS, "repeats are known"
    machine.start()
    machine.run(KEEP_S + 2 * DAY_S)
    assert machine.look() >= ROWS, "stamps of a wrong clock keep nothing"


@pytest.mark.parametrize("seed", range(10))
def test_rows_go_by_both_clocks_whatever_they_say(open_: Open, tmp_path: Path, seed: int) -> None:
    with open_(f"s{seed}") as journal:
        live(Machine(journal, tmp_path / "snapshots"), random.Random(seed))


def test_the_wall_clock_alone_loses_them(
    open_: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(self: Any, remove: Any, keep_s: float) -> None:
        remove(self._wall() - keep_s, trimming.STEP, ahead=float("inf"), ran=float("inf"))

    monkeypatch.setattr(trimming.Trimming, "_repeat", alone)
    with open_("m") as journal:
        machine = Machine(journal, tmp_path / "snapshots")
        machine.start()
        machine.append(ROWS)
        machine.start(MONTH_S)
        assert machine.look() == ROWS
        assert machine.append(ROWS) == [True] * ROWS, "learned twice"
