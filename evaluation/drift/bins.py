"""Frozen bins of one feature, by which values are counted."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np

from replay.example import Value

BINS: Final = 10
"""Number of groups with about equally many reference values each; usual for the PSI."""
PARTS: Final = 4
"""Bins per group; with more, distances are closer to those of the values themselves."""
NAMES_MAX: Final = 200
"""Categories with a bin of their own; rarer ones count as new, in the reference as well."""
TAILS: Final = (1.0, 3.0, 10.0)
"""Distances (in standard deviations) from the reference's range at which further bins begin."""
SPREAD_MIN: Final = 1e-9
"""Least standard deviation relative to the largest magnitude; smaller ones are rounding."""
COMMON_MAX: Final = 0.99
"""If one value has a larger share of the reference, distances are not measured."""


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins of one feature.

    Bins are numbered (``place``): first those of values, in the order of ``edges`` or ``names``;
    then one for missing values; then one for values that the reference never had (another category,
    or text among numbers).

    Attributes:
        edges: Ascending borders of the bins of numbers; a value equal to an edge belongs to the
            right bin.  Empty for categories.
        names: Category → bin; None for numbers.
        groups: For each bin its group, from 0; PSI and Jensen-Shannon distance are computed on
            groups.  All bins below the reference's range are one group, and so are all above.
        positions: Position of each bin of numbers, in reference standard deviations from the
            reference's mean; None without spread.
        ranks: Mean rank of each bin's values among the reference's, in [0, 1].
        mean, sd: Mean and standard deviation of the reference's finite numbers; NaN for categories.
    """

    edges: tuple[float, ...]
    names: Mapping[str, int] | None
    groups: tuple[int, ...]
    positions: tuple[float, ...] | None
    ranks: tuple[float, ...]
    mean: float
    sd: float

    @property
    def values(self) -> int:
        """The number of bins of values."""
        return len(self.ranks)

    def place(self, value: Value) -> int:
        """Return the bin of a value.

        NaN and None are missing; infinite numbers are in the outermost bins.
        """
        if self.names is not None:
            if value is None or value != value:
                return self.values
            text = value if isinstance(value, str) else str(value)
            return self.names.get(text, self.values + 1)
        if value is None:
            return self.values
        if isinstance(value, str):
            return self.values + 1
        if value != value:
            return self.values
        return bisect_right(self.edges, value)

    def places(self, values: Sequence[Value]) -> list[int]:
        """Return the bins of several values."""
        if self.names is None:
            try:
                numbers = cast(Sequence[float], values)
                if (total := sum(numbers)) == total:  # NaN if one of them is
                    return [bisect_right(self.edges, number) for number in numbers]
            except (TypeError, OverflowError):  # a value is missing, or is text
                pass
        return [self.place(value) for value in values]

    def group(self, counts: np.ndarray) -> np.ndarray:
        """Return counts by group, as the PSI compares them, and last the count of new values."""
        grouped = np.bincount(self.groups, weights=counts[: self.values])
        return np.append(grouped, counts[self.values + 1])

    def data(self) -> dict[str, Any]:
        """Return the bins as data for JSON; :func:`bins_of` reads them."""
        return {
            "edges": list(self.edges),
            "names": None if self.names is None else list(self.names),
            "groups": list(self.groups),
            "positions": None if self.positions is None else list(self.positions),
            "ranks": list(self.ranks),
            "mean": None if math.isnan(self.mean) else self.mean,
            "sd": None if math.isnan(self.sd) else self.sd,
        }


def bins_of(data: Mapping[str, Any]) -> Bins:
    """Return the bins from the result of :meth:`Bins.data`."""
    names = data["names"]
    return Bins(
        tuple(data["edges"]),
        None if names is None else {name: i for i, name in enumerate(names)},
        tuple(data["groups"]),
        None if data["positions"] is None else tuple(data["positions"]),
        tuple(data["ranks"]),
        math.nan if data["mean"] is None else data["mean"],
        math.nan if data["sd"] is None else data["sd"],
    )


def fit(values: Sequence[Value], *, bins: int = BINS) -> Bins:
    """Return the bins of a feature, from its reference values.

    If any of them is text, the feature is categorical.  Numbers get bins with about equally many
    values each.  A number that is as frequent as a whole bin, or one of at most ``bins`` distinct
    ones, gets its own bin, so that a shift of a constant is noticed.
    """
    present = [v for v in values if v is not None and v == v]
    if any(isinstance(v, str) for v in present):
        return _categories([v if isinstance(v, str) else str(v) for v in present])
    numbers = np.array([float(v) for v in present], dtype=np.float64)
    return _numbers(numbers[np.isfinite(numbers)], bins)


def _categories(texts: Sequence[str]) -> Bins:
    common = [text for text, _ in Counter(texts).most_common(NAMES_MAX)]
    n = len(common)
    ranks = tuple((i + 0.5) / n for i in range(n))
    return Bins(
        (),
        {text: i for i, text in enumerate(common)},
        tuple(range(n)),
        None,
        ranks,
        math.nan,
        math.nan,
    )


def _numbers(numbers: np.ndarray, bins: int) -> Bins:
    if not len(numbers):
        return Bins((), None, (0,), None, (0.5,), math.nan, math.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, sd = float(numbers.mean()), float(numbers.std())
    low, high = float(numbers.min()), float(numbers.max())
    top = math.nextafter(high, math.inf)
    borders = sorted({low, top, *(e for e in _quantiles(numbers, bins) if low < e < top)})
    fine = {e for e in _quantiles(numbers, bins * PARTS) if low < e < top}
    spread = _spread(numbers, sd)
    beyond = [t * sd for t in TAILS] if spread else []
    edges = sorted({*borders, *fine, *(low - t for t in beyond), *(top + t for t in beyond)})
    places = np.searchsorted(edges, numbers, side="right")
    counts = np.bincount(places, minlength=len(edges) + 1)
    ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
    return Bins(
        tuple(edges),
        None,
        tuple(bisect_right(borders, left) for left in (-math.inf, *edges)),
        _positions(numbers, places, edges, (mean, sd)) if spread else None,
        tuple(ranks.tolist()),
        mean,
        sd,
    )


def _positions(
    numbers: np.ndarray, places: np.ndarray, edges: Sequence[float], law: tuple[float, float]
) -> tuple[float, ...]:
    """Return the mean of the reference values in each bin; the middle of an empty bin."""
    n = len(edges) + 1
    counts, sums = np.bincount(places, minlength=n), np.bincount(places, numbers, minlength=n)
    middles = [edges[0], *((a + b) / 2 for a, b in pairwise(edges)), edges[-1]]
    at = np.where(counts > 0, sums / np.maximum(counts, 1), middles)
    return tuple(((at - law[0]) / law[1]).tolist())


def _spread(numbers: np.ndarray, sd: float) -> bool:
    """Return whether distances can be measured in standard deviations."""
    if not math.isfinite(sd) or sd <= SPREAD_MIN * float(np.abs(numbers).max()):
        return False
    _, counts = np.unique(numbers, return_counts=True)
    return bool(counts.max() <= COMMON_MAX * len(numbers))


def _quantiles(numbers: np.ndarray, bins: int) -> set[float]:
    """Return borders at the quantiles, and on both sides of frequent values."""
    different = np.unique(numbers)
    if len(different) <= bins:
        alone = different
        cuts = np.array([])
    else:
        cuts = np.quantile(numbers, np.arange(1, bins) / bins, method="inverted_cdf")
        repeated, times = np.unique(cuts, return_counts=True)
        alone = repeated[times > 1]
    edges = {float(v) for v in cuts}
    for value in alone:
        edges |= {float(value), math.nextafter(float(value), math.inf)}
    return edges
