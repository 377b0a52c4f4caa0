"""The snapshot store and format against their checks, and the checks against mutants."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import object_store
import pyarrow
import pytest
import snapshot_checks as checks
from pyarrow import fs
from safetensors.numpy import load, save

from paramserver.core.blocks import Block
from paramserver.core.state import SnapshotState
from paramserver.core.tables.rows import Rows
from paramserver.errors import SnapshotCorrupt, SnapshotMissing, StartRefused
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.objects import ObjectSnapshots
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import DirectorySnapshots, Disk, PlaceUnreachable

STATE = SnapshotState(
    model="prices",
    spec="ab" * 32,
    spec_text="LogisticRegression()",
    version=(3, 41),
    values={
        "w": Block("additive", {"é": 0.1, "": -0.0, "b": 5e-324}),
        "x": Block(
            "moments", {"f": (3.0, 0.1, 2.5), "a\0b\0": (1.0, 0.0, 0.0), "": (2.0, 1.0, 0.5)}
        ),
        "m": Block("extrema", {"f": (-1.0, 1e300)}),
        "n": Block("count", {"i": 2**53 + 1, "f": 1.0, "neg": -(2**63)}),
        "d": Block("digest", {"count": 7, "sum": 2**64 - 1}),
        "o": Block("opaque", b"\x00\xff"),
        "empty": Block("additive", {}),
        "t": Block(
            "rows", Rows(np.array([7, 2**64 - 1], dtype=np.uint64), np.eye(2, 3, dtype="f4"))
        ),
    },
    clock={1: 5, 9: 0},
    closed=frozenset({2, 3, 4, 7}),
    control=2,
    metrics={"replicas": 2.0},
    parent="3-40",
    created_at=1.5e9,
)


def make(disk: Disk) -> DirectorySnapshots:
    return DirectorySnapshots(Path("snapshots"), disk)


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[str, Any]]:
    if not object_store.has_s3_server():
        pytest.skip(object_store.NO_S3)
    with object_store.running_s3() as server:
        yield server


@pytest.fixture
def s3_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_directory_keeps_its_promises() -> None:
    checks.check_snapshot_store(checks.ForgetfulDisk, make)


@pytest.mark.parametrize("replaces_whole", [True, False])
def test_objects_keep_their_promises(replaces_whole: bool) -> None:
    checks.check_snapshot_store(
        lambda: object_store.memory_world(replaces_whole=replaces_whole), object_store.open_store
    )


def test_objects_in_local_files(tmp_path: Path) -> None:
    number = count()

    def world() -> Any:
        prefix = tmp_path / str(next(number))
        prefix.mkdir()
        return object_store.ObjectWorld(fs.LocalFileSystem(), str(prefix))

    checks.check_snapshot_store(world, object_store.open_store)


def test_objects_in_s3(s3: tuple[str, Any]) -> None:
    number = count()

    def world() -> Any:
        return object_store.ObjectWorld(s3[1], f"bucket/{next(number)}")

    checks.check_snapshot_store(world, object_store.open_store)


@pytest.mark.usefixtures("s3_keys")
def test_lineages_in_one_bucket_leave_each_other_alone(s3: tuple[str, Any]) -> None:
    root = "s3://bucket/all" + s3[0]
    ours = open_snapshots(lineage_place(root, "prices", "ab" * 32))
    theirs = open_snapshots(lineage_place(root, "prices", "cd" * 32))
    ours.publish("1-1", b"ours")
    theirs.publish("1-1", b"theirs")
    theirs.pin("1-1", True)
    left = f"bucket/all/prices/{'cd' * 8}/1-2.{'0' * 16}.data"
    with s3[1].open_output_stream(left, compression=None) as stream:
        stream.write(b"half")
    ours.remove_leftovers()
    assert s3[1].get_file_info(left).size == 4
    theirs.remove_leftovers()
    assert s3[1].get_file_info(left).type == fs.FileType.NotFound
    assert (ours.load("1-1"), theirs.load("1-1")) == (b"ours", b"theirs")
    assert open_snapshots(lineage_place(root, "prices", "ab" * 32)).pins() == set()
    assert open_snapshots(lineage_place(root, "prices", "cd" * 32)).pins() == {"1-1"}


def test_a_place_of_a_lineage() -> None:
    spec = "0123456789abcdef" * 4
    assert lineage_place("state/snapshots", "m", spec) == "state/snapshots/m/0123456789abcdef"
    assert lineage_place("s3://b/p/", "m", spec) == "s3://b/p/m/0123456789abcdef"
    assert lineage_place("s3://b?region=x", "m", spec) == "s3://b/m/0123456789abcdef?region=x"
    assert lineage_place("file:///x", "m", spec) == "file:///x/m/0123456789abcdef"


def test_a_file_uri_is_its_directory(tmp_path: Path) -> None:
    store = open_snapshots((tmp_path / "with space").as_uri())
    assert isinstance(store, DirectorySnapshots)
    store.publish("1-1", b"x")
    assert open_snapshots(str(tmp_path / "with space")).load("1-1") == b"x"
    with pytest.raises(StartRefused, match="three slashes"):
        open_snapshots("file://elsewhere/x")


@pytest.mark.parametrize("uri", ["ftp://key:secret@host/x", "s3://bucket/p?nonsense=1", "nope://"])
def test_a_uri_that_pyarrow_does_not_know_is_refused(uri: str) -> None:
    with pytest.raises(StartRefused, match="s3://bucket/prefix") as raised:
        open_snapshots(uri)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("broken", ["get_file_info_selector", "open_output_stream"])
@pytest.mark.parametrize("error", [OSError("time out"), pyarrow.ArrowInvalid("no such option")])
def test_a_store_that_does_not_answer_is_an_os_error(broken: str, error: Exception) -> None:
    def fail(*args: Any) -> Any:
        raise error

    world = object_store.memory_world()
    setattr(world, broken, fail)
    with pytest.raises(OSError, match=rf"bucket/prefix.*{error}.*credentials") as raised:
        object_store.open_store(world).publish("1-1", b"x")
    assert isinstance(raised.value, PlaceUnreachable)
    copy = pickle.loads(pickle.dumps(raised.value))
    assert str(copy) == str(raised.value)
    assert not copy.definite


@pytest.mark.usefixtures("s3_keys")
def test_a_bucket_that_is_not_there(s3: tuple[str, Any]) -> None:
    store = open_snapshots("s3://absent/p" + s3[0])
    with pytest.raises(PlaceUnreachable, match="bucket is there"):
        store.publish("1-1", b"x")


def test_a_directory_needs_no_pyarrow(tmp_path: Path) -> None:
    code = """if True:
        import sys
        sys.modules["pyarrow"] = None  # as if it were not installed
        from paramserver.process.actor import ParameterServer
        from paramserver.errors import StartRefused
        from paramserver.snapshots.places import open_snapshots
        open_snapshots(sys.argv[1]).publish("1-1", b"x")
        open_snapshots("file://" + sys.argv[1]).load("1-1")
        try:
            open_snapshots("s3://bucket/p")
        except StartRefused as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "pip install -c constraints.txt -e '.[store]' in the checkout" in done.stdout


