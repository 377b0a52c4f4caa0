"""A report from a service's journal: its rows, its span, and nothing written."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from typer.testing import CliRunner

from evaluation.report.build import report_on
from evaluation.report.page.render import render
from evaluation.report.values import to_json
from online.commands.cli import app
from online.errors import ConfigError
from online.rows import journal_rows
from online.rows.journal_rows import JournalRows, origin
from online.settings.model import ModelSettings
from online.sure.conformal import STAMP, held
from online.sure.slices import Slices as Live
from replay.codec import encode
from replay.example import Example, Value
from replay.journal.base import NewRow, Verdict
from replay.journal.sqlite.journal import SqliteJournal

MODEL = ModelSettings(
    name="clicks", task="binary", learner="logreg", classes={"negative": "no", "positive": "yes"}
)
START = 1_700_000_000.0
BATCH = 1000


def example(i: int, rng: random.Random, *, good: float = 0.9) -> Example:
    label = rng.random() < 0.4
    right = rng.random() < good
    p = 0.9 if label == right else 0.1
    return Example(
        {"x": rng.random(), "place": rng.choice(["north", "south"])},
        label,
        score={"true": p, "false": 1 - p},
        version=(2, i // 10, 3),
        predicted_at=START + 60 * i - 30,
        no_change=rng.random() < 0.4,
    )


def fill(journal: SqliteJournal, n: int, verdict: Verdict = Verdict.ACCEPTED) -> None:
    rng = random.Random(5)
    partition = journal.register("clicks", "r1", "s" * 64, 0.0).id
    other = journal.register("else", "r1", "s" * 64, 0.0).id
    end = 0
    for first in range(0, n, BATCH):
        rows = [
            NewRow(
                i.to_bytes(16, "big"), f"e{i}", ("web", "app")[i % 2], verdict,
                encode(example(i, rng)), START + 60 * i,
            )
            for i in range(first, min(first + BATCH, n))
        ]  # fmt: skip
        end = journal.append(partition, end, rows).end
    foreign = NewRow(b"f" * 16, "f", "x", verdict, encode(example(0, rng)), START)
    journal.append(other, 0, [foreign])


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[SqliteJournal]:
    path = tmp_path / "state" / "journal.db"
    with closing(SqliteJournal(path, synchronous="OFF", disk_low_mb=0)) as opened:
        yield opened


def test_all_rows_of_the_model_and_of_no_other(journal: SqliteJournal) -> None:
    fill(journal, 3000)
    rows = JournalRows(journal, MODEL)
    made = report_on(origin(MODEL), rows, made_at=0.0, version=lambda: rows.version)
    subject = made.subject
    assert (subject.rows, subject.judged, subject.task) == (3000, 3000, "binary")
    assert subject.labels == ("no", "yes")
    assert subject.positive == "yes"
    assert subject.version == "2.299"
    assert subject.versions == ("epoch 2",)
    assert subject.first_time == START
    assert subject.delay_p50_s == pytest.approx(30, rel=0.06)
    assert made.verdict.state == "ok"
    assert made.training is not None
    assert made.training.verdicts == {"accepted": 3000}
    assert made.slices is not None
    assert {group.by for group in made.slices.worst} >= {"source", "place"}
    # Counted by hand: the same random numbers, drawn again.
    rng, right, newest = random.Random(5), 0, 0
    for i in range(3000):
        row = example(i, rng)
        assert row.score is not None
        right += (row.score["true"] > 0.5) == row.label
        newest += row.no_change == row.label
    assert made.performance.overall.accuracy == right / 3000
    assert made.performance.overall.no_change == newest / 3000


@pytest.mark.parametrize("works", [True, False])
def test_lies_that_weigh_nothing_count_in_no_figure(
    journal: SqliteJournal, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    partition, rng = journal.register("clicks", "r1", "s" * 64, 0.0).id, random.Random(5)
    examples = [example(i, rng) for i in range(1_000)]
    examples += [
        structs.replace(one, label=not one.label, weight=1e-9) if i % 4 == 0 else one
        for i, one in enumerate(example(i, rng) for i in range(1_000, 2_000))
    ]
    end = 0
    for first in range(0, 2_000, BATCH):
        rows = [
            NewRow(i.to_bytes(16, "big"), f"e{i}", "web", Verdict.ACCEPTED, encode(one), START + i)
            for i, one in enumerate(examples[first : first + BATCH], first)
        ]
        end = journal.append(partition, end, rows).end
    if not works:
        monkeypatch.setattr(journal_rows, "weigh", lambda *of: (True, {}))
    made = report_on(origin(MODEL), JournalRows(journal, MODEL), made_at=0.0)
    assert made.subject.rows == 2_000
    assert made.subject.judged == (1_750 if works else 2_000)
    honest = sum(
        (one.score["true"] > 0.5) == one.label
        for one in examples
        if one.score is not None and one.weight == 1.0
    )
    assert (made.performance.overall.accuracy == honest / 1_750) is works


def test_slices_that_the_settings_name_are_shown_with_how_often_their_sets_had_the_label(
    journal: SqliteJournal,
) -> None:
    """Sets of north are wide enough for both labels, those of south have the likelier one."""
    partition, rng = journal.register("clicks", "r1", "s" * 64, 0.0).id, random.Random(5)
    examples = [example(i, rng) for i in range(600)]
    stamps = {"north": STAMP.pack(9.0, 0), "south": STAMP.pack(0.0, 0)}
    examples = [
        structs.replace(one, sure=None if i < 100 else stamps[str(one.features["place"])])
        for i, one in enumerate(examples)
    ]
    rows = [
        NewRow(i.to_bytes(16, "big"), f"e{i}", "web", Verdict.ACCEPTED, encode(one), START + i)
        for i, one in enumerate(examples)
    ]
    journal.append(partition, 0, rows)
    named = MODEL.model_copy(update={"slices": ["place"]})
    made = report_on(origin(named), JournalRows(journal, named, held=held), made_at=0.0)
    assert made.slices is not None
    found = {group.value: group for group in made.slices.declared}
    south = [one for one in examples if one.features["place"] == "south"]
    right = [max(one.score, key=one.score.__getitem__) == ("false", "true")[bool(one.label)]
             for one in south if one.score is not None and one.sure is not None]  # fmt: skip
    assert (found["north"].covered, found["north"].rows) == (1.0, 600 - len(south))
    assert found["south"].sure == len(right) < len(south)
    assert found["south"].covered == pytest.approx(sum(right) / len(right))
    assert {group.covered for group in made.slices.worst} >= {1.0}
    page = render(made)
    assert "Slices that the settings name" in page
    assert "Covered: the share of the answers with a set of labels" in page
    plain = report_on(origin(MODEL), JournalRows(journal, MODEL), made_at=0.0)
    assert plain.slices is not None
    assert (plain.slices.declared, plain.slices.worst[0].covered) == ((), None)
    assert "Covered:" not in render(plain)


def test_declared_slices_are_those_of_the_status_whatever_their_values_are(
    journal: SqliteJournal,
) -> None:
    """Flags, numbers, missing ones, more values than are told apart, and one called source."""
    partition, rng = journal.register("clicks", "r1", "s" * 64, 0.0).id, random.Random(5)
    named = MODEL.model_copy(
        update={"slices": ["vip", "zone", "code", "note", "source"], "slice_values": 35}
    )
    live, rows = Live("binary", named.slices, named.slice_values), []
    for i in range(150):
        features: dict[str, Value] = {
            "vip": float(i % 10 == 0), "zone": i % 3, "code": i % 50,
            "source": ("shop", "till")[i % 3 == 0],
        } | ({} if i < 60 else {"note": ("x" * 80, True)[i % 2]})  # fmt: skip
        one = structs.replace(example(i, rng), features=features)
        live.add(one)
        rows.append(
            NewRow(i.to_bytes(16, "big"), f"e{i}", ("web", "app")[i % 2], Verdict.ACCEPTED,
                   encode(one), START + i)
        )  # fmt: skip
    journal.append(partition, 0, rows)
    made = report_on(origin(named), JournalRows(journal, named), made_at=0.0)
    assert made.slices is not None
    shown = {"missing": "(missing)", "others": "(others)"}
    told: dict[tuple[str, str], Any] = {
        (name, shown.get(value, value)): (scores["n"], pytest.approx(scores["accuracy"]))
        for name, values in live.summary().items()
        for value, scores in values.items()
    }
    assert {(s.by, s.value): (s.rows, s.scores.accuracy) for s in made.slices.declared} == told
    assert {("vip", "1.0"), ("note", "(missing)"), ("code", "(others)")} <= told.keys()
    senders = {s.value: s.rows for s in made.slices.worst if s.by == "(sender)"}
    assert senders == {"web": 75, "app": 75}


def test_a_version_says_nothing_of_sets_that_were_not_counted_by_it(journal: SqliteJournal) -> None:
    fill(journal, 200)
    made = json.loads(to_json(report_on(origin(MODEL), JournalRows(journal, MODEL), made_at=0.0)))
    (version,) = made["performance"]["versions"]
    assert version.keys() == {"by", "value", "rows", "scores"}
    assert made["slices"]["worst"][0].keys() == {*version, "sure", "covered"}


def test_a_span_of_time(journal: SqliteJournal) -> None:
    fill(journal, 3000)
    rows = JournalRows(journal, MODEL, since=START + 60 * 1000, until=START + 60 * 2000)
    made = report_on(origin(MODEL), rows, made_at=0.0)
    assert made.subject.rows == 1000
    assert made.subject.first_time == START + 60 * 1000


def test_quarantined_labels_are_not_believed(journal: SqliteJournal) -> None:
    fill(journal, 500, Verdict.QUARANTINED)
    made = report_on(origin(MODEL), JournalRows(journal, MODEL), made_at=0.0)
    assert made.subject.rows == 500
    assert made.subject.judged == 0
    assert made.verdict.state == "not_enough_data"


def test_an_event_that_is_taught_again_counts_once(journal: SqliteJournal) -> None:
    from online.rows.prediction_ids import event_key

    fill(journal, 300)
    partition = journal.partitions("clicks")[0]
    row = journal.read(partition.id, 5, 1)[0]
    again = NewRow(
        event_key("again", f"7:{row.key.hex()}"),
        f"again:7:{row.partition}:{row.offset}:{row.key.hex()}:{row.event_id}",
        row.source, Verdict.ACCEPTED, row.payload, START + 1e6,
    )  # fmt: skip
    journal.append(partition.id, partition.end, [again])
    made = report_on(origin(MODEL), JournalRows(journal, MODEL), made_at=0.0)
    assert made.subject.rows == 300


def test_the_command_reads_and_writes_nothing_there(journal: SqliteJournal, tmp_path: Path) -> None:
    fill(journal, 1200)
    before = [
        journal.partitions("clicks"),
        journal.follow("clicks", 0, 5000),
        journal.usage("clicks"),
    ]
    settings = tmp_path / "online.yaml"
    settings.write_text(
        f"state_dir: {tmp_path / 'state'}\nmodels:\n  - name: clicks\n    task: binary\n"
        "    learner: logreg\n    classes: {negative: 'no', positive: 'yes'}\n"
    )
    out = tmp_path / "page.html"
    runner = CliRunner()
    prometheus = tmp_path / "online.prom"
    done = runner.invoke(
        app,
        ["report", "--config", str(settings), "--out", str(out), "--prometheus", str(prometheus)],
    )
    assert done.exit_code == 0, done.output
    assert done.output.startswith("OK: ")
    assert "clicks" in out.read_text()
    after = [
        journal.partitions("clicks"),
        journal.follow("clicks", 0, 5000),
        journal.usage("clicks"),
    ]
    assert after == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "online.prom", "online.yaml", "page.html", "state",
    ]  # fmt: skip
    text = prometheus.read_text()
    assert 'online_report_state{model="clicks",origin="journal"} 1.0' in text
    assert 'online_report_rows{model="clicks",origin="journal"} 1200.0' in text
    assert "online_report_since_seconds" not in text, "ok is since ever"
    missing = runner.invoke(
        app, ["report", "--config", str(settings), "--model", "other", "--out", str(out)]
    )
    assert isinstance(missing.exception, ConfigError)


def test_a_journal_without_rows_is_not_enough(journal: SqliteJournal) -> None:
    from evaluation.report.page.render import render

    journal.register("clicks", "r1", "s" * 64, 0.0)
    made = report_on(origin(MODEL), JournalRows(journal, MODEL), made_at=0.0)
    assert made.verdict.state == "not_enough_data"
    assert made.verdict.exit_code == 3
    assert "Not enough data" in render(made)
