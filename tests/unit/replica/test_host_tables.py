"""Replicas that read one table where their host's server publishes it: the same answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from types import SimpleNamespace
from typing import Any, Final

import msgspec
import numpy as np
import pytest
from replica_world import SPEC, Client, World, row, until

from online.learning.local_model import LocalModel
from online.models.errors import LearnerUnusable
from online.models.fm import Fm, FmModel
from online.models.loading.from_settings import load_model
from online.models.state.factors import TABLE
from online.replica import host_tables
from online.replica.host_tables import HostTables
from online.replica.replica import ModelReplica
from online.settings.config import Settings
from paramserver.core import wire
from paramserver.core.blocks import Blocks, from_wire, to_wire
from paramserver.core.tables.layered import LayeredRows
from paramserver.core.tables.rows import Rows
from paramserver.process import shared_tables
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from paramserver.snapshots.passed_rows import PassedRows
from paramserver.snapshots.views import Views, lineage_folder
from replay import codec
from replay.example import Example, Features

ROWS: Final = 400


@pytest.fixture
def memory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="online-test-", dir="/dev/shm") as made:
        yield Path(made)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_tables, "_PUBLISH_S", 0.0)
    monkeypatch.setattr(shared_tables, "_SHARE", 1e9)
    monkeypatch.setattr(shared_tables, "ROWS_LEAST", 10)
    monkeypatch.setattr(host_tables, "_LOOK_S", 0.0)


def build() -> FmModel:
    return Fm(3, table=True).model_for("regression")


def event(i: int) -> Features:
    return {"user": f"u{i % 37}", "film": f"f{i * 7 % 101}"}


class Sharing(World):
    """A world whose server publishes its tables in a folder."""

    def __init__(self, folder: Path, memory: Path) -> None:
        super().__init__(folder)
        self.place = lineage_folder(str(memory), "m", SPEC)
        self.settings = ServerSettings(shared=str(memory), part_keys=64)
        self.serve()

    def serve(self) -> None:
        """Start a server, in place of the one before."""
        self.server = ParameterServer(
            Lineage("m", SPEC, "{}", "sum"), self.journal, str(self.folder / "snapshots"),
            self.settings, background=False,
        )  # fmt: skip
        assert self.server.restore()
        self.client.server = self.server

    async def joined(self, name: str, *, shares: bool = True) -> ModelReplica:
        """Start a replica that reads the server's table, or has its own."""

        def tables(learner: LocalModel) -> HostTables:
            return HostTables(learner, Views(self.place, SPEC), monotonic)

        client = Heard(self.client)
        replica = await self.replica(
            name, build=build, client=client, tables=tables if shares else None
        )
        self.heard[name] = client.kinds
        return replica

    @cached_property
    def heard(self) -> dict[str, Counter[str]]:
        """Kinds of replies, by replica."""
        return {}

    @property
    def learned(self) -> int:
        """Number of events in the server's values."""
        server = self.server._running.server
        return 0 if server is None else server.learned()


class Heard:
    """A client that counts replies by their kind."""

    def __init__(self, client: Client) -> None:
        self._client, self.kinds = client, Counter[str]()

    async def sync(self, request: wire.SyncRequest, timeout_s: float) -> wire.SyncReply:
        reply = await self._client.sync(request, timeout_s)
        self.kinds[f"{reply.kind} {len(reply.pieces) > 0}"] += 1
        self.kinds["bytes"] += len(wire.encode(reply))
        if TABLE in reply.blocks:
            self.kinds["rows"] += len(from_wire({TABLE: reply.blocks[TABLE]})[TABLE].data)
        return reply


async def learn(replica: ModelReplica, begin: int, end: int) -> None:
    given = [(i, codec.encode(Example(event(i), float(i % 5)))) for i in range(begin, end)]
    rows = [msgspec.structs.replace(row(f"e{i}"), payload=payload) for i, payload in given]
    for at in range(0, len(rows), 10):
        await replica.writer.record(rows[at : at + 10])


def answers(replica: ModelReplica) -> list[float]:
    return [float(replica.learner.predict(event(i)).label or 0.0) for i in range(200)]


