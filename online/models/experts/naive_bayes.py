"""Naive Bayes on the entries of a row: four classifiers of two classes that share their counts.

How often an entry occurs with each class is a sum over rows.  So the counts merge exactly, need no
learning rate, forget nothing, and a label that comes late counts as one that comes at once.  With n
the counts of an entry x by class, and π the share of each class, the log odds of True are::

    (log π₁ / π₀ + Σ x · log (1 + n₁ / π₁) / (1 + n₀ / π₀)) / max(1, t · √L)

An unknown entry says nothing.  Entries depend on each other, so their sum is too sure, and the more
so the longer the rows are: L is their mean length, the sum of a row's entries without the bias.
Each classifier has a t of its own.  The divisor is the same for all rows, so a classifier is linear
in the row, as the other experts are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, sqrt
from typing import ClassVar, Final

from online.models.experts.linear import OneOutput, Owned

TEMPERATURES: Final = (0.5, 1.0, 2.0, 4.0)
"""The classifiers' t."""

ROWS: Final = "bbias"
"""The entry of every row.  Its third number is the sum of all other entries."""

_NEW: Final = [0.0] * 6
_SHORT: Final = max(TEMPERATURES) ** -2  # the length of rows from which on a sum is divided
_WHOLE: Final = (1.0, 1.0, 1.0, 1.0)


class Counts(OneOutput):
    """Classifiers with one output.

    The first number of an entry is its count, the second one that of True less that of False: each
    row changes both, so that an entry has the same numbers whatever its labels are.
    """

    block: ClassVar[str] = "counts"

    def __init__(self) -> None:
        super().__init__(())

    @property
    def empty(self) -> bool:
        """Whether no row was counted yet."""
        return ROWS not in self._now

    def outputs(self, row: Mapping[str, float]) -> tuple[float, float, float, float]:
        """Return the log odds of each classifier for the row."""
        now, (total, false, true) = self._now, self._by_class()
        for key, x in row.items():
            if (held := now.get(key)) is not None:
                n, d = held[0], held[1]
                total += x * log((2.0 + true * (n + d)) / (2.0 + false * (n - d)))
        a, b, c, d = self.factors()
        return a * total, b * total, c * total, d * total

    def add_contributions(
        self, row: Owned, worths: Sequence[float], added: dict[str, float]
    ) -> None:
        """Add to ``added`` each feature's contribution, with classifiers weighted by ``worths``."""
        worth = sum([v * f for v, f in zip(worths, self.factors(), strict=True)])
        for name, key, x in zip(*row, strict=True):
            added[name] += worth * x * self.weight(key)

    def weight(self, key: str) -> float:
        """Return the log odds that an entry of 1 adds; the bias adds those of every row."""
        prior, false, true = self._by_class()
        n, d, *_ = self._now.get(key, _NEW)
        added = log((2.0 + true * (n + d)) / (2.0 + false * (n - d)))
        return added + prior if key == ROWS else added

    def factors(self) -> tuple[float, float, float, float]:
        """Return by which factor each classifier multiplies the sum."""
        rows, _, length, *_ = self._now.get(ROWS, _NEW)
        if length <= _SHORT * rows:
            return _WHOLE
        by = sqrt(rows / length)
        a, b, c, d = TEMPERATURES
        a, b, c, d = by / a, by / b, by / c, by / d
        return (a if a < 1.0 else 1.0), (b if b < 1.0 else 1.0), (c if c < 1.0 else 1.0), d

    def count(self, row: Mapping[str, float], label: bool, weight: float) -> float:
        """Count a row; a negative weight takes back what was counted.

        Returns a sum of the row's counts: not finite if one of them is not.
        """
        now, start, length = self._now, self._start, 0.0
        signed = weight if label else -weight
        for key, x in row.items():
            if (held := now.get(key)) is None:
                held = now[key] = _NEW.copy()
            if key not in start:
                start[key] = held.copy()
            held[0] += x * weight
            held[1] += x * signed
            length += x
        now[ROWS][2] += (length - row[ROWS]) * weight
        if weight < 0.0:  # taken back by the moments of now, it may be a little more than there was
            for held in map(now.__getitem__, row):
                n = held[0] = max(held[0], 0.0)
                held[1] = min(max(held[1], -n), n)
        return sum(now[ROWS]) + length * weight

    def _by_class(self) -> tuple[float, float, float]:
        """Return the log odds without entries, and 1 / π of False and of True."""
        n, d, *_ = self._now.get(ROWS, _NEW)
        true, false, total = (n + d + 1.0) / 2.0, (n - d + 1.0) / 2.0, n + 1.0
        return log(true / false), total / false, total / true
