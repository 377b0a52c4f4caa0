"""Declared features: validates rows against the features in a model's settings.

Used only for models whose settings declare ``features``.  Undeclared names are dropped from the row
and reported, types must be as declared, and nothing is converted: a text that looks like a number
would be a number in this row and a word in the next.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Collection, Mapping
from typing import Any, Final

from online.errors import RequestError, invalid
from online.settings.model import Feature, FeatureType, ModelSettings
from online.tables.columns import Kind
from online.tables.layout import Column
from refusals import meant
from replay.example import Features
from replay.plain import plain

_TAKES: Final[Mapping[str, frozenset[type]]] = {
    "number": frozenset({float, int}),
    "category": frozenset({str}),
    "text": frozenset({str}),
    "bool": frozenset({bool}),
}
_KINDS: Final[Mapping[str, Kind]] = {"number": "number", "bool": "bool"}  # the others are text
_SHOWN: Final = 10  # names in a hint
_CHARS: Final = 60  # characters of a value
_DIGITS: Final = 20

JSON_TYPES: Final = {"number": "number", "category": "string", "text": "string", "bool": "boolean"}
"""Types in JSON Schema."""


class Schema:
    """The declared features of one model's rows.

    Parameters:
        declared: Features by their names; at least one.
        strict: Whether a row with an undeclared name is refused.
    """

    def __init__(self, declared: Mapping[str, Feature], *, strict: bool) -> None:
        self._strict = strict
        self._declared = dict(declared)
        self._takes = {name: _TAKES[one.type] for name, one in declared.items()}
        self._ranges = {name: _ends(one) for name, one in declared.items() if one.range is not None}
        self._required = frozenset(name for name, one in declared.items() if one.required)
        self._plain_numbers = frozenset(
            name for name, one in declared.items() if one.type == "number" and one.range is None
        )

    def known(self, features: Features) -> Features:
        """Return the row without undeclared names; the same object if it has none."""
        takes = self._takes
        if features.keys() <= takes.keys():
            return features
        return {name: value for name, value in features.items() if name in takes}

    def unknown(self, features: Mapping[str, Any]) -> list[str]:
        """Names of the row that are not declared, in its order."""
        return [name for name in features if name not in self._takes]

    def missing(self, features: Mapping[str, Any]) -> list[str]:
        """Declared names without a value in the row, in the order of the declaration."""
        return [name for name in self._takes if features.get(name) is None]

    def only_numbers(self, names: Collection[str]) -> bool:
        """Whether every row with these names and only numbers (no booleans) is valid."""
        return self._plain_numbers.issuperset(names) and self._required.issubset(names)

    def refusal(self, features: Mapping[str, Any], field: str) -> RequestError | None:
        """Return why the row is refused; None: it is valid.  ``field`` is its path in the body."""
        takes, ranges, strange = self._takes, self._ranges, 0
        for name, value in features.items():
            taken = takes.get(name)
            if taken is None:
                if self._strict:
                    return self._not_declared(name, field)
                strange += 1
            elif type(value) not in taken:
                if value is not None:
                    return self._of_another_type(name, value, field)
                if name in self._required:
                    return self._absent(name, "null", features, field)
            elif name in ranges and not ranges[name][0] <= value <= ranges[name][1]:
                return self._outside(name, value, field)
        if not self._required <= features.keys():
            first = next(name for name in self._takes if name in self._required - features.keys())
            return self._absent(first, "missing", features, field)
        if strange and strange == len(features):
            error = self._not_declared(next(iter(features)), field)
            return invalid(field, "none of its names is declared", error.hint or "")
        return None

    def _not_declared(self, name: str, field: str) -> RequestError:
        message = f"`{plain(name[:80])}` is not among the declared features"
        return invalid(f"{field}.{plain(name[:80])}", message, self._meant(name))

    def _of_another_type(self, name: str, value: Any, field: str) -> RequestError:
        kind = self._declared[name].type
        message = f"a {kind} is needed, got {_described(value)}"
        return invalid(f"{field}.{name}", message, _remedy(kind, value))

    def _outside(self, name: str, value: float, field: str) -> RequestError:
        low, high = self._declared[name].range or (None, None)
        words = [] if low is None else [f"at least {low:.15g}"]
        words += [] if high is None else [f"at most {high:.15g}"]
        message = f"{_short(value)} is outside of its range: {' and '.join(words)}"
        return invalid(f"{field}.{name}", message, "Check its unit, or widen the declared range")

    def _absent(self, name: str, how: str, features: Mapping[str, Any], field: str) -> RequestError:
        near = difflib.get_close_matches(name, self.unknown(features), n=1)
        hint = f"Did you mean it by `{plain(near[0][:80])}`?" if near else "Send it with each row"
        return invalid(f"{field}.{name}", f"it is required, and {how}", hint)

    def _meant(self, name: str) -> str:
        if near := meant(name, self._takes):
            return near
        shown, more = list(self._takes)[:_SHOWN], len(self._takes) - _SHOWN
        return f"Declared: {', '.join(shown)}" + (f" and {more} more" if more > 0 else "")

    def types(self) -> dict[str, FeatureType]:
        """Declared types by name, in the order of the declaration."""
        return {name: one.type for name, one in self._declared.items()}

    def columns(self) -> dict[str, Column]:
        """Return the features as columns of a table, by their names."""
        out = {}
        for name, one in self._declared.items():
            low, high = one.range or (None, None)
            kind = _KINDS.get(one.type, "text")
            out[name] = Column(name, kind, low, high, one.required, named=kind == "text")
        return out

    def example(self) -> Features:
        """Make a valid row."""
        return {name: _example(one) for name, one in self._declared.items()}

    def json_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of a row."""
        properties: dict[str, Any] = {}
        for name, one in self._declared.items():
            kind: Any = JSON_TYPES[one.type]
            schema: dict[str, Any] = {"type": kind if one.required else [kind, "null"]}
            low, high = one.range or (None, None)
            schema |= {} if low is None else {"minimum": low}
            schema |= {} if high is None else {"maximum": high}
            properties[name] = {**schema, "examples": [_example(one)]}
        out: dict[str, Any] = {"type": "object", "properties": properties}
        if self._required:
            out["required"] = [name for name in self._takes if name in self._required]
        return {**out, "additionalProperties": not self._strict}


