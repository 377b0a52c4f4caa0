"""Snapshots in any order of publishing, thinning, damage, crashes and restarts, against an oracle.

The oracle is told what was done and works out in its own words which names must be there: it
shares no code with the store, the history or the retention.  Time is counted in whole hours and
minutes, and every name is ``1-COUNT``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

import object_store
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from pyarrow import fs
from snapshot_checks import Crash, ForgetfulDisk

from paramserver.core.blocks import Block
from paramserver.core.state import Contained, SnapshotState
from paramserver.errors import SnapshotCorrupt, SnapshotMissing, StartRefused
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots import history as snapshot_history
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.objects import ObjectSnapshots
from paramserver.snapshots.pieces import Pieces
from paramserver.snapshots.store import DirectorySnapshots, Disk, Retention, retained

SPEC = "ab" * 32
PLACE = Path("snapshots")
KEEP, HOURS, DAYS, WEEKS = 2, 3, 4, 5
MINUTE = 60
FLIPPED = st.integers(0, 10_000) | st.integers(-32, -1)
"""Where a byte of a file is flipped: anywhere, and as often in the checksum at its end."""


class _Directory(ForgetfulDisk):
    """The disk, with a hand on its bytes."""

    def contents(self) -> dict[str, bytes]:
        return {file: self.read(PLACE / file) for file in self.files()}

    def damage(self, file: str, data: bytes) -> None:
        self._names[PLACE / file].content = data
        self._names[PLACE / file].synced = data


class _Objects(object_store.ObjectWorld):  # type: ignore[misc]
    def damage(self, file: str, data: bytes) -> None:
        self.write(file, data)


def new_objects() -> _Objects:
    made = object_store.memory_world()
    return _Objects(made.inner, made.prefix, replaces_whole=False)


def must_stay(made_at: dict[int, int], pinned: set[int], held: set[int], head: int) -> set[int]:
    """Counts that retention may not remove, and only these may stay: said again, the slow way."""
    by_age = sorted(made_at)  # the count grows with time
    stay = {head} | {n for n in pinned | held if n in made_at}
    if by_age:
        stay.add(by_age[0])
    stay |= set(by_age[-KEEP:])
    for minutes, periods in ((60, HOURS), (24 * 60, DAYS), (7 * 24 * 60, WEEKS)):
        used = sorted({made_at[n] // minutes for n in by_age})
        for period in used[len(used) - min(periods, len(used)) :]:
            stay.add(max(n for n in by_age if made_at[n] // minutes == period))
    return stay


class SnapshotMachine(RuleBasedStateMachine):
    """One server after the other on one place; a subclass says what the place and store are."""

    new_world: ClassVar[Callable[[], Any]]
    open_store: ClassVar[Callable[[Any], Any]]
    history_type: ClassVar[type[SnapshotHistory]] = SnapshotHistory

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).new_world()
        self.minute = 7 * 24 * 60 * 100
        self.count = 0
        self.head = 0  # 0: none yet
        self.made_at: dict[int, int] = {}  # of those that must be there and good
        self.bad: dict[int, int] = {}  # there, and damaged
        self.ever_bad: set[int] = set()
        self.maybe: dict[int, int] = {}  # may be there: a crash came in between
        self.pinned: set[int] = set()
        self.start()

    def state(self, n: int, minute: int) -> SnapshotState:
        return SnapshotState(
            model="m",
            spec=SPEC,
            spec_text="t",
            version=(1, n),
            values={"w": Block("additive", {"a": float(n), "b": 0.5})},
            clock={1: n},
            created_at=float(minute * MINUTE),
        )

    def start(self) -> None:
        """A server starts: what it finds is what the oracle says."""
        retention = Retention(KEEP, HOURS, DAYS, WEEKS)
        self.history = self.history_type(type(self).open_store(self.world), retention)
        good = [n for n in self.made_at if n <= self.head]
        try:
            found = self.history.restore(f"1-{self.head}" if self.head else None, "m", SPEC)
        except StartRefused:
            assert not good, "a good snapshot was not used"
            found = None
        else:
            self._check_restored(found, good)
        self.history.index()
        self._settle()

    def _check_restored(self, found: tuple[str, SnapshotState] | None, good: list[int]) -> None:
        if not self.head:
            assert found is None, "restored without a head"
            return
        assert found is not None
        n = int(found[0].removeprefix("1-"))
        assert n not in self.bad, "a damaged snapshot was used"
        expected = max([*good, *(m for m in self.maybe if m == n)], default=0)
        assert n == expected, "not the newest good snapshot"
        minute = self.made_at.get(n, self.maybe.get(n))
        assert minute is not None
        assert found[1] == self.state(n, minute), "a snapshot came back changed"

    def _settle(self) -> None:
        """What a crash had left open is decided: a name is whole or absent."""
        names = self._names()
        for n, minute in self.maybe.items():
            if n in names:
                self._load_whole(n, minute)
                self.made_at[n] = minute
        self.maybe = {}
        assert set(self.made_at) <= names, "a good snapshot is gone"
        assert names <= self.made_at.keys() | self.bad.keys(), "a name came from nowhere"
        pins = {int(p.removeprefix("1-")) for p in self._store().pins()}
        assert pins == self.pinned, "other pins"

    def _store(self) -> Any:
        return self.history._snapshots

    def _names(self) -> set[int]:
        return {int(name.removeprefix("1-")) for name in self._store().names()}

    def _load_whole(self, n: int, minute: int) -> None:
        try:
            data = self._store().load(f"1-{n}")
        except (SnapshotCorrupt, SnapshotMissing) as error:
            raise AssertionError("a name is listed and not whole") from error
        assert data == snapshot_format.encode(self.state(n, minute)), "a snapshot is torn"

    def _crash(self, action: Callable[[], object], steps: int, outcome: int) -> bool:
        """Do it and crash after some steps; whether it was done.  Then a server starts."""
        self.world.steps, self.world.crash_at = 0, steps
        try:
            action()
        except Crash:
            done = False
        else:
            done = True
        self._power_cut(outcome)
        return done

    def _power_cut(self, outcome: int) -> None:
        number = outcome % sum(1 for _ in self.world.outcomes())
        for i, found in enumerate(self.world.outcomes()):
            if i == number:
                self.world = found
                return

    @rule(
        minutes=st.sampled_from([7, 61, 60 * 25, 60 * 24 * 9]),
        times=st.integers(2, 8),
        moves=st.sampled_from([True, True, False]),
    )
    def publish_often(self, minutes: int, times: int, moves: bool) -> None:
        for _ in range(times):
            self.publish(minutes, moves)

    @rule(
        minutes=st.sampled_from([1, 7, 61, 60 * 13, 60 * 24 * 5, 60 * 24 * 9]),
        moves=st.sampled_from([True, True, False]),
    )
    def publish(self, minutes: int, moves: bool) -> None:
        """``moves``: the head is moved to it (else the store did not do so)."""
        self.minute += minutes
        self.count += 1
        self.history.publish(f"1-{self.count}", self.state(self.count, self.minute))
        self.head = self.count if moves else self.head
        self.made_at[self.count] = self.minute

    @precondition(lambda self: self.head)
    @rule(held=st.sets(st.integers(1, 12), max_size=2))
    def retain(self, held: set[int]) -> None:
        refused = set(self.history.refused)
        kept = self.history.retain(f"1-{self.head}", {f"1-{n}" for n in held})
        # damage that no start has come upon yet is known to nobody
        known = {n for n in self.bad if f"1-{n}" in refused}
        seen = {n: at for n, at in {**self.made_at, **self.bad}.items() if n not in known}
        stay = must_stay(seen, self.pinned, held, self.head)
        names = self._names()
        assert seen.keys() & stay <= names, "retention removed what must stay"
        assert names - known <= stay, "retention kept too much"
        rows = {contained.clock[1] for contained in kept}
        assert {self.head} - known <= rows, "the rows of the head are not held"
        assert set(sorted(seen)[-KEEP:]) <= rows <= names, "other rows are held"
        gone = known - names
        assert not gone & (self.pinned | held), "a damaged one that was held is gone"
        self.made_at = {n: at for n, at in self.made_at.items() if n in names}
        self.bad = {n: at for n, at in self.bad.items() if n in names}

    @precondition(lambda self: self.made_at)
    @rule(data=st.data(), on=st.booleans())
    def pin(self, data: st.DataObject, on: bool) -> None:
        n = data.draw(st.sampled_from(sorted(self.made_at)))
        self.history.pin(f"1-{n}", on)
        self.pinned = self.pinned | {n} if on else self.pinned - {n}

    @precondition(lambda self: self.made_at)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(sorted(self.made_at)))
        if n != self.head and n not in self.pinned:
            self.history.withdraw(f"1-{n}")
            del self.made_at[n]
            self._settle()

    @rule()
    def restart(self) -> None:
        self.start()

    @rule(outcome=st.integers(0, 11))
    def power_cut(self, outcome: int) -> None:
        gone = {n for n in range(1, self.count + 1) if n not in self.made_at and n not in self.bad}
        self._power_cut(outcome)
        store = type(self).open_store(self.world)
        back = {int(name.removeprefix("1-")) for name in store.names()} & gone
        for n in back:  # what was deleted may come back, whole; it is deleted once more
            if n not in self.ever_bad:
                snapshot_format.decode(store.load(f"1-{n}"))
            store.delete(f"1-{n}")
        self._sync()
        self.start()

    def _sync(self) -> None:
        if isinstance(self.world, ForgetfulDisk):
            self.world.fsync_directory(PLACE)

    @rule(steps=st.integers(0, 5), outcome=st.integers(0, 11))
    def crash_while_publishing(self, steps: int, outcome: int) -> None:
        self._sync()
        self.minute += 1
        self.count += 1
        n, made = self.count, self.state(self.count, self.minute)
        done = self._crash(lambda: self.history.publish(f"1-{n}", made), steps, outcome)
        (self.made_at if done else self.maybe)[n] = self.minute
        if done:
            self.head = n
        self.start()

    @precondition(lambda self: self.made_at)
    @rule(data=st.data(), steps=st.integers(0, 5), outcome=st.integers(0, 11))
    def crash_while_deleting(self, data: st.DataObject, steps: int, outcome: int) -> None:
        n = data.draw(st.sampled_from(sorted(self.made_at)))
        if n == self.head or n in self.pinned:
            return
        self._sync()
        self._crash(lambda: self.history.withdraw(f"1-{n}"), steps, outcome)
        self.maybe[n] = self.made_at.pop(n)
        self.start()

    @precondition(lambda self: self.made_at.keys() - self.pinned)
    @rule(data=st.data(), steps=st.integers(0, 5), outcome=st.integers(0, 11))
    def crash_while_pinning(self, data: st.DataObject, steps: int, outcome: int) -> None:
        n = data.draw(st.sampled_from(sorted(self.made_at.keys() - self.pinned)))
        self._sync()
        done = self._crash(lambda: self.history.pin(f"1-{n}", True), steps, outcome)
        pins = {int(p.removeprefix("1-")) for p in type(self).open_store(self.world).pins()}
        assert pins in ([self.pinned | {n}] if done else [self.pinned, self.pinned | {n}])
        self.pinned = pins
        self.start()

    @precondition(lambda self: len(self.made_at) > 1)
    @rule(data=st.data(), at=FLIPPED, flip=st.integers(1, 255))
    def damage(self, data: st.DataObject, at: int, flip: int) -> None:
        n = data.draw(st.sampled_from(sorted(self.made_at)))
        contents = self.world.contents()
        own = [f for f in sorted(contents) if f"1-{n}." in f and not f.endswith(".pin")]
        file = data.draw(st.sampled_from(own))
        raw = bytearray(contents[file])
        raw[at % len(raw)] ^= flip
        self.world.damage(file, bytes(raw))
        self.bad[n] = self.made_at.pop(n)
        self.ever_bad.add(n)
        self.start()


def machine(new_world: Any, open_store: Any, history: type[SnapshotHistory]) -> Any:
    class Machine(SnapshotMachine):
        history_type = history

    Machine.new_world = staticmethod(new_world)
    Machine.open_store = staticmethod(open_store)
    return Machine


def modest(examples: int) -> Any:
    return settings(
        max_examples=examples,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=[Phase.generate],
    )


def open_directory(disk: Disk) -> DirectorySnapshots:
    return DirectorySnapshots(PLACE, disk)


DIRECTORY = (_Directory, open_directory)
OBJECTS = (new_objects, object_store.open_store)


@pytest.mark.parametrize("examples", [60, pytest.param(200, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("new_world", "open_store"), [DIRECTORY, OBJECTS], ids=["directory", "objects"]
)
def test_snapshots_keep_their_promises(new_world: Any, open_store: Any, examples: int) -> None:
    run_state_machine_as_test(
        machine(new_world, open_store, SnapshotHistory), settings=modest(examples)
    )


class _NoFsync(DirectorySnapshots):
    def _write_whole(self, target: Path, data: bytes) -> None:
        temporary = target.with_name(target.name + ".tmp")
        self._disk.write(temporary, data)
        self._disk.rename(temporary, target)
        self._disk.fsync_directory(PLACE)


class _RenamedFirst(DirectorySnapshots):
    def _write_whole(self, target: Path, data: bytes) -> None:
        temporary = target.with_name(target.name + ".tmp")
        self._disk.write(temporary, data)
        self._disk.rename(temporary, target)
        self._disk.fsync(target)
        self._disk.fsync_directory(PLACE)


class _NameNotSynced(DirectorySnapshots):
    def _write_whole(self, target: Path, data: bytes) -> None:
        temporary = target.with_name(target.name + ".tmp")
        self._disk.write(temporary, data)
        self._disk.fsync(temporary)
        self._disk.rename(temporary, target)


class _ManifestFirst(ObjectSnapshots):
    def publish(self, name: str, data: bytes | Pieces) -> None:
        digest = sha256(bytes(data)).hexdigest()
        self._write(name + ".snapshot", f"{digest} {len(data):020d}\n".encode())
        super().publish(name, data)


class _DataDeletedFirst(ObjectSnapshots):
    def delete(self, name: str) -> None:
        for file in self._sizes():
            if file.startswith(name + ".") and file.endswith(".data"):
                self._remove(file)
        super().delete(name)


class _TornManifestCounts(ObjectSnapshots):
    def names(self) -> list[str]:
        return sorted(f.removesuffix(".snapshot") for f in self._sizes() if ".snapshot" in f)

    def remove_leftovers(self) -> None:
        pass


class _DropsHead(SnapshotHistory):
    def retain(self, head: str, held: Collection[str] = ()) -> list[Contained]:
        return super().retain("1-0", held)


class _DropsHeld(SnapshotHistory):
    def retain(self, head: str, held: Collection[str] = ()) -> list[Contained]:
        return super().retain(head)


class _UsesDamaged(SnapshotHistory):
    """Mutant: the checksum of the whole is not compared."""

    def restore(self, head: str | None, model: str, spec: str) -> tuple[str, SnapshotState] | None:
        with pytest.MonkeyPatch.context() as patch:
            decode = snapshot_format.decode
            patch.setattr(
                snapshot_format,
                "decode",
                lambda d, _, **how: decode(bytes(d[:-32]) + sha256(d[:-32]).digest()),
            )
            return super().restore(head, model, spec)


class _ForgetsPins(DirectorySnapshots):
    def __init__(self, path: Path, disk: Disk) -> None:
        super().__init__(path, disk)
        self._pins = frozenset()


def _thinned(**changed: Any) -> type[SnapshotHistory]:
    """Mutant: retention keeps by other rules."""

    class Thinned(SnapshotHistory):
        def retain(self, head: str, held: Collection[str] = ()) -> list[Contained]:
            def other(created: Any, retention: Retention, **rest: Any) -> set[str]:
                numbers = {k: v for k, v in changed.items() if k not in ("pinned", "birth")}
                flags = {k: v for k, v in changed.items() if k not in numbers}
                return retained(created, replace(retention, **numbers), **{**rest, **flags})

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(snapshot_history, "retained", other)
                return super().retain(head, held)

    return Thinned


def _directory(store: type[DirectorySnapshots]) -> Any:
    return (_Directory, lambda disk: store(PLACE, disk), SnapshotHistory)


def _objects(store: type[ObjectSnapshots]) -> Any:
    return (new_objects, lambda w: store(fs.PyFileSystem(w), w.prefix), SnapshotHistory)


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(_directory(_NoFsync), id="no fsync"),
        pytest.param(_directory(_RenamedFirst), id="renamed before fsync"),
        pytest.param(_directory(_NameNotSynced), id="name not synced"),
        pytest.param(_directory(_ForgetsPins), id="pins forgotten at a start"),
        pytest.param(_objects(_ManifestFirst), id="manifest first"),
        pytest.param(_objects(_DataDeletedFirst), id="data deleted first"),
        pytest.param(_objects(_TornManifestCounts), id="torn manifest counts"),
        pytest.param((*DIRECTORY, _DropsHead), id="retention drops the head"),
        pytest.param((*DIRECTORY, _DropsHeld), id="retention drops held names"),
        pytest.param((*DIRECTORY, _UsesDamaged), id="checksum not checked"),
        pytest.param((*DIRECTORY, _thinned(keep=KEEP - 1)), id="one too few"),
        pytest.param((*DIRECTORY, _thinned(hourly=HOURS - 1)), id="an hour too few"),
        pytest.param((*DIRECTORY, _thinned(hourly=HOURS + 1)), id="an hour too many"),
        pytest.param((*DIRECTORY, _thinned(daily=DAYS - 1)), id="a day too few"),
        pytest.param((*DIRECTORY, _thinned(weekly=WEEKS - 1)), id="a week too few"),
        pytest.param((*DIRECTORY, _thinned(pinned=())), id="pins ignored"),
        pytest.param((*DIRECTORY, _thinned(birth=False)), id="birth dropped"),
    ],
)
def test_the_machine_rejects(mutant: Any) -> None:
    with pytest.raises((AssertionError, StartRefused)):  # torn pins refuse a start
        run_state_machine_as_test(machine(*mutant), settings=modest(2000))
