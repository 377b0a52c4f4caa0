"""What `online init` writes of somebody else's file is what it guessed, and nothing of theirs."""

from __future__ import annotations

import ast
import csv
import json
import os
import shlex
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from typer.testing import CliRunner

from online.commands import cli
from online.commands.setup import init
from online.tables.errors import InputRefused

BREAKS: Final = ("\n", "\r", "\r\n", "\x85", "\u2028", "\u2029")
"""All that PyYAML takes for the end of a line, and with it of a comment."""
SETTINGS: Final = "models:{0}  - {{name: e, task: binary, learner: subprocess:Popen}}{0}#"


def written(table: Path, *words: str) -> dict[str, Any]:
    """The settings that are written for the table, as they are read again."""
    folder = str(table.parent / "made")
    words = ("init", str(table), "--folder", folder, "--force", "--name", "m", "--json", *words)
    done = CliRunner().invoke(cli.app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = yaml.safe_load((table.parent / "made/online.yaml").read_bytes())
    return found


def evil(line_break: str) -> str:
    return f"x{line_break}{SETTINGS.format(line_break)}"


def log(place: Path, value: str) -> Path:
    """A log of choices with the value as an action and as a feature, and in a second row none."""
    with place.open("w", newline="") as file:
        rows = [("offer", "mood", "clicked"), (value, value, 1), ("b", "good", 0)]
        csv.writer(file).writerows([rows[0], *rows[1:] * 10])
    return place


def labelled(place: Path, value: str) -> Path:
    """A table with the value as a category, and as a class."""
    with place.open("w", newline="") as file:
        rows = [("mood", "n", "label"), (value, 1, value), ("good", 2, "b")]
        csv.writer(file).writerows([rows[0], *rows[1:] * 20])
    return place


@pytest.mark.parametrize("line_break", BREAKS, ids=ascii)
def test_a_value_that_ends_a_line_is_no_setting(tmp_path: Path, line_break: str) -> None:
    choose = "--task", "choose"
    value = evil(line_break)
    same = written(log(tmp_path / "t.csv", "harmless"), *choose)
    assert list(same) == ["cluster", "models"]
    assert written(log(tmp_path / "t.csv", value), *choose) == same
    asked = (tmp_path / "made/online.yaml").read_text().split("curl")[1].splitlines()[0]
    body = json.loads(shlex.split(asked)[-1])
    assert body["context"]["mood"] == value
    assert {"id": value} in body["actions"]

    same = written(labelled(tmp_path / "t.csv", "harmless"))
    said = json.dumps(same).replace('"harmless"', json.dumps(value))
    assert written(labelled(tmp_path / "t.csv", value)) == json.loads(said)


@pytest.mark.parametrize("line_break", BREAKS, ids=ascii)
def test_a_name_that_ends_a_line_is_no_setting(tmp_path: Path, line_break: str) -> None:
    """Of a file it is written out, and of a column of Parquet, which may be any text, refused."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    moods, texts = ["good", "bad"] * 20, [f"these are words {i}" for i in range(40)]
    columns = {"action": moods, "words": texts, "label": [0, 1] * 20}
    place = tmp_path / f"{evil(line_break)}.parquet"
    pq.write_table(pa.table({evil(line_break): texts, **columns}), place)
    with pytest.raises(InputRefused, match="Leave control characters out of names"):
        written(place)
    assert not (tmp_path / "made").exists()

    pq.write_table(pa.table(columns), place)
    chosen = written(place, "--task", "choose", "--label", "label")
    params = {"text": ["words"]}
    model = {"name": "m", "task": "choose", "choose": {"reward_range": [0.0, 1.0]}}
    assert chosen == {
        "cluster": "embedded", "models": [model | {"learner": "rewards", "params": params}],
    }  # fmt: skip

    (model,) = written(place).pop("models")
    assert model["learner"] == "model.py:build"
    assert model["features"] == {"action": {"type": "category", "example": "good"}, "words": "text"}


@pytest.mark.parametrize(
    "name",
    ['a"""\nimport os\n""".csv', 'a\\"""+x+""".csv', 'a"', "a\\", os.fsdecode(b"caf\xe9.csv")],
    ids=ascii,
)
def test_the_name_of_a_file_is_no_code(tmp_path: Path, name: str) -> None:
    place = labelled(tmp_path / f"{name.removesuffix('.csv')}.csv", "c")
    assert list(written(place)) == ["cluster", "models"]
    source = (tmp_path / "made/model.py").read_text(encoding="utf-8")
    said, imported, built = ast.parse(source).body
    assert isinstance(said, ast.Expr)
    assert isinstance(said.value, ast.Constant)
    assert str(said.value.value).startswith("The model m, as `online init` has written it for ")
    assert isinstance(imported, ast.ImportFrom)
    assert isinstance(built, ast.FunctionDef)


def test_without_the_guard_a_value_would_be_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control."""
    monkeypatch.setattr(init, "printable", lambda text: text)
    (model,) = written(log(tmp_path / "t.csv", evil("\u2028")), "--task", "choose")["models"]
    assert model["learner"] == "subprocess:Popen"
