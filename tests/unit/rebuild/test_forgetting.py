"""A forgotten source leaves the model as if it had never sent anything; the service goes on."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import replica_world as worlds
from forgetting_world import SPEC, built
from msgspec.structs import replace
from river import linear_model, optim, preprocessing

from evaluation.streams import open_stream
from online.errors import StartRefused
from online.learning.merged import Learner
from online.learning.ordered import OrderedLearner
from online.models.adapters.linear import Linear
from online.models.base import learn_example
from online.models.fm import Fm
from online.models.state.factors import TABLE
from online.rebuild.forget import Bases, check_reach, influence
from online.rebuild.rebuild import NOBODY, ForgetScope, Method, Rebuild, nothing, runs
from online.rows.finals import late_key
from online.rows.history import Decisions
from online.rows.prediction_ids import event_key
from paramserver.core import blocks as algebra
from paramserver.core import rewrites, wire
from paramserver.core.admission import KEPT
from paramserver.core.blocks import Blocks
from paramserver.process.actor import Host, ParameterServer, ServerSettings
from paramserver.process.lineage import Lineage
from paramserver.snapshots.history import SnapshotHistory
from paramserver.snapshots.places import lineage_place, open_snapshots
from paramserver.snapshots.store import Retention
from replay import codec
from replay.example import UNLABELLED, Example, Judged, Moved, Tensor
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

# -- exactly as without it -------------------------------------------------------------------------


def logistic() -> Linear:
    return Linear(
        preprocessing.StandardScaler() | linear_model.LogisticRegression(optimizer=optim.SGD(0.05))
    )


class Alone:
    """One replica of a binary model: every row is learned, every 16 rows are pushed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.now_s = folder, 0.0
        self.journal = SqliteJournal(folder / "journal.db", synchronous="OFF", disk_low_mb=0)
        self.server = ParameterServer(
            Lineage("m", SPEC, "{}", "sum"),
            lambda: self.journal,
            str(folder / "snapshots"),
            ServerSettings(),
            host=Host(monotonic=lambda: self.now_s, wall=lambda: self.now_s),
            background=False,
        )
        assert self.server.restore()
        self.partition = self.journal.register("m", "r", SPEC, 0.0).id
        self.known = 0
        self.learner = Learner(
            logistic, task="binary", spec=SPEC, retain_bytes=1 << 24, rows_max=64
        )
        self.learner.open_partition(self.partition)
        self.exchange()

    def send(self, rows: list[tuple[int, str, Example]]) -> None:
        made = [
            NewRow(
                event_key("event", source, str(i)), str(i), source, Verdict.ACCEPTED,
                codec.encode(example), float(i),
            )
            for i, source, example in rows
        ]  # fmt: skip
        for start in range(0, len(made), 16):
            done = self.journal.append(self.partition, self.known, made[start : start + 16])
            self.known = done.end
            for outcome in done.outcomes:
                assert outcome.row is not None
                self.learner.learn(outcome.row)
            self.exchange()

    def exchange(self) -> None:
        learner = self.learner
        request = wire.SyncRequest(
            wire.FORMAT, "r", self.partition, learner.pushes(64), learner.since, True, []
        )
        reply = wire.decode_reply(self.server.sync(wire.encode(request)))
        decisions = Decisions(SPEC)
        decisions.read(self.journal, "m")
        learner.undone = decisions.undone
        learner.on_reply(reply)

    def values(self) -> dict[str, Any]:
        server = self.server._running.server
        assert server is not None
        return flat({name: block.data for name, block in server.values.items()})


def flat(data: Any, name: str = "") -> dict[str, Any]:
    """All numbers by name."""
    if isinstance(data, dict):
        items = data.items()
    elif isinstance(data, (list, tuple)):
        items = dict(enumerate(data)).items()
    else:
        return {name: data}
    return {key: x for part, value in items for key, x in flat(value, f"{name}/{part}").items()}


def poisoned(
    n: int = 3000, first: int = 1200, name: str = "phishing"
) -> list[tuple[int, str, Example]]:
    """A stream from ten sources, of which the tenth lies, and begins with row ``first``."""
    rows = []
    directory = os.environ.get("ONLINE_DATA_DIR")
    stream = open_stream(name, Path(directory) if directory else None).rows
    for i, (features, label) in zip(range(n), chain(stream, stream, stream), strict=False):
        source = f"s{i % 10}"
        wrong = source == "s9"
        if wrong and i < first:
            continue
        score = {"true": 0.25 + (i % 7) / 16, "false": 0.75 - (i % 7) / 16}
        rows.append((i, source, Example(features, bool(label) ^ wrong, score=score)))
    return rows


def merged(values: Blocks, delta: Blocks) -> Blocks:
    """Values with a delta on top."""
    algebra.merge(values, delta, 1.0)
    return values


