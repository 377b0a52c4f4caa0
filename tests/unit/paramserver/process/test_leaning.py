"""Snapshots that hold of a table only what changed: what they lean on, and what if that is bad."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_world import LINEAGE, World, sync

from paramserver import errors
from paramserver.core import wire
from paramserver.core.admission import TableBounds
from paramserver.core.blocks import ROWS, Blocks
from paramserver.core.server import MergeRule, Server
from paramserver.core.tables.rows import Rows
from paramserver.process.actor import ParameterServer, ServerSettings
from paramserver.snapshots import chain
from paramserver.snapshots.format import equal, read_manifest
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.store import DirectorySnapshots, Disk, Retention

N = 5_000
WIDTH = 4


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "snapshots")


class Pushing:
    """A server, and pushes of a table's rows to it, one offset each."""

    def __init__(self, world: World) -> None:
        self.world, self.last = world, 0
        self.server = world.serving()

    def push(self, ids: np.ndarray[Any, Any], number: float = 1.0) -> None:
        rows = Rows(ids.astype(np.uint64), np.full((len(ids), WIDTH), number, np.float32))
        self.last += 1
        epoch = self.server.status()["epoch"]
        block = wire.WireBlock(ROWS, rows.as_message())
        push = wire.Push(epoch, LINEAGE.spec, 1, self.last, self.last, 1, (epoch, 0), {"t": block})
        assert sync(self.server, pushes=[push]).acks[0].status == "applied"

    def publish(self) -> str:
        self.world.now_s += 10
        return str(self.server.snapshot()["name"])

    def history(self) -> SnapshotHistory:
        return SnapshotHistory(stored(self.world), Retention())


def stored(world: World) -> DirectorySnapshots:
    return DirectorySnapshots(world.file("1-1").parent)


def base_of(world: World, name: str) -> str | None:
    base = read_manifest(world.file(name).read_bytes()).base
    return None if base is None else base.name


def begun(world: World, *, more: int = 3) -> tuple[Pushing, list[str]]:
    """A table that was published, and some that lean on it."""
    pushing = Pushing(world)
    pushing.push(np.arange(N))
    names = [pushing.publish()]
    for i in range(more):
        pushing.push(np.arange(i * 7, i * 7 + 40), 0.5)
        pushing.push(np.arange(N + i * 10, N + i * 10 + 10), 2.0)
        names.append(pushing.publish())
    return pushing, names


def values(server: ParameterServer) -> Blocks:
    held = server._running.server
    assert held is not None
    return held.values


def test_a_snapshot_of_few_changes_holds_them_and_is_read_as_a_whole(world: World) -> None:
    pushing, names = begun(world)
    assert [base_of(world, name) for name in names] == [None, "1-1", "1-1", "1-1"]
    whole, leaning = (world.file(name).stat().st_size for name in (names[0], names[-1]))
    assert leaning < whole / 20, (leaning, whole)
    assert equal(values(pushing.server), chain.read(stored(world), names[-1]).values)
    assert equal(values(world.serving()), values(pushing.server))
    first = chain.read(stored(world), names[1]).values["t"].data
    assert len(first) == N + 10, "each is as of its own version"
    beside = chain.read_file(world.file(names[-1]))
    assert equal(beside.values, values(pushing.server))
    again = chain.read_whole(stored(world), names[-1])
    assert read_manifest(again).base is None


def test_one_of_so_many_is_whole(world: World) -> None:
    world.settings = ServerSettings(retention=Retention(full_every=3))
    _, names = begun(world, more=6)
    bases = [base_of(world, name) for name in names]
    assert bases == [None, names[0], names[0], None, names[3], names[3], None]


