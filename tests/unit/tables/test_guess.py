"""What a table is: its delimiter, its header, and what its columns are for."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.dialect import NULLS, Dialect
from online.errors import ConfigError
from online.tables.actions import action_of
from online.tables.errors import InputRefused
from online.tables.first_look import open_table, value_of
from online.tables.guess import Guess, guess, seconds


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def guessed(folder: Path, text: str, name: str = "t.csv", **given: str) -> Guess:
    return guess(open_table(written(folder, text, name)), **given)  # type: ignore[arg-type]


def kinds(found: Guess) -> dict[str, str]:
    return {column.name: column.kind for column in found.columns}


@pytest.mark.parametrize(
    ("text", "name", "names", "header"),
    [
        ("a,b\n1,x\n2,y\n", "t.csv", ("a", "b"), True),
        ("a;b\n1,5;x\n2,5;y\n", "t.csv", ("a", "b"), True),
        ("a\tb\n1\tx, y\n", "t.tsv", ("a", "b"), True),
        ("1.5,2,3\n2.5,3,4\n", "t.csv", ("c1", "c2", "c3"), False),
        ('ham\tHello, "you\nspam\tWin!! now\nham\tOk\n', "t.tsv", ("c1", "c2"), False),
        ("yes,red\nno,blue\nyes,red\n", "t.csv", ("c1", "c2"), False),
        ("@price,Q&A,price (€)\n1,x,2\n2,y,3\n", "t.csv", ("@price", "Q&A", "price (€)"), True),
        ("+49 30,-x\n+49 31,-y\n", "t.csv", ("c1", "c2"), False),
        ("😀,--\nx,y\n", "t.csv", ("c1", "c2"), False),
        (",size,label,\n0,2.5,yes,\n1,3.5,no,\n", "t.csv", ("", "size", "label", ""), True),
        (",red,1\n,blue,2\n", "t.csv", ("c1", "c2", "c3"), False),
    ],
)
def test_delimiter_and_header_are_told(
    tmp_path: Path, text: str, name: str, names: tuple[str, ...], header: bool
) -> None:
    table = open_table(written(tmp_path, text, name))
    assert table.dialect is not None
    assert (table.names, table.dialect.above) == (names, header)
    assert len(list(table.rows())) == text.count("\n") - header


def test_a_line_with_a_column_that_the_caller_names_is_the_header(tmp_path: Path) -> None:
    file = written(tmp_path, "2020,label\n1,2020\n2,label\n")
    assert open_table(file).names == ("c1", "c2")
    assert open_table(file, {"label"}).names == ("2020", "label")


def test_a_cell_that_is_too_long_is_refused_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"t\.csv: field larger than"):
        open_table(written(tmp_path, f"a,b\n{'x' * 200_000},1\n"))


def test_a_column_of_numbers_may_have_missing_ones(tmp_path: Path) -> None:
    """They are missing under the same spellings as for a backfill of the same file."""
    lines = [f"{NULLS[i % 14 // 2] if i % 2 else i},{i % 3}" for i in range(60)]
    found = guessed(tmp_path, "\n".join(["a,label", *lines]) + "\n")
    assert kinds(found)["a"] == "number"


def test_cells_are_plain_values() -> None:
    cells = {"1": 1, "-2.50": -2.5, " x ": "x", "": None, "TRUE": True, "nan": None, "NA": None,
             "12345678901234567890": 12345678901234567890, "1e3": 1000.0}  # fmt: skip
    assert {cell: value_of(cell, Dialect(("a",))) for cell in cells} == cells
    assert [action_of(v) for v in (7, 7.0, "7", 7.5, None, True)] == [
        "7",
        "7",
        "7",
        "7.5",
        None,
        "true",
    ]
    assert seconds("2026-01-31T12:00:00+00:00") == 1769860800.0
    assert (seconds(1769860800), seconds(1769860800000.0)) == (1769860800.0, 1769860800.0)
    assert seconds(2016) is seconds("soon") is seconds(0.5) is None


def test_damaged_and_strange_files_are_refused_with_the_place(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="line 3: 1 of 2 cells"):
        list(open_table(written(tmp_path, "a,b\n1,2\n3\n")).rows())
    with pytest.raises(InputRefused, match=r"no table by its name.*jq -c \.\[\] "):
        open_table(tmp_path / "t.json")
    with pytest.raises(InputRefused, match="No such file"):
        open_table(tmp_path / "absent.csv")
    with pytest.raises(InputRefused, match="it has no rows"):
        open_table(written(tmp_path, "a,b\n"))
    with pytest.raises(InputRefused, match="two columns are named 'a'"):
        open_table(written(tmp_path, "a,b,a,label\n1,2,3,4\n"), {"label"})
    with pytest.raises(InputRefused, match=r"'a.x1b., label'\. Leave control characters out"):
        open_table(written(tmp_path, "a\x1b[,label\n1,2\n"), {"label"})
    written(tmp_path, "no gzip", "t.csv.gz")
    with pytest.raises(InputRefused, match=r"t\.csv\.gz"):
        open_table(tmp_path / "t.csv.gz")
    for encoding, named in (("latin-1", "WINDOWS-1252"), ("utf-16", "UTF-16")):
        (tmp_path / "t.csv").write_text("größe,y\n1,2\n", encoding=encoding)
        with pytest.raises(InputRefused, match=rf"not UTF-8.*\n?.*iconv -f {named} "):
            open_table(tmp_path / "t.csv")
    written(tmp_path, "no parquet", "t.parquet")
    with pytest.raises(InputRefused, match=r"t\.parquet"):
        open_table(tmp_path / "t.parquet")


SHOP = "order_id,userId,created_at,price,city,note,prediction,label\n" + "".join(
    f"o{i},{i % 4},2026-01-{28 - i:02},{i / 8},{'abc'[i % 3]},"
    f"please bring it soon {i},0.5,{'yes' if i % 3 else 'no'}\n"
    for i in range(20)
)


def test_columns_are_told_by_name_and_values(tmp_path: Path) -> None:
    found = guessed(tmp_path, SHOP)
    assert kinds(found) == {
        "order_id": "event_id", "userId": "category", "created_at": "time", "price": "number",
        "city": "category", "note": "text", "prediction": "left_out", "label": "label",
    }  # fmt: skip
    assert (found.task, found.classes) == ("binary", ("no", "yes"))
    rows = list(found.rows())
    assert [row.event_id for row in rows] == [f"o{i}" for i in range(19, -1, -1)], "by their times"
    assert rows[-1].features == {
        "userId": "0", "price": 0, "city": "a", "note": "please bring it soon 0",
    }  # fmt: skip
    assert (rows[0].label, found.canonical(rows[0].label)) == ("yes", True)
    assert rows[0].at == seconds("2026-01-09")


def test_a_column_in_which_no_value_comes_twice_is_no_feature(tmp_path: Path) -> None:
    rows = "".join(
        f"O-{i},{i % 28 + 1:02}.01.2026 03:00,n{'ab'[i % 2] * i},{i % 3},{i % 2}\n"
        for i in range(150)
    )
    found = guessed(tmp_path, f"order,ordered at,owner,size,up\n{rows}")
    assert kinds(found) == {
        "order": "event_id", "ordered at": "time", "owner": "left_out", "size": "number",
        "up": "label",
    }  # fmt: skip
    assert seconds("31.01.2026 12:00") == seconds("2026-01-31T12:00:00")


def test_numbers_with_a_comma_are_named_as_such(tmp_path: Path) -> None:
    rows = "".join(f'"{i % 40},5","{i},25",{i % 3},{i % 2}\n' for i in range(200))
    found = guessed(tmp_path, f"a,b,c,y\n{rows}")
    said = {column.name: column.why for column in found.columns}
    assert kinds(found) == {"a": "category", "b": "left_out", "c": "number", "y": "label"}
    assert said["a"] == "40 different values; numbers, if they had a point for the comma"
    assert said["b"].endswith("200 different ones; numbers, if they had a point for the comma")
    with pytest.raises(ConfigError, match="Write a point for the comma"):
        guessed(tmp_path, f"a,b,c,y\n{rows}", label="a", task="regression")
    mixed = guessed(tmp_path, "a,y\n" + "".join(f"{'uv'[i % 2]},{i % 2}\n" for i in range(200)))
    assert mixed.columns[0].why == "2 different values"


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__", "index", "row_number"])
def test_a_rows_number_is_left_out(tmp_path: Path, name: str) -> None:
    lines = "".join(f"{i},{i % 7}.5,{i % 2}\n" for i in range(30))
    found = guessed(tmp_path, f"{name},size,label\n{lines}")
    assert kinds(found) == {name: "left_out", "size": "number", "label": "label"}
    assert next(found.rows()).features == {"size": 0.5}


@pytest.mark.parametrize("cells", [("$1,200.50", "$80"), ("12.5%", "7 %"), ("1,000", "€2")])
def test_numbers_with_signs_are_named_as_such(tmp_path: Path, cells: tuple[str, str]) -> None:
    lines = "".join(f'"{cells[i % 2]}",{i % 2}\n' for i in range(30))
    found = guessed(tmp_path, f"amount,label\n{lines}")
    assert found.columns[0].why.endswith(
        "numbers, if they had no signs, such as $ and %, and no commas"
    )


def test_codes_of_digits_are_categories(tmp_path: Path) -> None:
    lines = "".join(
        f"{zip},{i % 3}_{i % 2},{i % 2}\n" for i, zip in enumerate(["01234", "90210"] * 9)
    )
    found = guessed(tmp_path, f"zip,part,label\n{lines}")
    assert kinds(found) == {"zip": "category", "part": "category", "label": "label"}
    assert found.columns[0].why == "2 different values", "nothing keeps it from being a number"
    rows = found.rows()
    assert next(rows).features == {"zip": "01234", "part": "0_0"}
    assert next(rows).features == {"zip": "90210", "part": "1_1"}


def test_json_lines_are_read_like_a_table(tmp_path: Path) -> None:
    line = '{{"size": {}.5, "of": {{"a": 1}}, "colour": "{}", "label": {}}}\n\n'
    text = "".join(line.format(i, "red" if i % 3 else "blue", i % 2) for i in range(30))
    found = guessed(tmp_path, text + '{"label": 1, "size": null}\n', "t.jsonl")
    assert kinds(found) == {
        "size": "number", "of": "left_out", "colour": "category", "label": "label",
    }  # fmt: skip
    rows = list(found.rows())
    assert (rows[0].features, rows[0].label) == ({"size": 0.5, "colour": "blue"}, 0)
    assert rows[-1].features == {}
    with pytest.raises(InputRefused, match="line 2: no JSON object"):
        open_table(written(tmp_path, '{"a": 1}\n[1]\n', "b.ndjson"))


def test_a_name_of_time_without_times_is_a_number(tmp_path: Path) -> None:
    assert kinds(guessed(tmp_path, "date,up\n0.1,1\n0.2,0\n"))["date"] == "number"


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_berlin")
def test_rows_stay_in_order_when_the_clocks_are_set_back(tmp_path: Path) -> None:
    at = [f"2026-10-25 0{h}:{m:02d}:00" for h in (0, 1, 2, 3) for m in range(0, 60, 10)]
    lines = "".join(f"{when},{i},{i % 2}\n" for i, when in enumerate(at))
    rows = list(guessed(tmp_path, f"time,size,label\n{lines}").rows())
    assert [row.features["size"] for row in rows] == list(range(24))
    assert [row.at - rows[0].at for row in rows] == [600.0 * i for i in range(24)]
    assert seconds("25.10.2026 03:00") == seconds("2026-10-25T03:00Z") == 1792897200.0


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (["yes", "no", "no"], "binary", ("no", "yes")),
        (["good", "bad", "good"], "binary", ("good", "bad")),
        (["ham", "spam", "ham"], "binary", ("ham", "spam")),
        (["1", "0", "1"], "binary", (0, 1)),
        (["true", "false", "true"], "binary", (False, True)),
        (["2", "5", "7"], "multiclass", (2, 5, 7)),
        (["a", "b", "c"], "multiclass", ("a", "b", "c")),
        (["0.5", "3", "4.5"], "regression", ()),
        ([str(i) for i in range(150)], "regression", ()),
    ],
)
def test_the_task_is_that_of_the_label(
    tmp_path: Path, labels: list[str], task: str, classes: tuple[object, ...]
) -> None:
    text = "x,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(labels))
    found = guessed(tmp_path, text)
    assert (found.task, found.classes) == (task, classes)


def test_what_is_given_is_not_guessed_and_what_can_not_be_is_refused(tmp_path: Path) -> None:
    text = "a,b,label\n1,x,yes\n2,y,no\n3,z,yes\n"
    assert guessed(tmp_path, text, label="b").task == "multiclass"
    assert guessed(tmp_path, text, label="a", task="regression").task == "regression"
    with pytest.raises(ConfigError, match="Name one of: a, b, label"):
        guessed(tmp_path, text, label="c")
    with pytest.raises(ConfigError, match="has texts"):
        guessed(tmp_path, text, task="regression")
    with pytest.raises(ConfigError, match="3 different values, no label of a binary"):
        guessed(tmp_path, text, label="b", task="binary")
    with pytest.raises(ConfigError, match="no column looks like a label"):
        guessed(
            tmp_path, "note,order_id\n" + "".join(f"one two three {i},{i}\n" for i in range(12))
        )


def test_parquet_and_gzip_are_read_alike(tmp_path: Path) -> None:
    table = pa.table({"x": [1.0, float("nan"), 3.0], "c": ["7", None, "8"], "label": [1, 0, 1]})
    pq.write_table(table, tmp_path / "t.pq")
    found = guess(open_table(tmp_path / "t.pq"))
    assert kinds(found) == {"x": "number", "c": "category", "label": "label"}
    assert [row.features for row in found.rows()] == [
        {"x": 1.0, "c": "7"},
        {},
        {"x": 3.0, "c": "8"},
    ]
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write("x,c,label\n1,7,1\n,,0\n3,8,1\n")
    again = guess(open_table(tmp_path / "t.csv.gz"))
    assert [row.label for row in again.rows()] == [1, 0, 1]
    assert kinds(again)["c"] == "number", "a CSV file has no types"


def test_what_no_feature_can_be_is_named_and_decimals_are_numbers(tmp_path: Path) -> None:
    """A backfill refuses such columns: lists, durations, times that are not in a column of time."""
    n = 120
    days = [date(2026, 1, 1) + timedelta(days=i) for i in range(n)]
    table = pa.table({
        "cost": [Decimal(i) / 4 for i in range(n)], "tags": [["a"]] * n,
        "took": pa.array(range(n), pa.duration("s")), "day": days, "when": days[::-1],
        "label": [i % 2 for i in range(n)],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    found = guess(open_table(tmp_path / "t.parquet"))
    said = {column.name: (column.kind, column.why) for column in found.columns}
    assert said["cost"][0] == "number"
    assert {said[name][0] for name in ("tags", "took", "day")} == {"left_out"}
    assert said["tags"][1] == "no feature can have its type, list<element: string>"
    assert said["when"] == (
        "time", "its name, and its values are times: the order of the rows, "
        "but not that of the file: sort it for a backfill",
    )  # fmt: skip
    assert next(found.rows()).features == {"cost": 29.75}


def test_a_label_says_which_rows_lack_it_and_which_classes_may_be_one(tmp_path: Path) -> None:
    labels = ("yes", "no", "Yes", "NA", "#N/A", " ")
    found = guessed(tmp_path, "x,label\n" + "".join(f"{i},{labels[i % 6]}\n" for i in range(60)))
    assert [column.why for column in found.columns][1] == (
        "its name; 30 of 60 rows have none, and teach nothing; "
        "'Yes' and 'yes' are two classes: write them alike if they are one"
    )
    assert len(list(found.rows())) == 30


def test_a_text_among_numbers_and_dates_that_are_not_read_are_named(tmp_path: Path) -> None:
    lines = [f"{i if i else 'Total'},{i % 12 + 1}/{i % 28 + 1}/2026,{i % 2}" for i in range(60)]
    found = guessed(tmp_path, "\n".join(["a,b,label", *lines]) + "\n")
    said = {column.name: (column.kind, column.why) for column in found.columns}
    assert said["a"] == ("category", "60 different values; numbers, but for 'Total'")
    assert said["b"][0] == "left_out"
    assert said["b"][1].startswith("times, if they were written as")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_integers_that_no_float_holds_are_names_and_no_quantities(
    tmp_path: Path, name: str
) -> None:
    """A service refuses such a number, and its rows with it."""
    columns = {
        "account": [2**60 + i % 3 for i in range(30)], "x": [float(i) for i in range(30)],
        "label": [i % 2 for i in range(30)],
    }  # fmt: skip
    if name == "t.csv":
        lines = (",".join(map(str, row)) for row in zip(*columns.values(), strict=True))
        written(tmp_path, "\n".join([",".join(columns), *lines, ""]))
    else:
        pq.write_table(pa.table(columns), tmp_path / name)
    found = guess(open_table(tmp_path / name))
    assert kinds(found)["account"] == "category"
    assert next(found.rows()).features == {"account": str(2**60), "x": 0.0}


def test_thousands_are_not_read_as_decimals(tmp_path: Path) -> None:
    found = guessed(tmp_path, "a,y\n" + "".join(f'"{i},500",{i % 2}\n' for i in range(1, 30)))
    assert "if they had no signs, such as $ and %, and no commas" in found.columns[0].why