def close_to(expected: dict[str, Any]) -> Any:
    return pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "phishing",
        pytest.param("elec2", marks=pytest.mark.skipif(
            not os.environ.get("ONLINE_DATA_DIR"), reason="needs ONLINE_DATA_DIR"
        )),
    ],
)  # fmt: skip
def test_as_if_it_had_never_sent_anything(tmp_path: Path, name: str) -> None:
    rows = poisoned(name=name)
    honest = [row for row in rows if row[1] != "s9"]
    seen, clean = Alone(tmp_path / "seen"), Alone(tmp_path / "clean")
    for one, sent in ((seen, rows), (clean, honest)):
        one.send([row for row in sent if row[0] < 1000])
        one.now_s += 10
        one.server.snapshot()
        one.send([row for row in sent if 1000 <= row[0] < 2000])
        one.now_s += 10
        one.server.snapshot()
        one.send([row for row in sent if 2000 <= row[0] < 2900])
    assert seen.values() != close_to(clean.values()), "the poison is in"
    seen.server.ban("s9", True)
    made, base = built(
        seen.journal, tmp_path / "seen" / "snapshots", ForgetScope("s9"), logistic, task="binary"
    )
    assert base == "1-57", "the newest snapshot from before its first row"
    late = [row for row in honest if row[0] >= 2900]
    for one in (seen, clean):  # comes while the state is built
        one.send(late)
    done = seen.server.forget("aside-1", "s9", None, base, made.undone)
    lies = sum(i < 2900 and source == "s9" for i, source, _ in rows)
    assert done["undone"] == lies == sum(sum(flat[1::2]) for flat in made.undone.values())
    seen.exchange()
    for row in seen.journal.read(seen.partition, seen.learner.wanted()[0][1], 999):
        seen.learner.learn(row)
    seen.exchange()
    assert seen.values() == close_to(clean.values())
    assert seen.learner.tally.digest == clean.learner.tally.digest, "the same events"
    assert seen.learner.tally.counters == close_to(clean.learner.tally.counters)
    probe = rows[0][2].features
    answers: list[Any] = [world.learner.predict(probe) for world in (seen, clean)]
    one, other = (answer.probabilities for answer in answers)
    assert one == pytest.approx(other, rel=0, abs=1e-12)


def pushed(n: int, source: str, by: float) -> tuple[int, str, Example]:
    """What a device's rows did to two weights."""
    weights = Tensor(0.0, np.array([by, -by], "<f4").tobytes())
    columns = ("ssl_final_state", "popup_window")
    moved = Moved(SPEC, 1, 9, columns, ("",), weights, Tensor(by, bytes([1])))
    return n, source, Example({}, f"content {n}", 0.25, moved=moved)


def test_from_nothing_it_is_one_learner_bit_for_bit(tmp_path: Path) -> None:
    rows = poisoned(900, first=0)
    rows[400:400] = [pushed(10_000 + i, f"s{i % 10}", 0.5 + i) for i in range(20)]
    one = Alone(tmp_path / "one")
    one.send(rows)
    one.server.ban("s9", True)
    made, base = built(
        one.journal, tmp_path / "one" / "snapshots", ForgetScope("s9"), logistic, task="binary"
    )
    assert base is None
    plain = logistic()
    for _, source, example in rows:
        if source != "s9":
            learn_example(plain, example, spec=SPEC)
    expected = merged({}, plain.cut())
    assert expected
    assert {name: made.state.values[name] for name in expected} == expected
    assert len(made.state.values) > len(expected), "and the tally"


# -- where it begins -------------------------------------------------------------------------------


class Ledger:
    """One partition, a server that counts, and decisions about it."""

    def __init__(self, folder: Path) -> None:
        self.world = worlds.World(folder)
        self.journal, self.server = self.world.journal(), self.world.server
        self.partition, self.end = self.journal.register("m", "r", SPEC, 0.0).id, 0

    def send(self, source: str, n: int = 1) -> None:
        rows = [
            replace(worlds.row(f"e{self.end + i}"), source=source, at=float(self.end + i))
            for i in range(1, n + 1)
        ]
        self.end = self.journal.append(self.partition, self.end, rows).end
        server = self.server._running.server
        assert server is not None
        clock = server.clock.get(self.partition, 0)
        push = wire.Push(
            server.epoch, SPEC, self.partition, clock + 1, self.end, n, server.version, {}
        )
        request = wire.SyncRequest(wire.FORMAT, "r", self.partition, [push], None, True, [])
        self.server.sync(wire.encode(request))

    def snapshot(self) -> str:
        self.server.snapshot()
        return str(self.server.snapshots()[0]["name"])

    def base(self, wanted: ForgetScope, named: str | None = None) -> str | None:
        decisions = Decisions(SPEC)
        decisions.read(self.journal, "m")
        found = influence(self.journal, "m", decisions, wanted, 1e9)
        bases = Bases(self.journal, "m", decisions, self.journal.partitions("m"))
        place = lineage_place(str(self.world.folder / "snapshots"), "m", SPEC)
        history = SnapshotHistory(open_snapshots(place), Retention())
        history.index()
        head = self.journal.head("m", SPEC).snapshot
        if named is not None:
            return bases.named(history, head, named).name
        check_reach(found, wanted)
        return bases.before(history, head, 0, found).name


