"""Parameter servers that share a process: a list says which, and none disturbs its neighbours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from paramserver.clients import hosted
from paramserver.clients.hosted import Given, ParameterServers
from paramserver.clients.in_process import InProcess
from paramserver.errors import ServerUnavailable
from paramserver.process import settings as of_server
from paramserver.process.actor import ServerSettings
from paramserver.process.lineage import Lineage, begin_epoch
from replay.journal.sqlite.journal import SqliteJournal

QUICK = ServerSettings(confirm_s=0.01, retry_s=0.01, interval_s=0.05)


def until(true: Callable[[], Any], what: str) -> None:
    """Wait until it is so; at most four minutes."""
    end_s = time.monotonic() + 240
    while not true():
        assert time.monotonic() < end_s, what
        time.sleep(0.005)


class Host:
    """A list of servers, and the process that runs them."""

    def __init__(self, folder: Path) -> None:
        self.opener = partial(SqliteJournal, folder / "journal.db", synchronous="OFF")
        self.place = str(folder / "snapshots")
        self.listed = dict[str, Given]()
        self.away = 0

    def add(self, name: str, rule: str = "sum", spec: str = "s") -> None:
        lineage = Lineage(name, spec * 64, "{}", rule)
        self.listed[name] = Given(lineage, self.opener, self.place, QUICK, lambda _: [])

    def read(self) -> dict[str, Given]:
        if self.away:
            self.away -= 1
            raise ConnectionError("the control store is away")
        return dict(self.listed)

    def begin(self) -> ParameterServers:
        self.servers = ParameterServers(self.read)
        return self.servers

    def status(self, name: str) -> dict[str, Any]:
        try:
            status: dict[str, Any] = self.servers.ask(name, "status")
        except ServerUnavailable:
            return {"state": "away", "epoch": 0}
        return status

    def epoch(self, name: str) -> int:
        until(lambda: self.status(name)["state"] == "serving", f"{name} serves")
        return int(self.status(name)["epoch"])


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.away = 0
    made.listed.clear()
    made.servers.take()
    left = [t for t in threading.enumerate() if t.name.startswith("parameter-server")]
    for one in left:
        one.join(10)
    assert not [one for one in left if one.is_alive()]


def test_the_servers_of_the_list_run_even_if_it_can_not_be_read_at_first(host: Host) -> None:
    host.away = 2
    host.add("a")
    host.add("b")
    host.begin()
    assert (host.epoch("a"), host.epoch("b")) == (1, 1)
    with pytest.raises(ServerUnavailable, match="does not run in the shared process"):
        host.servers.ask("c", "status")


def test_servers_whose_start_has_failed_start_at_the_next_attempt(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one finds no room for its threads; the process went on without any server."""
    start, tries = InProcess.start, list[str]()

    def starting(server: InProcess) -> None:
        tries.append(server.name)
        if len(tries) == 2:
            raise RuntimeError("can't start new thread")
        start(server)

    monkeypatch.setattr(InProcess, "start", starting)
    host.add("a")
    host.add("b")
    host.begin()
    until(lambda: len(tries) >= 4, "both start again")
    assert host.epoch("a") >= 1
    assert host.epoch("b") >= 1


def test_a_server_that_ends_leaves_its_neighbours_alone(host: Host) -> None:
    host.add("a")
    host.add("b")
    host.begin()
    assert (host.epoch("a"), host.epoch("b")) == (1, 1)
    journal = host.opener()
    begin_epoch(journal, host.listed["a"].lineage)  # as another server would
    journal.close()
    until(lambda: host.epoch("a") == 3, "another one serves")
    assert host.epoch("b") == 1


def test_only_what_has_changed_is_replaced_and_publishes_first(host: Host) -> None:
    host.add("a")
    host.add("b")
    servers = host.begin()
    assert (host.epoch("a"), host.epoch("b")) == (1, 1)
    before = servers.take()
    assert servers.take() == before, "nothing has changed"
    assert host.epoch("a") == 1
    host.add("a", rule="average")
    host.add("c")
    after = servers.take()
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]
    assert (host.epoch("a"), host.epoch("b"), host.epoch("c")) == (2, 1, 1)
    assert host.status("a")["merge"] == "average"
    assert host.status("a")["snapshots"] > 0
    del host.listed["a"]
    assert servers.take().keys() == {"b", "c"}
    assert host.status("a")["state"] == "away"
    assert host.epoch("b") == 1


def test_a_server_that_was_replaced_answers_nobody_over_its_socket(host: Host) -> None:
    host.add("a")
    servers = host.begin()
    assert host.epoch("a") == 1
    address, key = servers.ask("a", "near")
    host.add("a", rule="average")
    servers.take()
    assert host.epoch("a") == 2
    assert servers.ask("a", "near") != (address, key)
    assert [t for t in threading.enumerate() if "_accept" in t.name][1:] == []


def test_a_process_is_what_it_was_begun_with_whatever_code_is_put_on_the_disk(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So who starts servers of new code finds that this process has to be replaced."""
    host.add("a")
    servers = host.begin()
    before = servers.take()
    assert host.epoch("a") == 1
    monkeypatch.setattr(hosted, "code_on_disk", lambda: "newer")
    monkeypatch.setattr(of_server, "code_on_disk", lambda: "newer")
    assert servers.take() == before
    assert host.epoch("a") == 1
    assert host.listed["a"].identity() != before["a"]
    servers.publish()
    assert host.status("a")["snapshots"] > 0
