"""Large snapshots are mapped, checked while their tables are laid out, and copied afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_world import FakeStore

from online.service.state.parameter_servers import settings_of
from online.settings import config
from paramserver.core.blocks import ROWS, Block
from paramserver.core.server import Server
from paramserver.core.tables.pages import PAGE_ROWS, Pool
from paramserver.core.tables.rows import Rows
from paramserver.errors import SnapshotCorrupt, SnapshotFormat
from paramserver.process.actor import ParameterServer
from paramserver.process.lineage import Lineage
from paramserver.snapshots import chain, mapped, store
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.store import DirectorySnapshots, Retention

IDS = 5_000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All files are mapped, and read and copied in small pieces."""
    monkeypatch.setattr(store, "MAPPED_LEAST", 1)
    monkeypatch.setattr(mapped, "_PIECE", 1024)
    monkeypatch.setattr("paramserver.core.tables.pages._COPIED", PAGE_ROWS)


def settled() -> None:
    """Wait until no table is being copied."""
    for thread in threading.enumerate():
        if thread.name == "rows":
            thread.join(60)


def server_with_table() -> Server:
    server = Server("m", "s", "{}", "sum", 1)
    ids = np.random.default_rng(1).permutation(IDS).astype(np.uint64)
    numbers = np.arange(2 * IDS, dtype=np.float32).reshape(IDS, 2)
    server.values["t"] = Block(ROWS, Rows(ids, numbers))
    server.values["w"] = Block("additive", {"é": 0.5, "b": -1.0})
    return server


def published(path: Path) -> tuple[SnapshotHistory, Server]:
    """A whole snapshot, and one that leans on it."""
    server, history = server_with_table(), SnapshotHistory(DirectorySnapshots(path), Retention())
    for count in (1, 2):
        server.count = count
        if count == 2:
            some = np.arange(0, IDS, 40, dtype=np.uint64)
            server.values["t"].data.put(some, np.zeros((len(some), 2), dtype=np.float32))
        state = server.begin_snapshot(0.0, None, {}, history.base_for_next())
        assert (state.base is None) == (count == 1)
        history.publish(f"1-{count}", state)
    return history, server


