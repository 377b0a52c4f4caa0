"""Many rows at once give what a row at a time gives: same label, same score."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import compose, dummy, forest, linear_model, naive_bayes, optim, preprocessing, tree

from online.models.adapters.linear import Linear
from online.models.adapters.opaque import Opaque
from online.models.base import Model
from online.models.loading.load import load
from online.rescore.scorer import TOLERANCE, Scorer, choose, differ
from online.rescore.trees import Unlowerable, lower
from online.settings.model import Training
from online.tables.columns import ABSENT, Numbers, Rows, Text

COLOURS = ("red", "green", "blue", "")


def rows(n: int, seed: int, *, text: bool = False, holes: bool = False, scale: float = 1.0) -> Rows:
    """Numbers (whole ones and truths among them), with text and absent values if asked for."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "a": rng.normal(size=n) * scale,
        "b": rng.normal(size=n) + 3,
        "c": rng.integers(-5, 5, n).astype(float),
        "d": rng.integers(0, 2, n).astype(float),
    }
    kinds: Any = {"a": "number", "b": "number", "c": "integer", "d": "bool"}
    made: dict[str, Any] = {}
    for name, values in columns.items():
        present = rng.random(n) > 0.2 if holes else None
        made[name] = Numbers(kinds[name], np.where(True if present is None else present, values, 0),
                             present)  # fmt: skip
    if text:
        codes = rng.integers(ABSENT if holes else 0, len(COLOURS), n).astype(np.int32)
        made["t"] = Text(codes, COLOURS)
    return Rows(n, made)


def label_of(x: dict[str, Any], task: str) -> Any:
    total = float(x.get("a", 0)) + 0.3 * float(x.get("c", 0)) + (x.get("t") == "red")
    if task == "regression":
        return total
    return total > 0 if task == "binary" else ("low", "mid", "high")[int(total > 0) + (total > 2)]


def taught(model: Model, task: str, *, n: int = 1_000, **shape: Any) -> Model:
    for x in rows(n, 1, **shape).dicts():
        model.learn(x, label_of(x, task), 1.0)
    return model


def opaque(estimator: Any, task: Any) -> Model:
    return Opaque(estimator, task=task, key=b"\0" * 32, why_not_mergeable="a test")


SGD = optim.SGD(0.05)


def scaled(final: Any, scaler: Any = preprocessing.StandardScaler) -> Callable[[], Any]:
    return lambda: scaler() | final.clone()


HINGE = linear_model.LogisticRegression(SGD, loss=optim.losses.Hinge())
LINEAR: dict[str, tuple[Callable[[], Any], str]] = {
    "logreg": (scaled(linear_model.LogisticRegression(SGD)), "binary"),
    "minmax": (scaled(linear_model.LogisticRegression(SGD), preprocessing.MinMaxScaler), "binary"),
    "bare": (lambda: linear_model.LogisticRegression(optim.SGD(0.01)), "binary"),
    "hinge": (scaled(HINGE), "binary"),
    "linreg": (scaled(linear_model.LinearRegression(SGD)), "regression"),
    "softmax": (scaled(linear_model.SoftmaxRegression(SGD)), "multiclass"),
}


def grown(**params: Any) -> Callable[[], Any]:
    return lambda: tree.HoeffdingTreeClassifier(50, **params)


def arf(**params: Any) -> Callable[[], Any]:
    return lambda: forest.ARFClassifier(2, seed=3, grace_period=50, **params)


TREES: dict[str, tuple[Callable[[], Any], str]] = {
    "hoeffding": (grown(), "binary"),
    "majority": (grown(leaf_prediction="mc"), "multiclass"),
    "bayes": (grown(leaf_prediction="nb"), "multiclass"),
    "binary splits": (grown(binary_split=True), "multiclass"),
    "forest": (arf(), "multiclass"),
    "plain votes": (arf(disable_weighted_vote=True), "binary"),
}


def same(model: Model, task: Any, asked: Rows, method: Any) -> None:
    scorer = Scorer(model, task, method)
    held: Any = getattr(model, "estimator", None)
    before = pickle.dumps(held)
    many = scorer.score(asked)
    assert pickle.dumps(held) == before
    assert not differ(many, scorer.single(asked), TOLERANCE[method])
    assert len(many.score) == asked.n


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("holes", [False, True])
def test_linear_models_by_column(name: str, holes: bool) -> None:
    build, task = LINEAR[name]
    model = taught(Linear(build()), task)
    asked = rows(3_000, 2, holes=holes)
    assert choose(model, task, asked.take(np.arange(200))) == "columns"  # type: ignore[arg-type]
    same(model, task, asked, "columns")
    same(model, task, rows(500, 3, scale=1e7, holes=holes), "columns")  # terms that cancel


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("holes", [False, True])
def test_trees_go_down_together(name: str, holes: bool) -> None:
    build, task = TREES[name]
    model = taught(opaque(build(), task), task, text=True)
    asked = rows(1_000, 2, text=True, holes=holes)
    assert choose(model, task, asked.take(np.arange(200))) == "trees"  # type: ignore[arg-type]
    same(model, task, asked, "trees")
    same(model, task, rows(300, 3, text=True, scale=1e7), "trees")  # saturated leaves


