"""The answer of mixed experts is shared out over the features, and adds up."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from online.models.auto import Auto
from online.models.base import Model, Prediction
from online.models.contributions import attribution
from online.models.selfrate import SelfRate
from online.sure.contributions import Contributions, NotExplained, added_up, contributions
from replay.example import Features, Label

TASKS = ("binary", "multiclass", "regression")
KINDS: dict[str, Any] = {
    "linear": lambda: SelfRate(["said"], bits=3),  # in eight places most features share theirs
    "auto": lambda: Auto(["said"]),
    "auto, few numbers": lambda: Auto(["said"]),
}


def row(rng: random.Random, kind: str) -> Features:
    numbers = "ab" if kind == "auto, few numbers" else "abcdef"
    x: Features = {name: rng.gauss(0.0, 3.0) for name in numbers}
    x |= {"said": rng.choice(["yes no", "no", "no perhaps"]), "k": rng.choice(["u", "v", True])}
    return x | {"gone": None} if rng.random() < 0.5 else x


def label(task: str, x: Features) -> Label:
    total = float(x["a"] or 0.0) + 2.0 * (x["k"] == "u") + abs(float(x["b"] or 0.0))
    if task == "regression":
        return total
    return total > 1.5 if task == "binary" else ("low", "mid", "high")[(total > 1) + (total > 4)]


def taught(kind: str, task: Any, rows: int = 300) -> Any:
    model, rng = KINDS[kind]().model_for(task), random.Random(7)
    for _ in range(rows):
        x = row(rng, kind)
        model.learn(x, label(task, x), 1.0)
    return model


def told(model: Model, x: Features) -> tuple[Prediction, Contributions]:
    found = added_up(model, x)
    assert found is not None
    return found


def output(answer: Prediction, of: Label | None) -> float:
    """Log odds of the label as they were answered, or the number."""
    if answer.probabilities is None or of is None:
        assert isinstance(answer.label, float)
        return answer.label
    rest = sum(p for other, p in answer.probabilities.items() if other != of)
    return math.log(max(answer.probabilities[of], 1e-15)) - math.log(max(rest, 1e-15))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_row_of_nothing_known_is_explained(kind: str, task: str) -> None:
    model = taught(kind, task, 30)
    for x in ({"new": 1.0}, {"new": 1.0, "other": 2}):
        answer, found = told(model, x)
        assert answer == model.predict(x)
        assert found.added == dict.fromkeys(x, 0.0)
        assert found.base == pytest.approx(found.output)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_it_adds_up_to_the_very_answer(kind: str, task: str) -> None:
    model, rng = taught(kind, task), random.Random(3)
    for i in range(40):
        x = row(rng, kind) | {"new": 1.0, "other": "unknown"}
        if i % 4 == 0:
            x["a"] = rng.choice([1e3, -1e3])  # eight standard deviations are the most
        answer, found = told(model, x)
        assert answer == model.predict(x), "bit for bit, notes too"
        of = None if task == "regression" else answer.label
        assert found.output == pytest.approx(output(answer, of), abs=1e-9)
        assert found.base == pytest.approx(output(model.predict({}), of), abs=1e-9)
        assert found.base + sum(found.added.values()) == pytest.approx(found.output, abs=1e-9)
        assert found.added.keys() == x.keys()
        assert found.added["new"] == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_it_adds_up_where_experts_are_as_sure_as_numbers_allow(task: str) -> None:
    model, rng = taught("linear", task), random.Random(4)
    for size in (30.0, 1e3, 1e-9):
        for held in model._experts._now.values() if task != "multiclass" else ():
            held[:4] = [rng.gauss(0.0, size) for _ in range(4)]
        if task == "multiclass":
            model._experts._now[1:, :4] *= size
        for _ in range(20):
            answer, found = told(model, row(rng, "linear"))
            of = None if task == "regression" else answer.label
            exact = output(answer, of)
            assert found.base + sum(found.added.values()) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_where_one_expert_is_heard_it_is_what_that_one_adds_up(task: str) -> None:
    model, rng = taught("linear", task), random.Random(5)
    model._mixture.losses = model._mixture.long = [0.0, 1e4, 1e4, 1e4]
    for _ in range(10):
        x = row(rng, "linear")
        answer, found = told(model, x)
        of = None if task == "regression" else answer.label
        asked = contributions(model.predict_many, x, of, asks_max=200)
        assert asked.exact
        assert found.added == pytest.approx(asked.added, abs=1e-7)


def test_several_experts_come_near_the_mean_of_many_orders() -> None:
    rng = random.Random(6)
    for task in TASKS:
        model = taught("auto, few numbers", task)
        for _ in range(5):
            x = row(rng, "auto, few numbers")
            answer, found = told(model, x)
            of = None if task == "regression" else answer.label
            asked = contributions(model.predict_many, x, of, asks_max=2_000)
            size = sum(map(abs, asked.added.values()))
            apart = sum(abs(found.added[name] - asked.added[name]) for name in x)
            assert apart <= 0.35 * size


def test_without_the_factor_nothing_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "_to_log_odds", lambda *_: 1.0)  # the control
    for task in ("binary", "multiclass"):
        _, found = told(taught("linear", task), row(random.Random(3), "linear"))
        assert abs(found.base + sum(found.added.values()) - found.output) > 1e-3


def test_what_is_no_number_is_not_told() -> None:
    model = taught("linear", "binary", 20)
    model._mixture.losses = [math.nan] * 4
    with pytest.raises(NotExplained, match="no number"):
        added_up(model, row(random.Random(1), "linear"))