async def agreed(*replicas: ModelReplica, rows: int) -> None:
    """Wait until all have learned all rows, and have nothing of their own."""
    for one in replicas:
        await until(lambda one=one: one.learner.tally.digest[0] == rows and not one.learner.own)
    versions = [one.learner.version for one in replicas]
    await until(lambda: len({one.learner.version for one in replicas}) == 1)
    assert versions


def layered(replica: ModelReplica) -> LayeredRows:
    table = replica.learner.pulled[TABLE].data
    assert isinstance(table, LayeredRows)
    model: Any = replica.learner.serving
    assert isinstance(model._table._table, LayeredRows)
    return table


def own_rows(replica: ModelReplica) -> int:
    model: Any = replica.learner.serving
    own: int = layered(replica).own_rows + model._table._table.own_rows
    return own


def shared(tmp_path: Path, memory: Path, scene: Callable[[Sharing], Awaitable[None]]) -> None:
    tmp_path.mkdir(exist_ok=True)
    asyncio.run(scene(Sharing(tmp_path, memory)))


def test_replicas_that_share_a_table_answer_as_one_that_has_its_own(
    tmp_path: Path, memory: Path
) -> None:
    async def scene(world: Sharing) -> None:
        first = await world.joined("a", shares=False)
        await learn(first, 0, 300)
        await agreed(first, rows=300)
        world.server.snapshot_if_due()
        others = [await world.joined(name) for name in ("b", "c")]
        for name in ("b", "c"):
            assert world.heard[name]["part True"] == 0, "no row was sent that was published"
        assert [own_rows(one) for one in others] == [0, 0]
        await agreed(first, *others, rows=300)
        for one in others:
            assert answers(one) == answers(first)
        for turn in range(300, 420, 20):
            for i, one in enumerate((*others, first)):
                await learn(one, turn + 1000 * i, turn + 1000 * i + 20)
            world.server.snapshot_if_due()
        await agreed(first, *others, rows=300 + 3 * 120)
        for one in others:
            assert answers(one) == pytest.approx(answers(first), abs=1e-6)
            assert own_rows(one) > 0, "rows that changed since the view"
        assert world.learned == 660
        world.server.snapshot_if_due()
        await until(lambda: sum(map(own_rows, others)) == 0)
        for one in others:
            assert answers(one) == pytest.approx(answers(first), abs=1e-6)
        for one in (first, *others):
            await one.stop(5.0)

    shared(tmp_path, memory, scene)


@dataclass
class Received:
    """What replicas of a host received while another one taught 100 events."""

    rows: float = 0.0
    replies: float = 0.0
    bytes: float = 0.0
    passed: int = 0
    passed_bytes: int = 0


def received(tmp_path: Path, memory: Path, sharing: int) -> Received:
    found = Received()
    add = PassedRows.add

    def noted(self: PassedRows, count: int, rows: Blocks | None) -> None:
        add(self, count, rows)
        found.passed += sum(len(one.data) for one in (rows or {}).values())
        found.passed_bytes += len(wire.encode_piece(to_wire(rows))) if rows else 0

    async def scene(world: Sharing) -> None:
        first = await world.joined("a", shares=False)
        await learn(first, 0, 300)
        await agreed(first, rows=300)
        world.server.snapshot_if_due()
        names = [f"r{i}" for i in range(sharing)]
        others = [await world.joined(name) for name in names]
        await agreed(first, *others, rows=300)
        before = {name: Counter(world.heard[name]) for name in names}
        found.passed = found.passed_bytes = 0
        for begin in range(300, 400, 10):
            await learn(first, begin, begin + 10)
            await agreed(first, *others, rows=begin + 10)
        assert all(answers(one) == pytest.approx(answers(first), abs=1e-6) for one in others)
        for name in names:
            more = world.heard[name] - before[name]
            found.rows += more["rows"] / sharing
            found.replies += more["changes False"] / sharing
            found.bytes += more["bytes"] / sharing
        for one in (first, *others):
            await one.stop(5.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PassedRows, "add", noted)
        shared(tmp_path, memory, scene)
    return found


