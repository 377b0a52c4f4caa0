"""Prequential counters and streams."""

from __future__ import annotations

import gzip
import math
import random
from pathlib import Path
from typing import Any

import pytest
from plain_runs import last_label, progressive
from river import metrics as river_metrics

from evaluation.errors import StreamUnusable
from evaluation.metrics import increments, majority, summarise
from evaluation.streams import open_stream
from replay.example import Label


def _add(counters: dict[str, float], more: dict[str, float]) -> None:
    for name, value in more.items():
        counters[name] = counters.get(name, 0) + value


def _play(rows: list[tuple[Label, Label, float]], task: Any) -> dict[str, float]:
    """Counters of (label, predicted, p of true) rows."""
    counters: dict[str, float] = {}
    last: Label | None = None
    for label, predicted, p in rows:
        more = increments(
            task,
            label=label,
            predicted=predicted,
            probabilities={"true": p, "false": 1 - p} if task == "binary" else None,
            no_change=last,
            majority=majority(task, counters),
        )
        _add(counters, more)
        last = label
    return counters


def test_classification_agrees_with_river_and_the_definitions() -> None:
    rng = random.Random(3)
    rows: list[tuple[Label, Label, float]] = []
    for _ in range(500):
        p = rng.random()
        rows.append((rng.random() < 0.3 + 0.5 * p, p > 0.5, p))
    accuracy, loss = river_metrics.Accuracy(), river_metrics.LogLoss()
    right_majority = right_last = 0
    seen: list[Label] = []
    for label, predicted, p in rows:
        accuracy.update(label, predicted)
        loss.update(label, {True: p, False: 1 - p})
        if seen:
            often = seen.count(True) > seen.count(False)
            right_majority += often == label
            right_last += seen[-1] == label
        seen.append(label)
    got = summarise("binary", _play(rows, "binary"))
    assert got["n"] == 500
    assert got["accuracy"] == accuracy.get()
    assert got["log_loss"] == pytest.approx(loss.get(), rel=1e-12)
    assert (got["majority"], got["no_change"]) == (right_majority / 500, right_last / 500)
    p, pm, pt = accuracy.get(), right_majority / 500, right_last / 500
    assert got["kappa_m"] == pytest.approx((p - pm) / (1 - pm))
    assert got["kappa_t"] == pytest.approx((p - pt) / (1 - pt))


def test_counters_of_two_replicas_add_up() -> None:
    rows: list[tuple[Label, Label, float]] = [(i % 3 == 0, i % 2 == 0, i / 40) for i in range(40)]
    a, b = _play(rows[:25], "binary"), _play(rows[25:], "binary")
    total = dict(a)
    _add(total, b)
    got = summarise("binary", total)
    right = sum(label == predicted for label, predicted, _ in rows)
    assert got["accuracy"] == right / 40
    assert (got["n"], total["label/true"] + total["label/false"]) == (40, 40)


def test_a_row_that_was_not_predicted_counts_in_no_score() -> None:
    more = increments(
        "multiclass", label="a", predicted=None, probabilities=None, no_change="a", majority="a"
    )
    assert more == {'label/"a"': 1}
    empty = summarise("multiclass", more)
    assert empty.pop("n") == 0
    assert set(empty.values()) == {None}


def test_a_label_without_probability_is_clipped_not_infinite() -> None:
    more = increments(
        "multiclass",
        label="c",
        predicted="a",
        probabilities={'"a"': 1.0, '"b"': 0.0},
        no_change=None,
        majority=None,
    )
    assert more["log_loss"] == pytest.approx(-math.log(1e-15))


def test_a_model_without_probabilities_has_no_log_loss() -> None:
    more = increments(
        "binary",
        label=True,
        predicted=False,
        probabilities={"false": 1.0},
        no_change=None,
        majority=None,
    )
    assert "log_loss" not in more


def test_majority_breaks_ties_by_name_in_any_order() -> None:
    assert majority("multiclass", {'label/"b"': 2, 'label/"a"': 2, "n": 9}) == "a"
    assert majority("multiclass", {'label/"a"': 2, 'label/"b"': 2}) == "a"
    assert majority("multiclass", {}) is None
    assert majority("regression", {"target_n": 4, "target_sum": 10.0}) == 2.5


def test_kappa_is_none_when_the_baseline_is_perfect() -> None:
    got = summarise("binary", {"n": 3, "correct": 3, "majority_correct": 3, "no_change_correct": 1})
    assert (got["kappa_m"], got["kappa_t"]) == (None, 1.0)


def test_regression_with_its_baselines() -> None:
    targets, answers = [2.0, 4.0, 9.0], [1.0, 5.0, 6.0]
    rows: list[tuple[Label, Label, float]] = [
        (y, p, 0.0) for y, p in zip(targets, answers, strict=True)
    ]
    got = summarise("regression", _play(rows, "regression"))
    assert got == {
        "n": 3,
        "mae": 5 / 3,
        "rmse": math.sqrt(11 / 3),
        "mean_mae": (2 + 2 + 6) / 3,
        "last_mae": (2 + 2 + 5) / 3,
    }


@pytest.mark.parametrize(
    ("name", "task", "n"),
    [
        ("phishing", "binary", 1250),
        ("Bananas", "binary", 5300),
        ("image-segments", "multiclass", 2310),
        ("IMAGE_SEGMENTS", "multiclass", 2310),
        ("digits", "multiclass", 1797),
    ],
)
def test_bundled_streams(name: str, task: str, n: int) -> None:
    stream = open_stream(name)
    rows = list(stream.rows)
    assert (stream.task, stream.n_rows, len(rows)) == (task, n, n)
    assert next(iter(stream.rows)) == rows[0]
    if task == "binary":
        assert {type(label) for _, label in rows} == {bool}


