"""fsck: what the newest snapshot must hold, after rollbacks, freezes, failures and retention."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from online.commands.cli import main
from online.errors import StartRefused
from online.learning.counters import DIGEST, event_hash
from online.models.loading.from_settings import load_model
from online.rebuild import fsck
from online.rebuild.fsck import Findings, compare
from online.rebuild.holdings import Moved
from online.rebuild.soundness import check_log
from online.rows.history import Decisions, decide, set_aside
from online.rows.prediction_ids import event_key
from online.settings import config
from online.settings.places import open_journal
from paramserver.core import rewrites
from paramserver.core.blocks import Block
from paramserver.core.rewrites import Forget, Freeze, packed, roll_back
from paramserver.core.state import SnapshotState
from paramserver.snapshots.format import encode
from paramserver.snapshots.store import DirectorySnapshots
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Row, Verdict
from replay.journal.sqlite.journal import SqliteJournal

MODEL, SPEC = "m", "0123456789abcdef" * 4
LEARNED = (Verdict.ACCEPTED, Verdict.CLIPPED)


class World:
    """One partition and a model that is the digest of what it has learned."""

    def __init__(self, folder: Path) -> None:
        self.journal = SqliteJournal(folder / "journal.db", synchronous="OFF", disk_low_mb=0)
        self.snapshots = DirectorySnapshots(folder / "snapshots")
        self.folder = folder / "snapshots"
        self.p = self.journal.register(MODEL, "r", SPEC, 0.0).id
        self.epoch = self.journal.begin_epoch(MODEL, SPEC, 0)
        self.end = self.control = self.count = self.sent = 0
        self.digest = (0, 0)
        self.states: dict[str, SnapshotState] = {}

    def send(self, n: int, verdict: Verdict = Verdict.ACCEPTED) -> tuple[Row, ...]:
        rows = []
        for _ in range(n):
            self.sent += 1
            key = event_key("event", "s", str(self.sent))
            payload = codec.encode(Example({}, True))
            rows.append(NewRow(key, str(self.sent), "s", verdict, payload, float(self.sent)))
        end = self.journal.append(self.p, self.end, rows).end
        written = self.journal.read(self.p, self.end + 1, n)
        self.end = end
        return written

    def learn(self, rows: tuple[Row, ...]) -> None:
        for row in rows:
            if row.verdict in LEARNED:
                count, total = self.digest
                self.digest = count + 1, (total + event_hash(row.key)) % 2**64

    def state(self) -> SnapshotState:
        count, total = self.digest
        values = {DIGEST: Block("digest", {"count": count, "sum": total})}
        version = (self.epoch, self.count)
        clock = {self.p: self.end}
        return SnapshotState(MODEL, SPEC, "", version, values, clock, control=self.control)

    def publish(self) -> str:
        self.count += 1
        name = f"{self.epoch}-{self.count}"
        self.states[name] = self.state()
        self.snapshots.publish(name, encode(self.states[name]))
        self.journal.move_head(MODEL, SPEC, self.epoch, name)
        return name

    def decide(self, kind: str, key: str, payload: bytes) -> None:
        self.control = self.journal.write_control(MODEL, kind, key, payload)[0].seq

    def rollback(self, name: str) -> None:
        target = self.states[name]
        note = roll_back(self.state(), name, target, {self.p: self.end})
        self.decide(rewrites.ROLLBACK, f"rollback:{self.control}", msgspec.json.encode(note))
        data = target.values[DIGEST].data
        self.digest = data["count"], data["sum"]

    def trim(self, upto: int) -> None:
        assert self.journal.trim(MODEL, SPEC, self.epoch, {self.p: upto}, 1e9, 1000)

    def findings(self) -> Findings:
        return compare(self.journal, self.snapshots, MODEL, SPEC)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with closing(made.journal):
        yield made


def test_nothing_is_good(world: World) -> None:
    found = world.findings()
    assert found.good
    assert found.digest_equal
    assert (found.snapshot, found.learned, found.expected) == (None, 0, 0)


def test_what_is_counted(world: World) -> None:
    world.learn(world.send(5))
    first = world.publish()
    world.learn(world.send(4))
    world.send(1, Verdict.QUARANTINED)
    (failed,) = world.send(1)
    world.decide("failed", f"failed:{SPEC[:16]}:{failed.key.hex()}", b"why")
    world.rollback(first)
    world.learn(world.send(2))
    world.decide(rewrites.FREEZE, "f", msgspec.json.encode(Freeze({world.p: world.end}, [])))
    world.send(3, Verdict.FROZEN)
    head = world.publish()
    world.send(6)
    seen: list[tuple[int, int]] = []
    found = compare(world.journal, world.snapshots, MODEL, SPEC, lambda *at: seen.append(at))
    assert seen[-1] == (22, 22)
    assert found.good
    assert found.snapshot == head
    assert (found.learned, found.expected, found.digest_equal) == (7, 7, True)
    assert (found.undone, found.frozen, found.quarantined, found.failed) == (4, 3, 1, 1)
    assert (found.not_yet, found.holes, found.removed) == (6, 0, 0)
    assert found.heads == {SPEC[:16]: head}
    for part in ("good", "4 undone", "3 frozen", "1 failed", head, "digests equal"):
        assert part in str(found)
    assert found.as_dict()["good"] is True


def test_a_head_from_before_the_rollback_is_good(world: World) -> None:
    """The server died after the control row: the next one applies it."""
    world.learn(world.send(3))
    first = world.publish()
    world.learn(world.send(3))
    world.publish()
    world.rollback(first)
    found = world.findings()
    assert found.good
    assert (found.learned, found.undone) == (6, 3)


def test_what_is_released_and_forgotten_is_counted(world: World) -> None:
    world.learn(world.send(4))
    aside, kept, out = world.send(3, Verdict.QUARANTINED), world.send(2), world.send(2)
    for row, choice in zip(aside, ("released", "discarded"), strict=False):
        world.control = decide(world.journal, MODEL, row.key, choice).seq  # type: ignore[arg-type]
    decisions = Decisions(SPEC)
    decisions.read(world.journal, MODEL)
    listed = set_aside(world.journal, MODEL, decisions, aside[0])
    assert listed is not None
    again = listed.again(9.0)
    assert again is not None
    world.end = world.journal.append(world.p, world.end, [again]).end
    world.learn((*kept, *world.journal.read(world.p, world.end, 1)))
    spans = packed(((out[0].offset - 1, out[-1].offset),))
    note = Forget(SPEC, "s", None, None, "aside-1", 0, {world.p: world.end}, [], {world.p: spans})
    world.decide(rewrites.FORGET, "forget", msgspec.json.encode(note))
    world.publish()
    found = world.findings()
    assert found.good
    assert (found.learned, found.undone, found.quarantined) == (7, 2, 2)


@pytest.mark.parametrize(
    "wrong", ["lost", "twice", "another", "undone is back", "forgotten is back", "hole"]
)
def test_what_is_wrong_is_found(world: World, wrong: str) -> None:
    world.learn(world.send(3))
    first = world.publish()
    rows = world.send(4)
    world.learn(rows)
    if wrong == "lost":
        world.digest = (world.digest[0] - 1, (world.digest[1] - event_hash(rows[0].key)) % 2**64)
    elif wrong == "twice":
        world.learn(rows[:1])
    elif wrong == "another":
        world.digest = (world.digest[0], (world.digest[1] + 1) % 2**64)
    elif wrong == "undone is back":
        kept = world.digest
        world.rollback(first)
        world.digest = kept
    elif wrong == "forgotten is back":
        note = Forget(SPEC, "s", None, None, "aside-1", 0, {}, [], {world.p: [3, 1]})
        world.decide(rewrites.FORGET, "forget", msgspec.json.encode(note))
    world.publish()
    if wrong == "hole":
        with world.journal._file.write() as db:
            db.execute('DELETE FROM rows WHERE "offset" = 2')
    found = world.findings()
    assert not found.good
    assert found.holes == (wrong == "hole")
    assert "NOT GOOD" in str(found)


def test_rows_that_were_removed_are_left_out_of_the_comparison(world: World) -> None:
    world.learn(world.send(5))
    base = world.publish()
    world.learn(world.send(5))
    world.publish()
    rows = world.send(5)
    world.learn(rows)
    world.publish()
    world.trim(4)
    found = world.findings()
    assert (found.base, found.learned, found.expected) == (base, 10, 10)
    assert found.good
    assert found.removed == 4
    assert f"since snapshot {base}" in str(found)
    world.learn(rows[:1])
    world.publish()
    assert not world.findings().good


def test_removed_rows_that_no_other_snapshot_tells(world: World) -> None:
    world.learn(world.send(5))
    world.publish()
    world.trim(3)
    found = world.findings()
    assert found.digest_equal is None
    assert found.good
    assert "not checkable: 3 rows were removed by retention" in str(found)


def test_a_rollback_into_removed_rows(world: World) -> None:
    """The snapshots between hold removed rows that the head does not: they tell nothing."""
    world.learn(world.send(2))
    birth = world.publish()
    world.learn(world.send(6))
    world.publish()
    world.rollback(birth)
    world.learn(world.send(1))
    again = world.publish()
    world.learn(world.send(2))
    world.publish()
    world.trim(5)
    found = world.findings()
    assert found.good
    assert (found.base, found.learned, found.expected) in ((birth, 3, 3), (again, 2, 2))


def test_begun_afresh(world: World) -> None:
    world.send(4)
    note = msgspec.json.encode({"spec": SPEC, "clock": {str(world.p): 4}})
    world.epoch = world.journal.begin_epoch(MODEL, SPEC, world.epoch)
    world.decide("fresh", f"fresh:{SPEC}:{world.epoch}", note)
    world.learn(world.send(2))
    world.publish()
    found = world.findings()
    assert found.good
    assert (found.learned, found.expected) == (2, 2)


def test_a_damaged_head(world: World) -> None:
    world.learn(world.send(3))
    first = world.publish()
    world.learn(world.send(3))
    head = world.publish()
    (file,) = world.folder.glob(f"{head}*")
    file.write_bytes(file.read_bytes()[:-1])
    found = world.findings()
    assert found.snapshot == first
    assert found.good
    assert found.not_yet == 3
    assert head in found.refused
    assert "is damaged" in str(found)
    file.unlink()
    assert "missing" in world.findings().refused[head]


def test_snapshots_that_are_gone(world: World) -> None:
    """Under a service a missing head is not good; without one it is, if another one will do."""
    world.learn(world.send(3))
    first = world.publish()
    world.learn(world.send(3))
    head = world.publish()
    (world.folder / f"{head}.snapshot").unlink()
    assert world.findings().good
    found = compare(world.journal, world.snapshots, MODEL, SPEC, served=True)
    assert found.head_missing
    assert not found.good
    (world.folder / f"{first}.snapshot").unlink()
    found = world.findings()
    assert not found.good
    assert "no snapshot of 'm' can be used" in (found.no_start or "")
    assert "a start would be refused" in str(found)


def test_an_older_journal(world: World, tmp_path: Path) -> None:
    """Whatever its head is, the snapshots beside it tell how many events it lacks."""
    world.learn(world.send(3))
    world.publish()
    database = sqlite3.connect
    with (
        closing(database(tmp_path / "older.db")) as copy,
        closing(database(tmp_path / "journal.db")) as now,
    ):
        now.backup(copy)
    world.learn(world.send(4))
    world.publish()
    assert world.findings().good
    with closing(SqliteJournal(tmp_path / "older.db", disk_low_mb=0)) as older:
        found = compare(older, world.snapshots, MODEL, SPEC)
    assert (found.lacks, found.good) == (4, False)
    assert "it lacks 4 events" in str(found)


def test_rows_removed_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.learn(world.send(5))
    world.publish()
    world.learn(world.send(5))
    world.publish()
    stale = world.journal.partitions(MODEL)
    world.trim(3)
    monkeypatch.setattr(world.journal, "partitions", lambda model: stale)
    with pytest.raises(Moved):
        world.findings()


def test_nothing_is_good_of_what_is_not_there(tmp_path: Path) -> None:
    """The wrong folder, another model, or other code of it: no verdict, and nothing is made."""
    settings = config.load(None, {"state_dir": str(tmp_path / "state")}, {})
    (model,) = settings.models
    with pytest.raises(StartRefused, match="no journal"):
        fsck.check(settings, model.name)
    assert not (tmp_path / "state").exists()

    (tmp_path / "state").mkdir()
    with closing(SqliteJournal(tmp_path / "state" / "journal.db")) as journal:
        with pytest.raises(StartRefused, match=f"nothing of a model '{model.name}'"):
            fsck.check(settings, model.name)
        journal.register(model.name, "r", SPEC, 0.0)
        journal.begin_epoch(model.name, SPEC, 0)
        with pytest.raises(StartRefused, match="code or settings"):
            fsck.check(settings, model.name)
        spec = load_model(model, settings, b"\0" * 32).spec_hash
        journal.begin_epoch(model.name, spec, 0)
        assert fsck.check(settings, model.name).good
        assert check_log(settings).good
    made = [x.name for x in settings.state_dir.iterdir()]
    assert [name for name in made if not name.startswith("journal.db")] == []


@pytest.mark.parametrize("known", [(), ("a",), ("a", "b")])
def test_a_model_that_was_never_served_keeps_the_others_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    known: tuple[str, ...],
) -> None:  # fmt: skip
    """It was written into the settings file, and the service was not started since."""
    models = [{"name": name, "task": "binary", "learner": "logreg"} for name in ("a", "b")]
    file = tmp_path / "online.yaml"
    given = {"models": models, "state_dir": str(tmp_path / "state"), "cluster": "embedded"}
    file.write_text(json.dumps(given))
    settings = config.load(file, {}, {})
    settings.state_dir.mkdir(mode=0o700)
    with closing(open_journal(settings)) as journal:
        for model in settings.models:
            if model.name in known:
                spec = load_model(model, settings, b"\0" * 32).spec_hash
                journal.begin_epoch(model.name, spec, 0)
                journal.register(model.name, "r", spec, 0.0)
    monkeypatch.setattr(sys, "argv", ["online", "fsck", "--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    if not known:
        assert ended.value.code == 1, "it is another folder, perhaps"
        assert "has nothing of a model 'a'" in said.err
        return
    assert (ended.value.code or 0) == 0, said
    assert "a: good" in said.out
    assert ("b: never served" in said.out) == ("b" not in known)


@pytest.mark.parametrize("has", ["snapshots", "another model", "another model and this one"])
def test_what_was_served_is_not_called_never_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], has: str
) -> None:
    """A lost part of the journal, a new name, or a typo: `b` has nothing of what it was."""
    models = [{"name": name, "task": "binary", "learner": "logreg"} for name in ("a", "b")]
    file = tmp_path / "online.yaml"
    given = {"models": models, "state_dir": str(tmp_path / "state"), "cluster": "embedded"}
    file.write_text(json.dumps(given))
    settings = config.load(file, {}, {})
    settings.state_dir.mkdir(mode=0o700)
    kept = tmp_path / "state" / "snapshots" / ("b" if has == "snapshots" else "old") / SPEC[:16]
    kept.mkdir(parents=True)
    (kept / "1-6.snapshot").touch()
    with closing(open_journal(settings)) as journal:
        for name in {"snapshots": "a", "another model": ["a", "old"]}.get(has, ["a", "b", "old"]):
            model = settings.models[name == "b"]
            spec = load_model(model, settings, b"\0" * 32).spec_hash
            journal.begin_epoch(name, spec, 0)
            journal.register(name, "r", spec, 0.0)
    monkeypatch.setattr(sys, "argv", ["online", "fsck", "--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert "a: good" in said.out
    assert (ended.value.code or 0) == (0 if has.endswith("this one") else 1), said
    assert ("there are snapshots of it" in said.out) == (has == "snapshots")
    assert ("old: the journal has it" in said.out) == (has != "snapshots")