def test_a_tree_behind_a_scaler() -> None:
    build = preprocessing.StandardScaler() | tree.HoeffdingTreeClassifier(grace_period=50)
    model = taught(opaque(build, "binary"), "binary")
    same(model, "binary", rows(2_000, 2, holes=True), "trees")


@pytest.mark.parametrize(("task", "kind"), [("multiclass", int), ("binary", bool)])
def test_the_classes_0_and_1_of_a_tree_are_truths_in_a_binary_task_only(
    task: Any, kind: type
) -> None:
    model = opaque(TREES["hoeffding"][0](), task)
    for x in rows(500, 1).dicts():
        model.learn(x, int(label_of(x, "binary")), 1.0)
    asked = rows(200, 2)
    many, one = Scorer(model, task, "trees").score(asked), Scorer(model, task, "rows").score(asked)
    assert {type(label) for label in many.labels} == {kind} == {type(x) for x in one.labels}
    assert not differ(many, one, TOLERANCE["trees"])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-9, 1.0, 1e9]), holes=st.booleans())
def test_any_table(seed: int, scale: float, holes: bool) -> None:
    for model, task, method in MODELS:
        same(model, task, rows(60, seed, text=method == "trees", scale=scale, holes=holes), method)


MODELS: list[tuple[Model, Any, Any]] = [
    (taught(Linear(LINEAR["logreg"][0]()), "binary"), "binary", "columns"),
    (taught(Linear(LINEAR["softmax"][0]()), "multiclass"), "multiclass", "columns"),
    (taught(opaque(TREES["hoeffding"][0](), "binary"), "binary", text=True), "binary", "trees"),
]


@pytest.mark.parametrize(
    ("task", "outputs", "average"),
    [("binary", 1, 0.0), ("binary", 2, 0.0), ("multiclass", 3, 0.5), ("regression", 1, 0.9)],
)
def test_networks_by_batch(task: Any, outputs: int, average: float) -> None:
    pytest.importorskip("torch")
    params = {"inputs": ["b", "a", "c", "z"], "outputs": outputs}
    loaded = load("mlp", params, task=task, classes=None, key=b"\0" * 32, base_dir=None,  # type: ignore[arg-type]
                  training=Training(average=average))  # fmt: skip
    model = loaded.model
    for x in rows(300, 1).dicts():
        label = label_of(x, task)
        names = ("low", "mid", "high")
        model.learn(x, names.index(label) if task == "multiclass" else label, 1.0)
    asked = rows(2_000, 2, holes=True)
    assert choose(model, task, asked.take(np.arange(200))) == "batches"
    same(model, task, asked, "batches")


def test_what_is_not_lowered_is_asked_row_by_row() -> None:
    for estimator in (
        naive_bayes.GaussianNB(),
        compose.Select("a") | linear_model.LogisticRegression(),
        tree.HoeffdingAdaptiveTreeClassifier(seed=1),
    ):
        model = taught(opaque(estimator, "binary"), "binary", n=300)
        assert choose(model, "binary", rows(100, 2)) == "rows"
        same(model, "binary", rows(100, 2), "rows")


def test_a_model_whose_batch_differs_is_asked_row_by_row() -> None:
    """The check by which a way is chosen has teeth."""
    model = taught(Linear(LINEAR["logreg"][0]()), "binary")
    scorer = Scorer(model, "binary", "columns")
    asked = rows(200, 2)
    good, one = scorer.score(asked), scorer.single(asked)
    assert not differ(good, one, 1e-12)
    score = good.score.copy()
    score[7] += 1e-11
    assert differ(type(good)(good.labels, good.codes, score), one, 1e-12) == 1
    codes = good.codes.copy()
    codes[3] = 1 - codes[3]
    assert differ(type(good)(good.labels, codes, good.score), one, 1e-12) == 1
    score[9] = np.nan
    assert differ(type(good)(good.labels, good.codes, score), one, 1e-12) == 2


def test_an_untrained_model() -> None:
    for estimator in (tree.HoeffdingTreeClassifier(), forest.ARFClassifier(3)):
        with pytest.raises(Unlowerable):
            lower(estimator)
    model = opaque(dummy.NoChangeClassifier(), "binary")
    assert np.isnan(Scorer(model, "binary", "rows").score(rows(3, 1)).score).all()


def test_rows_come_back_as_they_were() -> None:
    found = rows(50, 4, text=True, holes=True).dicts()
    kinds = {name: {type(x[name]) for x in found if name in x} for name in "abcdt"}
    assert kinds == {"a": {float}, "b": {float}, "c": {int}, "d": {bool}, "t": {str}}
    assert any("a" not in x for x in found)
