"""Rows without a changed feature keep their score, and nobody can tell it from the files."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rescore_world as worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from river import linear_model, optim, preprocessing

from online.models.adapters.linear import Linear
from online.models.base import Model
from online.rescore import sparse, work
from online.rescore.errors import AuditFailed
from online.rescore.scorer import Scorer
from online.tables import inputs
from online.tables.columns import Numbers, Rows

NAMES = tuple("abcdefgh")
SGD = optim.SGD(0.1)
KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "softmax": (lambda: linear_model.SoftmaxRegression(SGD), "multiclass"),
    "logreg": (lambda: linear_model.LogisticRegression(SGD, intercept_lr=0.0), "binary"),
    "linreg": (lambda: linear_model.LinearRegression(SGD, intercept_lr=0.0), "regression"),
}


def table(rows: int = 900, seed: int = 3) -> pa.Table:
    """Mostly zeros, some values absent, one row that is refused."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {"id": np.arange(rows)}
    for name in NAMES:
        values = np.where(rng.random(rows) < 0.8, 0.0, rng.normal(size=rows))
        columns[name] = pa.array(values, mask=rng.random(rows) < 0.1)
    found = pa.table(columns)
    first = found["a"].to_pylist()
    first[17] = float("inf")
    return found.set_column(1, "a", pa.array(first, pa.float64()))


def model_of(kind: str, more: tuple[str, ...] = ()) -> Model:
    """A model that has learned of all features, and then of ``more`` of them again."""
    build, task = KINDS[kind]
    model = Linear(build())
    rng = np.random.default_rng(0)
    for names in [NAMES] * 200 + [more] * 10:
        x = {name: float(rng.normal()) for name in names}
        total = sum(x.values())
        label = {"binary": total > 0, "regression": total}.get(task, "lo" if total < 0 else "hi")
        if x:
            model.learn(x, label, 1.0)
    return model


def scored(kind: str, snapshot: str, more: tuple[str, ...] = ()) -> Any:
    make = partial(model_of, kind, more)
    return worlds.source(make, KINDS[kind][1], snapshot=snapshot, version=snapshot)