@pytest.mark.parametrize("name", ["1-1", "1-2"])
def test_what_is_restored_is_in_memory_of_its_own_in_the_end(tmp_path: Path, name: str) -> None:
    history, _ = published(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    restored = history.load(name)
    table: Rows = restored.values["t"].data
    every = np.arange(IDS, dtype=np.uint64)
    table.put(every, table.get(every)[0] + 1.0)  # also while it is copied
    settled()
    piece = table._pool._pieces[0][1]
    assert piece.base is None, "no file is behind it"
    assert table._ids.first(IDS).base is not None
    assert not isinstance(table._ids._ids.base, memoryview)
    plain = snapshot_format.decode(files[tmp_path / "1-1.snapshot"]).values["t"].data
    if name == "1-2":
        some = np.arange(0, IDS, 40, dtype=np.uint64)
        plain.put(some, np.zeros((len(some), 2), dtype=np.float32))
    assert np.array_equal(table.get(every)[0], plain.get(every)[0] + 1.0)
    assert restored.values["w"].data == {"é": 0.5, "b": -1.0}
    assert files == {path: path.read_bytes() for path in tmp_path.iterdir()}


def is_mapped(array: Any) -> bool:
    """Whether the array is where a file is mapped."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array is not None


@pytest.mark.parametrize("copied", [True, False])
def test_names_and_numbers_in_arrays_are_in_memory_of_their_own_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copied: bool
) -> None:
    """The negative control does not copy them.  A copy made before has what its original gets."""
    monkeypatch.setattr(snapshot_format, "ARRAYS_LEAST", 1)
    server = Server("m", "s", "{}", "sum", 1)
    weights, ranges = {"é": 0.5, "b": -1.0, "": 2.0}, {"b": (0.0, 1.0), "new": (-1.0, 1.0)}
    server.values["w"] = Block("additive", dict(weights))
    server.values["r"] = Block("extrema", dict(ranges))
    snapshots = DirectorySnapshots(tmp_path)
    SnapshotHistory(snapshots, Retention()).publish("1-0", server.begin_snapshot(0.0, None, {}))
    go_on, copy = threading.Event(), snapshot_format._Keys._copy

    def later(keys: snapshot_format._Keys) -> None:
        go_on.wait(60)
        if copied:
            copy(keys)

    monkeypatch.setattr(snapshot_format._Keys, "_copy", later)
    state = SnapshotHistory(snapshots, Retention(), in_arrays=True).load("1-0")
    made = [block.data.copy() for block in state.values.values()]
    w, r = made
    w["é"] = 0.75
    arrays = lambda: [*w.index.arrays, w._numbers, r._numbers]  # noqa: E731
    assert all(map(is_mapped, arrays()))
    go_on.set()
    settled()
    assert [is_mapped(one) for one in arrays()] == [not copied] * 4
    assert dict(w.items()) == {**weights, "é": 0.75}
    assert [r.get(name) for name in ("b", "new", "é")] == [(0.0, 1.0), (-1.0, 1.0), None]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    history, _ = published(tmp_path)
    path = tmp_path / "1-1.snapshot"
    good = path.read_bytes()
    head = snapshot_format.manifest_end(good)
    places = [*range(0, head + 300, 7), *range(head, len(good), 997), len(good) - 1]
    for at in places:
        path.write_bytes(flipped(good, at))
        with pytest.raises(SnapshotCorrupt):
            history.load("1-1")
        with pytest.raises(SnapshotCorrupt, match="leans on 1-1"):
            history.load("1-2")
    for size in (0, 20, head - 1, head + 9, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(SnapshotCorrupt):
            history.load("1-1")
    path.write_bytes(good)
    assert history.load("1-2").values["w"].data


def test_a_table_of_a_file_that_is_not_sound_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: without the comparison in the end a flipped number is loaded."""
    history, _ = published(tmp_path)
    path = tmp_path / "1-1.snapshot"
    good = path.read_bytes()
    path.write_bytes(flipped(good, good.index(np.float32(77.0).tobytes())))
    with pytest.raises(SnapshotCorrupt, match="the checksum of the whole does not match"):
        history.load("1-1")
    monkeypatch.setattr(snapshot_format, "_verify", lambda source: None)
    assert 77.0 not in history.load("1-1").values["t"].data.numbers
    settled()


def test_a_base_that_is_another_one_and_a_newer_schema_are_told(tmp_path: Path) -> None:
    history, server = published(tmp_path)
    server.values["w"].data["b"] = 2.0
    DirectorySnapshots(tmp_path).publish("1-1", snapshot_format.encode(server.state(0.0, None, {})))
    with pytest.raises(SnapshotCorrupt, match="its file holds another snapshot"):
        history.load("1-2")
    DirectorySnapshots(tmp_path).publish("1-9", snapshot_format.frame(9, b"new", b"payload"))
    with pytest.raises(SnapshotFormat):
        chain.read(DirectorySnapshots(tmp_path), "1-9")


class Failing(BufferedReader):
    """A disk that fails after some bytes, or a file that has become shorter."""

    def __init__(self, path: Path, error: OSError | None) -> None:
        super().__init__(path.open("rb", buffering=0))
        self.error, self.left = error, 4

    def readinto(self, into: Any) -> int:
        self.left -= 1
        if self.left > 0:
            return super().readinto(into)
        if self.error is not None:
            raise self.error
        return 0


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), None])
def test_an_error_of_the_disk_is_told_before_the_mapping_is_touched_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError | None
) -> None:
    history, _ = published(tmp_path)
    path, seen = tmp_path / "1-1.snapshot", list[str]()
    source = mapped.MappedFile(Failing(path, error), path.stat().st_size)
    monkeypatch.setattr(store.Disk, "take", lambda *_: source)
    monkeypatch.setattr(snapshot_format, "_finite", lambda numbers: seen.append("rows"))
    with pytest.raises(OSError, match="Input/output" if error else "has become shorter"):
        history.load("1-1")
    assert not seen, "nobody looked at rows that had not been read"


