"""Combining several rewards of one choice to the number that is learned when the wait ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from online.decide.record import Given

PLAIN: Final = ""
"""The name of a reward that is sent as a number."""

Aggregate = Literal["earliest", "sum", "last"]


def weighed(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the weighted sum of named rewards; the default weight is 1."""
    return sum(weights.get(name, 1.0) * value for name, value in values.items())


def total(
    given: Sequence[Given],
    aggregate: Aggregate,
    weights: Mapping[str, float],
    within: tuple[float, float],
) -> float:
    """Combine rewards: their sum, the first, or the sum of the last by name; clipped to a range."""
    if aggregate == "sum":
        reward = sum(weighed(one.values, weights) for one in given)
    elif aggregate == "earliest":  # they were collected under other settings
        reward = weighed(given[0].values, weights)
    else:
        newest: dict[str, float] = {}
        for one in given:
            newest |= one.values
        reward = weighed(newest, weights)
    return min(max(reward, within[0]), within[1])
