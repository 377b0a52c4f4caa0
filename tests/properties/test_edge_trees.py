"""Trees of any shape, rows with any holes: the tables against river itself."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from river import compose, forest, preprocessing, tree

from online.edge.errors import ExportRefused, PackCorrupt
from online.edge.lowering.evaluate import evaluate
from online.edge.lowering.lower import lower
from online.edge.targets import pack
from online.edge.targets.golden import answer
from online.models.loading.load import _wrap, load

NUMBERS = st.one_of(
    st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 1.1, -1.0, 1e9]), st.floats(-1e3, 1e3, width=32)
)
NAMES = ("a", "b", "c")
ROW = st.fixed_dictionaries({}, optional={name: NUMBERS for name in NAMES})
MODES = st.sampled_from(["mc", "nb", "nba"])


def rows(seed: int, count: int, holes: float) -> list[tuple[dict[str, float], int]]:
    """Steps of tenths, so that rows stand on thresholds; labels follow from them."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        x = {n: float(rng.integers(0, 12)) / 10 for n in NAMES if rng.random() > holes}
        made.append((x, int(sum(x.values()) * 10) % 3))
    return made


def within(estimator: Any, x: dict[str, float]) -> float:
    """What float64 may be off by: 1e-12, and the last bits of the log densities that were added.

    A row far outside has some of many hundreds.
    """
    z, roots = (
        x,
        [m._root for m in getattr(estimator, "models", [estimator]) if hasattr(m, "_root")],
    )
    if isinstance(estimator, compose.Pipeline):
        z, roots = (
            estimator["StandardScaler"].transform_one(x),
            [list(estimator.steps.values())[-1]._root],
        )
    largest = 0.0
    for root in roots:
        leaf = root.traverse(z) if hasattr(root, "traverse") else root
        for label in leaf.stats:
            logs = [s.cond_log_proba(z[n], label) for n, s in leaf.splitters.items() if n in z]
            largest = max(largest, sum(abs(log) for log in logs if np.isfinite(log)))
    return 1e-12 + 4 * float(np.finfo(float).eps) * largest


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), MODES, st.booleans(), st.floats(0, 0.4), st.lists(ROW, max_size=20))
@example(957, "nb", False, 0.0, [{"c": -24.0}])  # off by 1.3e-12
def test_a_tree_answers_as_river(
    seed: int, mode: str, scaled: bool, holes: float, asked: list[dict[str, float]]
) -> None:
    estimator: Any = tree.HoeffdingTreeClassifier(
        grace_period=20, delta=0.2, leaf_prediction=mode, tau=0.5
    )
    if scaled:
        estimator = preprocessing.StandardScaler() | estimator
    model = _wrap("t", estimator, "multiclass", b"k", ())
    played = rows(seed, 300, holes)
    for x, y in played:
        model.learn(x, y, 1.0)
    edge = lower(model, "multiclass")
    # Of leaves whose densities are needles, float32 tables are refused by the gate, not exact.
    single = 1e-6 if mode == "mc" else 1e-2
    for precision in ("float64", "float32"):
        again = pack.decode(pack.encode(edge, precision))  # type: ignore[arg-type]
        for x in [*asked, *(x for x, _ in played[:60])]:
            expected = answer(edge, model.predict(x))
            bound = single if precision == "float32" else within(estimator, x)
            np.testing.assert_allclose(evaluate(again, [x])[0], expected, rtol=0, atol=bound)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), MODES, st.lists(ROW, max_size=20))
def test_a_forest_answers_as_river(seed: int, mode: str, asked: list[dict[str, float]]) -> None:
    estimator = forest.ARFClassifier(
        n_models=4, seed=seed, grace_period=10, delta=0.2, tau=0.5, leaf_prediction=mode
    )
    model = _wrap("t", estimator, "multiclass", b"k", ())
    for x, y in rows(seed, 150, 0.1):
        model.learn(x, y, 1.0)
    edge = pack.decode(pack.encode(lower(model, "multiclass"), "float64"))
    for x in asked:
        expected = answer(edge, model.predict(x))
        np.testing.assert_allclose(
            evaluate(edge, [x])[0], expected, rtol=0, atol=within(estimator, x)
        )


@pytest.mark.parametrize("binary", [False, True])
def test_branches_on_text_and_values_never_seen(binary: bool) -> None:
    estimator = tree.HoeffdingTreeClassifier(
        grace_period=20, delta=0.5, tau=0.5, binary_split=binary, leaf_prediction="mc"
    )
    model = _wrap("t", estimator, "binary", b"k", ())
    kinds = ["rot", "grün", "青", "x y"]
    for i in range(800):
        kind = kinds[i % 4]
        model.learn({"kind": kind, "n": float(i % 5)}, (i % 4 == 2) ^ (i % 5 == 1), 1.0)
    edge = lower(model, "binary")
    assert edge.columns.vocabularies
    asked: list[dict[str, Any]] = [{"kind": k, "n": float(n)} for k in kinds for n in range(5)]
    asked += [{"kind": "never seen", "n": 1.0}, {"n": 1.0}, {"kind": "rot"}, {}]
    for x in asked:
        found = evaluate(pack.decode(pack.encode(edge)), [x])[0]
        np.testing.assert_allclose(found, answer(edge, model.predict(x)), rtol=0, atol=1e-6)


