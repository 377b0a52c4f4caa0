"""Flattens nested JSON objects into features, named by the path to each value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from online.errors import invalid

_DEEP_MAX: Final = 8
_UNKNOWN: Final = re.compile(r"^@")


def features_of(given: list[Any] | None, most: int, name_max: int) -> dict[str, Any]:
    """Flatten a list of nested objects into features by name.

    A name joins all names on the path to its value, so a short body could produce names of
    unbounded total length: more than ``most`` values, or a name longer than ``name_max``
    characters, is refused before it is built.  Raises RequestError.
    """
    out: dict[str, Any] = {}
    met = 0
    for one in given or []:
        if not isinstance(one, Mapping):
            hint = 'Send objects: [{"time": {"day": "monday"}}]'
            raise invalid("features", f"a list of {type(one).__name__}", hint)
        for name, value in _flat("", one, 0, name_max):
            if (met := met + 1) > most:
                hint = "Send fewer, or raise limits.features_max"
                raise invalid("features", f"more than {most} values", hint)
            if value is not None:
                out[_UNKNOWN.sub("at_", name)] = value
    return out


def _flat(path: str, value: Any, deep: int, name_max: int) -> Iterator[tuple[str, Any]]:
    """Yield each value with its name; an empty object or list yields None."""
    if deep > _DEEP_MAX:
        raise invalid("features", "nested too deeply", f"Nest at most {_DEEP_MAX} deep")
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(_joined(path, str(name), name_max), inner, deep + 1, name_max)
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            if isinstance(inner, str):  # one of several words: a flag by its name
                yield _joined(path, inner, name_max), True
            else:
                yield from _flat(_joined(path, str(i), name_max), inner, deep + 1, name_max)
    else:
        yield path, None if isinstance(value, (Mapping, list)) else value


def _joined(path: str, name: str, name_max: int) -> str:
    if (long := len(path) + bool(path) + len(name)) > name_max:
        hint = "Use shorter names: those on the way to a value are joined"
        raise invalid("features", f"a name of {long} characters", hint)
    return f"{path}.{name}" if path else name
