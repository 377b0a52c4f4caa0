"""Decides which rows count in scores: each as often as it weighs, and once at most.

Senders choose weights, and errors in rows that teach nothing are no evidence against them.  So a
row that weighs less than 1, and less than is usual, counts as often as it weighs beside that: the
mean weight that a unit of weight comes with.  The service chooses the weight of a default label and
of its correction, so these count.

What is usual follows from discounted sums that begin with the first light row.  The sums are
counters as those of :mod:`evaluation.metrics`, which add up over replicas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from replay.example import Example

_WEIGHTS, _SQUARES, _SHARES = ("weight/sum", "weight/squares", "weight/shares")
"""Counters: discounted sums, and the shares of light rows not counted yet."""

_USUAL_ROWS: Final = 500.0
"""Rows of the usual weight over which these sums are discounted."""

_WHOLE: Final = 1.0 - 1e-9
"""Share of the usual weight from which on a row counts whole, despite rounding."""


def begun(sums: Mapping[str, float]) -> bool:
    """Return whether a light row has come; before, rows that weigh 1 or more change nothing."""
    return _WEIGHTS in sums


def share(example: Example, sums: Mapping[str, float]) -> float:
    """Return how much of a row the example counts, at most 1; ``sums`` hold the counters."""
    if not begun(sums) or _is_default(example):
        return 1.0
    least = min(_usual(sums) or example.weight, 1.0)
    return 1.0 if example.weight >= least * _WHOLE else example.weight / least


def weigh(
    example: Example, sums: Mapping[str, float], rows: float
) -> tuple[bool, dict[str, float]]:
    """Return whether a learned row counts, and what it adds to the counters.

    ``rows``: how many were learned before; without counters, all of them weighed 1 or more.
    """
    weight, first = example.weight, 0.0
    if (weight >= 1.0 and not begun(sums)) or _is_default(example):
        return True, {}
    if not begun(sums):
        first = min(rows, _USUAL_ROWS)
        sums = {_WEIGHTS: first, _SQUARES: first}
    usual, part = _usual(sums) or weight, share(example, sums)
    taken = min(weight, max(2.0 * usual, 1.0))
    fades = min(taken / (_USUAL_ROWS * usual), 1.0)
    more = {
        _WEIGHTS: first + taken - fades * max(sums[_WEIGHTS], 0.0),
        _SQUARES: first + taken * taken - fades * max(sums[_SQUARES], 0.0),
    }
    if part == 1.0:
        return True, more
    whole = sums.get(_SHARES, 0.0) + part >= 1.0
    return whole, {**more, _SHARES: part - whole}


def _is_default(example: Example) -> bool:
    """Return whether the service chose the weight: of a default label, or of its correction."""
    first = example.corrects
    return example.late is not None or (first is not None and first.defaulted)


def _usual(sums: Mapping[str, float]) -> float:
    """Return the mean weight that a unit of weight comes with; 0: nothing is known."""
    total = max(sums[_WEIGHTS], 0.0)
    return max(sums[_SQUARES], 0.0) / total if total > 0.0 else 0.0