def _packed() -> bytes:
    model = _wrap("t", tree.HoeffdingTreeClassifier(grace_period=20, tau=0.5), "multiclass",
                  b"k", ())  # fmt: skip
    for x, y in rows(1, 200, 0.1):
        model.learn(x, y, 1.0)
    return pack.encode(lower(model, "multiclass"))


def test_two_columns_of_one_name_are_refused() -> None:
    whole = _packed()
    assert whole.count(b'"a","b"') == 1
    with pytest.raises(PackCorrupt, match="two columns"):
        pack.decode(whole.replace(b'"a","b"', b'"a","a"'))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_bytes_that_are_changed_are_refused_or_still_a_model(data: st.DataObject) -> None:
    """A hash is what finds a changed value; a changed shape is never walked."""
    whole = _packed()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    changed = bytearray(whole[:at] if cut else whole)
    if not cut:
        changed[at] ^= data.draw(st.integers(1, 255))
    try:
        edge = pack.decode(bytes(changed))
    except PackCorrupt:
        return
    assert not cut, "a part is no whole"
    evaluate(edge, [{"a": 0.1, "b": 0.2}])


def test_terms_of_another_shape_are_refused() -> None:
    whole = _packed()
    changed, n = re.subn(rb'("slope","\w+",\[\d+,)3', rb"\g<1>2", whole)
    assert n == 1
    with pytest.raises(PackCorrupt, match="terms and leaves have different shapes"):
        pack.decode(changed)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["logreg", "linreg", "linear", "ftrl"]),
    st.integers(0, 10_000),
    st.booleans(),
    st.lists(ROW, max_size=20),
)
def test_a_linear_model_answers_as_served(
    learner: str, seed: int, scale: bool, asked: list[dict[str, float]]
) -> None:
    params: dict[str, object] = {} if learner == "linear" else {"scale": scale}
    task: Any = "regression" if learner == "linreg" else "binary"
    model = load(learner, params, task=task, classes=None, key=b"k", base_dir=Path()).model
    for x, y in rows(seed, 100, 0.2):
        model.learn({**x, "same": 3.0}, float(y) if task == "regression" else y == 1, 1.0)
    edge = pack.decode(pack.encode(lower(model, task), "float64"))
    for x in [*asked, {"same": 4.0, "new": 1.0}]:
        expected = np.array(answer(edge, model.predict(x)))
        off = np.abs(evaluate(edge, [x])[0] - expected) / np.maximum(1.0, np.abs(expected))
        assert off.max() <= 1e-12, (x, expected)


def _refusals() -> list[tuple[str, Any, Any, str]]:
    from river import compose, linear_model, naive_bayes, neighbors, optim, tree

    return [
        ("KNNClassifier", neighbors.KNNClassifier(), "binary", "no linear model"),
        ("GaussianNB", naive_bayes.GaussianNB(), "binary", "no linear model"),
        ("FuncTransformer", compose.FuncTransformer(dict) | linear_model.LogisticRegression(),
         "binary", "be exported"),
        ("LinearRegression.loss", linear_model.LinearRegression(loss=optim.losses.Poisson()),
         "regression", "exponential"),
        ("HoeffdingTreeClassifier", tree.HoeffdingTreeClassifier(), "binary", "learned a row yet"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("node", "estimator", "task", "why"), _refusals(), ids=lambda x: str(x)[:20]
)
def test_what_has_no_exact_form_is_refused_by_name(
    node: str, estimator: Any, task: Any, why: str
) -> None:
    model = _wrap("t", estimator, task, b"k", ())
    with pytest.raises(ExportRefused) as refused:
        lower(model, task)
    assert refused.value.node == node
    assert why in refused.value.reason


def test_a_stranger_in_front_of_leaves_is_refused() -> None:
    estimator = tree.HoeffdingTreeClassifier(
        splitter=tree.splitter.HistogramSplitter(), leaf_prediction="nb"
    )
    model = _wrap("t", estimator, "binary", b"k", ())
    for x, y in rows(1, 50, 0.0):
        model.learn(x, y == 1, 1.0)
    with pytest.raises(ExportRefused, match="only Gaussian observers"):
        lower(model, "binary")


def test_a_threshold_behind_a_scaler_is_the_last_number_that_goes_left() -> None:
    estimator = preprocessing.StandardScaler() | tree.HoeffdingTreeClassifier(
        grace_period=20, delta=0.5, tau=0.5, leaf_prediction="mc"
    )
    model = _wrap("t", estimator, "binary", b"k", ())
    for x, y in rows(3, 400, 0.0):
        model.learn(x, y == 1, 1.0)
    edge = lower(model, "binary")
    found = {"left": 0, "right": 0}
    for i, name in enumerate(edge.columns.names):
        body: Any = edge.body
        for threshold in body.threshold[body.feature == i].tolist():
            for value in (threshold, math.nextafter(threshold, math.inf)):
                x = {"a": 0.5, "b": 0.5, "c": 0.5, name: value}
                expected = answer(edge, model.predict(x))
                np.testing.assert_allclose(evaluate(edge, [x])[0], expected, rtol=0, atol=1e-12)
                found["left" if value == threshold else "right"] += 1
    assert found["left"] >= 3