def schema_of(settings: ModelSettings) -> Schema | None:
    """Return the schema of a model; None: it declares no features."""
    if settings.features is None:
        return None
    return Schema(settings.features, strict=settings.strict)


def declared_columns(settings: ModelSettings) -> dict[str, Column] | None:
    """Return the declared features as columns of a table; None: none are declared."""
    schema = schema_of(settings)
    return None if schema is None else schema.columns()


def _ends(one: Feature) -> tuple[float, float]:
    low, high = one.range or (None, None)
    return (float("-inf") if low is None else low, float("inf") if high is None else high)


def _example(one: Feature) -> Any:
    if one.example is not None:
        return one.example
    if one.type == "number":
        low, high = one.range or (None, None)
        if low is not None and high is not None:
            return low + (high - low) / 2.0
        return 1.0 if low is None and high is None else low if low is not None else high
    return {"category": "A", "text": "some words"}.get(one.type, True)


def _described(value: Any) -> str:
    if isinstance(value, str):
        return f"text, {plain(_short(value))}"
    kinds = {bool: "true or false", dict: "an object", list: "an array"}
    return kinds.get(type(value)) or f"a number, {_short(value)}"


def _short(value: Any) -> str:
    """Format a value as JSON, shortened; an integer beyond all floats has thousands of digits."""
    if isinstance(value, int) and abs(value) >= 10**_DIGITS:
        return f"an integer of more than {_DIGITS} digits"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _CHARS else text[: _CHARS - 3] + "..."


def _remedy(kind: str, value: Any) -> str:
    if kind == "number":
        try:
            number = float(value) if isinstance(value, str) else math.nan
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return f"Send {number:.15g}, without quotation marks"
        return "Send a number, or leave a missing value out"
    if kind == "bool":
        return "Send true or false"
    if type(value) in (int, float):
        return f'Send it as text: "{_short(value)}"'
    return "Send text"
