"""Curvature of the loss along a delta, accumulated by key.

The squared gradient of a log loss is its curvature in expectation, if the model is calibrated,
and more where it is wrong.  A step is rate · gradient, so Σ step² / rate is Σ rate · gradient².
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class Curvature:
    """Σ step² / rate by block and key, since it was last cleared."""

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