class Stalling(BufferedReader):
    """A disk that delivers some bytes, and the next ones when it is told to go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("rb", buffering=0))
        self.path, self.left, self.goes_on = path, 2, threading.Event()

    def readinto(self, into: Any) -> int:
        self.left -= 1
        if self.left <= 0:
            self.goes_on.wait(60)
        return super().readinto(into)


def test_a_disk_that_stalls_is_given_up_and_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history, _ = published(tmp_path)
    taken = list[Stalling]()

    def take(disk: store.Disk, path: Path) -> mapped.MappedFile:
        taken.append(Stalling(path))
        return mapped.MappedFile(taken[-1], path.stat().st_size, disk._stall_s)

    with monkeypatch.context() as patched:
        patched.setattr(store.Disk, "take", take)
        snapshots = DirectorySnapshots(tmp_path, store.Disk(stall_s=0.1))
        stalled = SnapshotHistory(snapshots, Retention())
        with pytest.raises(TimeoutError, match=r"nothing for 0\.1 s, after 1,024 of"):
            stalled.restore("1-2", "m", "s")
        names = [one.path.stem for one in taken]
        assert names == ["1-2", "1-1"], "with its base, and no older one instead"
    names = ["snapshot-read", "snapshot-checksum"]
    reading = [thread for thread in threading.enumerate() if thread.name in names]
    for one in taken:
        one.goes_on.set()
    for thread in reading:
        thread.join(60)
        assert not thread.is_alive()
    assert taken[1].left == 0, "what was given up is not read to its end"
    found = history.restore("1-2", "m", "s")
    assert found is not None
    assert found[0] == "1-2"


def test_a_disk_that_stalls_when_it_is_read_for_the_checksum_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may have dropped what was read first, so this is a wait for the disk, too."""
    path, goes_on, preadv = tmp_path / "snapshot", threading.Event(), os.preadv
    path.write_bytes(bytes(5000))

    def stalled(file: int, into: list[memoryview], begin: int) -> int:
        goes_on.wait(60)
        return preadv(file, into, begin)

    monkeypatch.setattr(os, "preadv", stalled)
    source = mapped.MappedFile(path.open("rb"), 5000, 0.1)
    (summing,) = [one for one in threading.enumerate() if one.name == "snapshot-checksum"]
    try:
        with pytest.raises(TimeoutError, match=r"nothing for 0\.1 s, after 0 of 5,000"):
            source.digest()
    finally:
        goes_on.set()
        summing.join(60)
    assert not summing.is_alive()


def test_how_long_a_server_waits_for_the_disk_is_a_setting(tmp_path: Path) -> None:
    model = {"name": "m", "task": "binary", "learner": "fm", "params": {"table": True}}
    given = config.load(None, {"models": [model], "start_wait_s": 7.0}, {})
    lineage = Lineage("m", "s", "{}", "sum")
    server = ParameterServer(
        lineage, FakeStore, str(tmp_path), settings_of(given.models[0], given), background=False
    )
    disk = server._running.host.disk
    path = tmp_path / "file"
    path.write_bytes(b"bytes")
    taken = disk.take(path)
    assert isinstance(taken, mapped.MappedFile)
    assert taken._stall_s == 7.0


class Meanwhile:
    """A lock before which somebody else has a turn."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._lock, self._act, self._busy = threading.Lock(), act, False

    def __enter__(self) -> None:
        if not self._busy:
            self._busy = True
            self._act()
            self._busy = False
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("both", [True, False])
def test_writes_while_pages_are_copied_are_in_the_copy(
    monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    """The negative control writes to the old piece only."""
    n, draw = 40 * PAGE_ROWS, np.random.default_rng(2)
    pool = Pool(np.zeros((n, 2), dtype=np.float32))
    expected = np.zeros((n, 2), dtype=np.float32)

    def write() -> None:
        at = draw.choice(n, 50, replace=False)
        expected[at] = rows = draw.random((50, 2), dtype=np.float32)
        pool.write(at, rows)

    pool.begin_copy()
    assert pool._copy is not None
    monkeypatch.setattr(pool, "_lock", Meanwhile(write))
    if not both:
        monkeypatch.setattr(type(pool._copy), "of", lambda copy, _: np.zeros_like(copy.rows))
    pool.copy_first()
    assert np.array_equal(pool.read(np.arange(n)), expected) == both
