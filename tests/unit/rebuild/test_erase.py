"""What is erased of a source: which snapshots, halves and texts, and what is certified of it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import yaml

from online.audit import certificates
from online.commands.change.erasing import check_no_shards
from online.errors import StartRefused
from online.learning.counters import event_hash
from online.monitoring.samples import Mark
from online.monitoring.series import FOLDER, Series
from online.rebuild import certify, erase
from online.rebuild.erase import Decision, Done, Erasure
from online.rebuild.holdings import Holding
from online.rows.finals import final_row, late_key
from online.rows.joins import labels_of
from online.settings.config import Settings, load
from online.settings.model import ModelSettings
from paramserver.core import rewrites
from paramserver.core.state import SnapshotState
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay import codec
from replay.example import Example, Judged, PredictionHalf, WaitingLabel
from replay.journal.base import Half, NewRow, Only, Verdict
from replay.journal.sqlite.journal import SqliteJournal

SPEC, OTHER = "a" * 64, "b" * 64
KEYS = [bytes(32)]


class World:
    """Rows 3, 5 and 7 of ten are the bot's, the last of them quarantined; both lineages saw all."""

    def __init__(self, folder: Path) -> None:
        file = folder / "online.yaml"
        model = {"name": "m", "task": "binary", "learner": "logreg"}
        file.write_text(yaml.safe_dump({"models": [model], "state_dir": str(folder)}))
        self.folder, self.settings = folder, load(file, {}, {})
        self.journal = SqliteJournal(folder / "journal.db", synchronous="OFF", disk_low_mb=0)
        for spec in (SPEC, OTHER):
            self.journal.begin_epoch("m", spec, 0)
        self.partition = self.journal.register("m", "r", SPEC, 0.0).id
        self.rows = [self.row(i) for i in range(1, 11)]
        self.journal.append(self.partition, 0, self.rows)

    def row(self, i: int) -> NewRow:
        bot, key = i in (3, 5, 7), bytes([i] * 16)
        verdict = Verdict.QUARANTINED if i == 7 else Verdict.ACCEPTED
        payload = codec.encode(Example({"x": float(i)}, True))
        return NewRow(key, str(i), "bot" if bot else "good", verdict, payload, float(i))

    def control(self, kind: str, note: Any, key: str = "") -> int:
        payload = note if isinstance(note, bytes) else msgspec.json.encode(note)
        return self.journal.write_control("m", kind, key or f"{kind}:{note}", payload)[0].seq

    def snapshot(self, name: str, clock: int, control: int, spec: str = SPEC) -> None:
        epoch, count = (int(part) for part in name.removeprefix("aside-").split("-")[:2])
        state = SnapshotState(
            "m", spec, "{}", (epoch, count), {}, {self.partition: clock}, control=control
        )
        self.history(spec).publish(name, state)

    def history(self, spec: str) -> SnapshotHistory:
        place = lineage_place(str(self.folder / "snapshots"), "m", spec)
        return SnapshotHistory(open_snapshots(place), Retention())

    def forget(self, *, digests: Any = None, undone: Any = None) -> int:
        spans = rewrites.packed(((2, 3), (4, 5))) if undone is None else undone
        note = rewrites.Forget(
            SPEC, "bot", None, None, "aside-1-9", 0, {}, [], {self.partition: spans}, at=9.0,
            digests=digests,
        )  # fmt: skip
        return self.control(rewrites.FORGET, note)

    def erasure(self, forget: int = 0, since: float | None = None) -> Erasure:
        begun = erase.decide(self.journal, "m", "bot", since, forget, 11.0)
        erasure = Erasure(self.journal, "m", *begun)
        erasure.look()
        return erasure


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    with contextlib.closing(made.journal):
        yield made


def tainted(world: World, erasure: Erasure, spec: str = SPEC) -> list[str]:
    return erasure.tainted(world.settings, spec)