def test_changed_rows_are_passed_to_all_replicas_of_a_host_at_once(
    tmp_path: Path, memory: Path
) -> None:
    """A reply has what is small; the server writes each changed row once, for all of them."""
    one, three = (received(tmp_path / str(n), memory, n) for n in (1, 3))
    print(one, three)
    assert one.rows == three.rows == 0
    assert 0 < three.passed <= 1.5 * one.passed
    assert three.passed_bytes <= 2 * one.passed_bytes


def test_a_replica_whose_passed_rows_are_overwritten_asks_for_them(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overwritten(ring: object, pieces: object) -> None:
        raise ValueError("overwritten")

    async def scene(world: Sharing) -> None:
        first = await world.joined("a", shares=False)
        await learn(first, 0, 300)
        await agreed(first, rows=300)
        world.server.snapshot_if_due()
        second = await world.joined("b")
        await agreed(first, second, rows=300)
        monkeypatch.setattr(host_tables, "read_passed", overwritten)
        before = world.heard["b"]["rows"]
        await learn(second, 300, 310)
        await learn(first, 310, 320)
        await agreed(first, second, rows=320)
        assert world.heard["b"]["rows"] > before
        assert world.learned == 320
        assert answers(first) == pytest.approx(answers(second), abs=1e-6)
        for one in (first, second):
            await one.stop(5.0)

    shared(tmp_path, memory, scene)


def test_a_replica_reads_its_own_writes_while_the_server_is_down_or_begins_anew(
    tmp_path: Path, memory: Path
) -> None:
    async def scene(world: Sharing) -> None:
        first = await world.joined("a", shares=False)
        await learn(first, 0, 300)
        await agreed(first, rows=300)
        world.server.snapshot()
        second = await world.joined("b")
        await agreed(second, rows=300)
        world.client.down = True
        twin = build()
        twin.reset(second.learner.pulled)
        await learn(second, 300, 340)
        await until(lambda: second.learner.own == 40)
        for i in range(300, 340):
            twin.learn(event(i), float(i % 5), 1.0)
        mine = [float(twin.predict(event(i)).label or 0.0) for i in range(200)]
        assert answers(second) == pytest.approx(mine, abs=1e-6)
        for _ in range(2):  # its state is that of 300 rows, each time
            world.serve()
            await asyncio.sleep(0)
            assert answers(second) == pytest.approx(mine, abs=1e-6)
            world.client.down = False
            before = world.heard["b"]["part True"]
            epoch = world.server.status()["epoch"]
            await until(lambda epoch=epoch: second.learner.version[0] == epoch)
            await agreed(first, second, rows=340)
            assert layered(second)
            assert world.heard["b"]["part True"] - before <= 1, "the first is not needed"
            assert answers(second) == pytest.approx(answers(first), abs=1e-6)
            assert world.learned == 340
            mine = answers(second)
            world.client.down = True
        world.client.down = False
        for one in (first, second):
            await one.stop(5.0)

    shared(tmp_path, memory, scene)


def test_a_table_that_grew_in_a_replica_is_given_up_for_the_published_one(
    tmp_path: Path, memory: Path
) -> None:
    async def scene(world: Sharing) -> None:
        first, second = await world.joined("a"), await world.joined("b", shares=False)
        await learn(first, 0, 300)
        await agreed(first, second, rows=300)
        assert not isinstance(first.learner.pulled[TABLE].data, LayeredRows)
        world.server.snapshot_if_due()
        await learn(first, 300, 301)
        await until(lambda: isinstance(first.learner.pulled[TABLE].data, LayeredRows))
        await agreed(first, second, rows=301)
        world.server.snapshot_if_due()
        await until(lambda: own_rows(first) == 0)
        assert answers(first) == pytest.approx(answers(second), abs=1e-6)
        for one in (first, second):
            await one.stop(5.0)

    shared(tmp_path, memory, scene)


def test_a_rollback_is_taken_from_the_view_of_the_new_values(tmp_path: Path, memory: Path) -> None:
    async def scene(world: Sharing) -> None:
        first, second = await world.joined("a", shares=False), await world.joined("b")
        await learn(first, 0, 200)
        await agreed(first, second, rows=200)
        name = world.server.snapshot()["name"]
        before = answers(first)
        await learn(second, 200, 300)
        await agreed(first, second, rows=300)
        assert answers(second) != pytest.approx(before, abs=1e-6)
        await asyncio.to_thread(world.server.rollback, name)
        await agreed(first, second, rows=200)
        assert layered(second)
        assert answers(first) == pytest.approx(before, abs=1e-6)
        assert answers(second) == pytest.approx(before, abs=1e-6)
        for one in (first, second):
            await one.stop(5.0)

    shared(tmp_path, memory, scene)


def test_a_view_is_taken_only_by_who_has_pulled_as_much(tmp_path: Path, memory: Path) -> None:
    """Otherwise answers would mix what the replica has pulled with rows of a later version."""

    async def scene(world: Sharing) -> None:
        first = await world.joined("a", shares=False)
        await learn(first, 0, 300)
        await agreed(first, rows=300)
        world.server.snapshot_if_due()
        second = await world.joined("b")
        await agreed(first, second, rows=300)
        learner = second.learner
        assert isinstance(learner, LocalModel)
        epoch, count = learner.version
        before = answers(second)
        view = Views(world.place, SPEC).newest((0, 0))
        assert view is not None
        assert learner.rest_on(view.version, view.tables)
        assert not learner.rest_on((epoch, count + 1), view.tables), "newer than the values"
        assert not learner.rest_on((epoch - 1, count), view.tables), "of another server"
        learner.want_all = True
        assert not learner.rest_on(view.version, view.tables), "other values are coming"
        learner.want_all = False
        learner.serving = build()
        assert not learner.rest_on(view.version, view.tables), "rows are being learned again"
        learner.serving = learner._training
        assert answers(second) == before
        for one in (first, second):
            await one.stop(5.0)

    shared(tmp_path, memory, scene)


@pytest.mark.parametrize(
    ("model", "limits", "said"),
    [
        ({"learner": "linear"}, {}, "no table of ids"),
        ({"learner": "fm"}, {}, "no table of ids"),
        ({}, {"table_rows_max": 5_000}, "table_rows_max is 5000"),
        ({"shards": 2}, {}, "sync.share_tables needs all of it"),
        ({}, {}, None),
    ],
)
def test_tables_that_can_not_be_shared_are_refused(
    model: dict[str, Any], limits: dict[str, Any], said: str | None
) -> None:
    given = {"name": "m", "task": "binary", "sync": {"share_tables": True}}
    params = {} if "learner" in model else {"learner": "fm", "params": {"table": True}}

    def load() -> None:
        settings = Settings.model_validate({"models": [given | params | model], "limits": limits})
        load_model(settings.models[0], settings, bytes(32))

    if said is None:
        load()
        return
    with pytest.raises((LearnerUnusable, ValueError), match=said):
        load()


class Burst:
    """A learner with many rows of its own, all of which are in the published table by now."""

    catching_up, ready = False, True

    def __init__(self, rows: int) -> None:
        ids = np.arange(1, rows + 1, dtype=np.uint64)
        self.published = Rows(ids, np.ones((rows, 4), dtype=np.float32))
        mine = Rows(ids, np.ones((rows, 4), dtype=np.float32))
        self.tables = [LayeredRows(self.published.copy(), mine.copy()) for _ in range(2)]
        self.version = (1, 0)

    def rest_on(self, version: tuple[int, int], tables: dict[str, Rows]) -> Iterator[None]:
        return chain(*(table.rest_on(tables["t"]) for table in self.tables))

    def newest(self, after: tuple[int, int], upto: Any = None) -> Any:
        table = {"t": self.published.copy()}
        still = iter(())
        view = SimpleNamespace(
            version=self.version, tables=table, resident=lambda: still, passed=None
        )
        return view if self.version > after else None


@pytest.mark.parametrize("drops", [2, 1 << 30])
def test_own_rows_go_although_views_come_faster_than_they_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, drops: int
) -> None:
    monkeypatch.setattr(host_tables, "_DROPS", drops)
    burst: Any = Burst(20_000)
    reading = HostTables(burst, burst, lambda: 0.0)
    for n in range(1, 101):
        burst.version = (1, n)  # another view at each exchange
        for _ in reading.rest():
            pass
    assert [table.own_rows for table in burst.tables] == [0, 0]
