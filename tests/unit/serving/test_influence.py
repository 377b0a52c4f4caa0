"""The influence of features: how far what each adds is from what it adds on the mean."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from river import linear_model, preprocessing, tree

from online.models.adapters.linear import Linear
from online.serving.operating.status import _INFLUENCE_NAMES, _INFLUENCE_SHOWN, _influence
from online.settings.model import Drift
from online.watch.drift import DriftMonitor
from replay.example import Example, Features

ROWS: list[Features] = [{"a": x, "b": 2.0, "c": -x / 2} for x in (-1.0, 0.0, 1.0, 2.0)]


def replica(model: Any, rows: Sequence[Features] = ROWS, task: str = "binary") -> Any:
    return SimpleNamespace(
        settings=SimpleNamespace(task=task), learner=SimpleNamespace(serving=model),
        judge=SimpleNamespace(sample=rows),
    )  # fmt: skip


def logistic() -> Linear:
    model = Linear(linear_model.LogisticRegression())
    model.estimator._weights.update({"a": 3.0, "b": 9.0, "c": 1.0})
    return model


def test_what_is_always_the_same_has_none_however_heavy_it_is() -> None:
    found = _influence(replica(logistic()))
    assert found == pytest.approx({"a": 3.0, "c": 0.5, "b": 0.0})
    assert list(found) == ["a", "c", "b"], "the largest first"


def test_a_number_is_in_the_targets_unit() -> None:
    model = Linear(preprocessing.StandardScaler() | linear_model.LinearRegression())
    for x in ROWS:
        model.learn(x, 5.0 * float(x["a"]), 1.0)  # type: ignore[arg-type]
    found = _influence(replica(model, task="regression"))
    assert found is not None
    assert list(found)[-1] == "b"


@pytest.mark.parametrize(
    ("model", "rows", "task"),
    [
        (logistic(), [], "binary"),
        (logistic(), ROWS, "multiclass"),
        (tree.HoeffdingTreeClassifier(), ROWS, "binary"),
        (logistic(), [{f"f{i}": 1.0 for i in range(_INFLUENCE_NAMES + 1)}], "binary"),
    ],
)
def test_where_it_is_not_known_nothing_is_said(model: Any, rows: Any, task: str) -> None:
    assert _influence(replica(model, rows, task)) is None


def test_without_a_judge_nothing_is_said() -> None:
    unwatched = replica(logistic())
    unwatched.judge = None
    assert _influence(unwatched) is None


def test_so_many_features_are_told_and_no_more() -> None:
    rows: list[Features] = [{f"f{i}": float(x * i) for i in range(40)} for x in range(3)]
    model = logistic()
    model.estimator._weights.update({f"f{i}": 1.0 for i in range(40)})
    found = _influence(replica(model, rows))
    assert found is not None
    assert next(iter(found)) == "f39"
    assert len(found) == _INFLUENCE_SHOWN


def test_the_judge_holds_the_newest_rows() -> None:
    judge = DriftMonitor(Drift(), "binary")
    for i in range(40):
        judge.learned(1, i + 1, Example({"a": float(i)}, True, 1.0, {"true": 0.5, "false": 0.5}), i)
    assert [row["a"] for row in judge.sample] == [float(i) for i in range(24, 40)]
