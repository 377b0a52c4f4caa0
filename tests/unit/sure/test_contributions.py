"""What features have added to an answer adds up to it, whatever model gave it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from river import forest, linear_model, optim, preprocessing, tree

from online.errors import RequestError
from online.messages.structs import Explanation, Prediction, PredictRequest
from online.models.adapters.linear import Linear
from online.models.adapters.opaque import Opaque
from online.models.base import Model
from online.models.base import Prediction as Answer
from online.models.ftrl import Ftrl
from online.models.selfrate import SelfRate
from online.settings.limits import Limits
from online.sure.contributions import Contributions, NotExplained, added_up, contributions
from replay.example import Features, Label

NAMES = "abcdef"
ROWS = 300


def row(rng: random.Random) -> Features:
    return {name: rng.gauss(i, 1.0 + i) for i, name in enumerate(NAMES)}


def taught(model: Model, label: Callable[[Features], Label]) -> Model:
    rng = random.Random(5)
    for _ in range(ROWS):
        x = row(rng)
        model.learn(x, label(x), 1.0)
    return model


def yes(x: Features) -> Label:
    return bool(float(x["a"] or 0.0) + 0.2 * float(x["c"] or 0.0) > 0.4)


def kind(x: Features) -> Label:
    return ("low", "mid", "high")[int(float(x["a"] or 0.0) > 0.0) + int(float(x["b"] or 0.0) > 1.0)]


def amount(x: Features) -> Label:
    return 3.0 * float(x["a"] or 0.0) - float(x["b"] or 0.0)


def opaque(estimator: Any, task: Any) -> Opaque:
    return Opaque(estimator, task=task, key=bytes(32), why_not_mergeable="it is not")


def scaled(final: Any) -> Linear:
    return Linear(preprocessing.StandardScaler() | final)


ADDITIVE: dict[str, Callable[[], Model]] = {
    "logistic": lambda: taught(scaled(linear_model.LogisticRegression(optim.SGD(0.05))), yes),
    "ftrl": lambda: taught(Ftrl().model_for("binary"), yes),
    "a line": lambda: taught(scaled(linear_model.LinearRegression(optim.SGD(0.05))), amount),
}
OTHERS: dict[str, Callable[[], Model]] = {
    "softmax": lambda: taught(scaled(linear_model.SoftmaxRegression(optim.SGD(0.05))), kind),
    "linear": lambda: taught(SelfRate().model_for("binary"), yes),
    "linear of classes": lambda: taught(SelfRate().model_for("multiclass"), kind),
    "linear of numbers": lambda: taught(SelfRate().model_for("regression"), amount),
    "a tree": lambda: taught(opaque(tree.HoeffdingTreeClassifier(20), "binary"), yes),
    "a forest": lambda: taught(opaque(forest.ARFClassifier(3, seed=1), "multiclass"), kind),
}


def log_odds(model: Model, x: Features) -> tuple[Label | None, float]:
    """The label, and the log odds of it, or the number."""
    answer = model.predict(x)
    if answer.probabilities is None:
        assert isinstance(answer.label, float)
        return None, answer.label
    assert answer.label is not None
    p = answer.probabilities[answer.label]
    rest = sum(q for label, q in answer.probabilities.items() if label != answer.label)
    return answer.label, math.log(max(p, 1e-15)) - math.log(max(rest, 1e-15))


@pytest.mark.parametrize("name", [*ADDITIVE, *OTHERS])
def test_contributions_add_up_to_the_answer(name: str) -> None:
    model, rng = (ADDITIVE | OTHERS)[name](), random.Random(9)
    for _ in range(5):
        x = row(rng)
        label, output = log_odds(model, x)
        found = contributions(model.predict_many, x, label, asks_max=200)
        assert found.output == pytest.approx(output, abs=1e-9)
        assert found.base == pytest.approx(log_odds_of(model, {}, label), abs=1e-9)
        assert found.base + sum(found.added.values()) == pytest.approx(output, abs=1e-9)
        assert found.added.keys() == x.keys()
        assert found.exact or name in OTHERS
        again = contributions(model.predict_many, x, label, asks_max=200)
        assert again == found


def log_odds_of(model: Model, x: Features, label: Label | None) -> float:
    answer = model.predict(x)
    if label is None:
        assert isinstance(answer.label, float)
        return answer.label
    shares = answer.probabilities or {}
    rest = sum(q for other, q in shares.items() if other != label)
    return math.log(max(shares[label], 1e-15)) - math.log(max(rest, 1e-15))


def told(model: Model, x: Features) -> tuple[Answer, Contributions]:
    """The answer, and what the weights say of it."""
    found = added_up(model, x)
    assert found is not None
    return found


def test_those_of_a_logistic_regression_are_weight_times_scaled_number() -> None:
    model, x = ADDITIVE["logistic"](), row(random.Random(2))
    assert isinstance(model, Linear)
    scaler, final = model.estimator.steps.values()
    label, _ = log_odds(model, x)
    found = contributions(model.predict_many, x, label, asks_max=100)
    sign = 1.0 if label else -1.0
    answer, direct = told(model, x)
    assert answer == model.predict(x)
    assert direct.exact
    assert direct.added == pytest.approx(found.added, abs=1e-9)
    assert (direct.base, direct.output) == pytest.approx((found.base, found.output), abs=1e-9)
    assert told(model, {**x, "new": 1.0})[1].added["new"] == 0.0
    for name, number in scaler.transform_one(x).items():
        assert found.added[name] == pytest.approx(sign * number * final.weights[name], abs=1e-9)
    assert found.base == pytest.approx(sign * final.intercept, abs=1e-9)
    assert (found.exact, found.paths) == (True, 2)


def test_only_what_is_known_to_add_up_is_read_from_weights() -> None:
    x, line = row(random.Random(4)), ADDITIVE["a line"]()
    _, direct = told(line, x)
    assert direct.output == pytest.approx(line.predict(x).label, abs=1e-9)
    hinge = linear_model.LogisticRegression(optim.SGD(0.05), loss=optim.losses.Hinge())
    for other in (scaled(hinge), scaled(linear_model.Perceptron()), OTHERS["a tree"]()):
        assert added_up(other, x) is None


def test_a_model_that_does_not_add_up_is_not_called_exact() -> None:
    def ask(rows: Sequence[Features]) -> list[Answer]:
        return [
            Answer(float(x.get("a", 0.0) or 0.0) * float(x.get("b", 0.0) or 0.0), None)
            for x in rows
        ]

    found = contributions(ask, {"a": 2.0, "b": 3.0}, None, asks_max=100)
    assert not found.exact
    assert found.added == pytest.approx({"a": 3.0, "b": 3.0})  # each has half of the product
    hurried = contributions(ask, {"a": 2.0, "b": 3.0}, None, asks_max=100, in_time=lambda: False)
    assert hurried.paths == 2
    asked = list[int]()

    def counted(rows: Sequence[Features]) -> list[Answer]:
        asked.append(len(rows))
        return ask(rows)

    contributions(counted, dict.fromkeys("abcdefgh", 1.0), None, asks_max=50)
    assert 30 < sum(asked) <= 50


def test_one_feature_has_it_all() -> None:
    def ask(rows: Sequence[Features]) -> list[Answer]:
        return [Answer(5.0 if x else 1.0, None) for x in rows]

    found = contributions(ask, {"a": 2.0}, None, asks_max=8)
    assert (found.added, found.base, found.exact) == ({"a": 4.0}, 1.0, True)


def raising(rows: Sequence[Features]) -> list[Answer]:
    raise KeyError("a")


SILENT: dict[str, tuple[Callable[[Sequence[Features]], list[Answer]], Label | None]] = {
    "raises": (raising, None),
    "no number": (lambda rows: [Answer(math.nan, None) for _ in rows], None),
    "without probabilities": (lambda rows: [Answer(True, None) for _ in rows], True),
    "no probability": (lambda rows: [Answer(True, {False: 1.0}) for _ in rows], True),
}


@pytest.mark.parametrize("name", list(SILENT))
def test_a_model_that_can_not_be_explained_says_so(name: str) -> None:
    ask, label = SILENT[name]
    with pytest.raises(NotExplained, match=name):
        contributions(ask, {"a": 1.0, "b": 1.0}, label, asks_max=20)


def test_a_request_is_told_why_and_what_can_not_be_told(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        def build() -> Any:
            return ADDITIVE["logistic"]()

        replica = await world.replica(build=build, task="binary", limits=Limits(explain_max=16))
        serving, x = world.serving(replica), row(random.Random(3))
        said = await serving.explained(PredictRequest(features=x, explain=True))
        plain = serving.predict(PredictRequest(features=x))
        assert isinstance(said, Prediction)
        assert isinstance(plain, Prediction)
        assert not isinstance(plain.explanation, Explanation)
        assert plain.prediction == said.prediction
        found = said.explanation
        assert isinstance(found, Explanation)
        assert found.of == said.prediction
        total = found.base + sum(found.contributions.values())
        assert isinstance(said.probabilities, dict)
        p = said.probabilities["true" if said.prediction else "false"]
        assert total == pytest.approx(math.log(p / (1.0 - p)), abs=1e-9)
        sizes = [abs(value) for value in found.contributions.values()]
        assert sizes == sorted(sizes, reverse=True)
        refused = {
            "too_many_to_explain": PredictRequest(
                features=dict.fromkeys("abcdefghi", 1.0), explain=True
            ),
            "invalid_value": PredictRequest(instances=[x], explain=True),
        }
        before = replica.counts["predictions"]
        for code, request in refused.items():
            with pytest.raises(RequestError) as error:
                await serving.explained(request)
            assert error.value.code == code
            assert error.value.hint
        assert replica.counts["predictions"] == before
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)


def test_before_the_first_class_nothing_is_explained(tmp_path: Path) -> None:
    async def scene(world: worlds.World) -> None:
        replica = await world.replica(
            build=lambda: SelfRate().model_for("multiclass"), task="multiclass"
        )
        serving = world.serving(replica)
        with pytest.raises(RequestError, match="no label yet"):
            await serving.explained(PredictRequest(features={"a": 1.0}, explain=True))
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)
