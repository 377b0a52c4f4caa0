"""Undone and frozen events: each is listed once and learned again once, whatever was decided."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from online.errors import RequestError
from online.rows import history
from online.rows.history import (
    DISCARDED,
    FROZEN,
    QUARANTINED,
    RELEASED,
    UNDONE,
    Choice,
    Decisions,
    Origin,
    Page,
    decide,
    origin,
    walk,
)
from online.rows.prediction_ids import event_key
from paramserver.core import rewrites
from paramserver.core.rewrites import Forget, Freeze, Rollback, Unfreeze, roll_back
from paramserver.core.state import SnapshotState
from replay import codec
from replay.example import Example
from replay.journal.base import Journal, NewRow, Row, Verdict
from replay.journal.sqlite.journal import SqliteJournal

_CHOICES: tuple[Choice, ...] = (RELEASED, DISCARDED)
MODEL, SPEC = "m", "0123456789abcdef" * 4


class World:
    """Two partitions of one model, with a server that is always up to date."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.partitions = [journal.register(MODEL, f"r{i}", SPEC, 0.0).id for i in range(2)]
        self.ends = dict.fromkeys(self.partitions, 0)
        self.snapshots: list[SnapshotState] = []
        self.control = 0
        self.frozen = False
        self.events = 0
        self.kept: dict[str, bytes] = {}  # keys of what was quarantined, by name
        self.snapshot()

    def state(self) -> SnapshotState:
        return SnapshotState(MODEL, SPEC, "", (1, 0), {}, dict(self.ends), control=self.control)

    def snapshot(self) -> int:
        self.snapshots.append(self.state())
        return len(self.snapshots) - 1

    def send(self, n: int = 1, which: int = 0) -> None:
        for _ in range(n):
            self.events += 1
            name, payload = f"e{self.events}", codec.encode(Example({"a": 1.0}, True))
            key, source = event_key("event", "s", name), f"s{self.events % 3}"
            self.append(which, [NewRow(key, name, source, Verdict.ACCEPTED, payload, 5.0)])

    def set_aside(self, n: int, which: int) -> None:
        """Rows that a filter has quarantined; while it is frozen they are frozen."""
        for _ in range(n):
            self.events += 1
            name, payload = f"e{self.events}", codec.encode(Example({"a": 1.0}, True))
            key = event_key("event", "s", name)
            if not self.frozen:
                self.kept[name] = key
            self.append(which, [NewRow(key, name, "s", Verdict.QUARANTINED, payload, 5.0)])

    def choose(self, name: str, choice: Choice) -> str:
        """What stands then."""
        stands = decide(self.journal, MODEL, self.kept[name], choice)
        self.control = max(self.control, stands.seq)
        return stands.choice

    def forget(self, source: str) -> None:
        decisions, offsets = self.decisions(), dict[int, list[int]]()
        for row in self.rows():
            if row.source == source and decisions.learned(row):
                offsets.setdefault(row.partition, []).append(row.offset)
        undone = {p: rewrites.packed(tuple((o - 1, o) for o in x)) for p, x in offsets.items()}
        note = Forget(
            SPEC, source, None, None, "aside-1", self.control, dict(self.ends), [], undone
        )
        self.decide(rewrites.FORGET, note)

    def append(self, which: int, rows: list[NewRow]) -> list[bool]:
        verdict = Verdict.FROZEN if self.frozen else None
        rows = [row if verdict is None else replace(row, verdict=verdict) for row in rows]
        partition = self.partitions[which]
        done = self.journal.append(partition, self.ends[partition], rows)
        self.ends[partition] = done.end
        return [outcome.new for outcome in done.outcomes]

    def decide(self, kind: str, note: Rollback | Forget | Freeze | Unfreeze) -> None:
        payload = msgspec.json.encode(note)
        key = f"{kind}:{self.control}"
        self.control = self.journal.write_control(MODEL, kind, key, payload)[0].seq

    def rollback(self, to: int) -> None:
        target = self.snapshots[to]
        after = self.journal.controls(MODEL, target.control)
        if rewrites.brings_back(target, self.ends, after) is not None:
            return  # as the server does
        note = roll_back(self.state(), f"s{to}", target, self.ends)
        self.decide(rewrites.ROLLBACK, note)

    def freeze(self) -> None:
        self.decide(rewrites.FREEZE, Freeze(dict(self.ends), []))
        self.frozen = True

    def unfreeze(self) -> None:
        self.decide(rewrites.UNFREEZE, Unfreeze())
        self.frozen = False

    def decisions(self) -> Decisions:
        decisions = Decisions(SPEC)
        decisions.read(self.journal, MODEL)
        return decisions

    def pages(self, status: str, limit: int = 3) -> Iterator[Page]:
        after = None
        while True:
            page = walk(self.journal, MODEL, self.decisions(), status, after, limit)
            yield page
            after = page.cursor
            if after is None:
                return

    def names(self, status: str) -> list[str]:
        """Listed events that are not in the model."""
        found = [e for page in self.pages(status) for e in page.events]
        return [e.event.event_id for e in found if e.standing is None]

    def relearn(self, status: str, which: int = 0, limit: int = 3) -> int:
        learned = 0
        for page in self.pages(status, limit):
            rows = [row for e in page.events if (row := e.again(9.0)) is not None]
            learned += sum(self.append(which, rows)) if rows else 0
        return learned

    def rows(self) -> Iterator[Row]:
        for partition in self.partitions:
            yield from self.journal.read(partition, 1, 10_000)

    def model(self) -> Counter[str]:
        """How often each event is in the model: by walking every row."""
        decisions = self.decisions()
        return Counter(
            row.event_id.rpartition(":")[2] for row in self.rows() if decisions.learned(row)
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with closing(SqliteJournal(tmp_path / "journal.db", synchronous="OFF", disk_low_mb=0)) as j:
        yield World(j)


def everything(world: World) -> Counter[str]:
    return Counter(f"e{i}" for i in range(1, world.events + 1))


def test_undone_events_are_listed_and_learned_once(world: World) -> None:
    world.send(4)
    good = world.snapshot()
    world.send(5, which=1)
    world.rollback(good)
    world.send(2)
    assert world.names(UNDONE) == [f"e{i}" for i in range(5, 10)]
    assert sum(world.model().values()) == 6
    assert world.relearn(UNDONE) == 5
    assert world.model() == everything(world)
    assert world.relearn(UNDONE) == 0
    assert world.names(UNDONE) == []
    shown = [e.listed(UNDONE, True) for page in world.pages(UNDONE) for e in page.events]
    assert {s["status"] for s in shown} == {"learned_again"}
    assert shown[0]["learned_as"] == "1:7"


def test_frozen_events_are_released_once(world: World) -> None:
    world.send(3)
    world.freeze()
    world.send(4, which=1)
    assert world.decisions().frozen
    world.unfreeze()
    world.send(1)
    assert world.names(FROZEN) == ["e4", "e5", "e6", "e7"]
    assert world.relearn(FROZEN) == 4
    assert world.relearn(FROZEN) == 0
    assert world.model() == everything(world)


def test_two_at_once_learn_each_event_once(world: World) -> None:
    good = world.snapshot()
    world.send(3)
    world.rollback(good)
    (page,) = world.pages(UNDONE, limit=10)
    rows = [row for e in page.events if (row := e.again(9.0)) is not None]
    assert world.append(0, rows) == [True] * 3
    assert world.append(1, rows) == [False] * 3


def test_undone_twice_is_learned_once_more(world: World) -> None:
    good = world.snapshot()
    world.send(3)
    world.rollback(good)
    world.relearn(UNDONE)
    world.rollback(good)
    assert world.model() == Counter()
    assert world.names(UNDONE) == ["e1", "e2", "e3"]
    assert world.relearn(UNDONE) == 3
    assert world.model() == everything(world)


def test_back_to_before_the_rollback(world: World) -> None:
    """The first rows are back, so what was learned again in their place must not come too."""
    good = world.snapshot()
    world.send(3)
    late = world.snapshot()
    world.rollback(good)
    world.relearn(UNDONE)
    world.rollback(late)
    assert world.model() == everything(world)
    assert world.relearn(UNDONE) == 0
    assert world.model() == everything(world)


def run(world: World, seed: int) -> None:
    """Decisions at random; no event is ever in the model twice, in the end each is once."""
    chance, chosen = random.Random(seed), dict[str, str]()
    for _ in range(30):
        step = chance.choice(
            ["send", "send", "snapshot", "rollback", "freeze", "relearn", "release", "set aside",
             "choose", "forget", "learn released"]
        )  # fmt: skip
        if step == "send":
            world.send(chance.randrange(1, 4), chance.randrange(2))
        elif step == "snapshot":
            world.snapshot()
        elif step == "rollback":
            world.rollback(chance.randrange(len(world.snapshots)))
        elif step == "freeze":
            world.unfreeze() if world.frozen else world.freeze()
        elif step == "set aside":
            world.set_aside(chance.randrange(1, 3), chance.randrange(2))
        elif step == "choose":
            name, choice = chance.choice([*world.kept] or [""]), chance.choice(_CHOICES)
            if name:
                stands = world.choose(name, choice)
                assert chosen.setdefault(name, choice) == stands, "the first one"
        elif step == "forget":
            world.forget(f"s{chance.randrange(3)}")
        elif not world.frozen or chance.random() < 0.2:  # a replica that has not seen it yet
            status = {"relearn": UNDONE, "release": FROZEN}.get(step, QUARANTINED)
            world.relearn(status, chance.randrange(2), chance.randrange(1, 5))
        assert set(world.model().values()) <= {1}, seed
    if world.frozen:
        world.unfreeze()
    for status in (UNDONE, FROZEN, QUARANTINED):
        names = world.names(status)
        assert len(names) == len(set(names)), seed
        world.relearn(status, limit=7)
        assert world.relearn(status) == 0
    released = {name for name, choice in chosen.items() if choice == RELEASED}
    expected = everything(world)
    for name in world.kept.keys() - released:
        del expected[name]
    assert world.model() == expected, seed


@pytest.mark.parametrize("seed", range(60))
def test_decisions_at_random(world: World, seed: int) -> None:
    run(world, seed)


def run_all(folder: Path) -> None:
    for seed in range(60):
        path = folder / f"{seed}.db"
        with closing(SqliteJournal(path, synchronous="OFF", disk_low_mb=0)) as journal:
            run(World(journal), seed)


def _forgets_origin(row: Row) -> Origin:
    return Origin(row.partition, row.offset, row.key, row.event_id)


@pytest.mark.parametrize(
    ("place", "name", "mutant"),
    [
        (history, "origin", _forgets_origin),
        (Decisions, "stands", lambda self, row: row.verdict in history.LEARNED),
        (Decisions, "stands", lambda self, row: False),
        (Decisions, "from_first", lambda self, event: [c.seq for c in self.rewrites][:1]),
        (Decisions, "from_first", lambda self, event: [c.seq for c in self.rewrites][-1:]),
        (history, "copies", lambda j, m, decisions, e, r: (None, r, decisions.rewrites[-1].seq)),
    ],
)
def test_mutants_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, name: str,
    mutant: Callable[..., object],
) -> None:  # fmt: skip
    monkeypatch.setattr(place, name, mutant)
    with pytest.raises(AssertionError):
        run_all(tmp_path)


