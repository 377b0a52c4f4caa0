"""What a file is taken for, and what is said of files that can't be reported on."""

from __future__ import annotations

import gzip
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from evaluation.errors import TableUnusable
from evaluation.report import of as report_of
from evaluation.report.build import report_on
from evaluation.report.columns import Asked, assign
from evaluation.report.filerows import FileRows
from evaluation.report.page.render import render
from evaluation.report.table import open_table
from evaluation.report.values import Report
from online.commands.cli import app

Line = Callable[[int, random.Random], str]


def write(path: Path, header: str, line: Line, n: int) -> Path:
    rng = random.Random(1)
    path.write_text(header + "\n" + "".join(line(i, rng) + "\n" for i in range(n)))
    return path


def report(path: Path, asked: Asked | None = None, **options: int | str) -> Report:
    rows = FileRows(path, asked or Asked(), **options)  # type: ignore[arg-type]
    return report_on(rows.origin, rows.rows(), made_at=0.0)


def answer(i: int, rng: random.Random, *, good: float) -> tuple[int, float]:
    label = int(rng.random() < 0.5)
    return label, 0.9 if (rng.random() < good) == bool(label) else 0.1


# -- what is what --------------------------------------------------------------------------------


def test_columns_by_their_names() -> None:
    names = ["id", "Timestamp", "age", "y_true", "y_pred", "y_pred_proba", "model version"]
    roles = assign("f", names, Asked())
    assert roles.columns() == {
        "label": "y_true", "prediction": "y_pred", "score": "y_pred_proba", "time": "Timestamp",
        "label_time": None, "version": "model version", "source": None,
    }  # fmt: skip
    assert roles.features == ("age",)
    assert roles.left_out == ("id",)


def test_columns_as_they_are_named_by_the_caller() -> None:
    names = ["a", "time", "sold", "p", "label"]
    roles = assign("f", names, Asked(label="sold", score="p", time="none", features=("a", "time")))
    assert (roles.label, roles.score, roles.time) == ("sold", "p", None)
    assert roles.features == ("a", "time")
    with pytest.raises(TableUnusable, match="Did you mean `sold`"):
        assign("f", names, Asked(label="solt"))


@pytest.mark.parametrize(
    ("labels", "answers", "task", "names"),
    [
        (["0", "1"], ["0.2", "0.7"], "binary", {True: "1", False: "0"}),
        (["UP", "DOWN"], ["UP", "DOWN"], "binary", {True: "UP", False: "DOWN"}),
        (["true", "False"], ["true", "false"], "binary", {True: "true", False: "false"}),
        (["1", "2", "3"], ["1", "2", "3"], "multiclass", {}),
        (["1.5", "2", "3"], ["1", "2", "3"], "regression", {}),
        (["1", "2", "3"], ["1.2", "2.1", "3.3"], "regression", {}),
    ],
)
def test_the_task_follows_from_the_values(
    tmp_path: Path, labels: list[str], answers: list[str], task: str, names: dict[bool, str]
) -> None:
    def line(i: int, rng: random.Random) -> str:
        return f"{labels[i % len(labels)]},{answers[i % len(answers)]}"

    rows = FileRows(write(tmp_path / "f.csv", "label,prediction", line, 12), Asked())
    assert (rows.origin.task, rows.origin.names) == (task, names)
    if task != "regression":
        (part,) = rows.rows()
        assert list(part.label) == list(part.predicted)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int64()])
def test_labels_that_are_long_numbers_are_told_apart(kind: Any) -> None:
    """A column of whole numbers with a gap is of floats: each digit of them counts."""
    labels = [1_234_567 + i % 3 for i in range(300)]
    wrong = [1_234_567 + (i + 1) % 3 for i in range(300)]
    table = pa.table({"label": pa.array(labels, kind), "prediction": pa.array(wrong, kind)})
    made = report_of(table)
    assert set(made.subject.labels) == {"1234567", "1234568", "1234569"}
    assert made.performance.overall.accuracy == 0.0
    made = report_of({"label": [0.1, 0.25] * 150, "prediction": [0.1, 0.25] * 150}, task="binary")
    assert (set(made.subject.labels), made.performance.overall.accuracy) == ({"0.1", "0.25"}, 1.0)


