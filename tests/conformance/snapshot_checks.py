"""These plain functions check what every snapshot store and format must keep to.

A store is walked in a world: the disk or object store below it, which can crash before any step
and tells what may be found after that.  The disk used here forgets what was not synced: after a
crash a file may have none, half or all of its unsynced bytes, and a directory its old or its new
names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Final, Literal, Protocol, Self, TypeVar

from paramserver.core.state import SnapshotState
from paramserver.errors import SnapshotCorrupt, SnapshotFormat, SnapshotMissing, SnapshotName
from paramserver.snapshots.format import equal
from paramserver.snapshots.pieces import Pieces
from paramserver.snapshots.places import Snapshots
from paramserver.snapshots.store import Disk

Share = Literal["none", "half", "all"]
_Argument = TypeVar("_Argument")
_SHARES: Final[tuple[Share, ...]] = ("none", "half", "all")


class World(Protocol):
    """A world is what a store stands on: a disk or an object store.

    ``crash_at`` is the number of changing steps that are done before the crash (None: never);
    ``replaces_whole`` tells whether a name that is written again is the old or the new one.
    """

    crash_at: int | None
    steps: int

    @property
    def replaces_whole(self) -> bool: ...

    def files(self) -> list[str]:
        """Names of all that is stored."""

    def outcomes(self) -> Iterator[Self]:
        """Every world that may be found after a crash; each is done with before the next."""


class Crash(Exception):
    """The machine below a store has stopped."""


class _File:
    __slots__ = ("content", "synced")

    def __init__(self, content: bytes, synced: bytes = b"") -> None:
        self.content = content
        self.synced = synced


class ForgetfulDisk(Disk):
    """A disk in memory that can crash before any step and then loses what was not synced."""

    replaces_whole: Final = True

    def __init__(self, crash_at: int | None = None) -> None:
        self.crash_at = crash_at
        self.steps = 0
        self._names: dict[Path, _File] = {}
        self._synced_names: dict[Path, _File] = {}

    def _step(self) -> None:
        if self.crash_at is not None and self.steps >= self.crash_at:
            raise Crash
        self.steps += 1

    def files(self) -> list[str]:
        """Names of all files."""
        return self.list(Path())

    def make_directory(self, path: Path) -> None:
        """There is but one directory."""

    def list(self, path: Path) -> list[str]:
        return [file.name for file in self._names]

    def read(self, path: Path, limit: int = -1) -> bytes:
        if path not in self._names:
            raise FileNotFoundError(path)
        content = self._names[path].content
        return content if limit < 0 else content[:limit]

    def take(self, path: Path) -> memoryview:
        return memoryview(bytearray(self.read(path)))

    def write(self, path: Path, data: bytes | Pieces) -> None:
        self._step()
        self._names[path] = _File(bytes(data))

    def fsync(self, path: Path) -> None:
        self._step()
        self._names[path].synced = self._names[path].content

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        self._names[target] = self._names.pop(source)

    def fsync_directory(self, path: Path) -> None:
        self._step()
        self._synced_names = dict(self._names)

    def remove(self, path: Path) -> None:
        self._step()
        if path not in self._names:
            raise FileNotFoundError(path)
        del self._names[path]

    def after_crash(self, *, names: bool, bytes_kept: Share) -> Self:
        """The disk that is found after a power cut.

        ``names``: whether unsynced changes of the directory reached the disk.
        """
        found = type(self)()
        for path, file in (self._names if names else self._synced_names).items():
            unsynced = file.content[len(file.synced) :] if file.synced else file.content
            share = {"none": 0, "half": len(unsynced) // 2, "all": len(unsynced)}[bytes_kept]
            content = file.synced + unsynced[:share]
            found._names[path] = _File(content, content)
        found._synced_names = dict(found._names)
        return found

    def outcomes(self) -> Iterator[Self]:
        """Every disk that may be found after a power cut."""
        for names, share in product((False, True), _SHARES):
            yield self.after_crash(names=names, bytes_kept=share)


_World = TypeVar("_World", bound=World)
_OLD: Final = b"the old one" * 7
_NEW: Final = b"another, newer one" * 11
_STEPS_MAX: Final = 1_000


def check_snapshot_store(
    new_world: Callable[[], _World], open_store: Callable[[_World], Snapshots]
) -> None:
    """Walk a store through all that it promises; AssertionError names what it broke."""
    check_names(new_world, open_store)
    check_crash_while_publishing(new_world, open_store, "a", "b")
    check_crash_while_publishing(new_world, open_store, "a", "a")
    check_crash_while_deleting(new_world, open_store)
    check_power_cut_after_publishing(new_world, open_store)
    check_crash_while_pinning(new_world, open_store)


def check_names(new_world: Callable[[], _World], open_store: Callable[[_World], Snapshots]) -> None:
    """Publish, load, list and delete agree; names can't leave the place; readers change nothing."""
    world = new_world()
    store = open_store(world)
    assert store.names() == [], "a new store is not empty"
    store.publish("1-2", _OLD)
    store.publish("1-3-from-1-2", _NEW)
    store.publish("1-4", b"")
    assert store.names() == ["1-2", "1-3-from-1-2", "1-4"], "names are not those published"
    assert store.load("1-2") == _OLD, "a snapshot came back changed"
    assert store.load("1-4") == b"", "an empty snapshot came back changed"
    assert store.load("1-3-from-1-2", 5) == _NEW[:5], "the limit of a load was not kept"
    assert store.load("1-3-from-1-2", 10**6) == _NEW, "a limit beyond the end is not all"
    files = sorted(world.files())
    assert open_store(world).names() == store.names(), "another reader sees other names"
    assert sorted(world.files()) == files, "a reader changed what is stored"
    store.delete("1-2")
    store.delete("1-4")
    assert store.names() == ["1-3-from-1-2"], "a deleted snapshot is still listed"
    for act in (store.load, store.delete):
        assert _raises(SnapshotMissing, act, "1-2"), "a missing snapshot was not reported"
    for name in ("", ".", "../x", "a/b", "/x", "a\0", "a" * 200, ".hidden"):
        for act in (store.load, store.delete, lambda name: store.publish(name, b"x")):
            assert _raises(SnapshotName, act, name), f"the name {name!r} was taken"