def test_gas_sensors_batch_by_batch(tmp_path: Path) -> None:
    folder = tmp_path / "gas_drift"
    folder.mkdir()
    for i in (1, 2, 3, 4, 5, 6, 8):
        _write(folder / f"batch{i}.dat.gz", f"{i} 1:{i}.5 2:-3\n")
    with pytest.raises(StreamUnusable, match="no file"):
        open_stream("gas", tmp_path)
    _write(folder / "batch9.dat.gz", "9 1:9.5 2:-3\n")
    rows = list(open_stream("gas", tmp_path).rows)
    assert rows[0] == ({"1": 1.5, "2": -3.0}, 1)
    assert [label for _, label in rows] == [1, 2, 3, 4, 5, 6, 8, 9]


def _write(path: Path, text: str) -> str:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return str(path)


@pytest.mark.parametrize("file", ["t.csv", "T.CSV.gz"])
def test_a_table_with_two_labels_is_binary(tmp_path: Path, file: str) -> None:
    stream = open_stream(_write(tmp_path / file, "a,b,y\n1,x,UP\n,2.5e1,DOWN\n"))
    assert (stream.task, stream.n_rows) == ("binary", 2)
    assert stream.label_names == {False: "DOWN", True: "UP"}
    assert list(stream.rows) == [({"a": 1.0, "b": "x"}, True), ({"a": None, "b": 25.0}, False)]


def test_tables_of_other_tasks(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.csv", "y,k,a\n1.5,3,0\n2.5,4,0\n9,5,nan\n")
    targets = open_stream(path, label="y")
    assert targets.task == "regression"
    assert [y for _, y in targets.rows] == [1.5, 2.5, 9.0]
    classes = open_stream(path, label="k")
    assert classes.task == "multiclass"
    assert [y for _, y in classes.rows] == [3, 4, 5]
    assert [x["a"] for x, _ in classes.rows] == [0.0, 0.0, None], "nan is missing, as in a backfill"
    codes = open_stream(_write(tmp_path / "z.csv", "zip,n,y\n01234,0,0\n90210,0.5,1\n"))
    assert [x["zip"] for x, _ in codes.rows] == ["01234", 90210.0]
    excel = open_stream(_write(tmp_path / "e.csv", "\ufeffa,y\n1,0\n2,1\n"))
    assert next(iter(excel.rows))[0] == {"a": 1.0}
    numbers = open_stream(_write(tmp_path / "n.csv", "a,y\n1,0\n2,1\n"))
    assert numbers.label_names == {False: "0", True: "1"}


@pytest.mark.parametrize("above", ["", "\ufeffsep=;\n"])
def test_a_table_is_read_as_by_init(tmp_path: Path, above: str) -> None:
    text = f"{above}a;b;y\n1,5;x, y;0\nNA;z;1\n2,5;;0\n"
    stream = open_stream(_write(tmp_path / "t.csv", text))
    assert list(stream.rows) == [
        ({"a": 1.5, "b": "x, y"}, False), ({"a": None, "b": "z"}, True),
        ({"a": 2.5, "b": None}, False),
    ]  # fmt: skip
    amounts = "a;y\n1;0,5\n2;1,5\n3;2,5\n"
    assert [y for _, y in open_stream(_write(tmp_path / "r.csv", amounts)).rows] == [0.5, 1.5, 2.5]


@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        ("a,y\n1,0\n2\n", None, "line 3: 1 of 2 values"),
        ("a,y\n1,\n", None, "no label"),
        ("a,y\n", None, "no rows"),
        ("", None, "no column"),
        ("a,a\n1,2\n", None, "one twice"),
        ("a,y\n1,2\n", "z", "no column 'z'"),
        ("0.5,2\n1,2\n", None, "all numbers"),
    ],
)
def test_a_table_that_is_none(tmp_path: Path, text: str, label: str | None, message: str) -> None:
    with pytest.raises(StreamUnusable, match=message):
        open_stream(_write(tmp_path / "t.csv", text), label=label)


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(StreamUnusable, match=r"Did you mean `elec2`\? Known: phishing, bananas"):
        open_stream("elec3")
    with pytest.raises(StreamUnusable, match="ONLINE_DATA_DIR"):
        open_stream("elec2")
    with pytest.raises(StreamUnusable, match="no file"):
        open_stream("insects", tmp_path)
    with pytest.raises(StreamUnusable, match="No such file"):
        open_stream(str(tmp_path / "gone.csv"))
    (tmp_path / "bad.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(StreamUnusable, match="readable CSV"):
        open_stream(str(tmp_path / "bad.csv.gz"))


def test_baselines_by_hand() -> None:
    class Constant:
        def predict_proba_one(self, x: dict[str, Any]) -> dict[bool, float]:
            return {True: 0.9, False: 0.1}

        def learn_one(self, x: dict[str, Any], y: Label) -> None:
            pass

    rows: list[tuple[dict[str, Any], Label]] = [({}, True), ({}, True), ({}, False), ({}, False)]
    assert progressive(Constant(), rows).accuracy == 0.5
    assert last_label(rows) == 0.5
    assert last_label([]) == 0.0
