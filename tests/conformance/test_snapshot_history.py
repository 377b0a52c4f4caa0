"""Damage, crashes and full disks against the history of a lineage, on both kinds of store."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import object_store
import pytest
from pyarrow import fs
from snapshot_checks import Crash, ForgetfulDisk

from paramserver.core.blocks import Block
from paramserver.core.state import SnapshotState
from paramserver.errors import (
    PublishFailed,
    SnapshotCorrupt,
    SnapshotMissing,
    StartRefused,
    Superseded,
)
from paramserver.process.lineage import publish
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.objects import ObjectSnapshots
from paramserver.snapshots.pieces import Pieces
from paramserver.snapshots.places import Snapshots
from paramserver.snapshots.store import (
    DAY_S,
    HOUR_S,
    DirectorySnapshots,
    Disk,
    PlaceUnreachable,
    Retention,
)

SPEC = "ab" * 32
PLACE = Path("snapshots")
ALL = Retention(100, 0, 0, 0)


def state(count: int, epoch: int = 1, created_at: float = 0.0) -> SnapshotState:
    return SnapshotState(
        model="prices",
        spec=SPEC,
        spec_text="LogisticRegression()",
        version=(epoch, count),
        values={
            "w": Block("additive", {"é": 0.1, "b": float(count)}),
            "x": Block("moments", {"f": (3.0, 0.1, 2.5)}),
            "d": Block("digest", {"count": count, "sum": 2**64 - 1}),
        },
        clock={1: count},
        created_at=created_at or float(count),
    )


@dataclass
class Head:
    epoch: int = 1
    snapshot: str | None = None


class Heads:
    """The store behind the journal, as far as publishing needs it."""

    def __init__(self) -> None:
        self.now = Head()

    def head(self, model: str, spec: str) -> Head:
        return self.now

    def move_head(self, model: str, spec: str, epoch: int, snapshot: str) -> None:
        if epoch != self.now.epoch:
            raise RuntimeError("another epoch")
        self.now = Head(epoch, snapshot)


class _RawDisk(ForgetfulDisk):
    """The disk, with a hand on its bytes."""

    def change(self, file: str, data: bytes) -> None:
        self.write(PLACE / file, data)

    def contents(self) -> dict[str, bytes]:
        return {file: self.read(PLACE / file) for file in self.files()}

    def take_away(self, file: str) -> None:
        self.remove(PLACE / file)


class _RawObjects(object_store.ObjectWorld):  # type: ignore[misc]
    def change(self, file: str, data: bytes) -> None:
        self.write(file, data)

    def take_away(self, file: str) -> None:
        self.inner.delete_file(file)


def _objects() -> Any:
    made = object_store.memory_world()
    return _RawObjects(made.inner, made.prefix)


def _open_directory(disk: Disk) -> Snapshots:
    return DirectorySnapshots(PLACE, disk)


@dataclass(frozen=True)
class Kind:
    new: Callable[[], Any]
    open: Callable[[Any], Snapshots]

    def history(self, world: Any, retention: Retention = ALL) -> SnapshotHistory:
        return SnapshotHistory(self.open(world), retention)


KINDS = {
    "directory": Kind(_RawDisk, _open_directory),
    "objects": Kind(_objects, object_store.open_store),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def _two(kind: Kind) -> tuple[Any, dict[str, bytes], dict[str, bytes]]:
    """A world with snapshots 1-1 and 1-2: the world, its files, and those of 1-2."""
    world = kind.new()
    history = kind.history(world)
    history.publish("1-1", state(1))
    before = set(world.contents())
    history.publish("1-2", state(2))
    files = world.contents()
    return world, files, {f: data for f, data in files.items() if f not in before}


def _damages(data: bytes) -> Iterator[tuple[str, bytes]]:
    for i in range(len(data)):
        for flip in (0x01, 0x80):
            yield f"byte {i} flipped", data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :]
        yield f"cut after {i}", data[:i]
    yield "a byte more", data + b"\0"


def _check_damage(kind: Kind) -> int:
    world, files, newest = _two(kind)
    tried = 0
    for file, data in newest.items():
        for what, damaged in _damages(data):
            world.change(file, damaged)
            history = kind.history(world)
            history.remove_leftovers()
            found = history.restore("1-2", "prices", SPEC)
            assert found is not None
            assert found[0] == "1-1", f"{file}: {what}: not refused"
            assert found[1] == state(1), f"{file}: {what}: the one before has changed"
            assert history.refused["1-2"], f"{file}: {what}: no reason is told"
            tried += 1
            for name, content in files.items():  # what counts as a leftover was removed
                world.change(name, content)
    return tried


def test_every_damaged_byte_and_every_cut_is_refused_and_the_one_before_used(kind: Kind) -> None:
    assert _check_damage(kind) > 2_000


class _Believing(ObjectSnapshots):
    """Mutant: length and checksum of the data are not compared."""

    def load(self, name: str, limit: int = -1) -> bytes:
        digest, _ = self._manifest(name)
        return self._read(f"{name}.{digest[:16]}.data", limit)[1]


@pytest.mark.parametrize(
    "kind", [KINDS["directory"], Kind(_objects, lambda w: _Believing(fs.PyFileSystem(w), w.prefix))]
)
def test_the_check_of_damage_rejects_a_format_without_checksum(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = snapshot_format.decode
    monkeypatch.setattr(
        snapshot_format,
        "decode",
        lambda d, _, **how: decode(bytes(d[:-32]) + sha256(d[:-32]).digest()),
    )
    with pytest.raises(AssertionError, match=r"not refused|has changed"):
        _check_damage(kind)


def test_a_flipped_object_is_refused_by_its_store() -> None:
    world, _, newest = _two(KINDS["objects"])
    store = object_store.open_store(world)
    for file, data in newest.items():
        for what, damaged in _damages(data):
            world.change(file, damaged)
            with pytest.raises((SnapshotCorrupt, SnapshotMissing)):
                pytest.fail(f"{file}: {what}: {store.load('1-2')!r} was believed")
        world.change(file, data)
    assert store.load("1-2") == snapshot_format.encode(state(2))


def test_a_start_from_nothing_good_is_refused(kind: Kind) -> None:
    world, files, _ = _two(kind)
    for file, data in files.items():
        world.change(file, data[:-1])
    with pytest.raises(StartRefused, match="--relearn"):
        kind.history(world).restore("1-2", "prices", SPEC)


def _published(world: Any, kind: Kind, store: Heads) -> SnapshotHistory:
    history = kind.history(world)
    history.index()
    for count in (1, 2):
        publish(store, history, state(count), None)  # type: ignore[arg-type]
    return history


@pytest.mark.parametrize("again", [False, True])
def test_a_crash_at_any_step_of_publishing_leaves_a_head_that_is_whole(
    kind: Kind, again: bool
) -> None:
    """``again``: the snapshot was written before, and the head was not moved to it."""
    steps = 0
    for crash_at in range(100):
        world, store = kind.new(), Heads()
        history = _published(world, kind, store)
        if again:
            history.publish("1-3", replace(state(3), created_at=9.0))
        world.steps, world.crash_at = 0, crash_at
        try:
            publish(store, history, state(3), None)  # type: ignore[arg-type]
        except Crash:
            assert store.now.snapshot == "1-2"
        else:
            assert store.now.snapshot == "1-3"
        head = str(store.now.snapshot)
        steps, done = crash_at, head == "1-3"
        for found in world.outcomes():
            recovered = kind.history(found)
            restored = recovered.restore(head, "prices", SPEC)
            assert restored == (head, state(int(head[-1]))), f"crash at step {crash_at}"
            recovered.index()
            assert recovered.refused == {}, f"crash at step {crash_at}"
            names = {row.name for row in recovered.listed()}
            assert {"1-1", "1-2", head} <= names <= {"1-1", "1-2", "1-3"}
        if done:
            break
    assert steps >= 2, "publishing took fewer steps than there are writes"


class _FullDisk(_RawDisk):
    """Refuses one changing step, and every later write (a full disk stays full)."""

    full_at: int | None = None

    def _step(self) -> None:
        super()._step()
        if self.full_at is not None and self.steps > self.full_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write(self, path: Path, data: bytes | Pieces) -> None:
        try:
            super().write(path, data)
        except OSError:
            self._names[path] = _file_of(bytes(data)[: len(data) // 2])  # what still had room
            raise

    def remove(self, path: Path) -> None:
        del self._names[path]  # takes no room


def _file_of(content: bytes) -> Any:
    disk = ForgetfulDisk()
    disk.write(PLACE, content)
    return disk._names[PLACE]


def _full_objects() -> Any:
    world = _objects()
    world.full_at = None

    def refuse(action: str, path: str) -> None:
        if world.full_at is not None and action == "write" and world.steps > world.full_at:
            raise OSError(errno.ENOSPC, "No space left on device")

    world.before_change = refuse
    return world


@pytest.mark.parametrize(
    "kind",
    [Kind(_FullDisk, _open_directory), Kind(_full_objects, object_store.open_store)],
    ids=list(KINDS),
)
def test_a_full_disk_at_any_step_leaves_the_head_where_it_was(kind: Kind) -> None:
    failed = 0
    for full_at in range(100):
        world, store = kind.new(), Heads()
        history = _published(world, kind, store)
        world.steps, world.full_at = 0, full_at
        with contextlib.suppress(PublishFailed):
            publish(store, history, state(3), None)  # type: ignore[arg-type]
            break
        failed += 1
        assert store.now.snapshot == "1-2"
        world.full_at = None  # room again
        for reopened in (history, kind.history(world)):  # the same server, or the next one
            assert reopened.restore("1-2", "prices", SPEC) == ("1-2", state(2))
            reopened.index()
            assert publish(store, reopened, state(3), None) == "1-3"  # type: ignore[arg-type]
            store.now.snapshot = "1-2"
        assert kind.history(world).restore("1-3", "prices", SPEC) == ("1-3", state(3))
        assert not [f for f in world.files() if f.endswith(".tmp")]
    assert failed >= 2


def test_half_a_file_on_a_full_disk_is_removed_at_once() -> None:
    world, store = _FullDisk(), Heads()
    history = _published(world, KINDS["directory"], store)
    files = set(world.files())
    world.steps, world.full_at = 0, 0
    with pytest.raises(PublishFailed, match="No space left"):
        publish(store, history, state(3), None)  # type: ignore[arg-type]
    assert set(world.files()) == files


def test_a_superseded_server_takes_its_snapshot_back(kind: Kind) -> None:
    world, store = kind.new(), Heads()
    history = _published(world, kind, store)
    files = set(world.files())
    store.now = Head(2, "1-2")
    with pytest.raises(Superseded):
        publish(store, history, state(3), None)  # type: ignore[arg-type]
    assert set(world.files()) == files


def test_what_somebody_has_removed_is_no_more_known(kind: Kind) -> None:
    """Any file of a snapshot: what is left of it is no snapshot."""
    for removed in range(len(_two(kind)[2])):
        world, _, newest = _two(kind)
        history = kind.history(world)
        history.index()
        assert history.drop_vanished("1-2") == []
        assert history.vanished.incident is None
        world.take_away(sorted(newest)[removed])
        assert history.drop_vanished("1-2") == ["1-2"]
        assert [row.name for row in history.listed()] == ["1-1"]
        assert history.vanished.files == 1
        assert "1-2, the newest, is written anew" in (history.vanished.incident or "")
        history.publish("1-2", state(2))
        assert history.drop_vanished("1-2") == []
        assert kind.history(world).restore("1-2", "prices", SPEC) == ("1-2", state(2))


def test_damaged_pins_are_refused_with_the_remedy() -> None:
    world = _RawDisk()
    store = _open_directory(world)
    store.publish("1-1", b"x")
    store.pin("1-1", True)
    data = world.contents()["pins.json"]
    for what, damaged in _damages(data):
        world.change("pins.json", damaged)
        if damaged == data.partition(b"\n")[0]:  # as somebody may have written it
            assert _open_directory(world).pins() == {"1-1"}
            continue
        with pytest.raises(StartRefused, match="remove the file"):
            pytest.fail(f"{what}: believed: {_open_directory(world).pins()}")
    world.change("pins.json", b'["1-1", "1-2"]')
    assert _open_directory(world).pins() == {"1-1", "1-2"}, "written by hand"


def test_held_names_stay_and_hold_no_rows(kind: Kind) -> None:
    world = kind.new()
    history = kind.history(world, Retention(1, 0, 0, 0))
    for count in range(1, 6):
        history.publish(f"1-{count}", state(count))
    kept = history.retain("1-5", held={"1-3", "1-99"})
    assert [row.name for row in history.listed()] == ["1-5", "1-3", "1-1"]
    assert [contained.clock for contained in kept] == [{1: 5}]
    history.retain("1-5")
    assert [row.name for row in history.listed()] == ["1-5", "1-1"]


def test_a_held_or_pinned_snapshot_stays_also_when_it_is_damaged(kind: Kind) -> None:
    world, files, newest = _two(kind)
    kind.open(world).pin("1-1", True)
    for file in files.keys() - newest.keys():
        world.change(file, b"?" * len(files[file]))
    for held, left in (({"1-1"}, ["1-1"]), ((), ["1-1"])):
        history = kind.history(world, Retention(1, 0, 0, 0))
        history.index()
        assert list(history.refused) == ["1-1"]
        history.retain("1-2", held)
        assert list(history.refused) == left
    kind.open(world).pin("1-1", False)
    history = kind.history(world, Retention(1, 0, 0, 0))
    history.index()
    history.retain("1-2")
    assert history.refused == {}
    assert kind.open(world).names() == ["1-2"]


def test_reach_is_the_oldest_good_one_of_the_chain(kind: Kind) -> None:
    world = kind.new()
    history = kind.history(world)
    assert history.reach() is None
    for name, made in (("1-1", 10.0), ("1-2", 20.0), ("2-9-from-1-1", 5.0), ("3-4-from-1-2", 30.0)):
        epoch, count = int(name[0]), int(name[2])
        history.publish(name, state(count, epoch, made))
    history.retain("3-4-from-1-2")
    assert history.reach() == 10.0  # epoch 2 has nothing to do with it
    first = [f for f in world.files() if "1-1." in f and "from" not in f and "data" not in f]
    for file in first:
        world.change(file, b"gone")
    again = kind.history(world)
    again.restore("3-4-from-1-2", "prices", SPEC)
    again.index()
    assert again.reach() == 20.0


def test_a_clock_that_was_set_back_thins_no_newer_snapshot() -> None:
    kind = KINDS["directory"]
    history = kind.history(kind.new(), Retention(3, 2, 0, 0))
    for count in range(1, 12):
        made = 100 * DAY_S + count * 60.0 - (HOUR_S if count > 5 else 0)
        history.publish(f"1-{count}", state(count, created_at=made))
        history.retain(f"1-{count}")
    assert [row.version[1] for row in history.listed()] == [11, 10, 9, 1]


def test_a_store_that_is_away_makes_no_snapshot_bad() -> None:
    kind = KINDS["objects"]
    world, _, _ = _two(kind)

    def fail(path: str) -> Any:
        raise OSError("time out")

    history = kind.history(world)
    world.open_input_file = fail
    for act in (lambda: history.restore("1-2", "prices", SPEC), history.index):
        with pytest.raises(PlaceUnreachable):
            act()
    assert history.refused == {}
    del world.open_input_file
    assert history.restore("1-2", "prices", SPEC) == ("1-2", state(2))


def test_retention_goes_on_where_an_error_ended_it(kind: Kind) -> None:
    world = kind.new()
    history = kind.history(world, Retention(1, 0, 0, 0))
    for count in range(1, 6):
        history.publish(f"1-{count}", state(count))
    calls = []

    def refuse_once(name: str) -> None:
        calls.append(name)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        delete(name)

    store = history._snapshots
    delete, store.delete = store.delete, refuse_once  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Input/output"):
        history.retain("1-5")
    history.retain("1-5")
    assert kind.open(world).names() == ["1-1", "1-5"]


def test_the_snapshot_of_a_start_counts_though_it_can_not_be_read_again(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _, _ = _two(kind)
    history = kind.history(world, Retention(2, 0, 0, 0))
    assert history.restore("1-2", "prices", SPEC) is not None
    load = history._snapshots.load

    def failing(name: str, limit: int = -1) -> bytes:
        if name == "1-2":
            raise OSError(errno.EIO, "input/output error")
        return load(name, limit)

    monkeypatch.setattr(history._snapshots, "load", failing)
    history.index()
    assert [row.name for row in history.listed()] == ["1-2", "1-1"]
    assert sorted(contained.clock[1] for contained in history.retain("1-2")) == [1, 2]
