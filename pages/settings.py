"""The page of all settings, made from the tree that checks them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from online.settings.config import Settings

Schema = Mapping[str, Any]

_DAY_S: Final = 86_400
_HEAD: Final = """# Settings

<!-- Made by `python -m pages` from online/settings: change it there. -->

Every setting of `online.yaml`, with its default and what it accepts. The most important ones, and
the pages that explain them, are in the [reference](reference.md#settings). An unknown key is
refused with the nearest known one; `online config show` prints the values in force.
"""


def page() -> str:
    """Tables of all settings, a part of the tree after the other."""
    schema = Settings.model_json_schema()
    return _HEAD + "".join(_part("", schema, schema["$defs"]))


def _part(path: str, schema: Schema, defs: Schema) -> Iterator[str]:
    """A table of one part; then the parts in it."""
    parts: list[tuple[str, Schema]] = []
    rows: list[str] = []
    for name, field in schema["properties"].items():
        inner = _tree(field, defs)
        if inner is not None and _plain(field) is None and not _by_name(field):
            within = f"{path}{name}[]." if field.get("type") == "array" else f"{path}{name}."
            parts.append((within, inner))
        else:
            within = f"{path}{name}.NAME." if _by_name(field) else f"{path}{name}."
            parts += [] if inner is None else [(within, inner)]
            rows.append(_row(name, field, required=name in schema.get("required", ())))
    title = f"`{path.rstrip('.')}`" if path else "The service"
    yield f"\n## {title}\n\n"
    if path and "description" in schema:
        yield f"{_prose(schema['description'])}\n\n"
    yield "| setting | default | accepts | meaning |\n|---|---|---|---|\n"
    yield from rows
    for within, inner in parts:
        yield from _part(within, inner, defs)


def _tree(field: Schema, defs: Schema) -> Schema | None:
    """The part of the tree that the field holds; None: it is a plain value."""
    named = [_named(one) for one in (field, *_choices(field))]
    for one in (field, field.get("items", {}), *_choices(field), *named):
        if "$ref" in one:
            found: Schema = defs[one["$ref"].rpartition("/")[2]]
            return found
    return None


def _named(field: Schema) -> Schema:
    """What stands under each name of a mapping whose names are the user's; empty: anything."""
    more = field.get("additionalProperties")
    return more if isinstance(more, dict) else {}


def _by_name(field: Schema) -> bool:
    """Whether the field is a mapping from names of the user's to parts of the tree."""
    return any("$ref" in _named(one) for one in (field, *_choices(field)))


def _plain(field: Schema) -> Schema | None:
    """The choice of a field that is a plain value, where another one is a part of the tree."""
    if "oneOf" not in field:
        return None
    return next((one for one in field["oneOf"] if "$ref" not in one), None)


def _choices(field: Schema) -> list[Schema]:
    return [*field.get("anyOf", ()), *field.get("oneOf", ())]


def _row(name: str, field: Schema, *, required: bool) -> str:
    without = "**needed**" if required else _default(field)
    cells = (f"`{name}`", without, _takes(field), _prose(field["description"]))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(field: Schema) -> str:
    value = field.get("default")
    if value is None or value in ([], {}):
        return "none"
    if "unit" in field and value % _DAY_S == 0:
        return f"`{value // _DAY_S:.0f}d`"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"`{value:g}`" if value < 10**5 else f"`{value:.0f}`"
    return f"`{_text(value)}`"


def _takes(field: Schema) -> str:
    """The kind of value, and its bounds."""
    if (plain := _plain(field)) is not None:
        return f"{_takes(plain)}, or a range"
    if choices := [one for one in _choices(field) if one.get("type") != "null"]:
        return "; or ".join(_takes(one) for one in choices)
    if "enum" in field:
        return ", ".join(f"`{_text(one)}`" for one in field["enum"])
    if "const" in field:
        return f"`{_text(field['const'])}`"
    if "unit" in field:
        return str(field["unit"])
    kind = field.get("type")
    if kind == "array":
        return f"a list of: {_takes(field['items'])}" if field.get("items") else "a list"
    if kind in ("integer", "number"):
        return _bounds(field)
    names = {"boolean": "`true`, `false`", "object": "a mapping", "string": "text"}
    return {"path": "a path", "password": "a token"}.get(field.get("format", ""), "") or names.get(
        str(kind), "a value"
    )


def _bounds(field: Schema) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{_number(low)} … {_number(high)}"
    words = [] if above is None else [f"above {_number(above)}"]
    words += [] if low is None else [f"from {_number(low)} on"]
    words += [] if below is None else [f"below {_number(below)}"]
    words += [] if high is None else [f"to {_number(high)}"]
    return ", ".join(words) or "a number"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _text(value: object) -> str:
    return value if isinstance(value, str) and "\n" not in value else json.dumps(value)


def _prose(text: str) -> str:
    return " ".join(re.sub(r", see :\w+:`[^`]+`|: see\s+:\w+:`[^`]+`", "", text).split())
