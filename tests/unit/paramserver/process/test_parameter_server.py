"""The server's process without Ray: restoring, publishing, ending, and what it imports."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from server_world import LINEAGE, Died, Head, Info, World, learned, sync, value

from paramserver import errors
from paramserver.core import wire
from paramserver.process.actor import Host, ParameterServer, ServerSettings, identity
from paramserver.snapshots.history import ancestors, parse_name, snapshot_name
from paramserver.snapshots.store import DAY_S, HOUR_S, Disk, Retention, retained
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "snapshots")


def test_not_ready_before_it_has_restored(world: World) -> None:
    server = world.start()
    assert server.ping() == "restoring"
    for call in (server.snapshot, server.snapshots, lambda: server.sync(b"\x90")):
        with pytest.raises((errors.NotReady, errors.RequestRefused)) as raised:
            call()
        assert raised.value.definite
    world.store.failing["begin_epoch"] = "before"
    assert not server.restore()
    assert "begin_epoch failed" in server.status()["reason"]
    world.store.failing.clear()
    assert server.restore()
    assert server.status()["state"] == "serving"


def test_snapshot_and_restart(world: World) -> None:
    server = world.serving()
    reply = sync(server, (1, 1, 4), (1, 5, 6))
    assert [a.status for a in reply.acks] == ["applied", "applied"]
    assert (reply.epoch, reply.count, reply.clock, reply.durable) == (1, 2, {1: 6}, {})
    described = server.snapshot()
    assert described["name"] == "1-2"
    assert sync(server).durable == {1: 6}
    sync(server, (1, 7, 9))  # is in no snapshot
    again = world.serving()
    reply = sync(again)
    assert (reply.epoch, reply.count, reply.clock, reply.durable) == (2, 2, {1: 6}, {1: 6})
    assert value(again) == 6.0
    sync(again, (1, 7, 9))
    assert again.snapshot()["name"] == "2-3-from-1-2"
    assert value(world.serving()) == 9.0


def test_a_server_is_not_replaced_for_how_long_a_disk_is_waited_for() -> None:
    before = identity(LINEAGE, "d", ServerSettings())
    assert before == identity(LINEAGE, "d", ServerSettings(stall_s=7.0))
    assert before != identity(LINEAGE, "d", ServerSettings(retry_s=7.0))


@pytest.mark.parametrize(
    "changed", ["core/server.py", "filters/base.py", "process/actor.py", "snapshots/format.py"]
)
def test_a_server_of_other_code_is_another_one(
    changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read = identity(LINEAGE, "d", ServerSettings()), Path.read_bytes
    assert before == identity(LINEAGE, "d", ServerSettings())
    monkeypatch.setattr(
        Path, "read_bytes",
        lambda path: read(path) + b"#" * path.as_posix().endswith(f"paramserver/{changed}"),
    )  # fmt: skip
    assert identity(LINEAGE, "d", ServerSettings()) != before, "a running one would stay"


def test_only_a_start_without_a_snapshot_begins_without_removed_rows(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    server = world.serving()
    sync(server, (1, 1, 3))
    server.snapshot()
    world.store.rows[1] = replace(world.store.rows[1], trimmed=2)
    assert world.serving().status()["clock"] == {1: 3}
    assert "begins without" not in caplog.text
    world.store.heads.clear()
    for file in world.path.rglob("*.snapshot"):
        file.unlink()
    assert world.serving().status()["clock"] == {1: 2}
    assert "begins without the 2 oldest rows" in caplog.text


def test_unchanged_state_is_not_published_again(world: World) -> None:
    server = world.serving()
    sync(server, (1, 1, 1))
    first = server.snapshot()
    world.now_s += 100
    server.snapshot_if_due()
    assert server.snapshot() == first
    again = world.serving()
    assert again.snapshot()["name"] == first["name"]
    assert len(again.snapshots()) == 1


def test_periodic_snapshot_waits_for_its_interval(world: World) -> None:
    server = world.serving()
    sync(server, (1, 1, 1))
    world.now_s += 9.9
    server.snapshot_if_due()
    assert server.snapshots() == []
    world.now_s += 0.2
    server.snapshot_if_due()
    assert [row["name"] for row in server.snapshots()] == ["1-1"]


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_bad_head_is_refused_and_the_one_before_works(world: World, damage: str) -> None:
    server = world.serving()
    for i in (1, 2, 3):
        sync(server, (1, i, i))
        server.snapshot()
    file = world.file("1-3")
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    elif damage == "cut":
        file.write_bytes(data[:30])
    else:
        file.unlink()
    again = world.serving()
    assert value(again) == 2.0
    assert set(again.status()["refused"]) == {"1-3"}
    assert sync(again, (1, 3, 3)).acks[0].status == "applied"
    assert again.snapshot()["name"] == "2-3-from-1-2"
    assert value(world.serving()) == 3.0


def test_start_from_an_ancestor_publishes_a_good_head(world: World) -> None:
    server = world.serving()
    for i in (1, 2):
        sync(server, (1, i, i))
        server.snapshot()
    world.file("1-2").write_bytes(b"")
    assert world.serving().snapshot()["name"] == "2-1-from-1-1"


def test_no_good_snapshot_refuses_to_start(world: World) -> None:
    server = world.serving()
    sync(server, (1, 1, 1))
    server.snapshot()
    world.file("1-1").write_bytes(b"torn")
    again = world.start()
    assert not again.restore()
    status = again.status()
    assert status["state"] == "refused"
    assert "--relearn" in status["reason"]
    request = wire.encode(wire.SyncRequest(wire.FORMAT, "r", 1, [], None, True, []))
    with pytest.raises(errors.NotReady, match="refused"):
        again.sync(request)


def test_journal_older_than_the_model_refuses_to_start(world: World) -> None:
    server = world.serving()
    sync(server, (1, 1, 50))
    server.snapshot()
    world.store.rows[1] = Info(1, 49)
    again = world.start()
    assert not again.restore()
    assert "partition 1: 50 learned, 49 in the journal" in again.status()["reason"]
    world.store.rows[1] = Info(1, 50)
    assert world.start().restore()


def test_a_store_that_has_forgotten_everything_refuses_to_start(world: World) -> None:
    """Otherwise an empty model would take the place of what the snapshots hold."""
    server = world.serving()
    sync(server, (1, 1, 1))
    server.snapshot()
    heads = dict(world.store.heads)
    world.store.heads.clear()
    world.store.rows.clear()
    again = world.start()
    assert not again.restore()
    assert "knows 0 starts" in again.status()["reason"]
    assert "put the journal's newest copy back" in again.status()["reason"]
    assert not world.store.heads, "no epoch was taken"
    world.store.heads.update(heads)
    world.store.rows[1] = Info(1, 100)
    assert world.start().restore()


def test_superseded_server_ends_and_leaves_nothing(world: World) -> None:
    old = world.serving()
    sync(old, (1, 1, 5))
    new = world.serving()
    sync(new, (1, 1, 1))
    with pytest.raises(Died):
        old.snapshot()
    assert not world.file("1-1").exists()
    with pytest.raises(errors.NotReady):
        sync(old, (1, 6, 6))
    new.confirm()
    assert new.snapshot()["name"] == "2-1"
    assert value(world.serving()) == 1.0
    with pytest.raises(Died):
        new.confirm()


def test_lost_answer_of_the_store_is_found_out(world: World) -> None:
    server = world.serving()
    sync(server, (1, 1, 1))
    world.store.failing["move_head"] = "after"
    assert server.snapshot()["name"] == "1-1"
    sync(server, (1, 2, 2))
    world.store.failing["move_head"] = "before"
    with pytest.raises(errors.PublishFailed):
        server.snapshot()
    assert sync(server).durable == {1: 1}
    world.store.failing.clear()
    assert server.snapshot()["name"] == "1-2"
    assert sync(server).durable == {1: 2}


def test_full_disk_leaves_the_head(world: World) -> None:
    class FullDisk(Disk):
        full = False

        def write(self, path: Path, data: bytes) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().write(path, data)

    disk = FullDisk()
    server = world.serving(disk=disk)
    sync(server, (1, 1, 1))
    disk.full = True
    with pytest.raises(errors.PublishFailed, match="No space"):
        server.snapshot()
    assert "1-1 was not published ([Errno 28] No space" in server.status()["incident"]
    disk.full = False
    assert server.snapshot()["name"] == "1-1"
    assert server.status()["incident"] is None


def test_store_that_is_away_is_indefinite(world: World) -> None:
    server = world.serving()
    world.store.rows[9] = Info(9, 1)  # registered since the last look
    world.store.failing["partition"] = "before"
    with pytest.raises(errors.StoreUnavailable) as raised:
        sync(server, (9, 1, 1))
    assert not raised.value.definite
    world.store.failing.clear()
    assert sync(server, (9, 1, 1)).acks[0].status == "applied"


def test_other_formats_and_nonsense_are_refused(world: World) -> None:
    server = world.serving()
    with pytest.raises(errors.FormatRefused, match="99"):
        sync(server, format=99)
    with pytest.raises(errors.RequestRefused):
        server.sync(b"\xc1nonsense")


def test_sealed_partition_leaves_the_clock_and_stays_closed(world: World) -> None:
    world.settings = ServerSettings(retention=Retention(1, 0, 0, 0))
    server = world.serving()
    sync(server, (1, 1, 2), (2, 1, 1))
    server.snapshot()  # birth: holds no rows
    world.store.rows[1] = Info(1, 2, sealed=True)
    server.confirm()
    sync(server, (2, 2, 2))
    server.snapshot()
    assert sync(server, partition=2).closed == []
    assert sync(server, (1, 1, 2), partition=2).acks[0].clock == 2
    assert sync(server).closed == [1]
    assert server.status()["clock"] == {2: 2}
    sync(server, (2, 3, 3))
    server.snapshot()
    again = world.serving()
    assert sync(again, (1, 1, 2)).acks[0].status == "repeat"
    assert value(again) == 5.0


def test_orphans_are_offered_and_reports_fade(world: World) -> None:
    server = world.serving(find_gone=lambda partitions: {p.id for p in partitions if p.id == 2})
    assert sync(server).orphans == [2]
    assert sync(server, adopting=[2]).orphans == []
    assert server.reports() == {"r1": {"rows": 3.0}}
    assert server.status()["replicas"]["r1"]["age_s"] == 0.0
    world.now_s += 61
    assert server.reports() == {}
    server.confirm()
    assert server.status()["replicas"] == {}


def test_answers_say_how_long_ago_the_epoch_was_confirmed(world: World) -> None:
    server = world.serving()
    world.now_s += 0.25
    assert sync(server).confirmed_ms == pytest.approx(250.0)
    server.confirm()
    assert sync(server).confirmed_ms == 0.0


def test_retention_and_pins(world: World) -> None:
    world.settings = ServerSettings(retention=Retention(2, 0, 0, 0))
    server = world.serving()
    for i in range(1, 7):
        world.now_s += 10
        sync(server, (1, i, i))
        server.snapshot(pin=i == 3)
    names = [row["name"] for row in server.snapshots()]
    assert names == ["1-6", "1-5", "1-3", "1-1"]
    server.pin("1-3", False)
    sync(server, (1, 7, 7))
    server.snapshot()
    assert [row["name"] for row in server.snapshots()] == ["1-7", "1-6", "1-1"]
    with pytest.raises(errors.SnapshotMissing):
        server.pin("1-3", True)
    assert not world.file("1-3").exists()


def test_snapshots_are_withdrawn_for_good_but_the_newest_and_what_a_start_needs(
    world: World,
) -> None:
    server = world.serving()
    for i in range(1, 4):
        world.now_s += 10
        sync(server, (1, i, i))
        server.snapshot(pin=i == 1)
    server.rollback("1-2")
    sync(server, (1, 4, 4))
    server.snapshot()
    names = [row["name"] for row in server.snapshots()]
    left_over = world.file("1-7").with_name("1-7.snapshot.tmp")
    left_over.write_bytes(b"of a server that died")
    assert server.withdraw([*names, "1-9"]) == ["1-3", "1-1", "1-9"]
    left = [row["name"] for row in server.snapshots()]
    assert left == [names[0], "1-2"], "the newest, and the one that was gone back to"
    assert not world.file("1-1").exists(), "a pinned one"
    assert not left_over.exists()
    assert server.status()["incident"] is None, "they are not missed"
    server.snapshot(pin=True)


def test_kept_names() -> None:
    made = {f"{i}": float(i * HOUR_S // 2) for i in range(96)}  # two days, one each half hour
    none = Retention(1, 0, 0, 0)
    assert retained(made, none) == {"0", "95"}
    assert retained(made, none, birth=False) == {"95"}
    assert retained(made, none, pinned={"7", "gone"}, birth=False) == {"7", "95"}
    assert retained(made, Retention(2, 3, 0, 0), birth=False) == {"95", "94", "93", "91"}
    assert retained(made, Retention(1, 0, 7, 0), birth=False) == {"95", "47"}
    assert retained(made, Retention(1, 0, 0, 4), birth=False) == {"95"}
    assert retained({}, Retention()) == set()
    shifted = {n: t + 40 * DAY_S for n, t in made.items()}
    assert retained(shifted, Retention()) >= retained(shifted, Retention(), birth=False)


def test_new_snapshots_are_spaced_by_their_age() -> None:
    """One every ten seconds: within the first hour a rollback reaches any age to a factor of 3."""
    retention, held = Retention(), {}
    for i in range(360):
        now = 1_000_003.0 + 10.0 * i
        held[f"{i}"] = now
        names = retained(held, retention, birth=False)
        held = {name: at for name, at in held.items() if name in names}
        elapsed = 10.0 * i
        assert len(held) <= retention.keep + 2  # those of the hours
        age = 60.0
        while age < elapsed / 3.0:
            older = [now - at for at in held.values() if now - at >= age]
            assert older, (i, age)
            assert min(older) <= 3.0 * age + 20.0, (i, age)
            age *= 1.3


@pytest.mark.parametrize("keep", [1, 2, 3, 6, 7, 24, 100])
def test_as_many_new_snapshots_are_kept_as_the_setting_says(keep: int) -> None:
    made = {f"{i}": 10.0 * i for i in range(500)}
    names = retained(made, Retention(keep, 0, 0, 0), birth=False)
    assert len(names) == keep
    assert {f"{499 - i}" for i in range(min(keep, 2))} <= names


def test_ancestors_follow_the_names() -> None:
    names = [
        "1-5",
        "1-9",  # after epoch 2 had begun from 1-5: not an ancestor
        "2-7-from-1-5",
        "3-6-from-1-5",  # a server between that nothing came from
        "4-9-from-2-7",
        "4-12-from-2-7",
        "4-15-from-2-7",  # published, but the head did not move
        "x",
    ]
    assert ancestors("4-12-from-2-7", names) == [
        "4-12-from-2-7",
        "4-9-from-2-7",
        "2-7-from-1-5",
        "1-5",
    ]
    assert ancestors("5-0", names) == ["5-0"]  # begun anew: what was before is no ancestor
    gone = [n for n in names if not n.startswith("2")]  # retention took the link
    assert ancestors("4-12-from-2-7", gone)[2:] == ["1-5"]
    for version, base in (((3, 4), None), ((3, 4), (2, 1))):
        assert parse_name(snapshot_name(version, base)) == (version, base)


def test_imports_neither_river_nor_torch_nor_ray() -> None:
    code = (
        "import sys, paramserver.process.actor; "
        "print([m for m in ('river', 'torch', 'ray', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_thread_restores_and_serves(world: World) -> None:
    server = ParameterServer(LINEAGE, lambda: world.store, str(world.path))
    pause = threading.Event()
    for _ in range(2000):
        if server.ping() == "serving":
            break
        pause.wait(0.005)
    assert value(server) == 0.0


def test_sqlite_journal_is_a_store(world: World, tmp_path: Path) -> None:
    with contextlib.closing(SqliteJournal(tmp_path / "journal.db", disk_low_mb=0)) as journal:
        partition = journal.register("prices", "r1", LINEAGE.spec, 0.0).id
        rows = [NewRow(bytes([i]) * 16, str(i), "x", Verdict.ACCEPTED, b"", 0.0) for i in (1, 2)]
        journal.append(partition, 0, rows)

        def start() -> ParameterServer:
            host = Host(die=lambda: None)
            directory = str(world.path)
            return ParameterServer(LINEAGE, lambda: journal, directory, host=host, background=False)

        old, new = start(), start()
        assert old.restore()
        sync(old, (partition, 1, 2))
        old.snapshot()
        assert new.restore()
        assert value(new) == 2.0
        sync(old, (partition, 3, 3))
        with pytest.raises(errors.Superseded):
            old.snapshot()
        assert journal.head("prices", LINEAGE.spec).snapshot == "1-1"


def test_a_store_that_is_older_than_any_snapshot_refuses_to_start(world: World) -> None:
    """The head of an older copy is a good snapshot; what stands beside it tells what was lost."""
    server = learned(world, 10, 20, 30)
    older = dict(world.store.heads)
    older["s" * 64] = Head(1, "1-1")
    newest = dict(world.store.heads)
    world.store.heads = dict(older)
    world.store.rows[1] = Info(1, 12)
    again = world.start()
    assert not again.restore()
    reason = again.status()["reason"]
    assert "it lacks 18 events (partition 1: 30 learned, 12 in the journal)" in reason
    assert world.store.heads == older, "no epoch was taken"
    world.store.heads, world.store.rows[1] = newest, Info(1, 30)
    assert world.serving().status()["clock"] == server.status()["clock"]


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("control", "knows 0 decisions, a snapshot knows 1"),
        ("epoch", "knows 1 starts, a snapshot knows 2"),
        ("partition", "partition 1: 5 learned, 0 in the journal"),
    ],
)
def test_each_thing_that_a_store_can_lack(world: World, lost: str, said: str) -> None:
    learned(world, 3).freeze()
    server = world.serving()
    sync(server, (1, 4, 5))
    server.snapshot()
    heads, rows, control = dict(world.store.heads), dict(world.store.rows), world.store.control
    if lost == "control":
        world.store.control = []
    elif lost == "epoch":
        world.store.heads = {"s" * 64: Head(1, "1-1")}
    else:
        del world.store.rows[1]
    again = world.start()
    assert not again.restore()
    assert said in again.status()["reason"]
    world.store.heads, world.store.rows, world.store.control = heads, rows, control
    assert world.start().restore(), "nothing was changed"
