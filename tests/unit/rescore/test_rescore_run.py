"""Runs of re-scoring: bad tables, bad rows, audit, publication, and going on after a stop."""

from __future__ import annotations

import errno
import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rescore_world as worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, linear_model

from online.models.adapters.opaque import Opaque
from online.rescore import audit, errors
from online.rescore import run as runs
from online.rescore.errors import AuditFailed, RunRefused
from online.rescore.run import pointer
from online.tables import inputs, places, readers
from online.tables.columns import Numbers
from online.tables.errors import InputRefused, LocationFailed
from online.tables.places import Folder, Location


def scores(output: Path, run: str) -> list[dict[str, Any]]:
    found = sorted((output / "runs" / run / "shards").iterdir())
    return [row for path in found for row in pq.read_table(path).to_pylist()]


def bad(output: Path, run: str) -> list[tuple[int, str, str]]:
    found = sorted((output / "runs" / run / "quarantine").glob("*"))
    rows = [row for path in found for row in pq.read_table(path).to_pylist()]
    return [(row["row"], row["column"], row["reason"]) for row in rows]


def published(output: Path) -> str | None:
    run = pointer(Folder(Location(str(output)))).run
    return None if run is None else run.name


# -- the whole way ---------------------------------------------------------------------------


def test_every_row_is_scored_as_alone(tmp_path: Path) -> None:
    found = worlds.table(1_050)
    outcome = worlds.run([worlds.write(tmp_path / "t.parquet", found)], tmp_path / "out")
    assert (outcome.scored, outcome.quarantined, outcome.shards) == (1_050, 0, 11)
    model = worlds.logreg()
    for row, x in zip(scores(tmp_path / "out", outcome.run), found.to_pylist(), strict=True):
        key = x.pop("id")
        one = model.predict(x)
        assert (row["key"], row["row"]) == (str(key), key)
        assert row["prediction"] == ("true" if one.label else "false")
        assert abs(row["score"] - one.probabilities[True]) <= 1e-12
    assert published(tmp_path / "out") == outcome.run
    again = worlds.run([str(tmp_path / "t.parquet")], tmp_path / "out")
    assert again.was_published
    assert again.scored == 0


@pytest.mark.parametrize("form", ["csv", "csv.gz", "jsonl", "jsonl.gz"])
def test_text_gives_what_parquet_gives(tmp_path: Path, form: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(inputs, "TEXT_BYTES", 4_000)
    found = worlds.table(700)
    rows = found.to_pylist()
    if form.startswith("csv"):
        text = "\n".join(["id,a,b,c", *(",".join(map(repr, x.values())) for x in rows)])
    else:
        text = "\n".join(map(json.dumps, rows)) + "\n"
    path = tmp_path / f"t.{form}"
    data = text.encode()
    path.write_bytes(gzip.compress(data) if form.endswith("gz") else data)
    outcome = worlds.run([str(path)], tmp_path / "out")
    whole = worlds.run([worlds.write(tmp_path / "t.parquet", found)], tmp_path / "whole")
    assert outcome.shards > 5
    for row, expected in zip(scores(tmp_path / "out", outcome.run),
                             scores(tmp_path / "whole", whole.run), strict=True):  # fmt: skip
        assert abs(row.pop("score") - expected.pop("score")) <= 1e-12  # batches are others
        assert row == expected


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(alphabet='ab,"\n', max_size=6), min_size=1, max_size=30),
    size=st.integers(8, 90),
)
def test_csv_is_cut_at_row_ends(texts: list[str], size: int, tmp_path_factory: Any) -> None:
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([["id", "x"], *([i, text] for i, text in enumerate(texts))])
    path = tmp_path_factory.mktemp("cut") / "t.csv"
    path.write_bytes(out.getvalue().encode())
    one = inputs.files_of([str(path)])[0]
    before, inputs.TEXT_BYTES = inputs.TEXT_BYTES, size  # type: ignore[misc]
    try:
        counted, shards = inputs.cut([one], np.random.default_rng(0))
    finally:
        inputs.TEXT_BYTES = before  # type: ignore[misc]
    assert counted[0].rows == len(texts)
    data = path.read_bytes()
    assert [s.first for s in shards] == [
        sum(s.rows for s in shards[:i]) for i in range(len(shards))
    ]
    read = [
        row for s in shards for row in csv.reader(io.StringIO(data[s.begin : s.end].decode(),
                                                              newline=""))
    ]  # fmt: skip
    assert [row[1] for row in read] == texts


