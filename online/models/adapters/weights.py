"""Functions on weights by name, and on their values before the first change since the cut."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def drop(names: Iterable[str], held: Any) -> None:
    for name in names:
        if name in held:
            del held[name]


def put_back(names: Iterable[str], held: Any, built: dict[str, float]) -> None:
    """Restore the named weights to their values in the model as built."""
    for name in names:
        if name in built:
            held[name] = built[name]
        elif name in held:  # river's pop raises, whatever its default
            del held[name]


def changes(now: Any, start: dict[str, float]) -> dict[str, float]:
    """Return now − start where it is not 0.  NaN is kept: the merge refuses it."""
    delta = {}
    for name, before in start.items():
        after = float(now.get(name, 0.0))
        if after != before:
            delta[name] = after - before
    return delta


def move(
    weights: Any, start: dict[str, float], values: dict[str, float], built: dict[str, float]
) -> None:
    """Set each weight to ``built + values`` plus its open delta."""
    if not (start or built):
        weights.update(values)
        return
    for name, value in values.items():
        new = built.get(name, 0.0) + value
        before = start.get(name)
        if before is None:
            weights[name] = new
        elif new != before:  # else nothing to round
            weights[name] = new + (weights.get(name, 0.0) - before)
            start[name] = new