@pytest.mark.parametrize("read", [DirectorySnapshots.load, DirectorySnapshots.take])
def test_a_folder_in_the_place_of_a_file_is_corrupt_whenever_it_is_read(
    tmp_path: Path, read: Callable[[DirectorySnapshots, str], object]
) -> None:
    store = DirectorySnapshots(tmp_path)
    (tmp_path / "1-1.snapshot").mkdir()
    assert store.names() == ["1-1"]
    with pytest.raises(SnapshotCorrupt, match="a folder has the name of its file"):
        read(store, "1-1")
    with pytest.raises(SnapshotMissing):  # else retention would end with it, each time
        store.delete("1-1")


def test_directory_on_the_real_disk(tmp_path: Path) -> None:
    store = DirectorySnapshots(tmp_path / "a" / "b")
    store.publish("1-1", b"x")
    store.pin("1-1", True)
    (tmp_path / "a" / "b" / "1-2.snapshot.tmp").write_bytes(b"half")
    again = DirectorySnapshots(tmp_path / "a" / "b")
    again.remove_leftovers()
    assert again.names() == ["1-1"]
    assert again.load("1-1") == b"x"
    assert again.pins() == {"1-1"}
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["1-1.snapshot", "pins.json"]
    again.delete("1-1")
    assert again.names() == []


