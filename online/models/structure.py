"""An estimator's structure as text: classes and parameters, the same in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from river import base, compose


def describe(value: Any) -> str:
    """Describe an object by a text that is equal exactly for objects that were built alike.

    River objects are written recursively with their parameters, without learned state.  The text
    does not depend on memory addresses or hash seeds.
    """
    if isinstance(value, base.Base):
        return f"{_name(type(value))}({_items(value._get_params())})"
    if isinstance(value, Mapping):
        return f"{{{_items(value)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(describe(item) for item in value)}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(describe(item) for item in value))}}}"
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return repr(value)
    return _name(value if hasattr(value, "__qualname__") else type(value))


def steps(estimator: Any) -> list[Any]:
    """Return the steps of a pipeline, or the estimator itself as the only step."""
    return (
        list(estimator.steps.values()) if isinstance(estimator, compose.Pipeline) else [estimator]
    )


def _items(values: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key}={describe(value)}" for key, value in values.items())


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
