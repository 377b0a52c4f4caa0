"""Tables of one's own, played: the same rows as `online init` plays."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.errors import StreamUnusable
from online.errors import ConfigError
from online.tables.errors import InputRefused
from online.tables.streams import stream_of

ROWS = [{"id": f"v{i}", "label": "no" if i % 7 < 3 else "yes", "x": i % 7 + 0.5} for i in range(60)]


def separated(by: str) -> bytes:
    lines = (by.join(str(value) for value in row.values()) for row in ROWS)
    return "\n".join([by.join(ROWS[0]), *lines, ""]).encode()


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(ROWS), sink)
    return bytes(sink.getvalue())


LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()
FILES = {
    "t.csv": separated(","), "t.txt": separated(";"), "t.tsv": separated("\t"),
    "t.ndjson": LINES, "t.jsonl.gz": gzip.compress(LINES), "t.parquet": parquet(),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_each_table_that_init_reads_is_played(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    stream = stream_of(str(tmp_path / name), None)
    assert (stream.name, stream.task, stream.n_rows) == (name, "binary", 60)
    assert stream.label_names == {False: "no", True: "yes"}
    for _ in range(2):  # it can be played again
        assert list(stream.rows) == [({"x": r["x"]}, r["label"] == "yes") for r in ROWS]


def test_label_and_task_can_be_given(tmp_path: Path) -> None:
    path = tmp_path / "stars.csv"
    path.write_text("stars,x\n" + "".join(f"{i % 5},{i}.5\n" for i in range(60)))
    assert stream_of(str(path), None).task == "multiclass"
    told = stream_of(str(path), None, task="regression")
    assert (told.task, next(iter(told.rows))) == ("regression", ({"x": 0.5}, 0.0))
    assert stream_of(str(path), None, label="x").task == "regression"


def test_what_can_not_be_played_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    path.write_text("x,label\n" + "".join(f"{i}.5,{i % 2}\n" for i in range(40)) + "1.5,7\n")
    monkeypatch.setattr("online.tables.guess.LOOK_ROWS", 40)
    with pytest.raises(ConfigError, match="7 in column label is a third label"):
        stream_of(str(path), None)
    with pytest.raises(InputRefused, match="No such file"):
        stream_of(str(tmp_path / "gone.tsv"), None)
    (tmp_path / "rows.json").write_text("[]")
    with pytest.raises(InputRefused, match="one object a line"):
        stream_of(str(tmp_path / "rows.json"), None)
    with pytest.raises(StreamUnusable, match="Did you mean `phishing`"):
        stream_of("phising", None)
