"""Text tables as people have them: what `online init` reads, a backfill reads alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.dialect import Dialect, dialect_of
from online.rows.schema import declared_columns
from online.settings.model import ModelSettings
from online.tables import inputs, readers
from online.tables.errors import InputRefused
from online.tables.first_look import open_table
from online.tables.guess import FEATURES, guess

HEAD = "size,income,city,label"
ROWS = [(i, i + 0.5, "Bern" if i % 3 else "", i % 2) for i in range(40)]


def comma(value: object) -> str:
    return str(value).replace(".", ",")


def table(head: str, cells: Any, delimiter: str = ",", above: str = "") -> str:
    rows = [delimiter.join(map(cells, row)) for row in ROWS]
    return "\n".join([above + head.replace(",", delimiter), *rows, ""])


FILES = {
    "plain.csv": table(HEAD, str),
    "semicolons.csv": table(HEAD, str, ";"),
    "decimal_commas.csv": table(HEAD, comma, ";"),
    "excel.csv": table(HEAD, comma, ";", "\ufeffsep=;\n"),
    "tabs.tsv": table(HEAD, str, "\t"),
    "pipes.txt": table(HEAD, str, "|"),
    "blanks.csv": table("size, income , city,label ", lambda cell: f" {cell} "),
    "missing.csv": table(HEAD, lambda cell: "NA" if cell == "" else str(cell)),
}


def taught(path: Path) -> tuple[list[Any], list[Any]]:
    """The rows of a file as its guessed model is taught them by `init`, and by a backfill."""
    found = guess(open_table(path))
    columns = {c.name: c.kind for c in found.columns if c.kind in FEATURES}
    given = {"name": "m", "task": "binary", "learner": "linear", "features": columns}
    declared = declared_columns(ModelSettings.model_validate(given))
    files = inputs.files_of([str(path)], [found.label])
    layout = inputs.layout(
        files, key=None, time=None, ignored=(), known=(), numeric_only=False, missing_ok=False,
        text_bytes_max=100, label=found.label, declared=declared,
    )  # fmt: skip
    counted, shards = inputs.cut(files, np.random.default_rng(0))
    read = [p for shard in shards for p in readers.read(counted[shard.input], shard, layout)]
    assert not any(piece.bad for piece in read)
    rows = [row for piece in read for row in piece.rows.dicts()]
    return [{**row.features, found.label: row.label} for row in found.rows()], rows


@pytest.mark.parametrize("name", FILES)
def test_a_file_teaches_the_same_in_a_backfill_as_in_init(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    shown, backfilled = taught(path)
    assert shown == backfilled
    assert shown == [
        {"size": a, "income": b, "label": y, **({"city": c} if c else {})} for a, b, c, y in ROWS
    ]


def test_a_file_without_a_header_has_numbered_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("".join(f"{i},{i % 5}.5,{i % 2}\n" for i in range(40)))
    shown, backfilled = taught(path)
    assert shown == backfilled
    assert len(shown) == 40
    assert shown[0] == {"c1": 0, "c2": 0.5, "c3": 0}


@pytest.mark.parametrize("head", ["", "size;income, net;city;label\n"])
def test_a_comma_in_each_line_divides_no_values_between_semicolons(
    tmp_path: Path, head: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(head + "".join(f"{i};{i % 5},5;{'ab'[i % 2]};{i % 2}\n" for i in range(60)))
    shown, backfilled = taught(path)
    assert shown == backfilled
    assert list(shown[0].values()) == [0, 0.5, "a", 0]


def test_ids_with_decimals_are_the_categories_that_clients_send(tmp_path: Path) -> None:
    """Whole numbers of which some are missing are floats for pandas, in CSV and in Parquet."""
    ids = [None if i % 9 == 4 else float(100_000 + i % 7) for i in range(60)]
    labels = [i % 2 for i in range(60)]
    lines = [f"{'' if one is None else one},{i % 2}" for i, one in enumerate(ids)]
    (tmp_path / "t.csv").write_text("\n".join(["user_id,label", *lines, ""]))
    pq.write_table(pa.table({"user_id": ids, "label": labels}), tmp_path / "t.parquet")
    wanted = [
        {"label": y, **({"user_id": str(int(v))} if v else {})}
        for v, y in zip(ids, labels, strict=True)
    ]
    for name in ("t.csv", "t.parquet"):
        shown, backfilled = taught(tmp_path / name)
        assert (shown, backfilled) == (wanted, wanted)


def test_labels_that_are_missing_are_no_classes(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("size,label\n1,yes\n2,NA\n3,\n4,no\n")
    files = inputs.files_of([str(path)], ["label"])
    layout = inputs.layout(
        files, key=None, time=None, ignored=(), known=(), numeric_only=False, missing_ok=False,
        text_bytes_max=100, label="label",
    )  # fmt: skip
    counted, (shard,) = inputs.cut(files, np.random.default_rng(0))
    (piece,) = readers.read(counted[0], shard, layout)
    assert piece.rows.columns["label"].items() == ["yes", None, None, "no"]


def test_what_is_no_table_is_refused_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text, said in (
        ("Report of 2026,,,\na,b,c,label\n1,2,3,4\n", "Name each column, and each once, in the fi"),
        ("a,a,label\n1,2,3\n", "two columns are named 'a'. Name each column once"),
        ("a,b\n", "the file has no rows"),
    ):
        path.write_text(text)
        with pytest.raises(InputRefused, match=said):
            inputs.files_of([str(path)], ["label"])
    path.write_text("# made by hand\na,b,label\n1,2,3\n1,2,4\n")
    with pytest.raises(InputRefused, match="what stands above the header"):
        list(open_table(path).rows())


@pytest.mark.parametrize(
    ("rows", "decimal"),
    [
        (["1,5", "2,25"], ","),
        (["1,5", "2.5"], "."),
        (["1,234", "2,345"], "."),  # thousands, or three decimals: it is not said
        (["1,5", "1,2,3"], "."),  # a list
        (["1,5", "1,234.5"], "."),
        (["0,125", "7"], ","),
    ],
)
def test_decimal_commas_are_read_where_nothing_speaks_against_them(
    rows: list[str], decimal: str
) -> None:
    dialect = dialect_of(["a;label\n", *(f"{row};{i}\n" for i, row in enumerate(rows))])
    assert dialect == Dialect(("a", "label"), ";", 1, decimal)


def test_a_value_of_several_lines_hides_no_delimiter() -> None:
    lines = ["note,size,label\n", *('"two\n', 'lines; and, more",1,yes\n') * 30]
    assert dialect_of(lines) == Dialect(("note", "size", "label"))
