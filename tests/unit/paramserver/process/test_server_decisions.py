"""Rollback, freeze and unfreeze, at the server's process and after a restart."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from server_world import LINEAGE, Control, Died, Info, World, learned, sync, value

from paramserver import errors
from paramserver.core import wire
from paramserver.core.resharding import RESHARD, Reshard
from paramserver.core.rewrites import Rollback
from paramserver.core.standing_decisions import ANSWERS, UPGRADE, Answers, Upgrade, newest
from paramserver.process.actor import ServerSettings
from paramserver.process.lineage import publish
from paramserver.snapshots.store import Retention
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal


@pytest.fixture
def world(tmp_path: Path) -> Any:
    return World(tmp_path / "snapshots")


# -- who answers -----------------------------------------------------------------------------------


def test_who_answers_is_decided_once_whoever_repeats_it(world: Any) -> None:
    server = learned(world, 4)

    def answers(itself: bool) -> tuple[str, int]:
        said = server.answers(msgspec.json.encode(Answers(itself, {"n": 3})))
        return said["answers"], said["control"]

    assert answers(False) == ("caller", 0)  # nothing was decided
    assert [answers(True), answers(True)] == [("model", 1)] * 2
    assert [answers(False), answers(False), answers(True)] == [
        ("caller", 2), ("caller", 2), ("model", 3),
    ]  # fmt: skip
    assert [c.key for c in world.store.control] == ["answers:0", "answers:1", "answers:2"]
    found = newest(world.store.control, ANSWERS, Answers)
    assert found == (3, Answers(True, {"n": 3}))
    assert sync(server).control == sync(world.serving()).control == 3
    assert value(server) == 4.0


# -- one of today's defaults beside it -------------------------------------------------------------


def test_an_upgrade_is_decided_once_and_leaves_the_values(world: Any) -> None:
    server = learned(world, 4)

    def upgrade(on: bool) -> tuple[bool, int]:
        said = server.upgrade(msgspec.json.encode(Upgrade(on)))
        return said["on"], said["control"]

    assert upgrade(False) == (False, 0)  # nothing was decided
    assert [upgrade(True), upgrade(True)] == [(True, 1)] * 2
    assert [upgrade(False), upgrade(True)] == [(False, 2), (True, 3)]
    assert newest(world.store.control, UPGRADE, Upgrade) == (3, Upgrade(True))
    assert sync(server).control == sync(world.serving()).control == 3
    assert value(server) == 4.0


# -- rollback --------------------------------------------------------------------------------------


def test_rollback_keeps_the_clock_and_tells_what_is_undone(world: Any) -> None:
    server = learned(world, 4, 6)
    sync(server, (1, 7, 9), (2, 1, 2))
    since = {row["name"]: row["since"] for row in server.snapshots()}
    answer = server.rollback("1-1")
    assert since["1-1"] == answer["undone"] == 7
    assert answer == {"snapshot": "1-1", "version": [2, 5], "undone": 7, "control": 1}
    reply = sync(server)
    assert (reply.rewrite, reply.control, reply.clock) == (1, 1, {1: 9, 2: 2})
    assert value(server) == 4.0
    assert sync(server, (1, 8, 10)).acks[0].status == "gap"
    assert sync(server, (1, 10, 10)).acks[0].status == "applied"
    note = msgspec.json.decode(world.store.control[0].payload, type=Rollback)
    assert note.undone == {1: (4, 9), 2: (0, 2)}
    assert value(server) == 5.0
    server.snapshot_if_due()  # published at once, though the interval has not passed
    assert server.snapshots()[0]["name"] == "2-6-from-1-2"
    assert value(world.serving()) == 5.0


def test_pushes_from_before_a_rollback_are_refused(world: Any) -> None:
    server = learned(world, 4)
    server.rollback("1-1")
    push = wire.Push(1, LINEAGE.spec, 1, 5, 5, 1, (1, 1), {})
    assert sync(server, pushes=[push]).acks[0].status == "epoch"


def test_a_restart_applies_what_was_decided(world: Any) -> None:
    server = learned(world, 4, 6)
    sync(server, (1, 7, 9))
    server.rollback("1-1")
    again = world.serving()  # nothing was published since
    reply = sync(again)
    assert (reply.epoch, reply.rewrite, reply.clock) == (3, 1, {1: 9})
    assert value(again) == 4.0
    assert again.snapshot()["name"] == "3-3-from-1-2"


def test_rollback_after_a_start_from_an_ancestor_to_what_was_unreadable(world: Any) -> None:
    learned(world, 4, 6)
    file = world.file("1-2")
    data = file.read_bytes()
    file.write_bytes(b"")
    server = world.serving()
    assert sync(server).clock == {1: 4}
    file.write_bytes(data)
    assert server.rollback("1-2")["undone"] == 0
    assert sync(server).clock == {1: 6}
    assert value(server) == 6.0


def test_rollback_of_a_closed_partition_undoes_it_to_its_end(world: Any) -> None:
    world.settings = ServerSettings(retention=Retention(1, 0, 0, 0))
    server = world.serving()
    sync(server, (1, 1, 2), (2, 1, 1))
    server.snapshot()  # birth
    sync(server, (1, 3, 5))
    world.store.rows[1] = Info(1, 5, sealed=True)
    server.confirm()
    for i in (2, 3):
        sync(server, (2, i, i), partition=2)
        server.snapshot()
    assert server.status()["closed"] == [1]
    birth = server.snapshots()[-1]["name"]
    assert [row["since"] for row in server.snapshots()] == [0, 5], "a closed partition counts"
    assert server.rollback(birth)["undone"] == 3 + 2
    for process in (server, world.serving()):
        assert process.status()["closed"] == [1]
        assert sync(process, (1, 1, 2)).acks[0].status == "repeat"
        assert value(process) == 3.0


@pytest.mark.parametrize("damage", ["missing", "torn", "before"])
def test_rollback_is_refused_with_what_can_be_used(world: Any, damage: str) -> None:
    server = learned(world, 4, 6)
    sync(server, (1, 7, 9))
    if damage == "missing":
        world.file("1-1").unlink()
    elif damage == "torn":
        world.file("1-1").write_bytes(b"torn")
    else:
        store, history = world.store, server._running.serving().history
        store.begin_epoch(LINEAGE.model, LINEAGE.spec, 1)
        store.control.append(Control(1, "fresh", f"fresh:{LINEAGE.spec}:2", b""))
        assert not world.start().restore(), "it was interrupted here"
        state = replace(history.load("1-2"), version=(3, 0))
        publish(store, history, state, None)
        server = world.serving()
    with pytest.raises(errors.RollbackRefused) as raised:
        server.rollback("1-1")
    assert raised.value.definite
    assert raised.value.usable == (("3-0",) if damage == "before" else ("1-2",))
    assert server.ping() == "serving"
    assert value(server) == (6.0 if damage == "before" else 9.0)
    with pytest.raises(errors.RollbackRefused, match="no rollback to 'nowhere'"):
        server.rollback("nowhere")
    assert not [c for c in world.store.control if c.kind == "rollback"]


def test_the_nearest_before_what_is_gone_is_named_first(world: Any) -> None:
    server = learned(world, 2, 4, 6, 8)
    world.file("1-3").unlink()
    with pytest.raises(errors.RollbackRefused) as raised:
        server.rollback("1-3")
    assert raised.value.usable == ("1-2", "1-1", "1-4")


def test_lost_answers_leave_one_row(world: Any) -> None:
    server = learned(world, 4, 6)
    store, write = world.store, world.store.write_control
    calls = []

    def lose_the_first(*args: Any) -> Any:
        calls.append(args)
        row = write(*args)
        if len(calls) == 1:
            raise OSError("no answer")
        return row

    store.write_control = lose_the_first
    assert server.rollback("1-1")["control"] == 1
    assert len(calls) == 2
    assert [c.kind for c in store.control] == ["rollback"]


@pytest.mark.parametrize(
    ("failing", "when", "stands"),
    [
        ("write_control", "before", False),
        ("write_control", "after", True),
        ("begin_epoch", "before", True),
    ],
)
def test_without_a_certain_answer_the_process_ends_and_the_next_one_acts(
    world: Any, failing: str, when: str, stands: bool
) -> None:
    server = learned(world, 4, 6)
    world.store.failing[failing] = when
    with pytest.raises(Died):
        server.rollback("1-1")
    assert server.ping() == "ended"
    with pytest.raises(errors.NotReady):
        sync(server, (1, 7, 7))
    world.store.failing.clear()
    again = world.serving()
    assert value(again) == (4.0 if stands else 6.0)
    assert sync(again).clock == {1: 6}


def test_a_server_that_lost_its_epoch_decides_nothing(world: Any) -> None:
    old = learned(world, 4, 6)
    world.serving()
    with pytest.raises(Died):
        old.rollback("1-1")
    assert old.ping() == "superseded"
    frozen = world.serving()
    world.serving()
    with pytest.raises(Died):
        frozen.freeze()
    assert world.store.control == []


def test_retention_holds_what_a_start_would_load(world: Any) -> None:
    world.settings = ServerSettings(retention=Retention(2, 0, 0, 0))
    server = learned(world, 1, 2, 3)  # 1-1 is birth, kept for ever
    server.rollback("1-2")
    world.now_s += 10
    sync(server, (1, 4, 4))
    server.snapshot()
    names = [row["name"] for row in server.snapshots()]
    assert "1-2" in names
    world.file(names[0]).write_bytes(b"torn")
    again = world.serving()  # from 1-3, with the rollback applied again
    assert (value(again), sync(again).clock) == (2.0, {1: 3})
    for i in (4, 5, 6, 7):
        world.now_s += 10
        sync(again, (1, i, i))
        again.snapshot()
    assert not world.file("1-2").exists()


def test_a_start_without_the_named_snapshot_is_refused(world: Any) -> None:
    server = learned(world, 4, 6)
    server.rollback("1-1")
    world.file("1-1").unlink()
    again = world.start()
    assert not again.restore()
    assert again.ping() == "refused"
    assert "taken to the snapshot '1-1'" in again.status()["reason"]


def test_only_the_newest_rollback_is_asked_for(world: Any) -> None:
    server = learned(world, 2, 4, 6)
    server.rollback("1-1")
    server.rollback("1-2")
    world.file("1-1").unlink()
    again = world.serving()
    assert value(again) == 4.0
    assert again.status()["rewrite"] == 2


def test_rollback_of_another_spec(world: Any) -> None:
    note = Rollback("other", "1-1", 0, {1: 5}, [], {1: (0, 5)})
    row = Control(1, "rollback", "k", msgspec.json.encode(note))
    world.store.control.append(row)
    server = learned(world, 4)  # began after it, without those rows
    assert server.status()["rewrite"] == 1
    world.store.control.append(Control(2, "rollback", "l", row.payload))
    again = world.start()
    assert not again.restore()
    assert "--relearn" in again.status()["reason"]


def test_a_snapshot_that_rows_are_missing_for_refuses_to_start(world: Any) -> None:
    learned(world, 4, 6)
    world.store.rows[1] = Info(1, 100, trimmed=6)
    assert world.serving().status()["clock"] == {1: 6}
    world.file("1-2").unlink()
    again = world.start()
    assert not again.restore()
    assert "partition 1: rows 5 … 6" in again.status()["reason"]
    assert "--relearn" in again.status()["reason"]


def test_a_lineage_without_a_snapshot_learns_what_is_left(world: Any) -> None:
    world.store.rows[1] = Info(1, 100, trimmed=6)
    assert sync(world.serving()).clock == {1: 6}


# -- freeze ----------------------------------------------------------------------------------------


def test_freeze_is_told_and_complete_when_all_act_on_it(world: Any) -> None:
    server = learned(world, 4)
    assert not server.status()["freeze_complete"]
    world.now_s += 60
    sync(server)
    answer = server.freeze()
    assert answer == {"frozen": 1, "control": 1, "version": [1, 1], "complete": False}
    reply = sync(server, (1, 5, 5), control=0)  # accepted before: learned still
    assert (reply.frozen, reply.control, reply.acks[0].status) == (True, 1, "applied")
    assert not server.status()["freeze_complete"]
    sync(server, control=1)
    status = server.status()
    assert status["freeze_complete"]
    assert (status["frozen"], status["replicas"]["r1"]["control"]) == (1, 1)
    sync(server, replica="r2", control=0)
    assert not server.status()["freeze_complete"]
    world.now_s += 5.1  # a lease: r2 does not live, as far as is known
    sync(server, control=1)
    assert server.freeze() == {"frozen": 1, "control": 1, "version": [1, 2], "complete": True}
    assert len(world.store.control) == 1


def test_freeze_outlives_restarts_until_it_is_taken_back(world: Any) -> None:
    server = learned(world, 4)
    server.freeze()
    again = world.serving()
    assert sync(again).frozen
    assert not again.status()["freeze_complete"], "a start knows of no replica yet"
    sync(again, (1, 5, 5))
    again.snapshot()
    last = world.serving()
    assert last.status()["frozen"] == 1
    answer = last.unfreeze()
    assert (answer["frozen"], answer["control"]) == (0, 2)
    assert last.unfreeze()["control"] == 2
    assert not sync(last).frozen
    assert last.freeze()["frozen"] == 3
    assert [c.kind for c in world.store.control] == ["freeze", "unfreeze", "freeze"]


def test_a_rolled_back_model_stays_frozen(world: Any) -> None:
    server = learned(world, 4, 6)
    server.freeze()
    server.rollback("1-1")
    for process in (server, world.serving()):
        assert (sync(process).frozen, value(process)) == (True, 4.0)


def test_uncertain_freeze_is_asked_again(world: Any) -> None:
    server = learned(world, 4)
    world.store.failing["write_control"] = "after"
    with pytest.raises(errors.DecisionUncertain) as raised:
        server.freeze()
    assert not raised.value.definite
    assert server.ping() == "serving"
    world.store.failing.clear()
    assert server.freeze()["frozen"] == 1
    assert len(world.store.control) == 1


# -- trimming --------------------------------------------------------------------------------------


def test_rows_go_below_every_kept_snapshot(world: Any) -> None:
    world.settings = ServerSettings(
        retention=Retention(2, 0, 0, 0), keep_rows_s=100.0, halves_keep_s=50.0
    )
    server = learned(world, 4, 6)
    sync(server, (2, 1, 3))
    assert world.store.trims[-1] == ({1: 4}, world.now_s - 100.0, 500)
    assert world.store.expired[-1] == (world.now_s - 50.0, 500)
    sync(server, (1, 7, 9))
    world.now_s += 10
    server.snapshot()
    assert world.store.trims[-1][0] == {1: 6}
    assert world.store.rows[1].trimmed == 6
    assert world.serving().status()["clock"] == {1: 9, 2: 3}


def test_closed_partitions_go_to_their_end_and_in_steps(world: Any) -> None:
    world.store.rows[1] = Info(1, 1200, sealed=True)
    world.settings = ServerSettings(retention=Retention(1, 0, 0, 0))
    server = world.serving()
    sync(server, (1, 1, 1200))
    server.snapshot()
    sync(server, (2, 1, 1))
    server.confirm()
    server.snapshot()
    assert server.status()["closed"] == [1]
    assert [upto for upto, _, _ in world.store.trims] == [{1: 1200}] * 3 + [{1: 1200, 2: 1}]
    assert world.store.rows[1].trimmed == 1200


def test_rows_go_by_the_running_time_too(world: Any) -> None:
    """It grows with what has passed, in bounded steps, and not by what nobody has counted."""
    world.settings = ServerSettings(keep_rows_s=100.0, running_s=10.0)
    server = world.serving()
    sync(server, (1, 1, 4))
    server.snapshot_if_due()
    assert world.store.ran_ms == 0, "a server counts from when it has the epoch"
    for passed_s, counted_ms in ((9.0, 0), (1.0, 10_000), (12.5, 22_500), (1e6, 42_500)):
        world.now_s += passed_s
        server.snapshot_if_due()
        assert world.store.ran_ms == counted_ms
    sync(server, (1, 5, 6))
    server.snapshot()
    assert world.store.bounds[-1] == (world.now_s + 3600, 42_500 - 100_000 - 20_000)
    world.store.failing["run"] = "after"  # an answer that is lost is not asked for again
    world.now_s += 10.0
    server.snapshot_if_due()
    world.store.failing.clear()
    server.snapshot_if_due()
    assert world.store.ran_ms == 52_500
    assert server.ping() == "serving"


def test_a_server_without_the_epoch_trims_nothing(world: Any) -> None:
    server = learned(world, 4)
    world.store.failing["trim"] = "before"
    sync(server, (1, 5, 5))
    server.snapshot()  # the store is away: tried again the next time
    world.store.failing.clear()
    trims = len(world.store.trims)
    trim = world.store.trim

    def lose(*args: Any, **bounds: Any) -> int:
        world.serving()
        return int(trim(*args, **bounds))

    world.store.trim = lose
    sync(server, (1, 6, 6))
    with pytest.raises(Died):
        server.snapshot()
    assert len(world.store.trims) == trims


def test_nothing_is_trimmed_once_another_number_of_servers_was_requested(world: Any) -> None:
    """A server that starts then makes its lineage the newest; its replacement lacks its rows."""
    world.settings = ServerSettings(retention=Retention(1, 0, 0, 0))
    here, there = LINEAGE.spec, "3" * 64
    rows = [
        Reshard("one", 1, 1, 3, False, "operator", here, there),
        Reshard("one", 1, 1, 3, True, "operator", here, there),
        Reshard("one", 1, 3, 1, True, "failed", there, here),
    ]
    for seq, row in enumerate(rows, start=1):
        world.store.control.append(Control(seq, RESHARD, str(seq), msgspec.json.encode(row)))
        server = world.serving()  # under a new epoch
        sync(server, (1, seq, seq))
        server.snapshot()
        assert [upto for upto, _, _ in world.store.trims] == [{1: 3}] * (row.why == "failed")
    assert world.store.rows[1].trimmed == 3


def test_the_sqlite_journal_decides_and_trims(world: Any, tmp_path: Path) -> None:
    with contextlib.closing(SqliteJournal(tmp_path / "journal.db", disk_low_mb=0)) as journal:
        partition = journal.register("prices", "r1", LINEAGE.spec, 0.0).id
        keys = [bytes([i]) * 16 for i in range(1, 7)]
        rows = [NewRow(key, key.hex(), "x", Verdict.ACCEPTED, b"", 0.0) for key in keys]
        journal.append(partition, 0, rows)
        world.store = journal
        world.now_s = 30 * 86400.0
        world.settings = ServerSettings(retention=Retention(1, 0, 0, 0))
        old = world.serving()
        journal.run("prices", LINEAGE.spec, 1, 30 * 86_400_000)
        sync(old, (partition, 1, 2))
        old.snapshot()
        sync(old, (partition, 3, 4))
        assert old.freeze()["frozen"] == 1
        assert old.rollback("1-1")["undone"] == 2
        journal.begin_epoch("prices", LINEAGE.spec, 2)
        with pytest.raises(Died):  # the epoch is another's
            old.unfreeze()
        new = world.serving()
        reply = sync(new)
        assert (reply.clock, reply.rewrite, reply.frozen) == ({partition: 4}, 2, True)
        new.snapshot()
        found = journal.partition(partition)
        assert found is not None
        assert found.trimmed == 4, "what is undone goes, too, once it is old"
        assert [row.offset for row in journal.read(partition, 5, 9)] == [5, 6]
