"""An estimator as text: its classes and parameters, the same in every process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from river import base, compose


def describe(value: Any) -> str:
    """Text that two objects share exactly when they were built alike.

    River objects are written with their parameters, all the way down; their learned state is not
    in it.  Nothing in it depends on memory addresses or hash seeds.
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
    """The steps of a pipeline, or the estimator itself."""
    return (
        list(estimator.steps.values()) if isinstance(estimator, compose.Pipeline) else [estimator]
    )


def _items(values: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key}={describe(value)}" for key, value in values.items())


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
