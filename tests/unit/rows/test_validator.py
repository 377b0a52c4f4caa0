"""The validator: what a model takes, what it refuses, and what the refusal says."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from online.errors import RequestError
from online.rows.validator import Validator
from online.settings.limits import Limits
from online.settings.model import ModelSettings

LIMITS = Limits(features_max=3, text_bytes_max=16)


def validator(task: str = "binary", *, numeric_only: bool = True, **settings: Any) -> Validator:
    model = ModelSettings.model_validate(
        {"name": "m", "task": task, "learner": "logreg", **settings}
    )
    return Validator(model, LIMITS, numeric_only=numeric_only)


def refusal(call: Any, *args: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call(*args)
    error = caught.value
    assert (error.status, error.code) == (422, "invalid_value")
    assert error.field
    assert error.message
    assert error.hint, "every refusal says what to do"
    return error


# -- features --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1},
        {"a": -2.5, "b": True, "c": 0},
        {"a": 2**53},
        {"a": -(2**53)},
        {"a": 1e100},
        {"a": 5e-324},
        {"a": -0.0},
        {"x" * 16: 1.0},
        {"": 1.0},
    ],
)
def test_features_come_through_as_they_are(value: dict[str, Any]) -> None:
    assert validator().features(value, "features") is value


@pytest.mark.parametrize(
    ("value", "field", "says"),
    [
        (None, "features", "null"),
        ([1.0], "features", "an array"),
        ("a", "features", "text"),
        (3, "features", "a number"),
        ({}, "features", "no features"),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, "features", "4 features, at most 3"),
        ({"x" * 17: 1.0}, "features", "17 characters"),
        ({"a": math.nan}, "features.a", "nan"),
        ({"a": math.inf}, "features.a", "inf"),
        ({"a": -math.inf}, "features.a", "-inf"),
        ({"a": 1.1e100}, "features.a", "1.1e+100"),
        ({"a": -1e308}, "features.a", "-1e+308"),
        ({"a": 2**53 + 1}, "features.a", str(2**53 + 1)),
        ({"a": "1"}, "features.a", "text"),
        ({"a": None}, "features.a", "null"),
        ({"a": {"b": 1}}, "features.a", "an object"),
        ({"a": [1]}, "features.a", "an array"),
        ({"good": 1.0, "bad": "x"}, "features.bad", "text"),
    ],
)
def test_features_refused(value: Any, field: str, says: str) -> None:
    error = refusal(validator().features, value, "features")
    assert error.field == field
    assert says in error.message


def test_a_model_of_mixed_values_takes_text_and_null() -> None:
    mixed = validator(numeric_only=False)
    value = {"a": "red", "b": None, "c": 1.5}
    assert mixed.features(value, "features") is value
    assert "17 characters" in refusal(mixed.features, {"a": "x" * 17}, "features").message
    assert "an object" in refusal(mixed.features, {"a": {}}, "features").message
    assert "nan" in refusal(mixed.features, {"a": math.nan}, "features").message


def test_the_field_is_the_place_in_the_body() -> None:
    error = refusal(validator().features, {"a": "x"}, "events[3].features")
    assert error.field == "events[3].features.a"


# -- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "canonical"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), (0.0, False)],
)
def test_labels_without_names(value: Any, canonical: bool) -> None:
    assert validator().label(value, "label") is canonical


@pytest.mark.parametrize("value", [2, -1, 0.5, "true", "yes", None, [], {}, math.nan])
def test_labels_without_names_refused(value: Any) -> None:
    error = refusal(validator().label, value, "label")
    assert error.hint == "Send false or true"


def test_named_labels() -> None:
    named = validator(classes={"negative": "ham", "positive": "spam"})
    assert named.label("spam", "label") is True
    assert named.label("ham", "label") is False
    for value in (True, 1, "Spam", "spam ", None):
        assert refusal(named.label, value, "label").hint == 'Send "ham" or "spam"'
    assert named.show(True) == "spam"
    assert named.text(False) == "ham"


def test_labels_named_by_numbers_are_not_booleans() -> None:
    numbered = validator(classes={"negative": -1, "positive": 1})
    assert numbered.label(1, "label") is True
    assert numbered.label(-1, "label") is False
    for value in (True, False, 0, "1"):
        assert refusal(numbered.label, value, "label").hint == "Send -1 or 1"
    assert numbered.text(True) == "1"


@pytest.mark.parametrize(
    ("value", "canonical"), [("red", "red"), (3, 3), (3.0, 3), ("3", "3"), (-7, -7), ("", "")]
)
def test_classes(value: Any, canonical: Any) -> None:
    label = validator("multiclass").label(value, "label")
    assert label == canonical
    assert type(label) is type(canonical)


@pytest.mark.parametrize(
    "value", [True, None, 0.5, math.nan, math.inf, [], {}, 2**53 + 1, "x" * 17, 1e300]
)
def test_classes_refused(value: Any) -> None:
    assert refusal(validator("multiclass").label, value, "label").field == "label"


@pytest.mark.parametrize("value", [0, -3, 2.5, 1e100])
def test_targets(value: Any) -> None:
    label = validator("regression").label(value, "label")
    assert label == value
    assert type(label) is float


@pytest.mark.parametrize("value", [True, "3", None, math.nan, -math.inf, 1.1e100, 10**400, []])
def test_targets_refused(value: Any) -> None:
    assert refusal(validator("regression").label, value, "label").field == "label"


# -- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 0.5, 1e6, 5e-324])
def test_weights(value: Any) -> None:
    assert validator().weight(value, "weight") == value


@pytest.mark.parametrize(
    "value", [0, -1, 0.0, -0.0, 1e6 + 1, math.nan, math.inf, True, "1", None, 10**400]
)
def test_weights_refused(value: Any) -> None:
    assert refusal(validator().weight, value, "weight").field == "weight"


def test_a_long_value_is_shown_short() -> None:
    error = refusal(validator().label, "y" * 10_000, "label")
    assert len(error.message) < 200


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [{b"\x01": 1}, {(1, 2): 3}, _nested(10_000)])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_what_json_cannot_spell_is_refused_like_anything_else(task: str, value: Any) -> None:
    for call, field in ((validator(task).label, "label"), (validator(task).weight, "weight")):
        assert re.search("an object|an array", refusal(call, value, field).message)


class _TrustingValidator(Validator):
    """Checks the type only, as many services do."""

    def _check_number(self, item: Any) -> bool:
        return isinstance(item, float)

    def features(self, value: Any, field: str) -> Any:
        assert all(self._check_number(item) for item in value.values())
        return value


def test_a_door_that_checks_types_only_is_found() -> None:
    model = ModelSettings(name="m", task="binary", learner="logreg")
    with pytest.raises(pytest.fail.Exception):
        refusal(_TrustingValidator(model, LIMITS, numeric_only=True).features, {"a": math.nan}, "x")


def test_a_model_of_numbers_says_which_ones_take_texts() -> None:
    assert "`learner: linear`" in refusal(validator().features, {"a": "red"}, "features").hint
