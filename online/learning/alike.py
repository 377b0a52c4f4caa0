"""Decides which rows can be learned in one pass: ordinary ones with the same feature names."""

from __future__ import annotations

from collections.abc import Sequence

from online.learning.base import LEARNED
from replay.example import Example
from replay.journal.base import Row


def alike(rows: Sequence[Row], examples: Sequence[Example | None]) -> int:
    """Return how many rows, from the first on, can be learned in one pass; 0: the first cannot.

    They are accepted, final labels; no feature was clipped; and all have the same names in the same
    order, because the last bits of a linear model's sums depend on that order.
    """
    first = examples[0]
    if first is None:
        return 0
    names, n = list(first.features), 0
    for row, example in zip(rows, examples, strict=True):
        if (
            example is None
            or row.verdict not in LEARNED
            or example.raw is not None
            or not example.ordinary
            or list(example.features) != names
        ):
            break
        n += 1
    return n