class _Skipping(Disk):
    """A disk whose calls reach another one, but for some that do nothing."""

    def __init__(self, inner: Disk, skipped: str) -> None:
        for name in (n for n in dir(Disk) if not n.startswith("_")):
            setattr(self, name, getattr(inner, name))
        setattr(self, skipped, lambda path: None)


class _InPlace(DirectorySnapshots):
    def publish(self, name: str, data: bytes) -> None:
        self._disk.write(self._file(name), data)
        self._disk.fsync(self._file(name))
        self._disk.fsync_directory(self._path)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(lambda d: make(_Skipping(d, "fsync")), id="renamed before synced"),
        pytest.param(lambda d: make(_Skipping(d, "fsync_directory")), id="name not synced"),
        pytest.param(lambda d: make(_Skipping(d, "remove")), id="leftovers and deletes stay"),
        pytest.param(lambda d: _InPlace(Path("snapshots"), d), id="written in place"),
    ],
)
def test_checks_reject_a_store(mutant: Callable[[Disk], DirectorySnapshots]) -> None:
    with pytest.raises(AssertionError):
        checks.check_snapshot_store(checks.ForgetfulDisk, mutant)


class _ManifestFirst(ObjectSnapshots):
    def _write(self, file: str, data: bytes) -> None:
        if file.endswith(".data"):
            digest = sha256(data).hexdigest()
            name = file.rsplit(".", 2)[0]
            super()._write(name + ".snapshot", f"{digest} {len(data):020d}\n".encode())
        super()._write(file, data)


class _DataDeletedFirst(ObjectSnapshots):
    def delete(self, name: str) -> None:
        for file in [f for f in self._sizes() if f.startswith(name + ".") and f.endswith(".data")]:
            self._remove(file)
        super().delete(name)


class _LeavesLeftovers(ObjectSnapshots):
    def remove_leftovers(self) -> None:
        pass


class _OneDataName(ObjectSnapshots):
    """Mutant: data are named after the snapshot alone, so that writing again replaces them."""

    def _path(self, file: str) -> str:
        return super()._path(re.sub(r"\.[0-9a-f]{16}\.data", "." + "0" * 16 + ".data", file))


class _AnyManifest(ObjectSnapshots):
    """Mutant: a torn manifest counts."""

    def names(self) -> list[str]:
        return sorted(f.removesuffix(".snapshot") for f in self._sizes() if ".snapshot" in f)

    def remove_leftovers(self) -> None:
        pass


class _KeepsAll(ObjectSnapshots):
    def _remove(self, file: str) -> None:
        if file.endswith(".data"):
            return
        super()._remove(file)


@pytest.mark.parametrize(
    "mutant",
    [_ManifestFirst, _DataDeletedFirst, _LeavesLeftovers, _OneDataName, _AnyManifest, _KeepsAll],
)
def test_checks_reject_an_object_store(mutant: type[ObjectSnapshots]) -> None:
    with pytest.raises(AssertionError):
        checks.check_snapshot_store(
            lambda: object_store.memory_world(replaces_whole=False),
            lambda world: mutant(fs.PyFileSystem(world), world.prefix),
        )


def test_format_keeps_its_promises() -> None:
    checks.check_snapshot_format(snapshot_format.encode, snapshot_format.decode, STATE)
    checks.check_unknown_schema(
        lambda schema: snapshot_format.frame(schema, b"new", b"payload"), snapshot_format.decode
    )


