"""Scores by slice: by source, by category, by quartile of a number, by declared values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from evaluation.report.rows import Column, Floats

CATEGORIES_MAX: Final = 30
"""Greatest number of categories per feature; rows of further ones are counted together."""

SENDERS: Final = "\tsource"
"""Name for slices by source, which no feature can have."""

_OTHER: Final = "(others)"
_MISSING: Final = "(missing)"
_PARTS: Final = 4
_CUTS_ROWS: Final = 200  # fewer known values give no quarters


class Slices:
    """Sums of scores by slice of a feature.

    They are: rows scored, correct predictions (regression: absolute errors) and their squares, rows
    with a predicted set or interval, and those of them that contained the label.  The quartiles of
    a number are those of the first batch with enough values.

    Parameters:
        declared: Features for which up to ``most`` values are distinguished, instead of
            ``CATEGORIES_MAX``.
    """

    def __init__(self, declared: Sequence[str] = (), most: int = CATEGORIES_MAX) -> None:
        self._most = dict.fromkeys(declared, most)
        self.sums: dict[tuple[str, str], NDArray[np.float64]] = {}
        self._cuts: dict[str, Floats] = {}
        self._known: dict[str, set[str]] = {}

    def add(
        self,
        features: Mapping[str, Column],
        source: Sequence[str | None] | None,
        right: Floats,
        covered: Floats | None = None,
    ) -> None:
        """Add rows; ``right`` is NaN for rows without a score, ``covered`` as in ``Rows``."""
        judged = ~np.isnan(right)
        if not judged.any():
            return
        had = np.full(len(right), np.nan) if covered is None else covered
        each = np.stack([judged, right, right**2, ~np.isnan(had), np.nan_to_num(had)])
        if source is not None:
            self._texts(SENDERS, source, each, judged)
        for name, values in features.items():
            if isinstance(values, np.ndarray):
                self._numbers(name, values, each, judged)
            else:
                self._texts(name, values, each, judged)

    def _texts(
        self, name: str, values: Sequence[str | None], each: Floats, judged: NDArray[np.bool_]
    ) -> None:
        known = self._known.setdefault(name, set())
        most = self._most.get(name, CATEGORIES_MAX)
        for i in np.flatnonzero(judged):
            text = values[int(i)]
            value = _MISSING if text is None else text
            if value not in known and (text is not None or name not in self._most):
                if len(known) >= most:
                    value = _OTHER
                else:
                    known.add(value)
            self._add(name, value, each[:, i])

    def _numbers(self, name: str, values: Floats, each: Floats, judged: NDArray[np.bool_]) -> None:
        cuts = self._cuts.get(name)
        if cuts is None:
            known = values[~np.isnan(values)]
            if len(known) < _CUTS_ROWS:
                return
            cuts = np.unique(np.quantile(known, np.arange(1, _PARTS) / _PARTS))
            if known.min() == known.max():
                cuts = np.zeros(0)
            self._cuts[name] = cuts
        if not len(cuts):
            return
        use = judged & ~np.isnan(values)
        place = np.searchsorted(cuts, values[use], side="right")
        sums = np.stack([np.bincount(place, one[use], len(cuts) + 1) for one in each], axis=1)
        for i in np.flatnonzero(sums[:, 0]):
            self._add(name, _between(cuts, int(i)), sums[i])

    def _add(self, by: str, value: str, more: Floats) -> None:
        if (sums := self.sums.get((by, value))) is None:
            self.sums[by, value] = more.copy()
        else:
            sums += more


def _between(cuts: Floats, i: int) -> str:
    """Name the i-th part, with as many digits as tell its ends from those of the others."""
    texts = [f"{cut:.4g}" for cut in cuts]
    if len(set(texts)) < len(texts):  # such as times in POSIX seconds
        texts = [f"{cut:.17g}" for cut in cuts]
    if i == 0:
        return f"< {texts[0]}"
    if i == len(texts):
        return f"≥ {texts[-1]}"
    return f"{texts[i - 1]} … {texts[i]}"
