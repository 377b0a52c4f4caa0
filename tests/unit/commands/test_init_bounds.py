"""`online init` plays the rows that the service takes, under the settings that it writes."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from online.commands import cli
from online.errors import ConfigError
from online.rows.validator import Validator
from online.settings.config import load


def init(*words: str) -> str:
    done = CliRunner().invoke(cli.app, ["init", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "visits.csv"


def taken(table: Path, features: dict[str, object], label: object) -> None:
    """Check a row as the service does.  Raises RequestError."""
    settings = load(Path("online.yaml"), {}, {})
    validator = Validator(settings.models[0], settings.limits, numeric_only=False)
    validator.features(features, "features")
    validator.label(label, "label")


def test_what_the_table_needs_is_in_the_settings(table: Path) -> None:
    review = "a film about sheep " * 100
    rows = [f"{review} {i},{'good' if i % 3 else 'x' * 1500}" for i in range(60)]
    table.write_text("\n".join(["review,label", *rows]))
    init(str(table))
    assert load(Path("online.yaml"), {}, {}).limits.text_bytes_max == 2048
    taken(table, {"review": review}, "x" * 1500)
    names = [f"f{i}" for i in range(4100)]
    table.write_text(
        "\n".join(
            ",".join([*names, "y"]) if not i else "1.5," * 4100 + str(i % 2) for i in range(30)
        )
    )
    init(str(table), "--force")
    taken(table, dict.fromkeys(names, 1.5), 1)


def test_usual_tables_need_no_limits(table: Path) -> None:
    table.write_text("\n".join(["a,y", *(f"{i % 7}.5,{i % 2}" for i in range(60))]))
    assert "left out" not in init(str(table))
    assert "limits" not in Path("online.yaml").read_text()


def test_rows_that_the_service_refuses_are_not_played(table: Path) -> None:
    rows = [f"{'1e200' if i % 20 == 7 else i % 7},{i % 2}" for i in range(60)]
    table.write_text("\n".join(["a,y", *rows]))
    said = init(str(table))
    assert "played 57 rows" in said
    assert "3 rows were left out: a service refuses them. features.a: 1e+200 is not" in said
    assert json.loads(init(str(table), "--force", "--json"))["refused"] == 3
    table.write_text("\n".join(["a,y", *(f"{i % 7 + 1}e200,{i % 2}" for i in range(60))]))
    with pytest.raises(ConfigError, match=r"a service refuses its rows: features\.a"):
        init(str(table), "--force")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="needs pyarrow")
def test_ids_that_are_numbers_in_json_are_backfilled_as_it_says(table: Path) -> None:
    path = table.with_suffix(".jsonl")
    rows = [{"user_id": i % 9, "a": i % 7 + 0.5, "label": i % 2 == 0} for i in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (command,) = re.findall(r"^  online (backfill .*)$", init(str(path)), re.M)
    done = CliRunner().invoke(cli.app, shlex.split(command))
    assert "visits: 60 rows learned" in done.output


def test_a_table_without_features_is_told_what_its_columns_were_taken_for(table: Path) -> None:
    table.write_text("\n".join(["price,y", *(f'"${i},000.5",{i % 2}' for i in range(1, 300))]))
    with pytest.raises(ConfigError, match=r"\(price is left_out: no value comes twice.*no signs"):
        init(str(table))