# -- going on --------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [0, 1, 7])
def test_a_stopped_run_goes_on(tmp_path: Path, stop: int) -> None:
    path = worlds.write(tmp_path / "t.parquet", worlds.table(1_000))
    worlds.run([path], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        worlds.run([path], tmp_path / "out", stop_after=stop)
    assert published(tmp_path / "out") is None
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("runs/*/shards/*")}
    assert len(done) == stop
    outcome = worlds.run([path], tmp_path / "out", now_s=2_000.0)
    assert outcome.scored == 1_000 - 100 * stop
    assert worlds.digests(tmp_path / "out") == worlds.digests(tmp_path / "whole")
    assert all(p.stat().st_mtime_ns == at for p, at in done.items())


def test_a_run_id_is_of_one_request(tmp_path: Path) -> None:
    path = worlds.write(tmp_path / "t.parquet", worlds.table(300))
    worlds.run([path], tmp_path / "out", run="day-1")
    assert worlds.run([path], tmp_path / "out", run="day-1").was_published
    worlds.write(tmp_path / "t.parquet", worlds.table(301))
    with pytest.raises(RunRefused, match="other files"):
        worlds.run([path], tmp_path / "out", run="day-1")
    with pytest.raises(RunRefused, match="no name"):
        worlds.run([path], tmp_path / "out", run="../up")


# -- tables that can't be scored -------------------------------------------------------------


def refused(tmp_path: Path, files: list[str], **asked: Any) -> str:
    with pytest.raises(InputRefused) as caught:
        worlds.run(files, tmp_path / "out", **asked)
    assert published(tmp_path / "out") is None
    assert not list((tmp_path / "out").glob("runs/*/shards/*"))
    return str(caught.value)


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    found = worlds.table(10)
    path = worlds.write(tmp_path / "t.parquet", found.drop_columns(["b"]))
    assert "t.parquet, column b: it is missing" in refused(tmp_path, [path])
    assert worlds.run([path], tmp_path / "ok", missing_ok=True).scored == 10
    path = worlds.write(tmp_path / "t.parquet", found.append_column("z", found["a"]))
    assert "t.parquet, column z: the model does not know it" in refused(tmp_path, [path])
    assert worlds.run([path], tmp_path / "ok", ignored=frozenset("z"), force=True).scored == 10
    texts = pa.array(["x"] * 10)
    path = worlds.write(tmp_path / "t.parquet", found.set_column(1, "a", texts))
    assert "t.parquet, column a: it holds text" in refused(tmp_path, [path])
    lists = pa.array([[1]] * 10)
    path = worlds.write(tmp_path / "t.parquet", found.set_column(1, "a", lists))
    assert "column a: it is of type list" in refused(tmp_path, [path])
    path = worlds.write(tmp_path / "t.parquet", found)
    assert "column uid: it is missing" in refused(tmp_path, [path], key="uid")
    assert "column a: keys can't be floats" in refused(
        tmp_path, [path], key="a", ignored={"id"}, missing_ok=True
    )