def test_a_caller_can_not_name_an_event_again(world: World) -> None:
    key = event_key("event", "s", "x")
    payload = codec.encode(Example({}, True))
    row = NewRow(key, f"again:1:1:1:{'00' * 16}:e1", "s", Verdict.ACCEPTED, payload, 0.0)
    world.append(0, [row])
    (stored,) = world.journal.read(world.partitions[0], 1, 1)
    assert origin(stored) == Origin(world.partitions[0], 1, key, row.event_id)


def test_failed_rows_are_not_undone(world: World) -> None:
    good = world.snapshot()
    world.send(2)
    (first, _) = world.rows()
    world.journal.write_control(MODEL, "failed", f"failed:{SPEC[:16]}:{first.key.hex()}", b"why")
    world.rollback(good)
    assert world.names(UNDONE) == ["e2"]


def test_what_retention_removed_is_counted(world: World) -> None:
    good = world.snapshot()
    world.send(6)
    world.rollback(good)
    epoch = world.journal.begin_epoch(MODEL, SPEC, 0)
    assert world.journal.trim(MODEL, SPEC, epoch, {world.partitions[0]: 4}, 6.0, 100) == 4
    assert world.names(UNDONE) == ["e5", "e6"]
    assert next(page.removed for page in world.pages(UNDONE, limit=1)) == 4