def check_crash_while_publishing(
    new_world: Callable[[], _World], open_store: Callable[[_World], Snapshots], old: str, new: str
) -> None:
    """A crash before any step of publishing leaves the old and no or the whole new snapshot."""
    for crash_at in range(_STEPS_MAX):
        world = new_world()
        store = open_store(world)
        store.publish(old, _OLD)
        world.steps, world.crash_at = 0, crash_at
        try:
            store.publish(new, _NEW)
        except Crash:
            for found in world.outcomes():
                reopened = open_store(found)
                reopened.remove_leftovers()
                contents = {name: _content(reopened, name) for name in reopened.names()}
                if old != new or world.replaces_whole:
                    assert old in contents, f"crash at step {crash_at}: the old one is gone"
                for name, content in contents.items():
                    whole = {old: (_OLD,), new: (_NEW,)} if old != new else {old: (_OLD, _NEW)}
                    assert name in whole, f"crash at step {crash_at}: {name} was never published"
                    assert content in whole[name], f"crash at step {crash_at}: {name} is torn"
                    reopened.delete(name)
                left = found.files()
                assert not left, f"crash at step {crash_at}: {left} left behind"
        else:
            assert crash_at > 0, "publishing took no step"
            return
    raise AssertionError(f"publishing takes over {_STEPS_MAX:,} steps")


def check_crash_while_deleting(
    new_world: Callable[[], _World], open_store: Callable[[_World], Snapshots]
) -> None:
    """A snapshot that is being deleted is whole or absent, others are whole."""
    for crash_at in range(_STEPS_MAX):
        world = new_world()
        store = open_store(world)
        store.publish("a", _OLD)
        store.publish("b", _NEW)
        world.steps, world.crash_at = 0, crash_at
        try:
            store.delete("a")
        except Crash:
            for found in world.outcomes():
                reopened = open_store(found)
                reopened.remove_leftovers()
                names = reopened.names()
                assert names in (["b"], ["a", "b"]), f"crash at step {crash_at}: {names}"
                assert _content(reopened, "b") == _NEW, (
                    f"crash at step {crash_at}: the other is torn"
                )
                if "a" in names:
                    assert _content(reopened, "a") == _OLD, f"crash at step {crash_at}: it is torn"
                    reopened.delete("a")
                reopened.delete("b")
                left = found.files()
                assert not left, f"crash at step {crash_at}: {left} left behind"
        else:
            assert crash_at > 0, "deleting took no step"
            return
    raise AssertionError(f"deleting takes over {_STEPS_MAX:,} steps")