def two_runs(tmp_path: Path, kind: str, more: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    tmp_path.mkdir(exist_ok=True)
    path = worlds.write(tmp_path / "t.parquet", table())
    worlds.run([path], tmp_path / "out", scored=scored(kind, "1-1"))
    second = worlds.run([path], tmp_path / "out", scored=scored(kind, "1-2", more), force=True)
    folder = tmp_path / "out" / "runs" / second.run
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/*.parquet")}
    whole = worlds.run([path], tmp_path / "whole", scored=scored(kind, "1-2", more))
    base = tmp_path / "whole" / "runs" / whole.run
    expected = {str(p.relative_to(base)): p.read_bytes() for p in base.glob("*/*.parquet")}
    assert whole.skipped == 0
    assert found.keys() == expected.keys()
    return second, {name: "same" for name in found if found[name] == expected[name]} | {
        name: "DIFFERS" for name in found if found[name] != expected[name]
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_published_is_what_a_full_run_publishes(tmp_path: Path, kind: str) -> None:
    outcome, files = two_runs(tmp_path, kind, ("b", "f"))
    assert set(files.values()) == {"same"}
    assert len(files) == 10  # nine shards, and one in quarantine
    held = table()
    some = [any(row[n] for n in ("b", "f")) for row in held.to_pylist()]
    some[17] = True
    assert (outcome.skipped, outcome.scored) == (900 - sum(some), sum(some) - 1)
    assert outcome.all_because == ""


def test_nothing_has_changed_but_the_snapshot(tmp_path: Path) -> None:
    outcome, files = two_runs(tmp_path, "softmax", ())
    assert (outcome.skipped, outcome.scored) == (899, 0)
    assert set(files.values()) == {"same"}


def test_a_row_that_is_wrongly_skipped_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    """The control: with one changed feature forgotten the files are not those of a full run."""
    right = sparse.touched

    def forgets(rows: Rows, names: Any, *, scaled: bool) -> Any:
        return right(rows, [name for name in names if name != "f"], scaled=scaled)

    monkeypatch.setattr(work, "touched", forgets)
    with pytest.raises(AuditFailed, match="alone"):  # among the rows that are scored one by one
        two_runs(tmp_path, "softmax", ("b", "f"))
    monkeypatch.setattr(inputs, "SAMPLED", 0)
    _, files = two_runs(tmp_path / "unseen", "softmax", ("b", "f"))
    assert "DIFFERS" in files.values()


def test_what_is_in_every_score(tmp_path: Path) -> None:
    path = worlds.write(tmp_path / "t.parquet", worlds.table(300))
    worlds.run([path], tmp_path / "out")
    moved = worlds.source(worlds.shifted, snapshot="1-501")
    outcome = worlds.run([path], tmp_path / "out", scored=moved, force=True)
    assert (outcome.skipped, outcome.scored) == (0, 300)
    assert outcome.all_because.startswith("the intercept has moved since run ")
    worlds.write(tmp_path / "t.parquet", worlds.table(301))
    outcome = worlds.run([path], tmp_path / "out", force=True)
    assert "of other files" in outcome.all_because


def test_a_run_before_that_was_removed(tmp_path: Path) -> None:
    path = worlds.write(tmp_path / "t.parquet", table())
    first = worlds.run([path], tmp_path / "out", scored=scored("softmax", "1-1"))
    again = scored("softmax", "1-2", ("b",))
    with pytest.raises(KeyboardInterrupt):
        worlds.run([path], tmp_path / "out", scored=again, stop_after=3, force=True)
    shards = tmp_path / "out" / "runs" / first.run / "shards"
    for shard in shards.iterdir():
        shard.unlink()
    outcome = worlds.run([path], tmp_path / "out", scored=again, force=True)
    assert (outcome.skipped, outcome.scored) == (0, 600)
    rows = [r for p in sorted((tmp_path / "out" / "runs" / outcome.run / "shards").iterdir())
            for r in pq.read_table(p).to_pylist()]  # fmt: skip
    assert len(rows) == 899


def weights(dense: dict[str, str], **names: Any) -> sparse.Weights:
    return sparse.Weights(sparse.FORMAT, dense, names, False)


def test_which_features_have_changed() -> None:
    before = weights({"x": "1"}, a=(1.0,), b=(2.0,), c=(3.0,))
    assert sparse.changed(before, before) == ([], "")
    assert sparse.changed(before, weights({"x": "1"}, a=(1.0,), b=(2.5,), d=(1.0,))) == (
        ["b", "c", "d"], "",
    )  # fmt: skip
    assert sparse.changed(before, weights({"x": "2"}, a=(1.0,))) == (None, "x has moved")
    assert sparse.changed(before, weights({}, a=(1.0,))) == (None, "x has moved")
    none, why = sparse.changed(before, weights({"x": "1"}, a=(float("inf"),)))
    assert (none, why) == (None, "a weight is not finite")
    model = Linear(preprocessing.StandardScaler() | linear_model.LogisticRegression())
    first = sparse.weights_of(model)
    model.learn({"a": 1.0}, True, 1.0)
    now = sparse.weights_of(model)
    assert first is not None
    assert now is not None
    assert sparse.changed(first, now)[1] == "the intercept has moved"
    assert sparse.decode(sparse.encode(now)) == now


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 700), share=st.floats(0.01, 1.0))
def test_a_row_is_added_up_by_itself(seed: int, n: int, share: float) -> None:
    """What the whole rests on: a score does not depend on which other rows are asked for."""
    rng = np.random.default_rng(seed)
    columns = {name: Numbers("number", rng.normal(size=n) * 10 ** rng.uniform(-4, 4))
               for name in NAMES}  # fmt: skip
    for kind, (_, task) in KINDS.items():
        scorer = Scorer(model_of(kind), task, "columns")  # type: ignore[arg-type]
        rows = Rows(n, columns)
        some = np.flatnonzero(rng.random(n) < share)
        whole, part = scorer.score(rows), scorer.score(rows.take(some))
        assert (whole.score[some] == part.score).all(), kind
