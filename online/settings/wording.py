"""Explains validation errors of a settings file in terms that a YAML author understands."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from online.errors import ConfigError
from online.settings.addresses import hidden
from online.settings.model import NAME, Test
from online.settings.purposes import PURPOSES
from online.settings.replicas import TAGS
from refusals import meant

PLAIN: Final[Mapping[str, str]] = {
    "missing": "it is required",
    "tuple_type": "a list is needed: a line each that begins with `-`",
    "list_type": "a list is needed: a line each that begins with `-`",
    "dict_type": "a mapping is needed: lines of `name: value`",
    "model_type": "a mapping is needed: lines of `name: value`",
    "model_attributes_type": "a mapping is needed: lines of `name: value`",
    "string_type": "text is needed",
    "int_type": "a whole number is needed",
    "int_parsing": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_type": "a number is needed",
    "float_parsing": "a number is needed",
    "finite_number": "a finite number is needed",
    "bool_type": "true or false is needed",
    "bool_parsing": "true or false is needed",
    NAME: "letters, digits, `_`, `-` and `.` are needed, at most 64, a letter or digit first",
}
"""Messages for pydantic's error types and for patterns."""

_LISTED: Final = ((("labels",), "extra_forbidden"), (("classes",), "dict_type"))
_LABELS: Final = (
    "Leave it out: labels are learned from the feedback. Only task: binary may name its two, as "
    "classes: {negative: DOWN, positive: UP}"
)


def explained(
    error: ValidationError, tree: type[BaseModel], data: Mapping[str, Any]
) -> ConfigError:
    """Convert the first validation error to a ConfigError, with the setting that may be meant."""
    errors = error.errors()
    first = errors[0]
    if first["type"] == "missing":  # it may be present but misspelt
        first = next((one for one in errors if one["type"] == "extra_forbidden"), first)
    first = _of_list(errors, first)
    loc = tuple(part for part in first["loc"] if not _is_tag(part))
    field = ".".join(str(part) for part in loc)
    if (loc[-1:], first["type"]) in _LISTED:
        return ConfigError(field, "no list of labels is needed", _LABELS)
    if first["type"] == "extra_forbidden":
        known = _fields(tree, loc[:-1])
        remedy = meant(str(loc[-1]), known) or f"Known here: {', '.join(known)}"
        return ConfigError(field, "unknown setting", remedy)
    secret = first["type"] == "missing" or first["loc"][0] in ("tokens", "alerts")
    value = "" if secret else f", got {hidden(repr(first['input']))}"
    context = first.get("ctx", {})
    kind = context.get("pattern", first["type"])
    message = PLAIN.get(kind) or first["msg"].removeprefix("Value error, ")
    remedy = "`online config show` prints every default"
    names = re.findall(r"'(.+?)'", context.get("expected", ""))
    if kind == "literal_error" and names:
        known = list(PURPOSES) if loc[-1] == "task" else names
        message = f"one of {', '.join(known)} is needed"
        remedy = meant(str(first["input"]), known) or remedy
    if loc[-1] == "filters":
        message = f"{', '.join(names)} or a list of {', '.join(get_args(Test))} is needed"
    if "filters" in loc[-2:]:  # say which model's they are
        message = f"model {data['models'][loc[1]].get('name')}: {message}"
    return ConfigError(field, f"{message}{value}", remedy)


def _of_list(errors: Sequence[ErrorDetails], first: ErrorDetails) -> ErrorDetails:
    """The error inside the list, if a list was given where a word or a list is allowed."""
    place, data = first["loc"][:-1], first["input"]
    if first["type"] != "literal_error" or not isinstance(data, list):
        return first
    inside = (one for one in errors if one["loc"][: len(place)] == place and one is not first)
    return next((one for one in inside if one["loc"][-1:] != first["loc"][-1:]), first)


def _is_tag(part: int | str) -> bool:
    """Return whether a part of a location is pydantic's tag of a union and not a setting."""
    return part in (*TAGS, "[key]") or str(part).startswith(("literal[", "tuple["))


def _fields(tree: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings at a location in the tree."""
    node: Any = tree
    for part in loc:
        if isinstance(part, int):  # an index of a list
            continue
        if isinstance(node, type) and issubclass(node, BaseModel):
            annotation = node.model_fields[str(part)].annotation
            kinds = (annotation, *get_args(annotation))
            trees = (k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
            maps = (k for k in kinds if get_origin(k) is dict)
            node = next(trees, None) or next(maps, node)
        elif get_origin(node) is dict:  # a key that the file's author has chosen
            node = get_args(node)[1]
    return list(getattr(node, "model_fields", ()))
