"""Rows that a server passes to its host: each reader's are the server's, whatever is lost."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from online.replica import host_tables
from online.replica.host_tables import HostTables
from paramserver.core import wire
from paramserver.core.blocks import ROWS, Block, from_wire, to_wire
from paramserver.core.server import Server
from paramserver.core.tables.rows import Rows
from paramserver.process import shared_tables
from paramserver.process.shared_tables import SharedTables
from paramserver.snapshots import passed_rows

IDS: Final = 40
READERS: Final = 3
RING: Final = 600
SPEC: Final = "f" * 64

STEPS: Final = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.lists(st.integers(1, IDS), max_size=12, unique=True)),
        st.tuples(st.just("ask"), st.integers(0, READERS - 1)),
        st.tuples(st.just("lose a reply"), st.integers(0, READERS - 1)),
        st.tuples(st.just("come late"), st.integers(0, READERS - 1)),
        st.tuples(st.just("overwrite"), st.integers(0, READERS - 1)),
        st.tuples(st.just("ask in messages"), st.integers(0, READERS - 1)),
        st.tuples(st.just("begin anew"), st.none()),
    ),
    min_size=10,
    max_size=60,
)


class Reader:
    """What a replica does with replies, on a dict."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.version: wire.Version | None = None
        self.rows: dict[int, float] = {}
        self.tables = HostTables(None, None, lambda: 0.0)  # type: ignore[arg-type]
        self.passed = 0

    def request(self) -> wire.SyncRequest:
        return wire.SyncRequest(
            wire.FORMAT, self.name, 1, [], self.version, True, [], host=self.tables.host
        )

    def take(self, reply: wire.SyncReply) -> None:
        found = self.tables.with_passed(reply)
        if found is None:
            assert not self.tables.host
            return
        self.passed += bool(reply.passed)
        if found.kind == "all":
            self.rows = {}
        elif reply.since != self.version:
            return  # it comes late
        table = from_wire(found.blocks).get("t", Block(ROWS, Rows.empty(1))).data
        self.rows |= dict(zip(table.ids.tolist(), table.numbers[:, 0].tolist(), strict=True))
        self.version = (found.epoch, found.count)


class Host:
    """A server, its files, and readers."""

    def __init__(self, folder: Path) -> None:
        self.shared, self.epoch, self.offset = SharedTables(folder), 0, 0
        self.readers = [Reader(f"r{i}") for i in range(READERS)]
        self.server = Server("m", SPEC, "", "sum", 1)
        self.begin_anew(None)

    def begin_anew(self, _: None) -> None:
        values = self.server.values or {"t": Block(ROWS, Rows.empty(1))}
        self.epoch += 1
        self.server = Server("m", SPEC, "", "sum", self.epoch, history_max=12)
        self.server.values, self.offset = dict(values), 0
        self.shared.take(self.server)

    def push(self, ids: list[int]) -> None:
        self.offset += 1
        if not ids:
            return
        rows = Rows(np.array(ids, np.uint64), np.full((len(ids), 1), self.offset, np.float32))
        push = wire.Push(
            self.epoch, SPEC, 1, self.offset, self.offset, 1, (self.epoch, 0),
            to_wire({"t": Block(ROWS, rows)}),
        )  # fmt: skip
        self.offset -= self.server.push(push, _known).status != "applied"

    def reply(self, reader: Reader) -> wire.SyncReply:
        asked = wire.decode_request(wire.encode(reader.request()))
        passed = self.shared.passed(self.server, asked)
        return wire.decode_reply(wire.encode(self.server.reply(asked, [], [], 0.0, passed=passed)))

    def ask(self, i: int) -> None:
        reader = self.readers[i]
        before, passed = self.reply(reader), reader.passed
        reader.take(before)
        if not reader.tables.host and reader.passed == passed:
            reader.take(self.reply(reader))
        table = self.server.values["t"].data
        found = dict(zip(table.ids.tolist(), table.numbers[:, 0].tolist(), strict=True))
        assert reader.rows == found, reader.name
        self.read_view(reader)

    def read_view(self, reader: Reader) -> None:
        """It takes a view of this server."""
        assert self.shared._passed is not None
        reader.tables.host, reader.tables._ring = self.shared._passed.host, self.shared._passed.ring

    def lose_a_reply(self, i: int) -> None:
        self.reply(self.readers[i])

    def come_late(self, i: int) -> None:
        reply = self.reply(self.readers[i])
        self.push([1 + i, 2 + i])
        self.ask((i + 1) % READERS)
        self.readers[i].take(reply)

    def overwrite(self, i: int) -> None:
        """Overwrite the end of a piece before the reader has read it: there are numbers."""
        assert self.shared._passed is not None
        reply = self.reply(self.readers[i])
        for at, size, _ in reply.passed or []:
            self.shared._passed.ring[at + size - 3 : at + size] = 1
        self.readers[i].take(reply)

    def ask_in_messages(self, i: int) -> None:
        self.readers[i].tables.host = ""
        self.ask(i)


