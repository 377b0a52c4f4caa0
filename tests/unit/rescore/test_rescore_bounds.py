"""Tables are scored with numbers bounded as the service bounds them when it is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rescore_world as worlds

from online.learning.bounds import Bounds
from online.models.loading.from_settings import load_model
from online.rescore.snapshot import scored
from online.rescore.sparse import moved_ends
from online.rows.prediction_ids import Keys
from online.tables.columns import Numbers, Rows
from paramserver.core.state import SnapshotState
from paramserver.snapshots import format as snapshot_format
from paramserver.snapshots.places import lineage_place, open_snapshots
from replay.example import Example

ENDS = {
    "a": (-4.0, 4.0, -1.5, 1.5), "b": (-3.0, 5.0, -2.0, 2.5), "absent": (0.0, 1.0, 0.1, 0.9)
}  # fmt: skip


def outlying() -> pa.Table:
    found = worlds.table(400)
    a = found["a"].to_pylist()
    a[3], a[5], a[7] = 1e100, -1e4, None
    b = [round(x * 3) for x in found["b"].to_pylist()]
    b[5], b[9] = 10**9, -(10**9)
    found = found.set_column(1, "a", pa.array(a, pa.float64()))
    return found.set_column(2, "b", pa.array(b, pa.int64()))


def near_of(value: float, low: float, high: float, least: float, most: float) -> float:
    return least if value < low else most if value > high else value


def scores(output: Path, run: str) -> list[dict[str, Any]]:
    files = sorted((output / "runs" / run / "shards").glob("*"))
    return [row for path in files for row in pq.read_table(path).to_pylist()]


def test_each_row_is_scored_as_an_answer_is_given(tmp_path: Path) -> None:
    found = outlying()
    path = worlds.write(tmp_path / "t.parquet", found)
    outcome = worlds.run([path], tmp_path / "out", scored=worlds.source(ends=ENDS))
    model = worlds.logreg()
    for row, x in zip(scores(tmp_path / "out", outcome.run), found.to_pylist(), strict=True):
        del x["id"]
        near = {
            k: near_of(v, *ENDS[k]) if k in ENDS else v
            for k, v in x.items() if v is not None
        }  # fmt: skip
        assert abs(row["score"] - model.predict(near).probabilities[True]) <= 1e-12
    plain = worlds.run([path], tmp_path / "plain")
    other = scores(tmp_path / "plain", plain.run)
    differ = [
        i
        for i, (a, b) in enumerate(zip(scores(tmp_path / "out", outcome.run), other, strict=True))
        if abs(a["score"] - b["score"]) > 1e-9
    ]
    assert {5, 9} <= set(differ), "the control: without ends they are other scores"


def test_the_ends_of_a_snapshot_are_those_of_the_service(tmp_path: Path) -> None:
    settings = worlds.state_folder(tmp_path)
    assert scored(settings.models[0], settings).ends == {}, "a snapshot from before has none"
    bounds = Bounds()
    for x in worlds.table(300).drop_columns(["id"]).to_pylist():
        bounds.add(Example(x, label=True))
    expected = bounds.ends(["a", "b", "c"])
    keys = Keys.from_file(settings.key_path)
    loaded = load_model(settings.models[0], settings, keys.secret)
    worlds.teach(loaded.model)
    values = {**loaded.model.cut(), **bounds.cut()}
    state = SnapshotState(
        "m", loaded.spec_hash, loaded.spec_text, (1, 600), values, {}, created_at=2.0
    )
    place = lineage_place(str(settings.state_dir / "snapshots"), "m", loaded.spec_hash)
    open_snapshots(place).publish("1-600", snapshot_format.encode(state))
    found = scored(settings.models[0], settings)
    assert found.snapshot == "1-600"
    assert set(found.ends) == set(expected)
    for name, both in found.ends.items():
        assert both == pytest.approx(expected[name], rel=0.5)
    none = settings.models[0].model_copy(update={"filters": "none"})
    assert scored(none, settings).ends == {}


def test_what_is_absent_stays_absent() -> None:
    present = np.array([True, False, True])
    rows = Rows(3, {"a": Numbers("number", np.array([9.0, 0.0, 1.0]), present)})
    near = rows.within({"a": (2.0, 4.0, 2.5, 3.5)})
    assert near.dicts() == [{"a": 3.5}, {}, {"a": 2.5}]
    assert near.columns["a"].items()[1] == 0.0
    same = Rows(2, {"n": Numbers("integer", np.array([1.0, 2.0]))})
    assert same.within({"n": (0.0, 5.0, 0.0, 5.0)}).dicts() == [{"n": 1}, {"n": 2}]


def test_scores_of_before_stand_where_bounds_have_not_moved() -> None:
    before = {"a": (-1.0, 1.0), "b": (0.0, 2.0)}
    assert moved_ends(before, dict(before)) == []
    assert moved_ends(before, {**before, "b": (0.0, 3.0), "c": (-1.0, 0.0)}) == ["b", "c"]
    assert moved_ends(before, {**before, "c": (5.0, 6.0)}) is None, "where 0 itself is bounded"
