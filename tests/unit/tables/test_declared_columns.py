"""Tables of a model that declares its features: read as the door takes rows, in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import backfill_world
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rescore_world

from online.rows.schema import declared_columns
from online.settings import config
from online.settings.model import ModelSettings
from online.tables import inputs, readers
from online.tables.errors import InputRefused
from online.tables.first_look import open_table
from online.tables.guess import guess

FEATURES: dict[str, Any] = {
    "amount": {"type": "number", "range": [0, 10], "required": True},
    "city": "category",
    "member": "bool",
}
HEAD = "amount,city,member,other\n"


def rows_of(path: Path, features: dict[str, Any] = FEATURES) -> tuple[list[Any], list[Any]]:
    """The rows of a table, and number, column and reason of the bad ones."""
    given = {"name": "m", "task": "binary", "learner": "linear", "features": features}
    declared = declared_columns(ModelSettings.model_validate(given))
    files = inputs.files_of([str(path)])
    layout = inputs.layout(
        files, key=None, time=None, ignored=(), known=("amount", "gone"), numeric_only=False,
        missing_ok=False, text_bytes_max=100, declared=declared,
    )  # fmt: skip
    import numpy as np

    counted, shards = inputs.cut(files, np.random.default_rng(0))
    pieces = [p for shard in shards for p in readers.read(counted[shard.input], shard, layout)]
    good = [row for piece in pieces for row in piece.rows.dicts()]
    return good, [(bad.row, bad.column, bad.reason) for piece in pieces for bad in piece.bad]


def test_a_csv_file_is_read_by_the_declared_types(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEAD + "1,17,1,x\n2,18,0,x\n,19,1,x\n11,20,1,x\n3,,,x\n4,21,maybe,x\n")
    good, bad = rows_of(path)
    assert good == [
        {"amount": 1.0, "city": "17", "member": True},
        {"amount": 2.0, "city": "18", "member": False},
        {"amount": 3.0},
    ]
    assert bad == [
        (5, "member", "not true or false"),
        (2, "amount", "it is required, and missing"),
        (3, "amount", "outside of its range"),
    ]


def test_an_empty_cell_is_a_missing_text_in_every_way_to_read_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('amount,city,label\n1,,a\n2,NA,b\n3,"",a\n4,Bonn,b\n5,,\n')
    features = {"amount": "number", "city": "category"}
    good, bad = rows_of(path, features)
    assert good == [{"amount": 1.0}, {"amount": 2.0}, {"amount": 3.0},
                    {"amount": 4.0, "city": "Bonn"}, {"amount": 5.0}]  # fmt: skip
    assert not bad
    guessed = guess(open_table(path), "label")
    assert [row.features for row in guessed.rows()] == good[:4], "the last one has no label"
    needed = {**features, "city": {"type": "category", "required": True}}
    good, bad = rows_of(path, needed)
    assert [row["amount"] for row in good] == [4.0]
    assert {(column, why) for _, column, why in bad} == {("city", "it is required, and missing")}


def test_whole_numbers_of_a_parquet_file_are_a_category_if_that_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"amount": [1.5, 2.5], "city": [17, None], "other": ["x", "y"]})
    pq.write_table(table, path)
    assert rows_of(path) == ([{"amount": 1.5, "city": "17"}, {"amount": 2.5}], [])
    for name, values, kind in (("city", [1.5], "number"), ("member", [1], "integer")):
        pq.write_table(pa.table({"amount": [1.0], name: values}), path)
        with pytest.raises(InputRefused, match=f"column {name}.*it holds {kind}, and is declared"):
            rows_of(path)


def test_json_lines_are_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = [
        {"amount": 1.0, "city": "17"}, {"amount": 2.0, "city": 17.5}, {"amount": "3"},
        {"amount": 4.0, "city": True}, {"amount": 5.0, "city": 17},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    good, bad = rows_of(path)
    assert good == [{"amount": 1.0, "city": "17"}, {"amount": 5.0, "city": "17"}]
    assert [(row, column) for row, column, _ in bad] == [(1, "city"), (2, "amount"), (3, "city")]


def test_ids_of_json_lines_may_be_whole_numbers_as_in_other_files(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"amount": 1.0, "city": 17}\n{"amount": 2.0, "city": 2305843009213693952}\n')
    good, bad = rows_of(path)
    assert ([row["city"] for row in good], bad) == (["17", str(2**61)], [])


def test_a_required_column_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("city,member\nBonn,true\n")
    with pytest.raises(InputRefused, match=r"amount.*it is missing, and declared as required"):
        rows_of(path)


def declare(file: Path, features: str) -> None:
    text = file.read_text().replace("learner: logreg", f"learner: logreg, features: {features}")
    file.write_text(text)


def test_a_backfill_leaves_out_what_is_not_declared(tmp_path: Path) -> None:
    folder = backfill_world.Folder(tmp_path)
    declare(folder.file, "{a: number, b: {type: number, range: [-1, 1]}}")
    folder.settings = config.load(folder.file, {}, {})
    table = backfill_world.labelled(300).drop_columns(["id", "at"])
    outside = [not -1 <= value <= 1 for value in table["b"].to_pylist()]
    path = rescore_world.write(tmp_path / "t.parquet", table)
    facts = folder.backfill("--input", path)
    assert (facts["learned"], facts["quarantined"]) == (300 - sum(outside), sum(outside))
    assert set(folder.weights()) == {"a", "b"}
    assert {(column, why) for _, column, why in folder.aside(facts)} == {
        ("b", "outside of its range")
    }


def test_rescoring_gives_what_the_service_would_give(tmp_path: Path) -> None:
    """The model has learned c as well: by the declaration no row has it any more."""
    table = rescore_world.table(200)
    path = rescore_world.write(tmp_path / "t.parquet", table)
    given = {"name": "m", "task": "binary", "learner": "logreg"}
    model = ModelSettings.model_validate({**given, "features": {"a": "number", "b": "number"}})
    rescore_world.run([path], tmp_path / "out", declared=declared_columns(model))
    scores = [
        row for file in sorted((tmp_path / "out").glob("runs/*/shards/*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]  # fmt: skip
    served = rescore_world.logreg()
    for row, scored in zip(table.to_pylist(), scores, strict=True):
        wanted = served.predict({"a": row["a"], "b": row["b"]}).probabilities
        assert wanted is not None
        assert scored["score"] == pytest.approx(wanted[True], abs=1e-12)