def test_files_that_do_not_agree(tmp_path: Path) -> None:
    first = worlds.write(tmp_path / "1.parquet", worlds.table(10))
    second = worlds.write(tmp_path / "2.parquet", worlds.table(10, first=10).drop_columns(["c"]))
    said = refused(tmp_path, [first, second])
    assert f"2.parquet, column c: it is missing here, and {first}" in said
    more = worlds.table(10).append_column("z", pa.array([1.0] * 10))
    second = worlds.write(tmp_path / "2.parquet", more)
    assert f"2.parquet, column z: it is not in {first}" in refused(tmp_path, [first, second])
    texts = worlds.table(10).set_column(2, "b", pa.array(["x"] * 10))
    second = worlds.write(tmp_path / "2.parquet", texts)
    assert "2.parquet, column b: it holds text" in refused(tmp_path, [first, second])


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "e.parquet").write_bytes(b"")
    assert "e.parquet: the file is empty" in refused(tmp_path, [str(tmp_path / "e.parquet")])
    path = worlds.write(tmp_path / "none.parquet", worlds.table(0))
    assert "none.parquet: the file has no rows" in refused(tmp_path, [path])
    path = worlds.write(tmp_path / "t.parquet", worlds.table(1_000))
    Path(path).write_bytes(Path(path).read_bytes()[:-100])
    assert "t.parquet: it is no complete Parquet file" in refused(tmp_path, [path])
    assert "no such file" in refused(tmp_path, [str(tmp_path / "absent.parquet")])
    (tmp_path / "t.xlsx").write_bytes(b"x")
    assert "t.xlsx: its name" in refused(tmp_path, [str(tmp_path / "t.xlsx")])
    whole = gzip.compress(b"id,a,b,c\n" + b"1,0.125,0.25,0.5\n" * 9_000)
    (tmp_path / "t.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LocationFailed, match=r"t\.csv\.gz: .*Truncated"):
        worlds.run([str(tmp_path / "t.csv.gz")], tmp_path / "out")
    assert published(tmp_path / "out") is None
    (tmp_path / "h.csv").write_text("id,a,b,c\n")
    assert "h.csv" in refused(tmp_path, [str(tmp_path / "h.csv")])


def test_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    path = Path(worlds.write(tmp_path / "t.parquet", worlds.table(1_000)))
    group = pq.ParquetFile(path).metadata.row_group(4).column(2)
    data = bytearray(path.read_bytes())
    begin = group.dictionary_page_offset or group.data_page_offset
    data[begin : begin + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    path.write_bytes(data)
    with pytest.raises(InputRefused, match=r"t\.parquet, row group 4: it can't be read"):
        worlds.run([str(path)], tmp_path / "out")
    assert published(tmp_path / "out") is None


# -- bad rows --------------------------------------------------------------------------------


def test_bad_rows_go_aside_with_the_reason(tmp_path: Path) -> None:
    found = worlds.table(400).to_pylist()
    found[3]["a"], found[150]["b"], found[151]["c"] = float("nan"), float("inf"), 1e101
    found[20]["id"] = None
    found[399].update(a=None, b=None, c=None)
    found[7]["c"] = None  # what is missing is left out
    path = worlds.write(tmp_path / "t.parquet", pa.Table.from_pylist(found))
    outcome = worlds.run([path], tmp_path / "out")
    number = "not a finite number in ±1e+100"
    assert bad(tmp_path / "out", outcome.run) == [
        (3, "a", number), (20, "id", "no key"), (150, "b", number), (151, "c", number),
        (399, "", "no features"),
    ]  # fmt: skip
    assert (outcome.scored, outcome.quarantined) == (395, 5)
    model = worlds.logreg()
    row = next(r for r in scores(tmp_path / "out", outcome.run) if r["row"] == 7)
    one = model.predict({"a": found[7]["a"], "b": found[7]["b"]})
    assert abs(row["score"] - one.probabilities[True]) <= 1e-12


def test_bad_lines_of_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "id,a,b,c\n0,1,2,3\n1,x,2,3\n2,1,2\n3,1,,NA\n\n5,1,2,3,4\n6,inf,1,1\n7,1,2,3\n8,nan,1,1\n"
    )
    outcome = worlds.run([str(path)], tmp_path / "out")
    assert bad(tmp_path / "out", outcome.run) == [
        (1, "a", "not a number"), (2, "", "3 fields, not 4"), (4, "", "no features"),
        (5, "", "5 fields, not 4"), (6, "a", "not a finite number in ±1e+100"),
    ]  # fmt: skip
    assert [row["key"] for row in scores(tmp_path / "out", outcome.run)] == ["0", "3", "7", "8"]


def test_bad_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = ['{"id":0,"a":1,"b":2,"c":3}', '{"id":1,"a":1', '{"id":2,"a":"x","b":1,"c":1}',
             '[1]', '{"id":4,"a":1.5}', '{"a":1}', '{"id":6,"a":9007199254740993}',
             '{"id":7,"a":123456789012345678901234567890}']  # fmt: skip
    path.write_text("\n".join(lines))
    outcome = worlds.run([str(path)], tmp_path / "out")
    found = bad(tmp_path / "out", outcome.run)
    assert [(row, column) for row, column, _ in found] == [
        (1, ""), (2, "a"), (3, ""), (5, "id"), (6, "a"), (7, "a"),
    ]  # fmt: skip
    assert [row["key"] for row in scores(tmp_path / "out", outcome.run)] == ["0", "4"]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv"])
def test_whole_numbers_are_read_as_requests_have_them(tmp_path: Path, form: str) -> None:
    rows = [{"n": i % 3, "x": i / 2, "many": 1 if i else 2, "flag": i > 2} for i in range(6)]
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        worlds.write(path, pa.Table.from_pylist(rows))
    elif form == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = ["n,x,many,flag", *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines).lower())
    files = inputs.files_of([str(path)])
    layout = inputs.layout(
        files, key=None, time=None, ignored=(), known=(), numeric_only=True, missing_ok=False,
        text_bytes_max=100,
    )  # fmt: skip
    counted, shards = inputs.cut(files, np.random.default_rng(0))
    pieces = [p for s in shards for p in readers.read(counted[0], s, layout)]
    assert repr([row for piece in pieces for row in piece.rows.dicts()]) == repr(rows)


