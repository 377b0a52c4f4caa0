"""Lessons that are taken back: the step of the difference of two gradients, of each built-in."""

from __future__ import annotations

import math
from typing import Any

import pytest
from river import linear_model, optim

from online.models.adapters.linear import Linear
from online.models.auto import Auto
from online.models.base import Revising, learn_example, why_not_revised
from online.models.errors import WeightUnsupported
from online.models.fm import fm
from online.models.ftrl import Ftrl
from online.models.loading.load import linreg, logreg, softmax
from online.models.selfrate import SelfRate
from replay.example import Example, Label

TASKS: dict[str, tuple[Label, Label, Label]] = {
    "binary": (False, True, False),
    "multiclass": ("a", "b", "c"),
    "regression": (0.0, 3.0, -1.0),
}
RECIPES: dict[str, Any] = {"ftrl": Ftrl(), "linear": SelfRate(), "auto": Auto()}


def made() -> dict[str, tuple[Any, str]]:
    """A model of each kind that takes lessons back, and its task."""
    found = {
        "logreg": (Linear(logreg()), "binary"),
        "softmax": (Linear(softmax()), "multiclass"),
        "linreg": (Linear(linreg()), "regression"),
    }
    for name, recipe in RECIPES.items():
        found |= {f"{name} {task}": (recipe.model_for(task), task) for task in TASKS}
    return found


KINDS = list(made())


def rows(task: str) -> list[tuple[dict[str, float], Label]]:
    labels = TASKS[task]
    return [({"x": i % 3 - 1.0, "y": i % 5 / 4.0}, labels[i % 3]) for i in range(60)]


def taught(kind: str) -> tuple[Any, str]:
    model, task = made()[kind]
    for features, label in rows(task):
        learn_example(model, Example(features, label))
    return model, task


def share(model: Any, features: dict[str, float], label: Label) -> float:
    """How near the answer is to the label: its probability, or the error turned round."""
    answer = model.predict(features)
    if answer.probabilities is None:
        return -abs(float(answer.label) - float(label))
    found: float = answer.probabilities[label]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_lesson_that_is_taken_back_moves_the_answer_to_the_final_label(kind: str) -> None:
    model, task = taught(kind)
    first, final, _ = TASKS[task]
    features = {"x": 0.5, "y": 0.25, "new": 1.0}
    learn_example(model, Example(features, first, provisional=True))
    for other, label in rows(task)[:10]:
        learn_example(model, Example(other, label))
    before = share(model, features, final)
    learn_example(model, Example(features, final), before=(first, 1.0))
    assert share(model, features, final) > before
    assert all(math.isfinite(x) for x in answers(model, task))


def answers(model: Any, task: str) -> list[float]:
    return [share(model, x, TASKS[task][0]) for x, _ in rows(task)[:15]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_label_again_teaches_nothing_more(kind: str) -> None:
    model, task = taught(kind)
    first, features = TASKS[task][0], {"x": 0.5, "y": 0.25}
    learn_example(model, Example(features, first, provisional=True))
    model.cut()
    learn_example(model, Example(features, first), before=(first, 1.0))
    changed = model.cut()
    local = [name for name, block in changed.items() if block.kind == "local"]
    assert [name for name in changed if name not in local] == []


@pytest.mark.parametrize("kind", ["logreg", "linreg", "softmax"])
def test_lessons_are_taken_back_by_the_same_step_whatever_was_learned_between(kind: str) -> None:
    steps = []
    for between in (0, 25):
        model, task = made()[kind]
        model = Linear(model.estimator[-1])  # no scaler: x is the same
        first, final, _ = TASKS[task]
        features = {"x": 0.5, "y": 0.25}
        for label in TASKS[task]:
            learn_example(model, Example(features, label))
        learn_example(model, Example(features, first, provisional=True))
        for other, label in rows(task)[:between]:
            learn_example(model, Example(other, label))
        model.cut()
        learn_example(model, Example(features, final), before=(first, 1.0))
        steps.append({name: dict(block.data) for name, block in model.cut().items()})
    assert steps[0].keys() == steps[1].keys()
    for name, moves in steps[0].items():
        assert moves == pytest.approx(steps[1][name], abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_moments_count_a_row_once(kind: str) -> None:
    model, task = taught(kind)
    first, final, _ = TASKS[task]
    model.cut()
    learn_example(model, Example({"x": 9.0, "y": 1.0}, first, provisional=True))
    once = {name for name in model.cut() if name.startswith(("scaler", "target"))}
    assert once
    learn_example(model, Example({"x": 9.0, "y": 1.0}, final), before=(first, 1.0))
    assert not [name for name in model.cut() if name.startswith(("scaler", "target"))]


def test_experts_are_judged_by_the_final_label_alone() -> None:
    model, _ = taught("linear binary")
    before = list(model._mixture.losses)
    features = {"x": 0.5, "y": 0.25}
    learn_example(model, Example(features, True, provisional=True))
    assert model._mixture.losses == before
    learn_example(model, Example(features, False), before=(True, 1.0))
    assert model._mixture.losses != before


def test_weights_are_those_of_both_labels() -> None:
    model = Linear(linear_model.LinearRegression(optim.SGD(0.25), intercept_lr=0.0))
    learn_example(model, Example({"x": 1.0}, 8.0, 0.5, provisional=True))
    assert model.predict({"x": 1.0}).label == 2.0
    learn_example(model, Example({"x": 1.0}, 6.0, 2.0), before=(8.0, 0.5))
    # − .25 · 2 · (2 · (2 − 6) − .5 · (2 − 8))
    assert model.predict({"x": 1.0}).label == 2.0 + 2.5
    with pytest.raises(WeightUnsupported):
        learn_example(made()["softmax"][0], Example({"x": 1.0}, "a", 2.0), before=("b", 1.0))


def test_a_model_that_takes_nothing_back_learns_the_final_label_alone() -> None:
    hinge = linear_model.LogisticRegression(optim.SGD(0.1), loss=optim.losses.Hinge())
    model = Linear(hinge)
    assert "Hinge" in (why_not_revised(model) or "")
    learn_example(model, Example({"x": 1.0}, True, provisional=True))
    assert model.cut() == {}
    learn_example(model, Example({"x": 1.0}, True), before=(False, 1.0))
    assert model.predict({"x": 1.0}).label is True
    other = fm().model_for("binary")
    assert not isinstance(other, Revising)
    assert why_not_revised(other)