def test_snapshots_that_hold_what_it_has_taught_are_found(world: World) -> None:
    world.snapshot("1-1", 2, 0)  # before its first row
    world.snapshot("1-2", 4, 0)
    world.snapshot("1-3", 10, 0)
    back = rewrites.Rollback(SPEC, "1-1", 0, {}, [], {world.partition: (2, 10)})
    rolled = world.control(rewrites.ROLLBACK, back)
    world.snapshot("2-1", 10, rolled)  # they were undone by then
    forget = world.forget()
    world.snapshot("3-1", 10, forget)
    world.snapshot("aside-1-9", 10, rolled)  # what the forget has built
    world.snapshot("1-4", 10, 0, OTHER)
    assert tainted(world, world.erasure(forget)) == ["1-2", "1-3"]
    assert tainted(world, world.erasure(forget), OTHER) == ["1-4"]
    file = next((world.folder / "snapshots").rglob("1-1.snapshot"))
    file.write_bytes(file.read_bytes()[:-40] + bytes(40))
    assert tainted(world, world.erasure(forget)) == ["1-2", "1-3"], "its manifest is good"
    file.write_bytes(b"damaged")
    assert tainted(world, world.erasure(forget)) == ["1-1", "1-2", "1-3"], "nobody can tell"


def test_two_operators_who_decide_at_once_get_their_own_decisions(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, others = world.journal.write_control, list[tuple[int, Decision]]()

    def late(*args: Any) -> Any:
        if not others:  # the other one is first
            others.append((0, Decision("", None, 0, 0.0, 0)))
            others[0] = erase.decide(world.journal, "m", "other", None, 0, 10.0)
        return write(*args)

    monkeypatch.setattr(world.journal, "write_control", late)
    seq, decision = erase.decide(world.journal, "m", "bot", None, 0, 11.0)
    assert (decision.source, others[0][1].source) == ("bot", "other")
    assert [(seq, decision), others[0]] == erase.unfinished(world.journal, "m")[::-1]


def test_what_nobody_learned_taints_nothing(world: World) -> None:
    failed = world.control("failed", b"why", f"failed:{SPEC[:16]}:{world.rows[2].key.hex()}")
    world.snapshot("1-1", 4, failed)
    world.snapshot("1-2", 5, failed)
    begun = rewrites.Begun(SPEC, {world.partition: 5})
    fresh = world.control(rewrites.BEGUN, begun, f"{rewrites.BEGUN}:{SPEC}:2")
    world.snapshot("2-1", 10, fresh)  # the lineage began without them
    assert tainted(world, world.erasure()) == ["1-2"]


@pytest.mark.parametrize("of", ["hold_what_it_has_taught_are_found", "nobody_learned"])
def test_which_rows_a_snapshot_has_is_asked(
    world: World, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    (test,) = [one for name, one in globals().items() if of in name]
    monkeypatch.setattr(Holding, "has", lambda self, p, offset: offset <= self.upto(p))
    with pytest.raises(AssertionError):
        test(world)


def test_a_decision_is_gone_on_with_until_it_has_ended(world: World) -> None:
    first = world.erasure()
    assert (first.seq, first.decision.upto, len(first.sent.keys)) == (1, 10, 3)
    late = NewRow(b"l" * 16, "late", "bot", Verdict.QUARANTINED, b"\x01", 99.0)
    world.journal.append(world.partition, 10, [late])
    again = world.erasure()
    assert (again.seq, again.sent.keys) == (1, first.sent.keys), "what came later is not in it"
    assert [d.source for _, d in erase.unfinished(world.journal, "m")] == ["bot"]
    assert world.erasure(since=6.0).seq == 2, "another one"
    again.end(Done(again.seq, 12.0, 3, 0, 0, 0))
    assert [seq for seq, _ in erase.unfinished(world.journal, "m")] == [2]
    third = world.erasure()
    assert (third.seq, len(third.sent.keys)) == (4, 4)


def test_rows_and_texts_go_and_those_of_others_stay(world: World) -> None:
    keys = [
        f"failed:{spec[:16]}:{world.rows[i].key.hex()}" for spec in (SPEC, OTHER) for i in (2, 3)
    ]
    for key in keys:
        world.control("failed", b"no number: 'x'", key)
    erasure = world.erasure(since=4.0)
    assert erasure.rows() == 2
    erasure = world.erasure()
    assert (erasure.rows(), erasure.texts()) == (3, 2)
    rows = world.journal.read(world.partition, 1, 10)
    assert [r.offset for r in rows if codec.is_erased(r.payload)] == [3, 5, 7]
    assert [r.event_id for r in rows] == ["1", "2", "", "4", "", "6", "", "8", "9", "10"]
    texts = {c.key: c.payload for c in world.journal.controls("m", 0) if c.kind == "failed"}
    assert [texts[key] for key in keys] == [b"erased", b"no number: 'x'"] * 2


def test_a_label_of_its_goes_from_the_final_label_that_replaces_it(world: World) -> None:
    lesson = Example({"x": 1.0}, label=False, provisional=True, judged=Judged(1.0, "", {"t": 1.0}))
    replace = msgspec.structs.replace
    for i, source in ((11, "bot"), (12, "good")):
        new = replace(world.row(i), source=source, payload=codec.encode(lesson))
        world.journal.append(world.partition, i - 1, [new])
        (first,) = world.journal.read(world.partition, i, 1)
        asked, label = replace(new, source="other", at=float(i)), Example({}, label=True)
        final = replace(final_row(asked, label, first, first, Only()), only=None)
        partition = world.journal.register("m", "r", SPEC, 0.0).id
        world.journal.append(partition, 0, [final])
    world.erasure().rows()
    (row,), (others,) = (world.journal.read(world.partition + i, 1, 1) for i in (1, 2))
    of_bot, of_good = codec.decode(row.payload), codec.decode(others.payload)
    assert of_good.corrects is not None
    assert of_bot.corrects == replace(
        of_good.corrects, key=world.row(11).key, offset=11, label=True, source="", evidence={}
    )
    assert replace(of_bot, corrects=None) == replace(of_good, corrects=None)
    assert (of_good.corrects.label, of_good.corrects.source) == (False, "good")
    assert b"bot" not in row.payload
    assert world.erasure().sent.replaced == []


def test_a_late_label_of_an_event_goes_with_its_features(world: World) -> None:
    replace = msgspec.structs.replace
    for i, of in ((11, 3), (12, 4)):
        first = world.row(of)
        late = replace(world.row(i), key=late_key(first.key), source="other", payload=first.payload)
        world.journal.append(world.partition, i - 1, [late])
    assert world.erasure().rows() == 4
    gone = [
        r.offset for r in world.journal.read(world.partition, 1, 12) if codec.is_erased(r.payload)
    ]
    assert gone == [3, 5, 7, 11]


def test_halves_go_and_labels_of_others_that_wait_beside_them_stay(world: World) -> None:
    def label(source: str, at: float) -> WaitingLabel:
        return WaitingLabel(True, 1.0, None, source, f"of {source}", at, ())

    def half(name: str, source: str, payload: bytes, kind: Half = Half.LABEL) -> NewRow:
        return NewRow(name.encode() * 16, name, source, Verdict.ACCEPTED, payload, 5.0, half=kind)

    made = codec.encode_prediction(PredictionHalf({"x": 1.0}))
    halves = [
        half("a", "bot", codec.encode_labels([label("bot", 5.0)])),
        half("b", "bot", codec.encode_labels([label("bot", 5.0), label("good", 6.0)])),
        half("c", "good", codec.encode_labels([label("good", 5.0)])),
        half("d", "bot", made, Half.PREDICTION),
        half("e", "good", made, Half.PREDICTION),
    ]
    world.journal.append(world.partition, 10, halves)
    assert world.erasure(since=5.5).halves() == 0
    assert world.erasure().halves() == 3
    left = dict(world.journal.erasing().halves("m"))
    assert [key[:1] for key in left] == [b"b", b"c", b"e"]
    (other,) = labels_of(left[b"b" * 16])
    assert (other.source, left[b"b" * 16].source, left[b"b" * 16].event_id) == (
        "good", "good", "of good",
    )  # fmt: skip
    assert world.erasure().halves() == 0
    assert world.journal.examine(lambda done, total: None).damage == ()


def digests(world: World, *offsets: int) -> Any:
    total = sum(event_hash(world.rows[i - 1].key) for i in offsets)
    return (9, (5 + total) % 2**64), (9 - len(offsets), 5)


def test_what_was_forgotten_is_certified(world: World) -> None:
    forget = world.forget(digests=digests(world, 3, 5))
    assert erase.newest_forget(world.journal, "m", SPEC, "bot") == forget
    assert erase.newest_forget(world.journal, "m", OTHER, "bot") == 0
    content = certify.forgotten(world.journal, "m", forget)
    document = certify.checked(content, KEYS)
    assert certificates.faults(document, certificates.public_keys(KEYS)) == []
    assert (content["events"], content["count"]) == (["03" * 8, "05" * 8], 2)
    erasure = world.erasure(forget)
    erasure.rows()
    whole = certify.erased(content, erasure, Done(erasure.seq, 12.0, 3, 1, 0, 2))
    assert whole["erased"]["others"] == ["07" * 8]
    assert certify.checked(whole, KEYS)["certificate"]["done"] == "forgotten and erased"
    path = world.folder / "new" / "c.json"
    certify.write(document, path)
    assert (certify.read(path), path.stat().st_mode & 0o777) == (document, 0o600)
    nothing = certify.nothing_forgotten("m", SPEC, Decision("x", None, 0, 0.0, 0), "why not")
    said = certify.checked(nothing, KEYS)["certificate"]
    assert (said["count"], said["note"]) == (0, "why not")


def test_what_does_not_add_up_is_not_certified(world: World) -> None:
    wrong = world.forget(digests=digests(world, 3, 6))
    with pytest.raises(StartRefused, match="its events are not the difference"):
        certify.checked(certify.forgotten(world.journal, "m", wrong), KEYS)
    older = world.forget()
    with pytest.raises(StartRefused, match="an older version wrote it"):
        certify.forgotten(world.journal, "m", older)
    gone = world.forget(digests=digests(world, 3), undone=[2, 1])
    world.journal.begin_epoch("m", SPEC, 1)
    world.journal.trim("m", SPEC, 2, {world.partition: 3}, 1e9, 9)
    with pytest.raises(StartRefused, match="are removed by now"):
        certify.forgotten(world.journal, "m", gone)
    with pytest.raises(StartRefused, match="can't be read"):
        certify.read(world.folder / "nothing.json")


def test_a_history_of_an_older_version_loses_the_values_that_it_names(world: World) -> None:
    erase.scrub_time_series(world.folder, "m")  # there is none
    series = Series(world.folder / FOLDER, "m")
    marks = [
        Mark(1.0, "incident", "it may have a trigger: city = Oslo"),
        Mark(2.0, "start", "a: b"),
    ]
    series._db.executemany(
        "INSERT INTO marks VALUES (?, ?, ?)", map(msgspec.structs.astuple, marks)
    )
    erase.scrub_time_series(world.folder, "m")
    left = series._db.execute("SELECT text FROM marks").fetchall()
    series.close()
    assert left == [("a: b",)]
    assert b"Oslo" not in (world.folder / FOLDER / "m.db").read_bytes()


def test_only_the_folder_of_the_model_itself_is_to_be_removed(tmp_path: Path) -> None:
    """Beside it lie snapshots of other models, which have several parameter servers now."""
    model = ModelSettings.model_validate({"name": "m", "task": "binary", "learner": "logreg"})
    settings = Settings(state_dir=tmp_path, models=(model,))
    place = tmp_path / "snapshots" / "+1" / "m" / ("s" * 16)
    (tmp_path / "snapshots" / "+1" / "other" / ("s" * 16)).mkdir(parents=True)
    place.mkdir(parents=True)
    (place / "1-1.snapshot").write_bytes(b"")
    journal: Any = SimpleNamespace(lineages=lambda name: ("s" * 64,) if name == "m+1" else ())
    with pytest.raises(StartRefused, match=f"snapshots in {re.escape(str(place))} are") as raised:
        check_no_shards(journal, settings, "m")
    assert "Remove that folder" in str(raised.value)