def test_quarters_of_large_numbers_are_told_apart() -> None:
    """Such as times in seconds, whose first four digits are all the same."""
    n = 400
    at = [1.7e9 + 1000.0 * i for i in range(n)]
    right = [i % 2 if i < n // 2 else 1 for i in range(n)]
    rows: dict[str, list[Any]] = {"label": [1, 0] * (n // 2), "since": at}
    rows["prediction"] = [y if ok else 1 - y for y, ok in zip(rows["label"], right, strict=True)]
    made = report_of(rows, time="none").slices
    assert made is not None
    quarters = {one.value: one.scores.accuracy for one in made.worst if one.by == "since"}
    assert list(quarters.values()).count(0.5) == list(quarters.values()).count(1.0) == 2, quarters


def test_a_column_that_only_sounds_like_a_time_is_a_feature(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", "date,label,score", lambda i, r: f"{i / 99},{i % 2},.5", 9)
    rows = FileRows(path, Asked())
    (part,) = rows.rows()
    assert list(part.features) == ["date"]
    assert np.isnan(part.time).all()


@pytest.mark.parametrize(
    "text", ["2023-11-14T22:13:20Z", "2023-11-14 22:13:20", "1700000000", "1700000000000",
             "2023-11-15T00:13:20+02:00"],
)  # fmt: skip
def test_times_are_read_as_people_write_them(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "f.csv", "time,label,score", lambda i, r: f"{text},{i % 2},.5", 2)
    (part,) = FileRows(path, Asked()).rows()
    assert part.time.tolist() == [1.7e9, 1.7e9]


def test_the_same_table_in_every_form_gives_the_same_report(tmp_path: Path) -> None:
    rng = random.Random(4)
    columns: dict[str, list[object]] = {"x": [], "place": [], "label": [], "score": []}
    for i in range(900):
        label, p = answer(i, rng, good=0.9)
        for name, value in zip(columns, (rng.random(), "ab"[i % 2], label, p), strict=True):
            columns[name].append(value)
    rows = list(zip(*columns.values(), strict=True))
    texts = {s: "\n".join(s.join(map(str, row)) for row in [tuple(columns), *rows]) for s in ",;\t"}
    (tmp_path / "a.csv").write_text(texts[","])
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(texts[","].encode()))
    (tmp_path / "b.csv").write_text("\ufeff" + texts[";"])
    (tmp_path / "a.tsv").write_text(texts["\t"])
    made = pa.table(columns)
    parquet.write_table(made, tmp_path / "a.parquet")
    coded = made.set_column(1, "place", made["place"].dictionary_encode())
    parquet.write_table(coded, tmp_path / "b.pq")
    found = {path.name: report(path) for path in sorted(tmp_path.iterdir())}
    first = found["a.csv"]
    assert first.verdict.state == "ok"
    for name, other in found.items():
        assert other.performance == first.performance, name
        assert other.feature_drift == first.feature_drift, name
        assert other.verdict == first.verdict, name


def test_no_change_knows_only_labels_that_had_come(tmp_path: Path) -> None:
    labels = [int(random.Random(i).random() < 0.5) for i in range(600)]
    path = write(tmp_path / "f.csv", "label,score", lambda i, r: f"{labels[i]},.5", 600)
    late = write(
        tmp_path / "g.csv", "time,label_time,label,score",
        lambda i, r: f"{1.7e9 + i},{1.7e9 + i + 47.5},{labels[i]},.5", 600,
    )  # fmt: skip
    for made, delay in ((report(path), 1), (report(path, delay=48), 48), (report(late), 48)):
        right = sum(labels[i] == labels[i - delay] for i in range(delay, 600))
        assert made.performance.overall.no_change == right / 600


# -- input that can't be judged --------------------------------------------------------------------


def number(i: int, r: random.Random) -> str:
    return f"{r.random()}"


LITTLE: dict[str, tuple[str, Line, int]] = {
    "eight rows": ("x,label,score", lambda i, r: f"{i},{i % 2},{0.3 + 0.4 * (i % 2)}", 8),
    "one class": ("x,label,score", lambda i, r: f"{number(i, r)},1,{number(i, r)}", 900),
    "the other class": ("x,label,score", lambda i, r: f"{number(i, r)},0,{number(i, r)}", 900),
    "one text": ("x,label,prediction", lambda i, r: f"{number(i, r)},cat,cat", 900),
    "constant": ("x,y,label,score", lambda i, r: "1,1,1,0.5", 900),
    "constant numbers": ("x,target,prediction", lambda i, r: "1,2.5,2.5", 900),
    "all late": ("x,label,score", lambda i, r: f"{number(i, r)},,{number(i, r)}", 900),
    "NaN labels": ("x,label,score", lambda i, r: f"{number(i, r)},nan,0.4", 900),
    "NaN answers": ("x,label,score", lambda i, r: f"nan,{i % 2},nan", 900),
    "infinite numbers": ("x,target,prediction", lambda i, r: f"{i},{i / 3},inf", 900),
    "few labels": ("x,label,score", lambda i, r: f"{i},{i % 2 if i % 9 == 0 else ''},.4", 900),
}  # fmt: skip


@pytest.mark.parametrize("name", LITTLE)
def test_not_enough_data(tmp_path: Path, name: str) -> None:
    made = report(write(tmp_path / "f.csv", *LITTLE[name]))
    assert made.verdict.state == "not_enough_data", made.verdict
    assert made.verdict.exit_code == 3
    assert made.verdict.do
    if name in ("eight rows", "NaN answers", "constant"):
        assert "Not enough data" in render(made)


UNUSABLE: dict[str, tuple[str, str, str]] = {
    "empty": ("", "it is empty", "header and rows"),
    "only a header": ("x,label,score\n", "it has no rows", "Name a file with rows"),
    "no label": ("a,score\n1,.5\n", "no column is called like a label", "--label"),
    "no answer": ("a,label\n1,0\n", "no column is called like a prediction", "--prediction"),
    "ragged": ("a,label,score\n1,0,.5\n1,0\n", "Expected 3 columns, got 2", "Mend the file"),
    "no header": ("1,2,3\n1,2,3\n", "its first line is all numbers", "header"),
    "twice": ("a,a,label,score\n1,1,0,.5\n", "column 'a': two columns", "Rename"),
    "no time": ("time,label,score\n2024-01-01,1,.5\nsoon,0,.5\n", "'soon' is no time", "--time"),
    "other labels": ("label,prediction\nUP,1\nDOWN,0\n", "no prediction (0, 1)", "--"),
    "no number": ("target,prediction\n1.5,x\n2.5,y\n", "'x' is no number", "--prediction"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_errors_name_the_file_the_column_and_the_remedy(tmp_path: Path, name: str) -> None:
    text, problem, remedy = UNUSABLE[name]
    path = tmp_path / "scored.csv"
    path.write_text(text)
    with pytest.raises(TableUnusable) as caught:
        report(path)
    told = str(caught.value)
    assert told.startswith("scored.csv")
    assert problem in told
    assert remedy in told


def test_rows_out_of_the_order_of_time(tmp_path: Path) -> None:
    order = list(range(900))
    random.Random(2).shuffle(order)
    path = write(
        tmp_path / "f.csv", "time,label,score", lambda i, r: f"{1.7e9 + order[i]},{i % 2},.5", 900
    )
    with pytest.raises(TableUnusable, match=r"f.csv, column 'time': .* earlier than one before"):
        report(path)
    assert report(path, Asked(time="none")).subject.rows == 900


@pytest.mark.parametrize("data", [bytes(range(256)) * 9, b"PAR1 no", b"\x1f\x8b broken"])
@pytest.mark.parametrize("name", ["f.csv", "f.parquet", "f.csv.gz", "f.xlsx", "missing/f.csv"])
def test_files_that_are_none(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    if not name.startswith("missing"):
        path.write_bytes(data)
    with pytest.raises(TableUnusable) as caught:
        report(path)
    assert str(caught.value).startswith(path.name)


def test_wild_numbers_are_no_verdict_and_no_stack_trace(tmp_path: Path) -> None:
    wild = ["nan", "inf", "-inf", "1e12", "-3", "1e300", "word", "0.7"]

    def line(i: int, rng: random.Random) -> str:
        return f"{rng.choice(wild)},{rng.choice('ab')},{i % 2},{rng.choice(wild[:-2])}"

    made = report(write(tmp_path / "f.csv", "x,y,label,score", line, 900))
    assert made.verdict.state == "not_enough_data"
    assert made.subject.predicted == 0
    assert made.feature_drift is not None
    for feature in made.feature_drift.features:
        for value in (feature.spread.psi, feature.spread.shift_sd, feature.mean_now):
            assert value is None or math.isfinite(value)
    assert render(made)


def test_the_exit_code_is_the_verdicts(tmp_path: Path) -> None:
    def line(i: int, rng: random.Random) -> str:
        label, p = answer(i, rng, good=0.9 if i < 1200 else 0.5)
        return f"{rng.random()},{label},{p}"

    bad = write(tmp_path / "bad.csv", "x,label,score", line, 2000)
    runner, out = CliRunner(), tmp_path / "r.html"
    done = runner.invoke(app, ["report", "--file", str(bad), "--out", str(out)])
    assert done.exit_code == 1
    assert done.output.startswith("ACT: Accuracy fell by ")
    assert out.exists()
    small = write(tmp_path / "small.csv", "x,label,score", line, 8)
    done = runner.invoke(app, ["report", "--file", str(small), "--json"])
    assert done.exit_code == 3
    assert done.output.startswith('{"schema":"online-report/1"')
    done = runner.invoke(app, ["report", "--file", str(small), "--since", "7d"])
    assert done.exit_code == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv", "r.html", "small.csv"]


def test_a_file_as_excel_writes_it_where_decimals_follow_a_comma(tmp_path: Path) -> None:
    rows = [(i / 8, i / 8 + 0.25, f"a,{i}") for i in range(200)]
    tables = {}
    for name, head, comma in (("plain", "", "."), ("excel", "\ufeffsep=;\n", ",")):
        cells = (f"{p!s};{y!s}".replace(".", comma) + f";{text}" for p, y, text in rows)
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join([f"{head}prediction;label;note", *cells, ""]), encoding="utf-8")
        table = open_table(path)
        tables[name] = [
            {column: values.to_pylist() for column, values in batch.items()}
            for batch in table.batches(table.names)
        ]
    assert tables["plain"] == tables["excel"]
    assert tables["excel"][0]["prediction"][:2] == ["0.0", "0.125"]
    assert tables["excel"][0]["note"][1] == "a,1"
