"""This module says which rows can be learned in one pass: ordinary ones of the same names."""

from __future__ import annotations

from collections.abc import Sequence

from online.learning.base import LEARNED
from replay.example import Example
from replay.journal.base import Row


def alike(rows: Sequence[Row], examples: Sequence[Example | None]) -> int:
    """How many rows from the first on are alike; 0: the first is a row apart.

    They are learned ones, for good, of features that nothing was changed in, with the same names in
    the same order: the sums of a linear model depend on that in their last bits.
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