def test_others_among_whole_numbers_are_numbers() -> None:
    values = np.array([1.0, 2.5, 1e300, -3.0])
    assert repr(Numbers("integer", values).items()) == "[1, 2.5, 1e+300, -3]"


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_the_first_integer_beyond_2_53_is_refused_as_by_the_service(
    tmp_path: Path, form: str
) -> None:
    rows = [{"id": i, "a": 2**53 - 1 + i, "b": 1, "c": 1} for i in range(4)]
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        worlds.write(path, pa.Table.from_pylist(rows))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    outcome = worlds.run([str(path)], tmp_path / "out")
    assert [(row, why) for row, _, why in bad(tmp_path / "out", outcome.run)] == [
        (2, "beyond 2^53"), (3, "beyond 2^53"),
    ]  # fmt: skip


# -- audit -----------------------------------------------------------------------------------


def test_what_moved_is_not_published_unless_forced(tmp_path: Path) -> None:
    path = worlds.write(tmp_path / "t.parquet", worlds.table(2_000))
    worlds.run([path], tmp_path / "out", run="a")
    other = worlds.source(worlds.shifted, snapshot="1-600", version="1.600")
    with pytest.raises(AuditFailed, match="stability index"):
        worlds.run([path], tmp_path / "out", run="b", scored=other)
    assert published(tmp_path / "out") == "a"
    outcome = worlds.run([path], tmp_path / "out", run="b", scored=other, force=True)
    assert outcome.report.forced
    assert published(tmp_path / "out") == "b"
    assert not outcome.scored  # they were there


def test_the_same_key_twice(tmp_path: Path) -> None:
    found = worlds.table(400).to_pylist()
    found[350]["id"] = 17
    path = worlds.write(tmp_path / "t.parquet", pa.Table.from_pylist(found))
    with pytest.raises(AuditFailed, match="more than once: 17"):
        worlds.run([path], tmp_path / "out")
    assert published(tmp_path / "out") is None


def test_files_that_were_changed_are_found(tmp_path: Path) -> None:
    path = worlds.write(tmp_path / "t.parquet", worlds.table(300))
    with pytest.raises(KeyboardInterrupt):
        worlds.run([path], tmp_path / "out", stop_after=2)
    shard = next((tmp_path / "out").glob("runs/*/shards/000001.parquet"))
    whole = pq.read_table(shard)
    for changed, why in (
        (whole.slice(1), "rows scored"),
        (whole.set_column(1, "key", pa.array(["x"] * 100)), "keys are not those"),
        (whole.set_column(3, "score", pa.array([2.0] * 100)), "outside of their range"),
        (whole.set_column(3, "score", pa.array([float("nan")] * 100)), "no finite numbers"),
        (whole.set_column(3, "score", pa.array([0.5] * 100)), "alone"),
    ):
        pq.write_table(changed, shard)
        with pytest.raises(AuditFailed, match=why):
            worlds.run([path], tmp_path / "out")
    shard.write_bytes(b"PAR1")
    with pytest.raises(AuditFailed, match="damaged"):
        worlds.run([path], tmp_path / "out")
    assert published(tmp_path / "out") is None
    shard.unlink()
    worlds.run([path], tmp_path / "out")
    assert published(tmp_path / "out") is not None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e90, 1e90), min_size=2, max_size=40))
