"""Backfill: what tables teach becomes the base of a lineage, whatever stops and whenever."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rescore_world as worlds
from backfill_world import Folder, Service, a_file, alone, labelled, near
from river import linear_model, optim, preprocessing
from typer.testing import CliRunner

from online.commands.cli import app
from online.errors import StartRefused
from online.learning.bounds import Bounds
from online.learning.ranges import RANGE
from online.learning.vocabulary import NAMES
from online.models.adapters.linear import Linear
from online.rebuild import fsck
from online.rebuild.backfill import TaughtAlready, Teacher
from online.rebuild.forget import Base, Bases
from online.rows.history import Decisions
from online.service.processes import Owner
from online.service.state.check_state import Models
from online.settings.places import open_journal
from online.tables.errors import InputRefused
from paramserver.core import rewrites
from paramserver.core.rewrites import Rollback
from paramserver.core.state import Contained
from paramserver.errors import DecisionUncertain
from paramserver.errors import StartRefused as ServerRefused
from paramserver.process import bases
from paramserver.process.lineage import recover
from replay.example import Example, Features


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# -- the whole way ---------------------------------------------------------------------------------


def test_a_start_goes_on_from_what_the_table_has_taught(folder: Folder) -> None:
    facts = folder.backfill("--input", a_file(folder))
    assert (facts["learned"], facts["quarantined"], facts["control"]) == (3_000, 0, 1)
    assert near(folder.weights(), alone([labelled(3_000)]))
    row = msgspec.json.decode(folder.controls()[0].payload, type=bases.Backfill)
    assert [(f.name, f.rows) for f in row.files] == [("t0.parquet", 3_000)]
    listed = folder.history()
    listed.index()
    assert {s.name: s.pinned for s in listed.listed()}[facts["snapshot"]]
    assert fsck.check(folder.settings, "m").good
    # another table, on top
    folder.backfill("--input", a_file(folder, 500, seed=1))
    assert near(folder.weights(), alone([labelled(3_000), labelled(500, seed=1)]))
    assert len(folder.backfills()) == 2


def test_what_a_start_from_before_the_row_needs(folder: Folder) -> None:
    """The head may still be the old snapshot: the row leads to the base, and without it nowhere."""
    before = folder.started()
    assert before.snapshot is None
    head = folder.history()
    with contextlib.closing(open_journal(folder.settings)) as journal:
        old = journal.head("m", folder.lineage.spec).snapshot
    facts = folder.backfill("--input", a_file(folder))
    with contextlib.closing(open_journal(folder.settings)) as journal:
        epoch = journal.head("m", folder.lineage.spec).epoch
        assert old is not None
        journal.move_head("m", folder.lineage.spec, epoch, old)
    found = folder.started()
    assert "weights" in found.server.values
    assert near(dict(found.server.values["weights"].data), alone([labelled(3_000)]))
    assert found.needed == rewrites.Needed(1, facts["snapshot"])
    assert rewrites.held(found.needed, [0]) == {facts["snapshot"]}
    with contextlib.closing(open_journal(folder.settings)) as journal:
        epoch = journal.head("m", folder.lineage.spec).epoch
        journal.move_head("m", folder.lineage.spec, epoch, old)
    head.pin(facts["snapshot"], False)
    head.withdraw(facts["snapshot"])
    with pytest.raises(ServerRefused, match="taken to the snapshot"):
        folder.started()


def test_the_same_bytes_twice(folder: Folder) -> None:
    path = a_file(folder)
    first = folder.backfill("--input", path)
    copy = folder.root / "copy.parquet"
    copy.write_bytes(Path(path).read_bytes())
    with pytest.raises(TaughtAlready, match=r"copy\.parquet.*" + first["snapshot"]):
        folder.backfill("--input", str(copy))
    assert len(folder.controls()) == 1
    folder.backfill("--input", str(copy), "--again")
    assert near(folder.weights(), alone([labelled(3_000)] * 2))


def test_a_rollback_to_before_it_takes_it_out(folder: Folder) -> None:
    folder.started()
    with contextlib.closing(open_journal(folder.settings)) as journal:
        old = journal.head("m", folder.lineage.spec).snapshot
    assert old is not None
    path = a_file(folder)
    folder.backfill("--input", path)
    with contextlib.closing(open_journal(folder.settings)) as journal:
        history = folder.history()
        now = recover(journal, history, folder.lineage, 1).server.state(0.0, None, {})
        note = rewrites.roll_back(now, old, history.load(old), {})
        journal.write_control("m", "rollback", "r", msgspec.json.encode(note))
    assert folder.weights() == {}
    assert folder.backfills() == []
    folder.backfill("--input", path)  # so it may be learned again
    assert near(folder.weights(), alone([labelled(3_000)]))


def test_which_backfills_are_in_the_values() -> None:
    def row(seq: int, kind: str, note: Any) -> Any:
        return Control(seq, kind, f"fresh:s:{seq}", msgspec.json.encode(note))

    def taught(seq: int, name: str) -> Any:
        note = bases.Backfill("s", name, seq - 1, {}, [], 0, [], 1, 0, 0, "y")
        return row(seq, "backfill", note)

    def back(seq: int, name: str, control: int, spec: str = "s") -> Any:
        return row(seq, "rollback", Rollback(spec, name, control, {}, [], {}))

    def names(*rows: Any) -> list[str]:
        return [b.note.snapshot for b in bases.backfills(rows, "s")]

    both = (taught(1, "one"), taught(2, "two"))
    assert names(*both) == ["one", "two"]
    assert names(*both, back(3, "x", 2)) == ["one", "two"], "to a snapshot after them"
    assert names(*both, back(3, "two", 1)) == ["one", "two"], "a base is from before its row"
    assert names(*both, back(3, "one", 0)) == ["one"]
    assert names(*both, back(3, "x", 0)) == []
    assert names(*both, back(3, "x", 0, "other")) == ["one", "two"]
    assert names(*both, row(3, "fresh", rewrites.Begun("s", {}))) == []
    assert names(*both, row(3, "fresh", rewrites.Begun("s", {}, "one"))) == ["one"]
    assert names(*both, row(3, "fresh", rewrites.Begun("other", {}))) == ["one", "two"]
    assert bases.backfills(both, "other") == ()
    again = row(3, "relearn", rewrites.Relearn("s", "aside-1", 2, {}, [], {}, 0.0))
    assert names(*both, again) == [], "recent rows alone have taught it"
    assert names(*both, again, taught(4, "three")) == ["three"]
    assert names(*both, again, back(4, "x", 2)) == ["one", "two"], "to before it"
    other = row(3, "relearn", rewrites.Relearn("other", "aside-1", 2, {}, [], {}, 0.0))
    assert names(*both, other) == ["one", "two"]


class Control(msgspec.Struct):
    seq: int
    kind: str
    key: str
    payload: bytes


# -- beginning again -------------------------------------------------------------------------------


def test_relearning_begins_with_the_base(folder: Folder) -> None:
    folder.backfill("--input", a_file(folder))
    folder.feed(5)
    said: list[str] = []
    Models(folder.settings, said.append).check(fresh=False, relearn=True)
    assert any("begins with the 3,000 rows" in line for line in said)
    found = folder.started()
    assert near(dict(found.server.values["weights"].data), alone([labelled(3_000)]))
    assert found.server.clock == {}, "the journal's events are all to be learned"
    assert len(folder.backfills()) == 1
    assert fsck.check(folder.settings, "m").good
    Models(folder.settings, said.append).check(fresh=True, relearn=False)
    assert folder.weights() == {}
    assert folder.backfills() == []


def test_the_tables_first_and_the_journal_again(folder: Folder) -> None:
    path = a_file(folder)
    folder.backfill("--input", path)
    folder.feed(5)
    folder.backfill("--input", path, "--relearn")
    found = folder.started()
    assert near(dict(found.server.values["weights"].data), alone([labelled(3_000)]))
    assert found.server.clock == {}
    assert len(folder.backfills()) == 1


def test_another_model_does_not_begin_without_the_tables(folder: Folder) -> None:
    path = a_file(folder)
    folder.backfill("--input", path)
    folder.models(lr=0.2)
    models = Models(folder.settings, print)
    with pytest.raises(StartRefused, match="3,000 rows again: online backfill --relearn"):
        models.check(fresh=False, relearn=False)
    with pytest.raises(StartRefused, match="--relearn"):
        folder.backfill("--input", path)
    folder.backfill("--input", path, "--relearn")
    models.check(fresh=False, relearn=False)
    assert folder.weights().keys() == set(worlds.NAMES)


def test_forgetting_begins_no_earlier_than_with_the_base(folder: Folder) -> None:
    facts = folder.backfill("--input", a_file(folder))
    with contextlib.closing(open_journal(folder.settings)) as journal:
        decisions = Decisions(folder.lineage.spec)
        decisions.read(journal, "m")
        found = Bases(journal, "m", decisions, journal.partitions("m"))
    before = Contained({}, frozenset(), 0)
    for name in (None, "1-0"):
        assert "what t0.parquet has taught" in str(found.why_not(Base(name, before)))
    assert found.why_not(Base(facts["snapshot"], before)) is None
    assert found.why_not(Base("2-9", Contained({}, frozenset(), 1))) is None


# -- rows ------------------------------------------------------------------------------------------


def test_rows_that_are_not_learned_go_aside(folder: Folder) -> None:
    path = folder.root / "t.csv"
    path.write_text("id,a,y\n1,0.5,1\n2,0.5,\n3,inf,1\n4,,0\n5,x,0\n6,0.25,7\n1,1.5,0\n8,2.5,0\n")
    facts = folder.backfill("--input", str(path), "--event-id", "id")
    assert facts["learned"] == 2
    assert folder.aside(facts) == [
        (1, "y", "no label"),
        (2, "a", "not a finite number in ±1e+100"),
        (3, "", "no features"),
        (4, "a", "not a number"),
        (5, "y", "not a label of this model: 7"),
        (6, "id", "an earlier row has the same event id"),
    ]
    path.write_text("a,y\n1,\n2,\n")
    with pytest.raises(InputRefused, match="no row could be learned"):
        folder.backfill("--input", str(path))
    assert len(folder.controls()) == 1


def test_events_that_the_service_has_are_left_out(folder: Folder) -> None:
    folder.feed(3)
    path = worlds.write(folder.root / "t.parquet", labelled(10).drop_columns(["at"]))
    facts = folder.backfill("--input", path, "--event-id", "id")
    assert (facts["learned"], facts["known"]) == (7, 3)


def test_columns_and_order(folder: Folder) -> None:
    table = labelled(20)
    path = worlds.write(folder.root / "t.parquet", table.drop_columns(["id"]))
    with pytest.raises(InputRefused, match=r"t\.parquet, column z: it is missing"):
        folder.backfill("--input", path, "--label", "z")
    folder.backfill("--input", path, "--time", "at")
    order = [*range(10), 12, 11, *range(13, 20)]
    worlds.write(folder.root / "t.parquet", table.drop_columns(["id"]).take(order))
    with pytest.raises(InputRefused, match=r"row 11, column at: it is older"):
        folder.backfill("--input", path, "--time", "at")
    assert len(folder.controls()) == 1


class Fragile(Linear):
    """Raises at some rows, after it has changed."""

    def learn(self, features: Features, label: Any, weight: float) -> None:
        super().learn(features, label, weight)
        if features["a"] == 13.0:
            raise RuntimeError("bad luck")


def test_a_row_that_the_model_raises_on_changes_nothing(folder: Folder) -> None:
    rows = [({"a": float(i % 20)}, i % 3 == 0) for i in range(1_500)]
    estimator = preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1))
    teacher = Teacher(Fragile(estimator), {})
    reasons = [teacher.learn(Example(x, y)) for x, y in rows]
    assert reasons.count("RuntimeError: bad luck") == 75
    good = Linear(preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1)))
    for x, y in rows:
        if x["a"] != 13.0:
            good.learn(x, y, 1.0)
    expected, found = good.cut(), teacher.values()
    assert found["weights"].data == pytest.approx(expected["weights"].data, rel=1e-12)
    assert found["scaler0"].data["a"] == pytest.approx(expected["scaler0"].data["a"], rel=1e-12)
    assert found[NAMES].data == {"a": 1}


def test_a_number_far_beyond_all_before_is_bounded_unless_nothing_is() -> None:
    def taught(*, bounded: bool) -> Teacher:
        model = Linear(
            preprocessing.StandardScaler() | linear_model.LogisticRegression(optim.SGD(0.1))
        )
        teacher = Teacher(model, {}, bounded=bounded)
        for i in range(500):
            x = {"a": 1e9 if i == 400 else float(i % 20)}
            assert teacher.learn(Example(x, label=i % 3 == 0)) is None
        return teacher

    teacher = taught(bounded=True)
    values = teacher.values()
    assert teacher.clipped == 1
    assert values["scaler0"].data["a"][1] < 20.0
    assert Bounds.of(values, on=True).taught({"a": 1e9})[1] == {"a": 1e9}, "the service goes on so"
    control = taught(bounded=False)
    assert control.clipped == 0
    assert control.values()["scaler0"].data["a"][1] > 1e6
    assert RANGE not in control.values()


# -- what stops it ---------------------------------------------------------------------------------


def test_what_stops_before_the_row_changes_nothing(folder: Folder, monkeypatch: Any) -> None:
    path = a_file(folder)

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Teacher, "values", stopped)
        assert (
            CliRunner()
            .invoke(
                app, ["backfill", "--config", str(folder.file), "--input", path, "--label", "y"]
            )
            .exit_code
        )
    assert (list(folder.controls()), folder.weights()) == ([], {})
    facts = folder.backfill("--input", path)
    assert facts["learned"] == 3_000


def test_a_journal_that_does_not_answer_at_the_row(folder: Folder, monkeypatch: Any) -> None:
    from replay.journal.sqlite.journal import SqliteJournal

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    path = a_file(folder)
    with monkeypatch.context() as patched:
        patched.setattr(SqliteJournal, "write_control", fails)
        with pytest.raises(DecisionUncertain, match="disk full"):
            folder.backfill("--input", path)
    assert (list(folder.controls()), folder.weights()) == ([], {})
    folder.backfill("--input", path)
    assert near(folder.weights(), alone([labelled(3_000)]))


def test_not_beside_a_service(folder: Folder) -> None:
    owner = Owner(folder.settings.state_dir)
    with pytest.raises(StartRefused, match="in use"):
        folder.backfill("--input", a_file(folder))
    owner.release()
    with contextlib.closing(open_journal(folder.settings)) as journal:
        note = msgspec.json.encode(rewrites.Freeze({}, []))
        journal.write_control("m", "freeze", "freeze:0", note)
    with pytest.raises(StartRefused, match="unfreeze"):
        folder.backfill("--input", a_file(folder))


# -- beside a service ------------------------------------------------------------------------------


def test_a_service_goes_on_with_what_the_table_has_taught(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(folder, monkeypatch)
    service.meanwhile = lambda: folder.feed(5)  # it goes on learning
    path = a_file(folder)
    facts = folder.backfill("--input", path)
    assert service.asked == ["models", "m", "snapshots", "backfill"]
    expected = alone([labelled(3_000)])
    for _ in range(5):
        expected.learn({"a": 1.0}, True, 1.0)
    server = service.server._running.server
    assert server is not None
    weights = dict(server.values["weights"].data)
    assert near(weights, expected)
    assert (server.clock, server.rewrite, server.version[0]) == ({1: 5}, facts["control"], 2)
    listed = {row["name"]: row["pinned"] for row in service.server.snapshots()}
    assert listed[facts["snapshot"]], "the base"
    assert service.asides() == []
    with pytest.raises(TaughtAlready):
        folder.backfill("--input", path)
    with pytest.raises(StartRefused, match="--relearn would replace its model"):
        folder.backfill("--input", path, "--relearn")
    service.server.snapshot()
    assert fsck.check(folder.settings, "m").good
    assert folder.backfills() == [facts["snapshot"]]
    assert folder.weights() == weights, "a start goes on from it"


def test_a_service_that_was_rolled_back_meanwhile_refuses_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(folder, monkeypatch)
    service.meanwhile = lambda: service.server.rollback(service.server.snapshots()[0]["name"])
    with pytest.raises(StartRefused, match="rewritten meanwhile"):
        folder.backfill("--input", a_file(folder))
    assert service.asides() == []
    assert folder.backfills() == []
    service.meanwhile = lambda: None
    folder.backfill("--input", a_file(folder))
    assert near(folder.weights(), alone([labelled(3_000)]))


def test_ctrl_c_beside_a_service_changes_nothing(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(folder, monkeypatch)

    def interrupted() -> None:
        raise KeyboardInterrupt

    service.meanwhile = interrupted
    with pytest.raises((KeyboardInterrupt, SystemExit, AssertionError)):
        folder.backfill("--input", a_file(folder))
    assert (service.asides(), folder.backfills()) == ([], [])


# -- the rules taken out ---------------------------------------------------------------------------

MUTANTS: dict[str, tuple[str, Any, Callable[..., None]]] = {
    "the row does nothing": (
        "paramserver.process.lineage._backfilled", lambda state, *_: state,
        test_what_a_start_from_before_the_row_needs,
    ),
    "the base is not named": (
        "paramserver.core.rewrites.needed",
        lambda *_: None,
        test_what_a_start_from_before_the_row_needs,
    ),
    "the base is not pinned": (
        "paramserver.snapshots.history.SnapshotHistory.pin", lambda *_: None,
        test_a_start_goes_on_from_what_the_table_has_taught,
    ),
    "what the service has learned meanwhile is lost": (
        "online.rebuild.rebuild.Rebuild.run", lambda *_: None,
        test_a_service_goes_on_with_what_the_table_has_taught,
    ),
    "files are not remembered": (
        "paramserver.process.bases.backfills", lambda *_: (), test_the_same_bytes_twice
    ),
    "learning again begins with nothing": (
        "paramserver.process.bases.backfills", lambda *_: (), test_relearning_begins_with_the_base
    ),
    "forgetting begins anywhere": (
        "online.rebuild.forget.Bases._lacks", lambda *_: None,
        test_forgetting_begins_no_earlier_than_with_the_base,
    ),
    "the order is not looked at": (
        "online.rebuild.backfill._Teaching._check_order", lambda *_: None, test_columns_and_order
    ),
    "the model is not put back": (
        "online.rebuild.backfill.Teacher._put_back", lambda _: None,
        test_a_row_that_the_model_raises_on_changes_nothing,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_that_is_taken_out_is_missed(
    name: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, wrong, test = MUTANTS[name]
    monkeypatch.setattr(place, wrong)
    known = {"folder": folder, "monkeypatch": monkeypatch}
    given = {name: known[name] for name in inspect.signature(test).parameters}
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        test(**given)