def test_the_newest_snapshot_from_before_the_first_row(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.send("good", 3)
    first = ledger.snapshot()
    ledger.send("good", 3)
    second = ledger.snapshot()
    ledger.send("bot", 2)
    third = ledger.snapshot()
    assert ledger.base(ForgetScope("bot")) == second
    assert ledger.base(ForgetScope("bot", since=8.0)) == second, (
        "its first row of then is in the third"
    )
    assert ledger.base(ForgetScope("bot", since=9.0)) == third
    assert ledger.base(ForgetScope("good")) is None, "from the first row on"
    assert ledger.base(ForgetScope("good", since=4.0)) == first
    ledger.server.rollback(second)
    ledger.send("good", 2)
    fourth = ledger.snapshot()
    assert ledger.base(ForgetScope("bot")) == fourth, "its rows were undone by the rollback"
    assert ledger.base(ForgetScope("good", since=9.0)) == second, "the third holds what is undone"
    with pytest.raises(StartRefused, match="undone by now"):
        ledger.base(ForgetScope("good"), third)
    with pytest.raises(StartRefused, match="no snapshot that"):
        ledger.base(ForgetScope("good"), "9-9")
    assert ledger.base(ForgetScope("good"), first) == first


def test_what_the_journal_has_no_longer_got_is_said(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.send("good", 4)
    ledger.snapshot()
    ledger.send("good", 4)
    second = ledger.snapshot()
    epoch = ledger.journal.head("m", SPEC).epoch
    assert ledger.journal.trim("m", SPEC, epoch, {ledger.partition: 6}, 6.5, 99) == 6
    for since in (None, 6.0):
        with pytest.raises(StartRefused, match="reaches back to 7"):
            ledger.base(ForgetScope("bot", since))
    assert ledger.base(ForgetScope("bot", 7.0)) == second
    with pytest.raises(StartRefused, match="nor the start: 6 rows behind it were removed"):
        ledger.base(ForgetScope("good", 7.0))
    with pytest.raises(StartRefused, match="2 rows behind it were removed"):
        ledger.base(ForgetScope("good"), "1-1")


def test_rows_as_spans() -> None:
    offsets = [1, 2, 5, 6, 7, 9]
    spans = runs(offsets)
    assert spans == ((0, 2), (4, 7), (8, 9))
    assert rewrites.unpacked(rewrites.packed(spans)) == spans
    undone = rewrites.Undone({1: spans})
    assert [o for o in range(12) if undone.has(1, o)] == offsets
    assert undone.upto({1: 6}) == {1: ((0, 2), (4, 6))}


def relearned(folder: Path, most: int | None) -> tuple[int, dict[str, Any], int]:
    """Rows of a table of which all events were learned anew: in the state, its kept blocks, and in
    the model."""
    world = worlds.World(folder)
    journal = world.journal()
    partition = journal.register("m", "r", SPEC, 0.0).id
    examples = [Example({"user": f"user {i}"}, float(i % 2)) for i in range(300)]
    rows = [
        replace(worlds.row(f"e{i}"), payload=codec.encode(example))
        for i, example in enumerate(examples)
    ]
    journal.append(partition, 0, rows)
    learner = OrderedLearner(
        lambda: Fm(2, table=True).model_for("regression"),
        task="regression", spec=SPEC, rows_max=16,
    )  # fmt: skip
    rebuild = Rebuild(
        journal, Decisions(SPEC), NOBODY, nothing("m", SPEC, "{}", {}),
        Method(lambda: None, "regression", table_rows_max=most),  # type: ignore[arg-type, return-value]
        learner=learner,
    )  # fmt: skip
    rebuild.run()
    values = rebuild.built((1, 0), 1, 5.0).state.values
    kept = {name: block for name, block in values.items() if name.startswith(KEPT)}
    model: Any = learner._training
    return len(values[TABLE].data), kept, len(model._machine.lines._table)


def test_a_bounded_table_is_bounded_while_all_is_learned_again(tmp_path: Path) -> None:
    rows, kept, held = relearned(tmp_path, 100)
    assert rows <= 100
    assert held == rows, "the model that learned has what the state has"
    (ranks,) = [block.data for name, block in kept.items() if block.kind == "rows"]
    assert len(ranks) == rows, "the server that goes on knows who was used"


def test_without_a_bound_it_has_all_rows(tmp_path: Path) -> None:
    rows, kept, held = relearned(tmp_path, None)
    assert held == rows > 290
    assert not kept


def test_a_decision_meanwhile_stops_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.send("good", 2)
    first = ledger.snapshot()
    ledger.send("bot", 1)
    decisions = Decisions(SPEC)
    rebuild = Rebuild(
        ledger.journal, decisions, ForgetScope("bot"), nothing("m", SPEC, "{}", {}),
        Method(worlds.counting, "regression", rows_max=8),
    )  # fmt: skip
    rebuild.run()
    ledger.server.rollback(first)
    with pytest.raises(StartRefused, match="meanwhile"):
        rebuild.run()


class Needy(Linear):
    """Can't learn `after` unless it has learned `before`."""

    def learn(self, features: Any, label: Any, weight: float) -> None:
        if "after" in features and self.predict({"before": 1.0}).label == 0.0:
            raise ValueError("nothing came before")
        super().learn(features, label, weight)


def test_what_can_not_be_learned_without_it_is_taken_out_too(tmp_path: Path) -> None:
    world = worlds.World(tmp_path)
    journal = world.journal()
    partition = journal.register("m", "r", SPEC, 0.0).id
    rows = [replace(worlds.row("before"), source="bot"), *map(worlds.row, ("after", "x"))]
    journal.append(partition, 0, rows)
    step = 2.0**-10

    def build() -> Needy:
        loss = optim.losses.Absolute()
        return Needy(linear_model.LinearRegression(optim.SGD(step), loss=loss, intercept_lr=0.0))

    made, base = built(journal, tmp_path / "snapshots", ForgetScope("bot"), build)
    assert (base, made.learned, made.unlearned) == (None, 1, 1)
    assert made.undone == {partition: [0, 2]}
    assert made.state.values["digest"].data["count"] == 1


def test_what_its_rows_said_of_it_goes_with_them(tmp_path: Path) -> None:
    world = worlds.World(tmp_path)
    journal = world.journal()
    partition = journal.register("m", "r", SPEC, 0.0).id
    rows = []
    for name, source in (("a", "good"), ("b", "bot")):
        example = Example({name: 1.0}, 1e9, judged=Judged(0.5, "", {"surprise": 1.5}))
        rows.append(replace(worlds.row(name), source=source, payload=codec.encode(example)))
    journal.append(partition, 0, rows)
    made, _ = built(journal, tmp_path / "snapshots", ForgetScope("bot"), worlds.counting)
    said = {name: block.data for name, block in made.state.values.items() if "surprise" in name}
    assert [set(data) for data in said.values()] == [{"good"}]


class _Detecting(Linear):
    """Learns rows without labels, and nothing from them."""

    def learn(self, features: Any, label: Any, weight: float) -> None:
        return


def test_a_late_label_of_an_event_goes_with_it_whoever_sent_the_label(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "journal.db", synchronous="OFF", disk_low_mb=0)
    said = {"true": 0.9, "false": 0.1}
    rows, late = list[NewRow](), list[NewRow]()
    for i, source in enumerate(("bot", "good", "bot")):
        asked = Example({"a": float(i)}, UNLABELLED, score=said)
        key = event_key("event", source, str(i))
        args = Verdict.ACCEPTED, codec.encode(asked), float(i)
        rows.append(NewRow(key, str(i), source, *args))
        labelled = codec.encode(replace(asked, label=True, taught=True))
        late.append(NewRow(late_key(key), str(i), "expert", Verdict.ACCEPTED, labelled, 9.0))
    for some in (rows, late[:2]):
        journal.append(journal.register("m", "r", SPEC, 0.0).id, 0, some)
    estimator = linear_model.LogisticRegression()
    made, _ = built(
        journal, tmp_path / "s", ForgetScope("bot"), lambda: _Detecting(estimator), task="binary"
    )
    counted = made.state.values["metrics"].data
    assert (counted["unlabelled"], counted["unlabelled_above"]) == (0, 0)
    assert counted["n"] == 1, "the label of the event that is left"
    first, second = (p.id for p in journal.partitions("m"))
    assert {p: rewrites.unpacked(flat) for p, flat in made.undone.items()} == {
        first: ((0, 1), (2, 3)), second: ((0, 1),)
    }  # fmt: skip
    decisions = Decisions(SPEC)
    found = influence(journal, "m", decisions, ForgetScope("bot"), 0.0)
    assert found.corrected == {second: [1]}, "a snapshot with it is no base"