def check_power_cut_after_publishing(
    new_world: Callable[[], _World], open_store: Callable[[_World], Snapshots]
) -> None:
    """Check that what was published stays published after a power cut."""
    world = new_world()
    store = open_store(world)
    store.publish("a", _OLD)
    store.publish("a", _NEW)
    for found in world.outcomes():
        reopened = open_store(found)
        assert reopened.names() == ["a"], "a published snapshot is gone after a power cut"
        assert _content(reopened, "a") == _NEW, "a published snapshot is torn after a power cut"


def check_crash_while_pinning(
    new_world: Callable[[], _World], open_store: Callable[[_World], Snapshots]
) -> None:
    """Pins are the old or the new ones, and kept once set."""
    for crash_at in range(_STEPS_MAX):
        world = new_world()
        store = open_store(world)
        store.publish("a", _OLD)
        store.publish("b", _OLD)
        store.pin("a", True)
        world.steps, world.crash_at = 0, crash_at
        try:
            store.pin("b", True)
        except Crash:
            for found in world.outcomes():
                pins = open_store(found).pins()
                assert pins in ({"a"}, {"a", "b"}), f"crash at step {crash_at}: pins are {pins}"
        else:
            break
    assert crash_at > 0, "pinning took no step"
    for found in world.outcomes():
        assert open_store(found).pins() == {"a", "b"}, "a pin is gone after a power cut"
    world.crash_at = None
    store = open_store(world)
    assert _raises(SnapshotMissing, lambda name: store.pin(name, True), "c"), "pinned nothing"
    store.pin("a", False)
    assert store.pins() == open_store(world).pins() == {"b"}, "a pin could not be taken back"


def _content(store: Snapshots, name: str) -> bytes | None:
    try:
        return store.load(name)
    except (SnapshotCorrupt, SnapshotMissing):
        return None


def check_snapshot_format(
    encode: Callable[[SnapshotState], bytes],
    decode: Callable[[bytes | memoryview], SnapshotState],
    state: SnapshotState,
) -> None:
    """A state comes back bit for bit; every flipped byte and every cut is found."""
    data = encode(state)
    back = decode(memoryview(bytearray(data)))
    assert equal(back.values, decode(data).values), "written memory is another state"
    assert equal(state.values, back.values), "the values came back changed"
    for field in ("model", "spec", "spec_text", "version", "clock", "closed", "control"):
        assert getattr(back, field) == getattr(state, field), f"{field} came back changed"
    for field in ("metrics", "parent", "created_at"):
        assert getattr(back, field) == getattr(state, field), f"{field} came back changed"
    assert encode(back) == data, "the same state gave other bytes"
    for i in range(len(data)):
        for flip in (0x01, 0xFF):
            torn = data[:i] + bytes([data[i] ^ flip]) + data[i + 1 :]
            assert _raises(SnapshotCorrupt, decode, torn), f"byte {i} flipped was not noticed"
        assert _raises(SnapshotCorrupt, decode, data[:i]), f"a cut after {i} was not noticed"
    assert _raises(SnapshotCorrupt, decode, data + b"\0"), "a byte too many was not noticed"


def check_unknown_schema(frame: Callable[[int], bytes], decode: Callable[[bytes], object]) -> None:
    """A whole file of a later schema is told apart from a damaged one."""
    assert _raises(SnapshotFormat, decode, frame(1_000)), "a later schema was not reported"


def _raises(
    error: type[Exception], act: Callable[[_Argument], object], argument: _Argument
) -> bool:
    try:
        act(argument)
    except error as raised:
        return bool(str(raised))
    except Exception:
        return False
    return False