def test_pages_go_on_where_they_ended(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_WALK_ROWS", 4)  # pages that find nothing lead on, too
    world.freeze()
    world.unfreeze()
    world.send(9)
    world.freeze()
    world.send(2)
    pages = list(world.pages(FROZEN))
    assert [e.event.event_id for page in pages for e in page.events] == ["e10", "e11"]
    assert [page.left for page in pages] == sorted((p.left for p in pages), reverse=True)
    assert len(pages) >= 3
    assert not pages[0].events
    assert pages[0].cursor


@pytest.mark.parametrize("cursor", ["", "1:2", "a:b:c", "1:2:3:4"])
def test_other_cursors_are_refused(world: World, cursor: str) -> None:
    with pytest.raises(RequestError, match="not a cursor"):
        walk(world.journal, MODEL, world.decisions(), UNDONE, cursor, 3)


def test_bans_are_listed_while_a_thread_reads_decisions() -> None:
    decisions, before = Decisions("f" * 64), sys.getswitchinterval()
    decisions.sources = {f"s{i}": (i, True) for i in range(2_000)}

    def read() -> None:
        for i in range(50_000):
            decisions.sources[f"t{i}"] = i, False

    reading = threading.Thread(target=read)
    sys.setswitchinterval(1e-5)
    try:
        reading.start()
        while reading.is_alive():
            assert len(decisions.bans) == 2_000
    finally:
        reading.join()
        sys.setswitchinterval(before)