def _decode_unchecked(data: bytes | memoryview) -> SnapshotState:
    """Mutant: believes any checksum of the whole (the head's is still compared)."""
    body = bytes(data[:-32])
    return snapshot_format.decode(body + sha256(body).digest())


def _decode_any_length(data: bytes | memoryview) -> SnapshotState:
    """Mutant: reads as far as the head says, whatever follows."""
    return snapshot_format.decode(data[: snapshot_format.whole_size(data)])


def _encode_single(state: SnapshotState) -> bytes:
    """Mutant: an integer count loses its type."""
    values = dict(state.values)
    values["n"] = Block("count", {k: float(x) for k, x in state.values["n"].data.items()})
    return snapshot_format.encode(
        SnapshotState(
            model=state.model,
            spec=state.spec,
            spec_text=state.spec_text,
            version=state.version,
            values=values,
            clock=state.clock,
        )
    )


@pytest.mark.parametrize(
    ("encode", "decode"),
    [
        pytest.param(snapshot_format.encode, _decode_unchecked, id="checksum of the head only"),
        pytest.param(snapshot_format.encode, _decode_any_length, id="trailing bytes"),
        pytest.param(_encode_single, snapshot_format.decode, id="counts as floats"),
    ],
)
def test_checks_reject_a_format(
    encode: Callable[[SnapshotState], bytes], decode: Callable[[bytes | memoryview], SnapshotState]
) -> None:
    with pytest.raises(AssertionError):
        checks.check_snapshot_format(encode, decode, STATE)


def test_the_payload_is_a_safetensors_file_for_others() -> None:
    data = snapshot_format.encode(STATE)
    begin = snapshot_format.manifest_end(data)
    arrays = load(data[begin:-32])
    place = list(STATE.values).index("t")
    assert arrays[f"{place}.ids"].tolist() == [7, 2**64 - 1]
    assert arrays[f"{place}.rows"].tolist() == np.eye(2, 3).tolist()
    assert all(array.ctypes.data % array.itemsize == 0 for array in arrays.values())


def test_whole_frame_around_nonsense_is_corrupt() -> None:
    for manifest in (b"", b"\x80", b"\xff" * 9):
        with pytest.raises(SnapshotCorrupt, match="manifest"):
            snapshot_format.decode(snapshot_format.frame(1, manifest, b""))


@pytest.mark.parametrize("ends", [[1, 3], [2, 1], [-1, 2], [1], [1, 2, 2]])
def test_keys_that_do_not_fit_their_bytes_are_corrupt(ends: list[int]) -> None:
    arrays = {
        "0.keys": np.frombuffer(b"ab", dtype=np.uint8),
        "0.ends": np.array(ends, dtype=np.int64),
        "0.values": np.array([1.0, 2.0]),
    }
    whole = snapshot_format.encode(
        replace(STATE, values={"w": Block("additive", {"a": 1.0, "b": 2.0})})
    )
    manifest = whole[snapshot_format.FRAME_BYTES : snapshot_format.manifest_end(whole)]
    with pytest.raises(SnapshotCorrupt, match="payload"):
        snapshot_format.decode(snapshot_format.frame(1, manifest, save(arrays)))
    arrays["0.ends"] = np.array([1, 2], dtype=np.int64)
    good = snapshot_format.decode(snapshot_format.frame(1, manifest, save(arrays)))
    assert good.values["w"].data == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("n", [8191, 8192, 8193, 16_385])
@pytest.mark.parametrize("prefix", ["", "é漢😀"])
def test_keys_that_are_cut_in_several_steps(n: int, prefix: str) -> None:
    numbers = {f"{prefix}{i * 37}" if i else "": float(i) for i in range(n)}
    state = replace(STATE, values={"w": Block("additive", numbers)})
    found = snapshot_format.decode(snapshot_format.encode(state)).values["w"].data
    assert list(found.items()) == list(numbers.items())
