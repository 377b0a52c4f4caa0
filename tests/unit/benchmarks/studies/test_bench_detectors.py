"""The tables about drift in small: streams, injections, marked files, estimates, costs."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.commands.cli import app
from benchmarks.studies.drift import (
    detectors,
    drift,
    injected,
    labelfree,
    marked,
    relearning,
    watching,
)
from benchmarks.studies.drift.detectors import CONTROLS, COURSES
from evaluation.drift.detectors import DETECTORS
from evaluation.errors import StreamUnusable
from evaluation.streams import Row, Stream


@pytest.fixture
def data() -> Path:
    directory = os.environ.get("ONLINE_DATA_DIR")
    if not directory or not (Path(directory) / "elec2").is_dir():
        pytest.skip("no elec2 in ONLINE_DATA_DIR")
    return Path(directory)


def test_error_streams_judge_detectors_and_controls() -> None:
    makes: Any = {"glr": DETECTORS["glr"], **CONTROLS}
    found = detectors.bernoulli(seeds=range(3), null_seeds=(0,), null_rows=5_000, makes=makes)
    line = {row.what: row for row in found}
    assert line["glr"].good
    assert line["glr"].improved_as_down == 1.0
    assert line["never"].abrupt == "- / 1.00"
    assert not line["never"].good
    assert line["every 50"].abrupt == "49 / 0.00"
    assert line["every 50"].mtfa == "50"
    assert not line["every 50"].good


def test_streams_have_the_rates_that_they_say() -> None:
    for course in COURSES:
        rows = [x for seed in range(20) for x in [list(detectors.stream(course, seed))]]
        before = [x for row in rows for x in row[: detectors.IN_CONTROL]]
        after = [x for row in rows for x in row[detectors.IN_CONTROL + course.width :]]
        assert sum(before) / len(before) == pytest.approx(course.before, abs=0.01)
        assert sum(after) / len(after) == pytest.approx(course.after, abs=0.01)
    season = detectors.null(1, swing=0.05, rows=48_000)
    assert sum(season) / len(season) == pytest.approx(0.2, abs=0.01)
    high = [x for i, x in enumerate(season) if 6 <= i % 48 < 18]
    assert sum(high) / len(high) > 0.235


def rows(n: int) -> list[Row]:
    return [({"a": float(i % 7), "b": float(i % 5)}, i % 7 > i % 5) for i in range(n)]


def test_injections_change_what_they_say_from_the_onset_on() -> None:
    data = rows(4_000)
    made, before = injected.trials(data, 1)
    assert set(made) == set(injected.INJECTIONS)
    assert len(before) == 1_000
    for trial in made.values():
        assert 2_000 <= trial.onset < 3_200
        old = [row for row in trial.rows if row[0] < trial.onset]
        assert old == [row for row in made["y_swap"].rows if row[0] < trial.onset]
        assert old[0][0] == 1_001
    fewer = len(made["y_prior"].rows), len(made["x_exceed"].rows)
    assert max(fewer) < len(made["y_swap"].rows) == len(made["x_permutation"].rows)
    swapped = [w for i, _, w in made["y_swap"].rows if i >= made["y_swap"].onset]
    assert sum(swapped[:100]) > 20
    again, _ = injected.trials(data, 1)
    assert again == made


def test_marked_points_are_found_in_their_windows() -> None:
    found = marked._episodes([5, 10_500, 10_600, 12_000, 20_900, 31_500], 40_000)
    assert [list(e.alarms) for e in found] == [[5, 10_500, 10_600], [12_000, 20_900], []]
    assert marked._found(found) == 2
    assert marked._episodes([1], 39_999) == []


def test_elec2_without_labels(data: Path) -> None:
    spans, swapped = labelfree.elec2(data)
    plain = sum(abs(s.plain - s.true) for s in spans) / len(spans)
    assert plain == pytest.approx(0.0227, abs=0.00005)
    assert sum(abs(s.estimated - s.true) for s in spans) / len(spans) <= 0.0227
    assert abs(swapped[0].estimated - swapped[0].true) > 0.3


def test_without_data_it_says_so() -> None:
    for run in (injected.run, marked.run, labelfree.run, watching.run):
        with pytest.raises(StreamUnusable, match="ONLINE_DATA_DIR"):
            run(None)
    with pytest.raises(StreamUnusable, match="ONLINE_DATA_DIR"):
        labelfree.acs(None)


def test_watching_costs_are_told(data: Path) -> None:
    found = watching.run(data, rows=300)
    assert [line.features for line in found] == [8, 8, 33, 33, 256, 256]
    assert all(line.served_us > 0 and line.judged_us > 0 for line in found)


def test_aims_are_judged() -> None:
    line: dict[str, Any] = {f.name: "" for f in fields(detectors.Line)} | {"what": "glr"}
    good, bad = (detectors.Line(**line | {"good": met}) for met in (True, False))
    assert drift.Found([good], [], [], [], []).good
    assert not drift.Found([bad], [], [], [], []).good


def test_the_command_prints_json() -> None:
    result = CliRunner().invoke(app, ["detectors", "--quick", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    names = [row["what"] for row in found["error_streams"]]
    assert names == [*DETECTORS, *CONTROLS]


def test_a_fresh_model_gains_where_labels_change_their_meaning() -> None:
    """Naive Bayes holds on to what it knows; without a change nothing is taken."""

    def stream(change: int) -> Stream:
        drawn = [({"a": float(i * 7 % 11), "b": float(i * 5 % 13)}, i) for i in range(5_000)]
        read = [(x, (x["a"] > x["b"]) is (i < change)) for x, i in drawn]
        return Stream("drawn", "binary", read, len(read), {})

    make = relearning.LEARNERS["naive Bayes"]
    changed = relearning.line(stream(2_500), "naive Bayes", make)
    assert (changed.taught, changed.taken) == (1, 1)
    assert changed.gain > 5.0
    same = relearning.line(stream(5_000), "naive Bayes", make)
    assert (same.gain, same.taken) == (0.0, 0)
