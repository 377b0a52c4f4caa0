"""The snapshot store and format against their checks, and the checks against mutants."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from paramserver.blocks import Block
from paramserver.errors import SnapshotCorrupt
from paramserver.snapshots import checks
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.store import DirectorySnapshots, Disk
from paramserver.state import SnapshotState

STATE = SnapshotState(
    model="prices",
    spec="ab" * 32,
    spec_text="LogisticRegression()",
    version=(3, 41),
    values={
        "w": Block("additive", {"é": 0.1, "": -0.0, "b": 5e-324}),
        "x": Block("moments", {"f": (3.0, 0.1, 2.5)}),
        "m": Block("extrema", {"f": (-1.0, 1e300)}),
        "n": Block("count", {"i": 2**53 + 1, "f": 1.0, "neg": -(2**63)}),
        "d": Block("digest", {"count": 7, "sum": 2**64 - 1}),
        "o": Block("opaque", b"\x00\xff"),
        "empty": Block("additive", {}),
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


def test_directory_keeps_its_promises() -> None:
    checks.check_snapshot_store(make)


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
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "1-1.snapshot",
        "pins.json",
    ]
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
        checks.check_snapshot_store(mutant)


def test_format_keeps_its_promises() -> None:
    checks.check_snapshot_format(snapshot_format.encode, snapshot_format.decode, STATE)
    checks.check_unknown_schema(
        lambda schema: snapshot_format.frame(schema, b"new", b"payload"), snapshot_format.decode
    )


def _decode_unchecked(data: bytes) -> SnapshotState:
    """Mutant: believes any checksum of the whole (the head's is still compared)."""
    body = data[:-32]
    return snapshot_format.decode(body + sha256(body).digest())


def _decode_any_length(data: bytes) -> SnapshotState:
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
    encode: Callable[[SnapshotState], bytes], decode: Callable[[bytes], SnapshotState]
) -> None:
    with pytest.raises(AssertionError):
        checks.check_snapshot_format(encode, decode, STATE)


def test_whole_frame_around_nonsense_is_corrupt() -> None:
    for manifest in (b"", b"\x80", b"\xff" * 9):
        with pytest.raises(SnapshotCorrupt, match="manifest"):
            snapshot_format.decode(snapshot_format.frame(1, manifest, b""))
