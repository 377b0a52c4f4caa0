"""Linear adapters at their edges: names, weights, strictness, bytes."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from river import compose, linear_model, optim, preprocessing

from evaluation.streams import open_stream
from online.models.adapters.linear import Linear, why_not_mergeable
from online.models.errors import WeightUnsupported
from paramserver.core.blocks import Block, merge


def _logistic(**settings: Any) -> Any:
    return preprocessing.StandardScaler() | linear_model.LogisticRegression(**settings)


@pytest.mark.parametrize(
    "estimator",
    [
        _logistic(),
        preprocessing.MinMaxScaler() | linear_model.LogisticRegression(),
        linear_model.SoftmaxRegression(),
        preprocessing.StandardScaler() | linear_model.LinearRegression(),
    ],
    ids=["standard", "min-max", "softmax", "linear"],
)
def test_ten_thousand_predictions_with_new_names_leave_every_byte(estimator: Any) -> None:
    model = Linear(estimator)
    for i, label in enumerate((True, False, True)):
        model.learn({"a": 1.0 * i, "b": i}, label, 1.0)
    before = pickle.dumps(model)
    for i in range(10_000):
        model.predict({"a": 2.0, f"new {i}": 1.0, f"other {i}": 3})
    assert pickle.dumps(model) == before


def test_before_learning() -> None:
    assert Linear(_logistic()).predict({"a": 1.0}).probabilities == {False: 0.5, True: 0.5}
    unknown = Linear(linear_model.SoftmaxRegression()).predict({"a": 1.0})
    assert (unknown.label, unknown.probabilities) == (None, {})
    assert Linear(linear_model.LinearRegression()).predict({"a": 1.0}).label == 0.0


def test_block_names_and_kinds() -> None:
    model = Linear(_logistic())
    model.learn({"a": 1.0, "b": 4}, True, 1.0)
    model.learn({"a": 3.0, "b": 4}, False, 1.0)
    blocks = model.cut()
    assert {name: block.kind for name, block in blocks.items()} == {
        "scaler0": "moments",
        "weights": "additive",
        "intercept": "additive",
    }
    assert blocks["scaler0"].data == {"a": (2, 2.0, 2.0), "b": (2, 4.0, 0.0)}
    assert blocks["intercept"].data.keys() == {""}

    classes = Linear(linear_model.SoftmaxRegression())
    classes.learn({"a": 1.0}, "red", 1.0)
    classes.learn({"a": 1.0}, 3, 1.0)
    assert set(classes.cut()) == {'weights/"red"', "weights/3"}

    extrema = Linear(preprocessing.MinMaxScaler() | linear_model.LinearRegression())
    extrema.learn({"a": 5}, 1.0, 1.0)
    extrema.learn({"a": -1}, 1.0, 1.0)
    assert extrema.cut()["scaler0"] == Block("extrema", {"a": (-1.0, 5.0)})


def test_a_class_with_no_features_is_known_to_others() -> None:
    model, other = (Linear(linear_model.SoftmaxRegression()) for _ in range(2))
    model.learn({}, "red", 1.0)
    delta = model.cut()
    assert delta == {'weights/"red"': Block("additive", {})}
    other.rebase(delta)
    assert other.predict({"a": 1.0}).probabilities == {"red": 1.0}


def test_weight_is_rivers_own() -> None:
    model, plain = Linear(_logistic()), _logistic()
    for i in range(20):
        row, label = {"a": i % 5, "b": i % 3}, i % 2 == 0
        model.learn(row, label, 0.5 + i)
        plain.learn_one(row, label, w=0.5 + i)
    assert model.predict({"a": 1, "b": 2}).probabilities == plain.predict_proba_one(
        {"a": 1, "b": 2}
    )


def test_softmax_refuses_a_weight_before_its_scaler_has_learned() -> None:
    model = Linear(preprocessing.StandardScaler() | linear_model.SoftmaxRegression())
    with pytest.raises(WeightUnsupported, match=r"2\.0.*SoftmaxRegression") as caught:
        model.learn({"a": 1.0}, "x", 2.0)
    assert model.cut() == {}
    assert caught.value.definite
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


class _Subclass(linear_model.LogisticRegression):
    pass


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (linear_model.ALMAClassifier(), "ALMAClassifier"),
        (_Subclass(), "_Subclass"),
        (_logistic(optimizer=optim.Adam()), "Adam"),
        (_logistic(optimizer=optim.SGD(optim.schedulers.InverseScaling(0.1))), "InverseScaling"),
        (_logistic(intercept_lr=optim.schedulers.InverseScaling(0.1)), "intercept_lr"),
        (_logistic(l1=0.1), "l1=0.1"),
        (_logistic(initializer=optim.initializers.Normal(seed=1)), "Normal"),
        (preprocessing.StandardScaler(window_size=9) | _Subclass(), "window_size=9"),
        (preprocessing.MaxAbsScaler() | linear_model.LogisticRegression(), "MaxAbsScaler"),
        (compose.Select("a") | linear_model.LogisticRegression(), "Select"),
        (linear_model.SoftmaxRegression(optim.Momentum()), "Momentum"),
    ],
)
def test_what_can_not_be_merged_says_why(estimator: Any, reason: str) -> None:
    why = why_not_mergeable(estimator)
    assert why is not None
    assert reason in why


def test_structure_tells_parameters_apart() -> None:
    texts = {
        Linear(_logistic(optimizer=optim.SGD(rate), l2=l2)).structure
        for rate in (0.1, 0.1 + 1e-12)
        for l2 in (0.0, 1e-9)
    }
    assert len(texts) == 4
    assert not any(" at 0x" in text for text in texts)


def test_moments_keep_their_digits_far_from_zero() -> None:
    """A difference of two states would have lost the variance of values around 1e9."""
    model, values = Linear(_logistic()), {}
    for i in range(2_000):
        model.learn({"a": 1e9 + i % 2}, i % 2 == 0, 1.0)
        if i % 8 == 7:
            delta = model.cut()
            assert delta["scaler0"].data["a"][2] == pytest.approx(2.0, rel=1e-6)
            merge(values, delta)
    n, mean, m2 = values["scaler0"].data["a"]
    assert (n, mean) == (2_000, pytest.approx(1e9 + 0.5, abs=1e-6))
    assert m2 / n == pytest.approx(0.25, rel=1e-6)


def test_stacked_scalers_follow_the_pipeline() -> None:
    def build() -> Any:
        return compose.Pipeline(
            preprocessing.StandardScaler(),
            preprocessing.MinMaxScaler(),
            linear_model.LogisticRegression(),
        )

    model, plain = Linear(build()), build()
    for features, label in list(open_stream("bananas").rows)[:200]:
        expected = plain.predict_proba_one(features)[True]
        if model.estimator["MinMaxScaler"].min:  # untrained, river's own gives NaN
            assert model.predict(features).probabilities == {False: 1.0 - expected, True: expected}
        plain.learn_one(features, label)
        model.learn(features, label, 1.0)
    assert {"scaler0", "scaler1"} <= model.cut().keys()


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_curvature_is_the_rate_times_the_squared_gradients(task: str) -> None:
    """Measured from the steps; measuring changes no weight, and a cut begins anew."""
    rows = [({"a": 1.0, "b": -2.0}, 1), ({"a": 0.5}, 0), ({"b": 3.0, "c": 1.0}, 1)]
    rate = 0.25

    def build() -> Linear:
        if task == "multiclass":
            return Linear(linear_model.SoftmaxRegression(optim.SGD(rate)))
        return Linear(linear_model.LogisticRegression(optim.SGD(rate), intercept_lr=rate))

    plain, measured = build(), build()
    measured.compensate()
    block = "weights/1" if task == "multiclass" else "weights"
    expected: dict[str, float] = {}
    for x, y in rows:
        p = plain.predict(x).probabilities or {}
        if y in p or task == "binary":
            gradient = p[y] - 1.0 if task == "multiclass" else p[True] - y
            gradient = gradient if y == 1 or task == "binary" else p.get(1, 0.0)
        else:
            gradient = -1.0 if y == 1 else p.get(1, 0.0)
        for name, value in x.items():
            step = rate * (gradient * value) ** 2
            expected[name] = expected.get(name, 0.0) + step
        plain.learn(x, y, 1.0)
        measured.learn(x, y, 1.0)
    curved = measured.curved()
    assert {name: c for name, (_, c) in curved[block].items()} == pytest.approx(expected)
    assert {start for start, _ in curved[block].values()} == {0.0}
    delta = measured.cut()
    assert delta == plain.cut()
    assert plain.curved() == {}
    measured.learn(*rows[0], 1.0)
    again = measured.curved()[block]
    assert again["a"][0] == pytest.approx(delta[block].data["a"])
    measured.reset({})
    assert not any(measured.curved().values())


def test_only_log_losses_have_a_curvature() -> None:
    for estimator in (linear_model.LinearRegression(), linear_model.Perceptron()):
        model = Linear(estimator)
        model.compensate()
        model.learn({"a": 1.0}, True, 1.0)
        assert model.curved() == {}


def test_answers_by_column_are_those_of_each_row_where_probabilities_are_0_or_1_too() -> None:
    model = Linear(linear_model.LogisticRegression(optim.SGD(1.0)))
    model.learn({"a": 1.0}, True, 1.0)
    rows: list[dict[str, Any]] = [{"a": x} for x in (-1e9, -61.0, -40.0, -3.0, 0.0, 2.0, 61.0, 1e9)]
    several, each = model.predict_many(rows), [model.predict(row) for row in rows]
    assert [answer.label for answer in several] == [answer.label for answer in each]
    shares = [answer.probabilities or {} for answer in each]
    assert {0.0, 1.0} <= {share[True] for share in shares}
    for answer, share in zip(several, shares, strict=True):
        assert answer.probabilities == pytest.approx(share, abs=1e-15)
