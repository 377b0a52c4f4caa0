"""Weights by name: their values before the first change since the cut, and their curvature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


class Curvature:
    """Curvature of the loss along a delta: Σ step² / rate by block and key, since the last clear.

    The squared gradient of a log loss is its curvature in expectation, if the model is calibrated,
    and more where it is wrong.  A step is rate · gradient, so the sum is Σ rate · gradient².
    """

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, float]] = {}

    def add(
        self,
        block: str,
        names: Iterable[str],
        before: Iterable[float],
        now: Mapping[str, float],
        rate: float,
    ) -> None:
        """Add the steps of one row: ``before`` has the weights before it, ``now`` those after."""
        if rate <= 0:
            return
        sums = self._sums.setdefault(block, {})
        for name, weight in zip(names, before, strict=True):
            step = now.get(name, 0.0) - weight
            sums[name] = sums.get(name, 0.0) + step * step / rate

    def sum(self, block: str, name: str) -> float:
        """Return the sum of one key."""
        return self._sums.get(block, {}).get(name, 0.0)

    def put(self, block: str, sums: Mapping[str, float]) -> None:
        """Set the sums of keys."""
        self._sums.setdefault(block, {}).update(sums)

    def of(
        self, block: str, start: Mapping[str, float], built: Mapping[str, float]
    ) -> dict[str, tuple[float, float]]:
        """Return start value and curvature of each changed key.

        The start value is relative to that of the model as built.
        """
        sums = self._sums.get(block, {})
        return {
            name: (weight - built.get(name, 0.0), sums[name])
            for name, weight in start.items()
            if name in sums
        }

    def clear(self) -> None:
        """Clear all sums, for a new delta."""
        self._sums.clear()
