"""The HTTP table in its short form, and the load generator against a service of its own."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fixtures.connection import Connection
from benchmarks.speed import http as bench
from benchmarks.speed import peer as peer_module
from online.service.processes import free_port

_ROW = {"features": {"x": 1.0}, "label": True}


def _bench(*arguments: str, timeout_s: float) -> tuple[int, Any, str]:
    done = subprocess.run(
        [sys.executable, "-m", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.mark.ray
@pytest.mark.long
def test_the_table() -> None:
    """Every line is measured, every request is answered, every event is learned."""
    code, table, errors = _bench("benchmarks", "http", "--quick", timeout_s=400)
    assert code == 0, errors
    assert len(table["lines"]) == 22
    for line in table["lines"]:
        assert 0 < line["low"] <= line["median"] <= line["high"]
        assert line["good"] is None  # a quick run judges nothing
        if line["beside"] is not None:
            assert line["ratio"] == pytest.approx(line["median"] / line["other"])
    asked = [line["target"] for line in table["lines"] if line["target"]]
    assert asked == [
        "≥ 0.75",
        "≥ 0.45",
        "≥ 1.5",
        "≥ 50,000",
        "≥ 20,000",
        "≤ 1.5",
        "≤ 1.5",
        "≤ 2",
        "≤ 1.5",
    ]
    assert table["void"] == (table["lines"][0]["median"] < bench.PEER_MIN)


@pytest.mark.ray
@pytest.mark.long
def test_load_against_a_service_of_its_own() -> None:
    """Three measurements in one start: a rate is looked for, with many rows in each request."""
    options = ["--find", "--rate", "4", "--seconds", "0.5", "--rows", "10", "--mix", "0.5"]
    code, found, errors = _bench(
        "online", "bench", "load", *options, "--p99-ms", "0.02", timeout_s=240
    )
    assert (code, found["rate"]) == (1, 0.0), errors  # nobody answers in 20 µs
    steps = [(step["rate"], step["holds"]) for step in found["steps"]]
    assert steps == [(rate, False) for rate in (4.0, 4.0, 2.0, 2.0, 1.0, 1.0)]
    assert [step["errors"] for step in found["steps"]] == [0] * 6
    assert found["steps"][0]["reached"] == pytest.approx(4.0, rel=0.5)


def _line(**options: Any) -> bench.Line:
    asked = bench._Asked(**{"what": "own", "unit": "ms", "beside": "peer", **options})
    found = {"own": [2.0, 30.0, 4.0], "peer": [1.0, 10.0, 4.0]}
    return bench._line(asked, found, judge=True)


def test_a_ratio_is_made_within_a_round() -> None:
    """The median of the ratios, not the ratio of the medians: 2, 3 and 1 here."""
    line = _line(least=2.0)
    assert (line.ratio_low, line.ratio, line.ratio_high) == (1.0, 2.0, 3.0)
    assert (line.median, line.low, line.high, line.other) == (4.0, 2.0, 30.0, 4.0)
    assert line.good is True
    assert _line(least=2.1).good is False
    assert _line(most=2.0).good is True
    assert _line(most=1.9).good is False
    assert _line(least=4.0, of_value=True).good is True
    assert _line(least=4.1, of_value=True).good is False
    assert _line().good is None


@pytest.mark.parametrize("void", [True, False])
def test_a_void_or_missed_table_is_not_good(void: bool) -> None:
    good, missed, unjudged = _line(least=2.0), _line(least=2.1), _line()
    assert bench.Table([good, unjudged], void, []).good is not void
    assert not bench.Table([good, missed], void, []).good
    shown = bench.shown(bench.Table([missed, unjudged], void, []))
    assert [row["good"] for row in shown] == ["NO", ""]
    assert shown[0]["ratio (spread)"] == "2 (1…3)"


def test_the_peer_is_small() -> None:
    folder = Path(str(peer_module.__file__)).parent
    for name in ("peer.py", "peer_durable.py"):
        assert len((folder / name).read_text().splitlines()) <= 40


def test_the_peer_commits_each_row_and_takes_many(tmp_path: Path) -> None:
    """One commit a request on one way to learn only, as durable as the journal."""
    file, port = tmp_path / "rows.db", free_port()
    command = [sys.executable, "-m", "benchmarks.speed.peer_durable", str(port), str(file)]
    process = subprocess.Popen(command)
    try:
        bench._await_answer(process, port)
        with contextlib.closing(Connection(f"http://127.0.0.1:{port}")) as client:
            assert client.post("/learn", _ROW) == (200, {"status": "learned"})
            for n in range(3):
                assert client.post("/learn_durable", _ROW) == (200, {"status": "learned"})
                with contextlib.closing(sqlite3.connect(file)) as db:
                    assert db.execute("SELECT count(*) FROM rows").fetchone() == (n + 1,)
                    assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            code, answers = client.post("/predict_many", [_ROW, {"features": {"x": -1.0}}])
            assert (code, len(answers)) == (200, 2)
            assert answers[0] == client.post("/predict", _ROW)[1]
            assert client.post("/learn_many", [_ROW] * 2) == (200, [{"status": "learned"}] * 2)
    finally:
        process.terminate()
        process.wait(240)


def test_a_peer_that_does_not_start_is_said() -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"])
    process.wait(240)
    begun = time.monotonic()
    with pytest.raises(bench.StartRefused):
        bench._await_answer(process, free_port())
    assert time.monotonic() - begun < 120
