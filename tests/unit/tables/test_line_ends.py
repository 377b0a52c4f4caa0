"""Line ends are where pyarrow's rows end, wherever quotes stand and the file is cut."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.csv as pacsv
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from online.tables.inputs import cut, files_of, layout
from online.tables.layout import Layout
from online.tables.line_ends import LineEnds
from online.tables.readers import read


def ended(data: bytes, size: int) -> list[int]:
    """Line ends of a CSV file that is read ``size`` bytes at a time."""
    ends = LineEnds(quoted=True)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return [i * size + int(end) for i, piece in enumerate(pieces) for end in ends.within(piece)]


@settings(max_examples=300, deadline=None)
@given(st.text('a,"\n', max_size=30), st.integers(1, 40))
@example('a,5" x\nb,"c"\n', 40)
@example('"a""b",c\n""\n', 2)
@example('a"",\n"', 3)
def test_each_line_end_is_the_end_of_a_row(text: str, size: int) -> None:
    data = f'{text}",x\nlast\n'.encode() if unfinished(text) else f"{text}\nlast\n".encode()
    ends = [end + 1 for end in ended(data, size)]
    lines = [data[begin:end] for begin, end in pairwise([0, *ends])]
    assert b"".join(lines) == data
    for line in lines:
        assert rows_of(line) == 1
    assert rows_of(data) == len(lines)


def unfinished(text: str) -> bool:
    """Whether a quoted value is open at the end, read byte by byte."""
    inside, begin = False, True
    at = 0
    while at < len(text):
        if inside:
            if text[at] == '"' and text[at + 1 : at + 2] == '"':
                at += 1
            elif text[at] == '"':
                inside = False
            begin = False
        elif begin and text[at] == '"':
            inside = True
        else:
            begin = text[at] in ",\n"
        at += 1
    return inside


def rows_of(data: bytes) -> int:
    """How many rows pyarrow reads, those with too few values included."""
    wrong: list[int] = []

    def skip(row: object) -> str:
        wrong.append(1)
        return "skip"

    table = pacsv.read_csv(
        io.BytesIO(data),
        pacsv.ReadOptions(use_threads=False, column_names=["a"], block_size=len(data) + 1),
        pacsv.ParseOptions(
            newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=skip
        ),
    )
    return table.num_rows + len(wrong)


@pytest.mark.parametrize("size", [64, 1 << 20])
def test_an_inch_in_a_text_is_no_quoted_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("online.tables.inputs.TEXT_BYTES", size)
    file = tmp_path / "pipes.csv"
    lines = [f'{i},{i} inch" pipe' if i % 7 == 3 else f'{i},"plain, {i}"' for i in range(50)]
    file.write_text("\n".join(["size,text", *lines, ""]))
    found = of_any(file)
    counted, shards = cut(files_of([str(file)]), np.random.default_rng(0))
    rows = [
        row
        for shard in shards
        for piece in read(counted[0], shard, found)
        for row in piece.rows.dicts()
    ]
    assert [row["size"] for row in rows] == list(range(50))
    assert rows[3]["text"] == '3 inch" pipe'
    assert rows[4]["text"] == "plain, 4"


def test_columns_without_a_name_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "indexed.csv"
    file.write_text(",size,\n0,1.5,\n1,2.5,\n")
    counted, shards = cut(files_of([str(file)]), np.random.default_rng(0))
    (piece,) = read(counted[0], shards[0], of_any(file))
    assert piece.rows.dicts() == [{"size": 1.5}, {"size": 2.5}]


def of_any(file: Path) -> Layout:
    """The layout of a file whose columns are all features."""
    return layout(
        files_of([str(file)]), key=None, time=None, ignored=(), known=(), numeric_only=False,
        missing_ok=False, text_bytes_max=1000,
    )  # fmt: skip