def test_a_table_that_has_changed_much_or_is_small_is_written_whole(world: World) -> None:
    pushing, _ = begun(world, more=1)
    pushing.push(np.arange(N // 7))
    assert base_of(world, pushing.publish()) is None
    pushing.push(np.arange(5))
    assert base_of(world, pushing.publish()) is not None
    other = World(world.path.with_name("small"))
    small = Pushing(other)
    for _ in range(2):
        small.push(np.arange(100))
        assert base_of(other, small.publish()) is None


def test_rows_that_left_are_gone_from_what_leans(world: World) -> None:
    world.settings = ServerSettings(tables=TableBounds(N))
    pushing, _ = begun(world, more=0)
    pushing.push(np.arange(N // 2))
    pushing.publish()
    pushing.push(np.arange(N, N + 100))
    name = pushing.publish()
    assert base_of(world, name) is not None
    table = chain.read(stored(world), name).values["t"].data
    assert len(table) <= N
    assert table == values(pushing.server)["t"].data
    again = world.serving()
    before, after = pushing.server._running.server, again._running.server
    assert before is not None
    assert before.keeper is not None
    assert after is not None
    assert after.keeper is not None
    assert equal(before.keeper.blocks(), after.keeper.blocks())


def flipped(data: bytes) -> bytes:
    return data[:-4000] + bytes([data[-4000] ^ 1]) + data[-3999:]


DAMAGE = {"flipped": flipped, "torn": lambda data: data[: len(data) // 2], "missing": None}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_base_refuses_what_leans_on_it_and_the_one_before_works(
    world: World, damage: str
) -> None:
    world.settings = ServerSettings(retention=Retention(full_every=3))
    _pushing, names = begun(world, more=4)  # whole, two that lean, whole, one that leans
    change = DAMAGE[damage]
    file = world.file(names[3])
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    again = world.serving()
    refused = again.status()["refused"]
    assert names[4] in refused, "its base can't be used"
    assert f"leans on {names[3]}" in refused[names[4]]
    assert len(values(again)["t"].data) == N + 20, "as of the last one before"
    with pytest.raises(errors.SnapshotCorrupt, match="leans on"):
        chain.read(stored(world), names[4])


def test_a_flipped_byte_of_what_leans_leaves_its_base(world: World) -> None:
    _, names = begun(world, more=1)
    file = world.file(names[1])
    data = file.read_bytes()
    file.write_bytes(data[:-300] + bytes([data[-300] ^ 1]) + data[-299:])
    again = world.serving()
    assert set(again.status()["refused"]) == {names[1]}
    assert len(values(again)["t"].data) == N


def test_a_base_is_known_by_its_bytes_not_by_its_name_alone(world: World) -> None:
    pushing, names = begun(world, more=1)
    held = pushing.server._running.server
    assert held is not None
    other = world.file(names[0]).with_name("9-9.snapshot")
    state = held.state(5.0, None, {})
    pushing.history().publish("9-9", state)
    other.replace(world.file(names[0]))
    with pytest.raises(errors.SnapshotCorrupt, match="another snapshot"):
        chain.read(stored(world), names[1])


def test_a_base_stays_as_long_as_something_leans_on_it(world: World) -> None:
    world.settings = ServerSettings(retention=Retention(2, 0, 0, 0, full_every=4))
    _, names = begun(world, more=7)
    left = set(stored(world).names())
    assert {base_of(world, name) or name for name in left} <= left
    assert len(left) <= 7, left
    assert len({base_of(world, name) or name for name in left - {names[0]}}) >= 2, (
        "what the newest lean on may be damaged: one is left that leans on another"
    )


def test_without_the_rule_the_base_would_go(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SnapshotHistory, "needed_for", lambda self, names: set(names))
    monkeypatch.setattr(SnapshotHistory, "_on_another", lambda self, names: set())
    with pytest.raises(AssertionError):
        test_a_base_stays_as_long_as_something_leans_on_it(world)


def test_a_base_whose_file_is_gone_makes_the_next_one_whole(world: World) -> None:
    pushing, names = begun(world, more=1)
    world.file(names[0]).unlink()
    name = pushing.publish()
    assert base_of(world, name) is None
    pushing.push(np.arange(3))
    assert base_of(world, pushing.publish()) == name
    assert equal(values(world.serving()), values(pushing.server))


def test_one_written_again_under_its_own_name_does_not_lean_on_itself(world: World) -> None:
    """The head could not be moved to the first file, and nothing has changed since."""
    pushing = Pushing(world)
    pushing.push(np.arange(N))
    world.store.failing["move_head"] = "before"
    with pytest.raises(errors.PublishFailed):
        pushing.publish()
    assert stored(world).names() == ["1-1"]
    world.store.failing.clear()
    assert pushing.publish() == "1-1"
    assert base_of(world, "1-1") is None
    pushing.push(np.arange(3))
    assert base_of(world, pushing.publish()) == "1-1"
    again = world.serving()
    assert not again.status()["refused"]
    assert equal(values(again), values(pushing.server))


class Removing(Disk):
    """A disk that tells what it removes, and removes nothing of some."""

    def __init__(self) -> None:
        self.asked, self.stays = list[str](), set[str]()

    def remove(self, path: Path) -> None:
        self.asked.append(path.stem)
        if path.stem in self.stays:
            raise OSError(5, "Input/output error")
        super().remove(path)


def test_a_base_leaves_after_what_leans_on_it(world: World) -> None:
    world.settings = ServerSettings(retention=Retention(full_every=2))
    _, names = begun(world, more=15)
    leaning = [name for name in names if base_of(world, name) is not None]
    disk = Removing()
    disk.stays.update(leaning)
    place = DirectorySnapshots(world.file("1-1").parent, disk)
    found = SnapshotHistory(place, Retention(1, 0, 0, 0))
    found.index()
    with pytest.raises(OSError, match="Input/output"):
        found.retain(names[-1])
    assert set(stored(world).names()) == set(names), disk.asked
    assert found.drop_vanished(names[-1]) == []
    assert found.vanished.incident is None
    disk.asked.clear()
    disk.stays.clear()
    found.retain(names[-1])
    assert len(disk.asked) == 13, "all but the first, the newest, and what that one leans on"
    assert set(disk.asked[:7]) == {*leaning} - {names[-1]}, disk.asked


def test_what_is_withdrawn_leaves_what_the_newest_leans_on(world: World) -> None:
    pushing, names = begun(world, more=2)
    gone = pushing.server.withdraw(names)
    assert gone == [names[1]]
    assert set(stored(world).names()) == {names[0], names[2]}


def test_a_state_that_replaces_another_leans_on_nothing(world: World) -> None:
    pushing, names = begun(world, more=1)
    pushing.server.rollback(names[1])
    assert pushing.server.status()["state"] == "serving"
    assert base_of(world, pushing.publish()) is None


def test_a_snapshot_is_as_of_its_version_while_pushes_go_on(world: World) -> None:
    """What is pushed between the state's taking and its writing is not in the file."""
    pushing, _ = begun(world, more=1)
    held = pushing.server._running.server
    found = pushing.server._running.history
    assert held is not None
    assert found is not None
    state = held.begin_snapshot(1.0, None, {}, found.base_for_next())
    assert state.base is not None
    expected = state.values["t"].data.copy()
    pushing.push(np.arange(200), 9.0)
    found.publish("1-77", state)
    assert chain.read(stored(world), "1-77").values["t"].data == expected


def test_changes_are_those_since_the_base(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: with marks that begin at each snapshot what leans would lack some."""
    begin = Server.begin_snapshot

    def anew(self: Server, *args: Any) -> Any:
        state = begin(self, *args)
        for name in [name for name, block in self.values.items() if block.kind == ROWS]:
            self.values[name].data = self.values[name].data.copy()
            self.values[name].data.track()
        return state

    monkeypatch.setattr(Server, "begin_snapshot", anew)
    with pytest.raises(AssertionError):
        test_a_snapshot_of_few_changes_holds_them_and_is_read_as_a_whole(world)


@pytest.mark.parametrize("rule", ["ordered", "overlay", "lagging", "sum"])
def test_rows_of_a_table_that_is_learned_in_order_stay_whatever_the_bound(
    world: World, rule: MergeRule
) -> None:
    """Replicas that learn all rows in order have them: one that starts from here would not."""
    world.lineage = replace(LINEAGE, rule=rule)
    world.settings = ServerSettings(tables=TableBounds(1_000))
    server = world.serving()
    rows = Rows(np.arange(N, dtype=np.uint64), np.ones((N, WIDTH), np.float32))
    block = wire.WireBlock(ROWS, rows.as_message())
    if rule == "sum":
        push = wire.Push(1, LINEAGE.spec, 1, 1, 1, 1, (1, 0), {"t": block})
        assert sync(server, pushes=[push]).acks[0].status == "applied"
    else:
        sync(server, state=wire.OrderedState(1, LINEAGE.spec, 0, 1, {1: 1}, {"t": block}))
    server.snapshot()
    for one in (server, world.serving()):
        held = one._running.server
        assert held is not None
        assert (len(held.values["t"].data) <= 1_000) is (rule == "sum")
        assert (len(held.values["t"].data) == N) is (rule != "sum")
