"""Declared features: what a row may have, what is refused, and what is said then."""

from __future__ import annotations

import math
from typing import Any

import pytest

from online.errors import ConfigError, RequestError
from online.rows.schema import Schema, declared_columns
from online.rows.validator import Validator
from online.settings.config import load
from online.settings.limits import Limits
from online.settings.model import Feature, ModelSettings
from online.tables.layout import Column

DECLARED: dict[str, Any] = {
    "amount": {"type": "number", "range": [0, 1000], "required": True},
    "city": "category",
    "note": {"type": "text"},
    "member": "bool",
    "age": "number",
}
GOOD: dict[str, Any] = {"amount": 3.5, "city": "Bonn", "note": "as is", "member": True, "age": 7}


def model(**more: Any) -> ModelSettings:
    given = {"name": "m", "task": "binary", "learner": "linear", "features": DECLARED}
    return ModelSettings.model_validate(given | more)


def validator(**more: Any) -> Validator:
    return Validator(model(**more), Limits(features_max=8), numeric_only=False)


def refused(row: dict[str, Any], **more: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        validator(**more).features(row, "features")
    assert (caught.value.status, caught.value.code) == (422, "invalid_value")
    return caught.value


def test_what_is_declared_comes_through_as_it_is() -> None:
    assert validator().features(GOOD, "features") is GOOD
    few = {"amount": 0}
    assert validator().features(few, "features") is few
    absent = {"amount": 1000, "city": None}
    assert validator().features(absent, "features") is absent


@pytest.mark.parametrize(
    ("row", "field", "says", "remedy"),
    [
        ({"amount": "1.5"}, "amount", 'a number is needed, got text, "1.5"', "Send 1.5, without"),
        ({"amount": "1e999"}, "amount", "got text", "Send a number"),
        ({"amount": "x"}, "amount", "got text", "Send a number"),
        ({"amount": True}, "amount", "got true or false", "Send a number"),
        ({"amount": [1]}, "amount", "got an array", "Send a number"),
        ({"amount": -1}, "amount", "-1 is outside of its range: at least 0", "widen"),
        ({"amount": 1000.5}, "amount", "at most 1000", "widen"),
        ({"amount": 10**400}, "amount", "an integer of more than 20 digits", "widen"),
        ({"amount": math.nan}, "amount", "outside of its range", "widen"),
        ({"amount": None}, "amount", "it is required, and null", "Send it"),
        ({"city": "Bonn"}, "amount", "it is required, and missing", "Send it"),
        ({"amuont": 1.0}, "amount", "it is required, and missing", "Did you mean it by `amuont`?"),
        ({"amount": 1, "city": 17}, "city", "a category is needed, got a number, 17", '"17"'),
        ({"amount": 1, "city": True}, "city", "got true or false", "Send text"),
        ({"amount": 1, "note": 2.5}, "note", "a text is needed", '"2.5"'),
        ({"amount": 1, "member": 1}, "member", "a bool is needed, got a number, 1", "true or"),
        ({"amount": 1, "member": "true"}, "member", 'got text, "true"', "true or false"),
    ],
)
def test_another_type_is_refused_with_field_value_and_remedy(
    row: dict[str, Any], field: str, says: str, remedy: str
) -> None:
    error = refused(row)
    assert error.field == f"features.{field}"
    assert says in error.message
    assert error.hint is not None
    assert remedy in error.hint


def test_names_that_are_not_declared_are_left_out_and_named() -> None:
    sent = {"amount": 1.0, "amuont": "x" * 5000, "zzz": {}}
    taken = validator().features(sent, "features")
    assert taken == {"amount": 1.0}, "and their values are nobody's business"
    schema = validator().schema
    assert schema is not None
    assert schema.unknown(sent) == ["amuont", "zzz"]
    assert schema.missing(sent) == ["city", "note", "member", "age"]
    assert schema.missing({**GOOD, "city": None}) == ["city"]


def test_strict_refuses_them_with_the_name_that_is_meant() -> None:
    error = refused({"amount": 1.0, "ctiy": "Bonn"}, strict=True)
    assert (error.field, error.hint) == ("features.ctiy", "Did you mean `city`?")
    error = refused({"amount": 1.0, "q\x1b[2J": 1}, strict=True)
    assert "\x1b" not in f"{error.field}{error.message}"
    assert error.hint == "Declared: amount, city, note, member, age"
    assert validator(strict=True).features(GOOD, "features") is GOOD


def test_a_row_without_any_declared_name_is_refused() -> None:
    error = refused({"cty": "Bonn", "zzz": 1}, features={"city": "category"})
    assert (error.field, error.message) == ("features", "none of its names is declared")
    assert error.hint == "Did you mean `city`?"


def test_a_recorded_row_is_not_judged_again() -> None:
    """A repeat of an event from before the declaration is answered with what it was."""
    old = {"amount": -5.0, "other": 1.0}
    assert validator().features(old, "features", recorded=True) == {"amount": -5.0}
    assert validator().undeclared(old, "features") is not None
    assert validator(features=None).undeclared(old, "features") is None


def test_rows_of_numbers_are_taken_together_only_if_each_would_be() -> None:
    one = validator(
        features={"a": "number", "b": "number", "c": {"type": "number", "range": [0, 1]}}
    )
    assert one.takes(["a", "b"])
    assert not one.takes(["a", "c"]), "its range is looked at row by row"
    assert not one.takes(["a", "z"])
    assert bool not in one.numbers
    needed = validator(features={"a": "number", "b": {"type": "number", "required": True}})
    assert not needed.takes(["a"])
    assert needed.takes(["a", "b"])
    assert validator(features=None).takes(["z"])
    assert bool in validator(features=None).numbers


def test_an_example_is_a_row_that_is_taken() -> None:
    for features in (
        DECLARED,
        {"a": {"type": "number", "range": [None, -3]}, "b": {"type": "number", "range": [5, None]}},
        {"a": {"type": "number", "example": 0.25}, "c": {"type": "category", "example": "Bonn"}},
    ):
        one = validator(features=features, strict=True)
        assert one.schema is not None
        example = one.schema.example()
        assert one.features(example, "features") is example
        schema = one.schema.json_schema()
        assert {n: p["examples"] for n, p in schema["properties"].items()} == {
            n: [v] for n, v in example.items()
        }


def test_the_row_as_json_schema() -> None:
    schema = Schema(model().features or {}, strict=False).json_schema()
    assert schema["properties"]["amount"] == {
        "type": "number", "minimum": 0, "maximum": 1000, "examples": [500.0],
    }  # fmt: skip
    assert schema["properties"]["city"]["type"] == ["string", "null"]
    assert schema["properties"]["member"]["type"] == ["boolean", "null"]
    assert schema["required"] == ["amount"]
    assert schema["additionalProperties"] is True
    strict = Schema({"a": Feature(type="number")}, strict=True).json_schema()
    assert strict["additionalProperties"] is False
    assert "required" not in strict


def test_as_columns_of_a_table() -> None:
    columns = declared_columns(model())
    assert columns is not None
    assert columns["amount"] == Column("amount", "number", 0, 1000, required=True)
    assert [one.kind for one in columns.values()] == ["number", "text", "text", "bool", "number"]
    assert declared_columns(model(features=None)) is None


def test_a_type_alone_is_a_declaration() -> None:
    features = model().features
    assert features is not None
    assert features["city"] == Feature(type="category")
    again = ModelSettings.model_validate(model().model_dump(mode="json"))
    assert again == model()


def test_the_declaration_decides_nothing_about_the_model() -> None:
    """A folder that has learned without one starts with one."""
    assert model().made_of() == model(features=None).made_of()


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"features": {"a": {"tpye": "number"}}}, "models.0.features.a.tpye", "`type`"),
        ({"features": {"a": "float"}}, "models.0.features.a.type", "number, category"),
        ({"features": {"a": {"type": "text", "range": [0, 1]}}}, "a", "it is for a number"),
        ({"features": {"a": {"type": "number", "range": [2, 1]}}}, "a", "2 is above 1"),
        ({"features": {"a": {"type": "bool", "example": "x"}}}, "a", "'x' is no bool"),
        ({"features": {"a": {"type": "number", "example": True}}}, "a", "True is no number"),
        ({"features": {}}, "models.0", "none is declared"),
        ({"features": {"a\n": "number"}}, "models.0", "no name"),
        ({"strict": True}, "models.0", "`features`"),
    ],
)
def test_a_wrong_declaration_is_refused_with_its_place(
    given: dict[str, Any], field: str, says: str, tmp_path: Any
) -> None:
    one = {"name": "m", "task": "binary", "learner": "linear", **given}
    with pytest.raises(ConfigError) as caught:
        load(None, {"models": [one], "base_dir": str(tmp_path)}, {})
    assert field in caught.value.field
    assert says in str(caught.value)
