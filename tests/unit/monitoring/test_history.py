"""The history of a model: totals that go on over restarts, samples that get rarer, marks."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online.monitoring import recording
from online.monitoring.recording import Look, Recording
from online.monitoring.samples import Mark, percentile, sample
from online.monitoring.series import FOLDER, Series, file_of, read

DAY_S = 86_400.0
BEGIN = 1_700_000_000.0


def status(n: int, good: int, replicas: dict[str, dict[str, float]], **more: Any) -> dict[str, Any]:
    quality = {"n": n, "accuracy": good / n if n else None, "no_change": 0.5 if n else None}
    return {
        "model": "m", "spec": "s", "learner": "logreg", "quality": quality, "learned": n,
        "replicas": replicas, "server": {"epoch": 1}, "rewrites": {"frozen": False, "banned": []},
        "drift": {"state": "ok"}, "filters": None, "journal": {"size": 1000}, "incidents": [],
        **more,
    }  # fmt: skip


@pytest.fixture
def series(tmp_path: Path) -> Iterator[Series]:
    with contextlib.closing(Series(tmp_path, "m")) as made:
        yield made


def course(
    folder: Path, since: float = BEGIN - 1, until: float = BEGIN + 100, points: int = 2000
) -> Any:
    return read(folder, "m", since, until, points)


def test_steps_are_differences(series: Series, tmp_path: Path) -> None:
    for i, (n, good) in enumerate(((0, 0), (100, 90), (300, 210), (300, 210))):
        report = {"predictions": 50.0 * i, "age_ms": 10.0, "predict_at_3": 10.0 * i}
        series.add(status(n, good, {"one": report}), BEGIN + 10 * i)
    columns = course(tmp_path)["columns"]
    assert columns["n"] == [100, 300, 300]
    assert columns["accuracy"] == [pytest.approx(0.9), pytest.approx(0.6), None]
    assert columns["no_change"][:2] == [pytest.approx(0.5)] * 2
    assert columns["predictions_per_s"] == [5.0] * 3
    assert columns["predict_p99_s"] == [0.001] * 3
    assert columns["age_ms"] == [10.0] * 3


def test_anomalies_are_a_share_of_the_rows_of_a_step(series: Series, tmp_path: Path) -> None:
    for i, (rows, above) in enumerate(((100, 1), (200, 3), (200, 3), (150, 2))):
        odd = {"threshold": 0.99, "rows": rows, "unlabelled": rows, "above": above, "share": 0.01}
        series.add(status(0, 0, {}, anomaly=odd), BEGIN + i)
    assert course(tmp_path)["columns"]["anomalies"] == [pytest.approx(0.02), None, None]


def test_a_young_history_has_as_many_steps_as_it_has_samples(
    series: Series, tmp_path: Path
) -> None:
    for i in range(5):
        series.add(status(10 * i, 10 * i, {}), BEGIN + 15 * i)
    found = course(tmp_path, BEGIN - DAY_S, BEGIN + 60, 300)
    assert found["columns"]["n"] == [10, 20, 30, 40]
    later = course(tmp_path, BEGIN + 20, BEGIN + 60, 300)
    assert later["columns"]["n"] == [20, 30, 40], "the first is the difference to what stood before"


def test_a_replica_that_begins_anew_takes_nothing_away(series: Series, tmp_path: Path) -> None:
    counts = [{"a": 10.0}, {"a": 30.0, "b": 5.0}, {"a": 4.0, "b": 6.0}, {"c": 7.0}]
    for i, made in enumerate(counts):
        reports = {name: {"predictions": value} for name, value in made.items()}
        series.add(status(1, 1, reports), BEGIN + i)
    assert course(tmp_path)["columns"]["predictions_per_s"] == [25.0, 5.0, 7.0]


def test_another_process_goes_on_where_one_ended(tmp_path: Path) -> None:
    for i in range(4):
        with contextlib.closing(Series(tmp_path, "m")) as made:
            made.add(status(10 * i, 10 * i, {"one": {"predictions": 10.0 * i}}), BEGIN + i)
    assert course(tmp_path)["columns"]["predictions_per_s"] == [10.0] * 3
    assert [m["kind"] for m in course(tmp_path)["marks"]] == ["model", "start"], "the first only"


def test_a_clock_that_was_set_back_takes_the_samples_of_its_future_with_it(tmp_path: Path) -> None:
    month_s = 30 * DAY_S
    with contextlib.closing(Series(tmp_path, "m")) as series:
        series.add(status(10, 10, {}), BEGIN)
        series.add(status(20, 20, {}, incidents=["a disk"]), BEGIN + month_s)
        series.add(status(20, 20, {}, incidents=["a disk"]), BEGIN + month_s)
        marks = series.add(status(30, 25, {}, server={"epoch": 2}), BEGIN + 15)
        assert [mark.kind for mark in marks] == ["start"], "alerts go on"
    with contextlib.closing(Series(tmp_path, "m")) as series:
        series.add(status(40, 35, {}), BEGIN + 30)
    found = read(tmp_path, "m", BEGIN, BEGIN + 2 * month_s, None)
    assert found["columns"]["at"] == [BEGIN + 15, BEGIN + 30]
    assert found["columns"]["accuracy"] == [pytest.approx(0.75), pytest.approx(1.0)]
    assert [(m["kind"], m["at"]) for m in found["marks"]] == [
        ("incident", BEGIN + 15), ("start", BEGIN + 15), ("start", BEGIN + 30),
    ]  # fmt: skip


def test_after_a_clock_was_set_back_samples_are_thinned_as_before(tmp_path: Path) -> None:
    with contextlib.closing(Series(tmp_path, "m")) as series:
        series.add(status(1, 1, {}), BEGIN + 30 * DAY_S)
        for i in range(0, 7200, 15):
            series.add(status(i, i, {}), BEGIN + i)
    assert len(course(tmp_path, BEGIN - 1, BEGIN + 2000)["columns"]["at"]) < 60


def test_a_rollback_has_no_score_and_a_mark(series: Series, tmp_path: Path) -> None:
    series.add(status(100, 90, {}), BEGIN)
    last = {"control": 7, "kind": "rollback", "snapshot": "1-2"}
    rewrites = {"frozen": False, "banned": [], "last": last}
    series.add(status(40, 30, {}, rewrites=rewrites, server={"epoch": 2}), BEGIN + 1)
    series.add(status(50, 40, {}, rewrites=rewrites, server={"epoch": 2}), BEGIN + 2)
    found = course(tmp_path)
    assert found["columns"]["accuracy"] == [None, pytest.approx(1.0)]
    assert [(m["kind"], m["text"]) for m in found["marks"][2:]] == [("decision", "rollback")]


def test_a_freeze_and_its_end_are_one_mark_each(series: Series, tmp_path: Path) -> None:
    series.add(status(1, 1, {}), BEGIN)
    for i, kind in enumerate(("freeze", "unfreeze")):
        rewrites = {"frozen": kind == "freeze", "banned": [], "last": {"control": i, "kind": kind}}
        series.add(status(1, 1, {}, rewrites=rewrites), BEGIN + i + 1)
    assert [m["text"] for m in course(tmp_path)["marks"][2:]] == ["frozen", "learns again"]


def test_decisions_between_two_samples_are_a_mark_each(series: Series) -> None:
    marks = list[Mark]()
    series.add(status(1, 1, {}), BEGIN)
    kinds = ["freeze", "rollback", "unfreeze"]
    newest = [{"control": i, "kind": kind} for i, kind in enumerate(kinds, 4)]
    for i, known in enumerate((newest[:1], newest, newest)):
        rewrites = {"frozen": i == 0, "banned": [], "last": known[-1], "newest": known}
        marks += series.add(status(1, 1, {}, rewrites=rewrites), BEGIN + i + 1)
    assert [mark.text for mark in marks] == ["frozen", "rollback", "learns again"]


def test_a_model_that_begins_anew_has_the_score_of_its_own_rows(
    series: Series, tmp_path: Path
) -> None:
    for i, (n, good) in enumerate(((1000, 900), (0, 0), (10, 5))):
        series.add(status(n, good, {}), BEGIN + i)
    assert course(tmp_path)["columns"]["accuracy"] == [None, pytest.approx(0.5)]


def test_marks_say_what_happened_once(series: Series, tmp_path: Path) -> None:
    happened: list[dict[str, Any]] = [
        {"drift": {"state": "act"}},
        {"drift": {"state": "act"}},
        {"filters": {"quarantined_sources": 2}},
        {"spec": "t", "learner": "linear"},
        {"rewrites": {"frozen": True, "banned": ["x"], "last": None}},
        {"incidents": ["i" * 900]},
    ]
    more: dict[str, Any] = {}
    for i, new in enumerate([{}, *happened]):
        more |= new
        series.add(status(1, 1, {}, **more), BEGIN + i)
    marks = course(tmp_path)["marks"][2:]
    assert [m["kind"] for m in marks] == [
        "alarm", "quarantine", "model", "decision", "decision", "incident",
    ]  # fmt: skip
    assert len(marks[-1]["text"]) == 200


def test_an_incident_is_kept_without_the_values_that_it_names(
    series: Series, tmp_path: Path
) -> None:
    told = "it may have a trigger: city = Oslo turns it to yes, taught by bot"
    for i, incidents in enumerate(([], [told, "late: Oslo"])):
        series.add(status(1, 1, {}, incidents=incidents), BEGIN + i)
    assert course(tmp_path)["marks"][-1]["text"] == "it may have a trigger; late"
    assert all(b"Oslo" not in file.read_bytes() for file in tmp_path.iterdir() if file.is_file())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), days=st.integers(1, 40))
def test_thinned_totals_are_those_of_all_samples(
    tmp_path_factory: pytest.TempPathFactory, seed: int, days: int
) -> None:
    """Rows in any span between two samples that stayed are those that were there."""
    folder, rng = tmp_path_factory.mktemp("thin"), random.Random(seed)
    truth: dict[float, int] = {}
    n, at = 0, BEGIN
    with contextlib.closing(Series(folder, "m")) as made:
        for _ in range(200):
            at += rng.expovariate(200 / (days * DAY_S))
            n += rng.randrange(100)
            made.add(status(n, n, {"one": {"learned": float(n)}}), at)
            truth[at] = n
        made.thin(at)
        made.thin(at)
    columns = course(folder, BEGIN, at, rng.randrange(1, 300))["columns"]
    assert columns["at"][-1] == at, "the newest stays"
    assert columns["n"] == [truth[t] for t in columns["at"]]


def test_calibration_drift_and_memory_have_a_course(series: Series, tmp_path: Path) -> None:
    def told(n: int, said: float, share: float) -> dict[str, Any]:
        tenths = [{"n": 0, "score": None, "share": None}] * 7
        tenths += [{"n": n, "score": said, "share": share}]
        found = status(n, n, {"one": {}}, memory_bytes=5e6, updates_behind=3)
        found["quality"]["reliability"] = tenths
        found["drift"]["shifts"] = [{"name": f"x{i}" * 50, "psi": 0.5 - i / 20} for i in range(9)]
        return found

    for at, n, said, share in ((0, 100, 0.75, 0.75), (10, 300, 0.75, 0.65), (20, 300, 0.75, 0.65)):
        series.add(told(n, said, share), BEGIN + at)
    columns = course(tmp_path)["columns"]
    assert columns["calibration_error"] == [pytest.approx(0.15), None]
    assert (columns["memory_bytes"], columns["updates_behind"]) == ([5e6, 5e6], [3, 3])
    drifts = [name for name in columns if name.startswith("psi/")]
    assert (len(drifts), max(map(len, drifts))) == (8, 68)
    assert columns[drifts[0]] == [0.5, 0.5]


def test_samples_of_before_are_read(tmp_path: Path) -> None:
    with contextlib.closing(Series(tmp_path, "m")) as made:
        made.add(status(10, 9, {}), BEGIN)
        old = sample(status(20, 19, {}), BEGIN + 10, None)
        made._db.execute("INSERT INTO samples VALUES (?, ?)", (old.at, msgspec.msgpack.encode(old)))
    with contextlib.closing(Series(tmp_path, "m")) as again:
        again.add(status(30, 29, {}), BEGIN + 20)
    assert course(tmp_path)["columns"]["n"] == [20, 30]


def test_the_memory_is_that_of_processes_of_this_machine() -> None:
    mine = f"{socket.gethostname()}:{os.getpid()}"
    assert (recording.memory_of([f"{mine}:1", "elsewhere:1:2", "odd"]) or 0.0) > 1e6
    assert recording.memory_of(["elsewhere:1:2", "odd"]) is None


def test_a_year_takes_some_megabytes(tmp_path: Path) -> None:
    """400 days, sampled as the service does at the end of each span that stays."""
    report = {f"feedback_{name}": 1.0 for name in ("learned", "clipped", "duplicate")}
    report |= {f"predict_at_{i}": 9.0 for i in range(17)}
    with contextlib.closing(Series(tmp_path, "m")) as made:
        end = BEGIN + 400 * DAY_S
        spans = ((34 * DAY_S, 3600.0), (1.5 * DAY_S, 900.0), (5000.0, 60.0), (0.0, 15.0))
        at, n = BEGIN, 0
        for rest, step in spans:
            while at < end - rest:
                at, n = at + step, n + 7
                taken = status(n, n, {"one": {k: v * n for k, v in report.items()}})
                taken["quality"]["reliability"] = [{"n": n, "score": 0.41, "share": 0.42}] * 10
                taken["drift"]["shifts"] = [{"name": f"feature {i}", "psi": 0.1} for i in range(8)]
                made.add(taken, at)
        rows = made._db.execute("SELECT count(*) FROM samples").fetchone()[0]
        made._db.execute("VACUUM")
    assert 12_000 < rows < 14_500
    assert file_of(tmp_path, "m").stat().st_size < 20 << 20
    assert len(course(tmp_path, BEGIN, end, 300)["columns"]["at"]) <= 301


def test_a_history_that_is_not_there_says_so(tmp_path: Path) -> None:
    found = course(tmp_path)
    assert (found["recorded"], found["columns"]) == (False, {"at": []})


def test_percentiles_are_bounds() -> None:
    assert percentile({}, "predict", 0.5) is None
    counts = {"predict_at_0": 50.0, "predict_at_4": 49.0, "predict_at_16": 1.0}
    assert [percentile(counts, "predict", q) for q in (0.5, 0.99, 1.0)] == [0.0001, 0.0025, 10.0]


def test_a_sample_of_an_empty_model(tmp_path: Path) -> None:
    taken = sample(status(0, 0, {}), BEGIN, None)
    assert (taken.n, taken.totals) == (0.0, {})


def test_nothing_that_goes_wrong_ends_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "EVERY_S", 0.001)
    asked, enough = [0], threading.Event()

    def ask() -> list[dict[str, Any]]:
        asked[0] += 1
        if asked[0] > 6:
            enough.set()
        if asked[0] % 2:
            raise OSError("it does not answer")
        return [status(asked[0], asked[0], {})]

    made = Recording(tmp_path, now_s=lambda: BEGIN + asked[0])
    made.stop()  # before it has begun: nothing
    made.start(ask)
    assert enough.wait(240)
    made.stop()
    assert len(course(tmp_path / FOLDER)["columns"]["at"]) >= 2
    assert not [t for t in threading.enumerate() if t.name == "online-history"]


def test_a_service_that_does_not_answer_is_reported_with_the_reason(tmp_path: Path) -> None:
    heard: queue.SimpleQueue[Look | None] = queue.SimpleQueue()
    made = Recording(tmp_path, heard.put)
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        made.of(f"http://127.0.0.1:{nobody.getsockname()[1]}", lambda: None)
        look = heard.get(timeout=60)
        made.stop()
    assert look is not None
    assert look.failed == "Connection refused"


def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    file_of(tmp_path, "m").write_bytes(b"no database " * 500)
    with pytest.raises(sqlite3.DatabaseError):
        course(tmp_path)
    with contextlib.closing(Series(tmp_path, "m")) as made:  # whoever writes begins anew
        made.add(status(1, 1, {}), BEGIN)
        made.add(status(2, 2, {}), BEGIN + 1)
    assert course(tmp_path)["columns"]["n"] == [2]


def test_an_incident_of_a_replica_from_before_an_update_is_kept(
    series: Series, tmp_path: Path
) -> None:
    for i, incident in enumerate((None, "late: Oslo", None)):
        old = status(1, 1, {}, incident=incident)
        del old["incidents"]
        series.add(old, BEGIN + i)
    assert [m["text"] for m in course(tmp_path)["marks"] if m["kind"] == "incident"] == ["late"]
