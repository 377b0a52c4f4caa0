"""What a choice crosses is counted before it is made, and counted no lower than it is."""

from __future__ import annotations

import random

import numpy as np
import pytest

from online.errors import RequestError
from online.models.choices.interactions import alike, row
from online.models.rewards import RewardModel, Rewards
from online.rows.crossing import Crossing
from online.rows.validator import Validator
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from replay.example import Features

TEXT = ["said", "@title"]


def model() -> RewardModel:
    return Rewards(bits=10, text=TEXT).model_for("regression")


def made(learner: RewardModel, context: Features, actions: list[Features]) -> int:
    """Products that the model looks up for a choice."""
    seen = list[int]()
    take = learner._table.take

    def noted(places: np.ndarray) -> object:
        seen.append(len(places))
        return take(places)

    learner._table.take = noted  # type: ignore[method-assign, assignment]
    learner.score(context, [(f"a-{i}", features) for i, features in enumerate(actions)])
    return sum(seen)


def features(draw: random.Random, most: int) -> Features:
    """Some features of each kind, their names known to nobody."""
    out: Features = {}
    for i in range(draw.randrange(most)):
        out[f"n-{i}"] = draw.choice([1.5, 3, True, None, "red"])
    out["said"] = out["title"] = " ".join(f"w{i}" for i in range(draw.randrange(30)))
    return out


def test_no_choice_crosses_more_than_is_counted() -> None:
    draw, learner = random.Random(1), model()
    for name in (f"n-{i}" for i in range(20)):  # numbers whose names are known are crossed, too
        learner.learn(row({name: 1.5}, "a", {name: 2.5}), 1.0, 1.0)
        learner.learn(row({name: 2.5}, "a", {name: 1.5}), 0.0, 1.0)
    for _ in range(40):
        context = features(draw, 20)
        actions = [features(draw, 20) for _ in range(draw.randrange(2, 8))]
        if draw.random() < 0.5:
            actions = [{"n-0": 1.5, "n-1": draw.random()} for _ in actions]
        crossed = made(learner, context, actions)
        table = alike(actions) is not None
        least = 1
        for most in (crossed - 1, 40 * crossed):
            counts = Crossing(TEXT, max(most, least))
            if most < crossed:
                with pytest.raises(RequestError, match="products"):
                    counts.check(context, actions, "actions", alike=table)
            else:  # what is refused is not far from what it would have been
                counts.check(context, actions, "actions", alike=table)


def test_a_row_of_one_action_is_counted_as_a_choice_is() -> None:
    validator = Validator(shop(), Limits(products_max=1_000), numeric_only=False)
    wide = row({f"c-{i}": "x" for i in range(40)}, "a", {f"f-{i}": "y" for i in range(40)})
    assert made(model(), *_split(wide)) > 1_000
    with pytest.raises(RequestError, match="products") as caught:
        validator.features(wide, "features")
    assert (caught.value.status, caught.value.code) == (422, "invalid_value")
    assert "limits.products_max" in str(caught.value.hint)
    assert not validator.takes(list(wide))
    narrow = row({f"c-{i}": "x" for i in range(10)}, "a", {"f": "y"})
    assert validator.features(narrow, "features") == narrow
    assert validator.takes(list(narrow))
    validator.many([narrow] * 3)
    with pytest.raises(RequestError, match="products"):
        validator.many([narrow] * 30)  # together they are as many as a wide one


def test_other_models_are_not_asked_what_they_cross() -> None:
    settings = ModelSettings(name="m", task="binary", learner="linear")
    validator = Validator(settings, Limits(products_max=1_000), numeric_only=False)
    assert validator.crossing is None
    assert validator.features({f"@{i}": 1.0 for i in range(2_000)}, "features")


def shop() -> ModelSettings:
    return ModelSettings.model_validate({"name": "m", "task": "choose", "params": {"text": TEXT}})


def _split(wide: Features) -> tuple[Features, list[Features]]:
    context = {name: value for name, value in wide.items() if not name.startswith("@")}
    action = {name[1:]: value for name, value in wide.items() if name.startswith("@") and name[1:]}
    return context, [action]