def test_bins_keep_the_order(numbers: list[float]) -> None:
    ordered = np.array(sorted(numbers))
    assert (np.diff(audit.bin_of(ordered, regression=True)) >= 0).all()


def test_the_index_is_that_of_the_textbook() -> None:
    """Two bins, 50:50 before and 90:10 now: .4 ln 1.8 - .4 ln .2."""
    psi = audit.stability({"a": 50, "b": 50}, {"a": 90, "b": 10}, ordered=False)
    assert psi == pytest.approx(0.4 * np.log(1.8) - 0.4 * np.log(0.2))
    assert audit.stability({"1": 7, "2": 9}, {"1": 7, "2": 9}, ordered=True) == 0.0


# -- publication -----------------------------------------------------------------------------


def test_older_features_replace_nothing(tmp_path: Path) -> None:
    def timed(name: str, at: float) -> str:
        found = worlds.table(100).append_column("at", pa.array([at] * 100))
        return str(worlds.write(tmp_path / name, found))

    newer, older = timed("new.parquet", 200.0), timed("old.parquet", 100.0)
    worlds.run([newer], tmp_path / "out", run="new", time="at")
    with pytest.raises(RunRefused, match="older scores over newer"):
        worlds.run([older], tmp_path / "out", run="old", time="at")
    assert published(tmp_path / "out") == "new"
    worlds.run([older], tmp_path / "out", run="old", time="at", force=True)
    assert published(tmp_path / "out") == "old"


def test_what_is_published_while_a_run_is_scored_stays(tmp_path: Path, monkeypatch: Any) -> None:
    slow, quick = (worlds.write(tmp_path / f"{n}.parquet", worlds.table(n)) for n in (300, 200))
    audited, out = runs._audited, tmp_path / "out"

    def meanwhile(*args: Any, **more: Any) -> audit.Report:
        monkeypatch.setattr(runs, "_audited", audited)
        worlds.run([quick], out, run="quick")
        return audited(*args, **more)

    monkeypatch.setattr(runs, "_audited", meanwhile)
    worlds.run([slow], out, run="slow", force=True)
    now = pointer(Folder(Location(str(out))))
    assert [one.name for one in now.history] == ["quick", "slow"]
    assert now.back(None).run == now.named("quick")


def test_a_full_disk(tmp_path: Path, monkeypatch: Any) -> None:
    path = worlds.write(tmp_path / "t.parquet", worlds.table(500))
    real, left = places._write_local, [5]  # weights, plan and three shards

    def write(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(places, "_write_local", write)
    with pytest.raises(LocationFailed, match="No space left"):
        worlds.run([path], tmp_path / "out")
    assert published(tmp_path / "out") is None
    monkeypatch.setattr(places, "_write_local", real)
    assert worlds.run([path], tmp_path / "out").scored == 200
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_errors_survive_pickling() -> None:
    for error in (
        InputRefused("f", "p", "r"), LocationFailed("f", "p"), errors.RayFailed("x"),
        errors.StoreFailed("s", "r"), errors.RunRefused("r", "p", "d"),
        errors.AuditFailed("r", ("a", "b")),
    ):  # fmt: skip
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def selecting() -> Opaque:
    """A model that needs all of its three features, and has learned."""
    estimator = compose.Select(*worlds.NAMES) | linear_model.LogisticRegression()
    model = Opaque(estimator, task="binary", key=bytes(32), why_not_mergeable="it selects")
    worlds.teach(model)
    return model


def test_rows_that_the_model_can_t_answer_are_in_quarantine(tmp_path: Path) -> None:
    found = worlds.table(300).to_pylist()
    for i in (3, 120, 250):
        found[i]["b"] = None
    file = worlds.write(tmp_path / "t.parquet", pa.Table.from_pylist(found))
    outcome = worlds.run([file], tmp_path / "out", scored=worlds.source(selecting))
    assert (outcome.scored, outcome.quarantined) == (297, 3)
    reason = "the model raises KeyError: 'b'"
    assert bad(tmp_path / "out", outcome.run) == [(i, "", reason) for i in (3, 120, 250)]
    given = [row["row"] for row in scores(tmp_path / "out", outcome.run)]
    assert given == [i for i in range(300) if i not in (3, 120, 250)]
