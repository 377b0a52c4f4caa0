"""Bounded tables between a model, its server and what a start finds; who stays by which rule is in
``tests/properties/test_admission.py``."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.speed.shards import Partition
from online.learning.deltas import Pulled
from online.models.choices.expert_table import Table
from online.models.fm import Fm, FmModel
from online.models.loading.from_settings import load_model
from online.models.state.factors import TABLE, TableLines
from online.rebuild.rebuild import method_of
from online.service.state.parameter_servers import settings_of
from online.settings import config
from paramserver.core import wire
from paramserver.core.admission import KEPT, Keeper, SightingSketch, TableBounds, taken_out
from paramserver.core.blocks import ROWS, Block, Blocks, from_wire, to_wire
from paramserver.core.server import Server
from paramserver.core.shards import Cut, joined_blocks
from paramserver.core.tables.ids import IdArray
from paramserver.core.tables.rows import Rows
from paramserver.snapshots import format as snapshot_format

FLOOD = 1_800
BOUNDS = TableBounds(300, 2)


class Learning:
    """One replica of ``fm`` with a table, and its server."""

    def __init__(self, bounds: TableBounds | None) -> None:
        self.model = Fm(4, bits=31, table=True).model_for("binary")
        self.server = Server("m", "0" * 64, "", "sum", 1)
        self.server.bound(bounds)
        self._pulled, self._pushes, self._since = Pulled(), 0, (1, 0)

    def exchange(self) -> None:
        """Push what was learned, and take what the server has of it."""
        self._pushes += 1
        push = wire.Push(1, "0" * 64, 1, self._pushes, self._pushes, 1, self._since,
                         to_wire(self.model.cut()))  # fmt: skip
        self.server.push(push, lambda partition: Partition())
        request = wire.SyncRequest(wire.FORMAT, "r", 1, [], self._since, True, [])
        data = wire.encode(self.server.reply(request, [], [], 0.0))
        reply = wire.decode_reply(data)
        touched = self._pulled.take(reply, ())
        self.model.rebase(self._pulled.with_deltas((), touched))
        self._since = (reply.epoch, reply.count)


def table_in(model: FmModel) -> Rows:
    lines = model._machine.lines
    assert isinstance(lines, TableLines)
    assert isinstance(lines._table, Rows)
    return lines._table


def flooded(bounds: TableBounds | None, start: int = 0) -> Learning:
    """Names that come once, and between them some that come again and again."""
    learning = Learning(bounds)
    for i in range(start, start + FLOOD):
        user = f"friend {i % 20}" if i % 3 == 0 else f"nobody {i}"
        learning.model.learn({"user": user}, i % 3 == 0, 1.0)
        if i % 50 == 49:
            learning.exchange()
    return learning


def test_a_flood_of_new_names_is_bounded_at_the_server_and_at_replicas() -> None:
    learning = flooded(BOUNDS)
    table, keeper = learning.server.values[TABLE].data, learning.server.keeper
    assert keeper is not None
    counts = keeper.counts(learning.server.values)
    assert counts["rows"] == len(table) <= BOUNDS.rows_max
    assert counts["waiting"] > FLOOD // 3, counts
    mine = table_in(learning.model)
    assert mine == table, "the replica that has learned them, too, has what the server has"
    assert mine.end - mine.begin <= 3_000, "and no room for all that there were"
    known = learning.model.predict({"user": "friend 6"}).probabilities or {}
    assert known[True] > 0.65, "who comes again is known"


def test_without_bounds_the_table_grows_with_the_flood() -> None:
    """The control: what a bound keeps away is there without it."""
    learning = flooded(None)
    assert len(learning.server.values[TABLE].data) > FLOOD // 2
    assert learning.server.keeper is None


def test_without_admission_the_flood_takes_the_place_of_others() -> None:
    """A bound alone holds the memory; rows leave all the time."""
    keeper = flooded(TableBounds(BOUNDS.rows_max)).server.keeper
    assert keeper is not None
    assert keeper.left > FLOOD // 3
    admitted = flooded(BOUNDS).server.keeper
    assert admitted is not None
    assert admitted.left < keeper.left // 4, (admitted.left, keeper.left)


def restarted(server: Server, bounds: TableBounds | None) -> Server:
    data = snapshot_format.encode(server.begin_snapshot(0.0, None, {}))
    again = Server.restored(snapshot_format.decode(data), "sum", server.epoch + 1)
    again.bound(bounds)
    return again


def test_what_is_known_of_rows_survives_a_restart_and_is_told_to_nobody() -> None:
    learning = flooded(BOUNDS)
    server = learning.server
    again = restarted(server, BOUNDS)
    assert again.keeper is not None
    assert server.keeper is not None
    before, after = server.keeper.blocks(), again.keeper.blocks()
    assert snapshot_format.equal(before, after)
    assert {name for name in before if not name.startswith(KEPT)} == set()
    assert snapshot_format.equal(server.values, again.values)
    request = wire.SyncRequest(wire.FORMAT, "r", 1, [], None, True, [])
    reply = again.reply(request, [], [], 0.0)
    assert not [name for name in reply.blocks if name.startswith(KEPT)]
    unbounded = restarted(server, None)
    assert snapshot_format.equal(unbounded.values, server.values), "and the bound can be taken away"


def test_a_state_from_before_there_were_bounds_is_brought_within_them() -> None:
    server = flooded(None).server
    held = server.begin_snapshot(0.0, None, {})
    many = len(server.values[TABLE].data)
    again = restarted(server, BOUNDS)
    assert len(again.values[TABLE].data) <= BOUNDS.rows_max < many
    assert len(held.values[TABLE].data) == many, "the snapshot is as it was"
    at_once = Server.restored(held, "sum", server.epoch + 1)
    at_once.bound(BOUNDS)
    assert len(held.values[TABLE].data) == many


def test_a_snapshot_that_is_being_written_keeps_rows_that_leave_meanwhile() -> None:
    learning = flooded(BOUNDS)
    state = learning.server.begin_snapshot(0.0, None, {})
    before = snapshot_format.encode(state)
    for i in range(2_000):
        learning.model.learn({"user": f"new {i % 100 + 100 * (i // 400)}"}, True, 1.0)
        if i % 50 == 49:
            learning.exchange()
    keeper = learning.server.keeper
    assert keeper is not None
    assert keeper.left > 0
    assert snapshot_format.encode(state) == before


def test_a_new_replica_gets_a_bounded_table_in_parts_while_rows_leave() -> None:
    learning = flooded(TableBounds(1_200))
    learning.server._parts._keys_max, learning.server._parts._piece_keys = 300, 30
    late, since, after, parts = Pulled(), None, None, 0
    for i in range(400):
        request = wire.SyncRequest(wire.FORMAT, "late", 2, [], since, True, [], after=after)
        reply = wire.decode_reply(wire.encode(learning.server.reply(request, [], [], 0.0)))
        for piece in reply.pieces:
            late.put(from_wire(wire.decode_piece(piece)))
        late.put(from_wire(reply.blocks))
        if reply.kind != "part":
            break
        since, after, parts = reply.reached or reply.since, reply.after, parts + 1
        for j in range(30):
            learning.model.learn({"user": f"new {i} {j}"}, True, 1.0)
        learning.exchange()
    assert reply.kind == "changes"
    assert parts > 6
    keeper = learning.server.keeper
    assert keeper is not None
    assert keeper.left > 150, "many have left while it came"
    assert late.blocks[TABLE].data == learning.server.values[TABLE].data


def pushed(server: Server, ids: IdArray) -> None:
    first = server.clock.get(1, 0) + 1
    delta = {"t": Block(ROWS, Rows(ids, np.ones((len(ids), 1), np.float32)))}
    push = wire.Push(1, "s", 1, first, first, 1, server.version, to_wire(delta))
    assert server.push(push, lambda _: None).status in ("applied", "gap")


def resharded(before: int, after: int) -> list[Server]:
    """Servers whose bounded tables have aged under another number of servers."""
    olds = [bounded({}, before) for _ in range(before)]
    for i in range(30):
        for shard, ids in enumerate(split(1 + np.arange(100 * i, 100 * i + 100), before)):
            pushed(olds[shard], ids[:: 1 + shard])  # so one is younger
    states = [old.begin_snapshot(0.0, None, {}).values for old in olds]
    return [bounded(values, after) for values in Cut(after).blocks(joined_blocks(states))]


def bounded(values: Blocks, servers: int) -> Server:
    made = Server.restored(Server("m", "s", "", "sum", 0).state(0.0, None, {}), "sum", 1)
    kept = taken_out(values)
    made.values, made._kept, made.clock = values, kept, {1: 0}
    made.bound(TableBounds(300 // servers))
    return made


def split(ids: npt.NDArray[np.int64], servers: int) -> list[IdArray]:
    of = Cut(servers).of_ids(ids.astype(np.uint64))
    return [ids[of == shard].astype(np.uint64) for shard in range(servers)]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 3)])
def test_what_is_in_use_stays_after_the_number_of_servers_has_changed(
    before: int, after: int
) -> None:
    """Else rows from before stay for ever, and each new one leaves with the next push."""
    servers, friends = resharded(before, after), split(np.arange(9_000, 9_020), after)
    assert all(len(server.values["t"].data) for server in servers)
    for i in range(24):
        strangers = split(np.arange(10_000 + 20 * i, 10_020 + 20 * i), after)
        for shard, server in enumerate(servers):
            pushed(server, np.append(friends[shard], strangers[shard]))
    for shard, server in enumerate(servers):
        table = server.values["t"].data
        assert table.has(friends[shard]).all()
        assert not table.has(np.arange(1, 3_001, dtype=np.uint64)).any(), "nobody uses these"


def test_sights_are_counted_apart_under_a_key_and_half_are_forgotten() -> None:
    ids = np.arange(400, dtype=np.uint64)
    one, other = (SightingSketch(np.random.default_rng(k).bytes(24), 1 << 10) for k in (3, 7))
    for n in range(1, 4):
        one.add(ids[:100], 10**9)
        other.add(ids[:100], 10**9)
        assert int(one.of(ids[:100]).min()) == n
    assert float((one.of(ids[100:]) > 0).mean()) < 0.05, "others are seldom taken for them"
    there = [tuple(at) for at in zip(*one._at(ids), strict=True)]
    assert len(set(there)) > 390
    assert there != [tuple(at) for at in zip(*other._at(ids), strict=True)], "each key its own"
    again = SightingSketch.read(one.packed())
    assert again.of(ids).tolist() == one.of(ids).tolist()
    again.add(ids[:1], 301)
    assert int(again.of(ids[1:100]).max()) == 1, "three halved"
    assert again.since == 0
    for _ in range(300):
        again.add(ids[:1], 10**9)
    assert int(again.of(ids[:1])[0]) == 255


def test_blocks_that_are_no_tables_pass() -> None:
    keeper = Keeper(BOUNDS, {})
    delta: Blocks = {"w": Block("additive", {"k": 1.0})}
    assert keeper.admitted({}, delta, 0) == delta
    assert keeper.settle(delta, delta, 0, 1) == {}


@pytest.mark.parametrize("needed", [1, 2, 3])
def test_a_row_begins_with_what_the_push_that_admits_it_has_added(needed: int) -> None:
    server = Server("m", "0" * 64, "", "sum", 1)
    server.bound(TableBounds(1_000, needed))
    row = to_wire({"t": Block(ROWS, Rows(np.array([7], np.uint64), np.ones((1, 2), np.float32)))})
    for offset in range(1, 5):
        given = wire.Push(1, "0" * 64, 1, offset, offset, 1, (1, offset - 1), row)
        assert server.push(given, lambda p: Partition()).status == "applied"
    assert server.values["t"].data.numbers.tolist() == [[5.0 - needed, 5.0 - needed]]
    assert server.clock == {1: 4}, "a row that waits is acknowledged as any other"


def test_the_most_sights_that_are_counted_are_enough() -> None:
    """A count is a byte: one more than 255 is not none."""
    keeper, ids = Keeper(TableBounds(1_000, 255), {}), np.array([7], np.uint64)
    for _ in range(300):
        keeper._sights_of("t").add(ids, 10**9)
    delta: Blocks = {"t": Block(ROWS, Rows(ids, np.ones((1, 2), np.float32)))}
    assert len(keeper.admitted({}, delta, 0)["t"].data) == 1


def test_of_values_that_were_learned_elsewhere_the_smallest_rows_leave() -> None:
    """Such rows have no use yet; by their ids, which are hashes, anything could leave."""
    ids = np.arange(1_000, dtype=np.uint64)
    numbers = np.random.default_rng(4).normal(size=(1_000, 3)).astype(np.float32)
    values: Blocks = {"t": Block(ROWS, Rows(ids, numbers))}
    keeper = Keeper(TableBounds(400), {})
    numbers[:10] /= 1e6
    values["t"].data.put(ids[:10], numbers[:10])
    keeper._use("t", ids[:10])  # by the first push
    keeper.fit(values, 1)
    kept = values["t"].data.ids.tolist()
    assert 380 <= len(kept) <= 400
    largest = np.argsort(np.square(numbers, dtype=np.float64).sum(axis=1))[10 - len(kept) :]
    assert set(kept) == {*range(10), *largest.tolist()}


@pytest.mark.parametrize("sights", [1, 2])
def test_a_table_by_place_is_as_the_server_has_it_when_rows_leave_or_wait(sights: int) -> None:
    """That of choices, too: what has no row on the server is nothing at a replica."""
    r, server, table = random.Random(sights), Server("m", "0" * 64, "", "sum", 1), Table("t", 9)
    server.bound(TableBounds(64, sights))
    since, lonely = (1, 0), 0
    for offset in range(1, 80):
        places = np.unique(np.array(r.sample(range(1 << 9), 12)) // r.choice((1, 8)))
        slots, numbers, _ = table.opened(places)
        assert table.put(slots, numbers + np.float32(0.5))
        push = wire.Push(1, "0" * 64, 1, offset, offset, 1, since, to_wire(table.cut()))
        assert server.push(push, lambda p: Partition()).status == "applied"
        request = wire.SyncRequest(wire.FORMAT, "r", 1, [], since, True, [])
        reply = wire.decode_reply(wire.encode(server.reply(request, [], [], 0.0)))
        assert reply.kind == "changes"
        blocks, since = from_wire(reply.blocks), (reply.epoch, reply.count)
        lonely += "t" in blocks and not len(blocks["t"].data)  # nothing but what is gone
        table.rebase(blocks)
        there = np.zeros_like(table._now)
        if "t" in server.values:
            there[server.values["t"].data.ids.astype(np.int64)] = server.values["t"].data.numbers
        assert table._now == pytest.approx(there)
    assert server.keeper is not None
    assert server.keeper.left > 0
    assert (lonely > 0) == (sights > 1)


@pytest.mark.parametrize(
    ("limits", "bounds"),
    [
        ({}, None),
        ({"table_sights": 3}, None),
        ({"table_rows_max": 5_000}, TableBounds(5_000, 1)),
        ({"table_rows_max": 5_000, "table_sights": 3}, TableBounds(5_000, 3)),
    ],
)
def test_the_settings_name_the_bounds(limits: dict[str, int], bounds: TableBounds | None) -> None:
    model = {"name": "m", "task": "binary", "learner": "fm", "params": {"table": True}}
    settings = config.load(None, {"models": [model], "limits": limits}, {})
    assert settings_of(settings.models[0], settings).tables == bounds


@pytest.mark.parametrize(("merge", "most"), [("auto", 5_000), ("ordered", None)])
def test_a_model_that_is_learned_in_order_is_rebuilt_with_all_its_rows(
    merge: str, most: int | None
) -> None:
    """As its server has them: else a forget would remove rows of others."""
    told = {"name": "m", "task": "binary", "learner": "fm", "params": {"table": True}}
    model = {**told, "sync": {"merge": merge}}
    settings = config.load(None, {"models": [model], "limits": {"table_rows_max": 5_000}}, {})
    loaded = load_model(settings.models[0], settings, b"0" * 32)
    assert method_of(settings.models[0], loaded, settings).table_rows_max == most
