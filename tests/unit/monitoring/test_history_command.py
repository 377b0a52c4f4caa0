"""`online history`: shown, and written as Parquet, CSV and JSON."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from online.commands.cli import application
from online.monitoring.series import FOLDER, Series

MODEL = {"name": "m", "task": "binary", "learner": "logreg"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    file = tmp_path / "online.yaml"
    file.write_text(yaml.safe_dump({"models": [MODEL], "state_dir": str(tmp_path)}))
    begin = time.time() - 400
    with contextlib.closing(Series(tmp_path / FOLDER, "m")) as series:
        for i in range(21):
            last = {"kind": "rollback", "control": 7} if i > 9 else None
            status = {
                "model": "m", "spec": "s", "learner": "logreg", "learned": 10 * i,
                "quality": {"n": 10 * i, "accuracy": 0.8 if i else None},
                "replicas": {"r": {"predictions": 15.0 * i, "age_ms": 3.0}},
                "server": {"epoch": 1}, "rewrites": {"frozen": 0, "banned": [], "last": last},
            }  # fmt: skip
            series.add(status, begin + 15 * i)
    return tmp_path


def run(folder: Path, *words: str) -> Any:
    config = str(folder / "online.yaml")
    return CliRunner().invoke(application("history"), ["history", *words, "--config", config])


def test_every_step_is_written(folder: Path) -> None:
    for name in ("out.parquet", "out.csv", "out.json"):
        assert run(folder, "--since", "1h", "--out", str(folder / name)).exit_code == 0
    table = pq.read_table(folder / "out.parquet")
    assert table.num_rows == 20
    assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"
    assert table["accuracy"].to_pylist() == [pytest.approx(0.8)] * 20
    assert table["predictions_per_s"].to_pylist() == [pytest.approx(1.0)] * 20
    assert "decision: rollback" in table["marks"].to_pylist()
    assert set(table["model"].to_pylist()) == {"m"}
    with (folder / "out.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 20
    assert len(json.loads((folder / "out.json").read_text())["n"]) == 20
    assert run(folder, "--out", str(folder / "out.txt")).exit_code == 1


def test_steps_are_shown(folder: Path) -> None:
    done = run(folder, "--since", "1h", "--points", "5")
    assert done.exit_code == 0
    assert "rollback" in done.output
    found = json.loads(run(folder, "--since", "1h", "--points", "5", "--json").output)
    assert 4 <= len(found["columns"]["at"]) <= 6
    assert "no steps" in run(folder, "--since", "2001-01-01", "--until", "2001-01-02").output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--since", "soon"), "is not a time"),
        (("--since", "1h", "--until", "2001-01-01"), "not before the end"),
        (("--model", "other"), "is not served"),
    ],
)
def test_wrong_words_are_refused(folder: Path, words: tuple[str, ...], said: str) -> None:
    done = run(folder, *words)
    assert done.exit_code == 1
    assert said in str(done.exception)


def test_nothing_is_recorded(folder: Path) -> None:
    (folder / FOLDER / "m.db").unlink()
    assert "nothing is recorded" in str(run(folder).exception)