def _known(partition: int) -> Any:
    return SimpleNamespace(id=partition, replica="r", end=0, sealed=False, trimmed=0)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="online-test-", dir="/dev/shm") as made:
        yield Path(made)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tables, "ROWS_LEAST", 1)
    monkeypatch.setattr(passed_rows, "BYTES_MAX", RING)


@given(steps=STEPS)
def test_readers_have_the_rows_of_the_server(memory: Path, steps: list[tuple[str, Any]]) -> None:
    check(memory, steps)


MISHAPS: Final = ["lose a reply", "come late", "overwrite", "ask in messages"]


def drawn(seed: int) -> list[tuple[str, Any]]:
    """Mostly pushes and requests, so that pieces are read."""
    draw, steps = Random(seed), list[tuple[str, Any]]()
    for _ in range(80):
        name = draw.choice(["push"] * 4 + ["ask"] * 4 + MISHAPS)
        many = (
            draw.choice([1, 1, 1, 1, 1, 1, 10]) if name == "push" else 1
        )  # more than are remembered
        for _ in range(many):
            ids = draw.sample(range(1, IDS), draw.randrange(1, 9))
            steps.append((name, ids if name == "push" else draw.randrange(READERS)))
    return steps


def test_a_server_that_was_replaced_passes_nothing(memory: Path) -> None:
    """It goes on answering until its successor does, whose ring is there by then."""
    host = Host(memory / "host" / "m" / "spec")
    host.push([1, 2])
    host.ask(0)
    old, reader = host.server, host.readers[0]
    host.begin_anew(None)
    host.read_view(reader)
    for _ in range(2):
        assert host.shared.passed(old, reader.request()) is None
    assert host.shared._passed is not None
    assert host.shared._passed.newest is None


def test_a_reader_that_is_behind_the_ring_receives_messages(memory: Path) -> None:
    host = Host(memory / "host" / "m" / "spec")
    for i in (0, 1, 0, 1):
        host.ask(i)
    before = host.shared.status()
    for _ in range(2):
        host.push([1])
        host.ask(0)
    after = host.shared.status()
    assert (after["passed"] - before["passed"], after["in_messages"]) == (2, before["in_messages"])
    while True:
        host.push([*range(1, 9)])
        host.ask(0)
        assert host.shared._passed is not None
        if host.shared._passed._pieces[0][0] > host.readers[1].version[1]:
            break
    host.ask(1)
    assert host.shared.status()["in_messages"] == after["in_messages"] + 1
    assert host.server.applied.reaches(host.readers[1].version[1], host.server.count)


def test_most_changes_are_passed(memory: Path) -> None:
    assert sum(check(memory, drawn(seed)) for seed in range(3)) > 40


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        pytest.param(passed_rows, "return None  # the oldest piece begins later",
                     "return found[::-1]", id="what came before the oldest piece is left out"),
        pytest.param(passed_rows, "found.append(piece)", "found = [piece]",
                     id="only the oldest piece is named"),
        pytest.param(passed_rows, "return found[::-1]", "return found",
                     id="older rows take the place of newer ones"),
        pytest.param(passed_rows, "if crc32(data) != checksum:", "if False:",
                     id="what was overwritten is read"),
        pytest.param(shared_tables, "None if touched is None else _rows_of(server, touched)",
                     "_rows_of(server, touched or {})",
                     id="what is not remembered counts as unchanged"),
        pytest.param(shared_tables, " or request.host != passed.host", "",
                     id="rows are passed to who can not read them"),
        pytest.param(host_tables, "            self.host = \"\"\n            return None\n",
                     "            rows = {}\n", id="what is overwritten counts as unchanged"),
    ],
)  # fmt: skip
def test_rules_that_are_taken_out_are_noticed(
    module: ModuleType, old: str, new: str, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(module)
    assert source.count(old) == 1
    broken = ModuleType(module.__name__)
    monkeypatch.setitem(sys.modules, module.__name__, broken)
    exec(compile(source.replace(old, new), str(module.__file__), "exec"), broken.__dict__)
    monkeypatch.undo()
    for name in ("SharedTables", "PassedRows", "HostTables", "read_passed"):
        for place in (sys.modules[__name__], shared_tables, host_tables, broken):
            if hasattr(broken, name) and hasattr(place, name):
                monkeypatch.setattr(place, name, getattr(broken, name))
    for one in (passed_rows, broken):
        monkeypatch.setattr(one, "BYTES_MAX", RING, raising=False)
    for one in (shared_tables, broken):
        monkeypatch.setattr(one, "ROWS_LEAST", 1, raising=False)
    steps = [drawn(seed) for seed in range(60)]
    with pytest.raises(AssertionError):
        [check(memory, some) for some in steps]


def check(memory: Path, steps: list[tuple[str, Any]]) -> int:
    host = Host(memory / "host" / "m" / "spec")
    for name, given_ in steps:
        getattr(host, name.replace(" ", "_"))(given_)
    for i in range(READERS):
        host.ask(i)
    return sum(reader.passed for reader in host.readers)
