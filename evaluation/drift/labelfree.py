"""How right a classifier is on rows whose labels have not come, from its own confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from evaluation.drift.errors import ReferenceUnusable, ShareUnusable

BLIND: Final = (
    "An estimate from confidence sees inputs that changed; it cannot see that the same inputs now "
    "have other labels (concept drift): only labels show that."
)
"""Stands beside every estimate."""

PLACES: Final = 100
"""Bins of confidence."""
ROWS_MIN: Final = 200
"""Fewer rows without a label have no accuracy to estimate."""
CALIBRATED_MIN: Final = 1_000
"""With fewer labelled rows the confidence is taken as it is."""
MEMORY: Final = 20_000
"""Labelled rows after which what was learned of them before counts half."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An accuracy without labels.

    Attributes:
        accuracy: None if there are not enough data.
        n: Rows without a label that it is about.
        labelled: Labelled rows that calibrate the confidence; 0: it is taken as it is.
        error: Standard error that chance alone gives the true accuracy of ``n`` rows.  What concept
            drift does is not in it.
        note: The limit, in a sentence.
    """

    state: Literal["estimated", "not enough data"]
    why: str
    accuracy: float | None
    n: int
    labelled: float
    error: float | None
    note: str = BLIND


class LabelFree:
    """Confidence-based performance estimation (CBPE; arXiv:2401.08348).

    The expected accuracy is the mean of the probabilities that the answers are right: the
    calibrated probability of the answered label.  Calibration is
    isotonic (Zadrozny & Elkan 2002), on counts in ``PLACES`` bins of confidence, so memory is
    fixed and replicas' counts add up.

    Deviations: the map is a step per bin, drawn towards the bin's mean confidence by
    ``prior`` rows that are as right as they say; old labelled rows fade.

    Parameters:
        prior: Rows a bin, ≥ 0: at 0 a bin with one row says 0 or 1.
        memory: Labelled rows after which older ones count half; ≥ 1.
    """

    def __init__(self, *, prior: float = 10.0, memory: int = MEMORY) -> None:
        self._prior, self._memory = prior, memory
        self._n, self._sums, self._right = ([0.0] * PLACES for _ in range(3))
        self._open_n, self._open_sums = [0] * PLACES, [0.0] * PLACES
        self._labelled, self._fresh = 0.0, 0

    def served(self, confidence: float) -> None:
        """An answer went out: ``confidence`` is the probability of the answered label.

        Raises:
            ShareUnusable: No number from 0 to 1.
        """
        place = _place(confidence)
        self._open_n[place] += 1
        self._open_sums[place] += confidence

    def judged(self, confidence: float, right: bool, *, was_open: bool = True) -> None:
        """The label of such an answer came.

        Parameters:
            was_open: Whether :meth:`served` was told of it: it is not open any more.
        """
        place = _place(confidence)
        if was_open and self._open_n[place]:
            self._open_n[place] -= 1
            self._open_sums[place] -= confidence
        self._n[place] += 1.0
        self._sums[place] += confidence
        self._right[place] += right
        self._labelled += 1.0
        self._fresh += 1
        if self._fresh >= self._memory:
            self._fade()

    def judged_all(self, answers: Sequence[tuple[float, bool, bool]]) -> None:
        """Labels of several came: of each its confidence, a share, and the rest of :meth:`judged`.

        None of the shares is looked at.
        """
        open_n, open_sums = self._open_n, self._open_sums
        n, sums, rights = self._n, self._sums, self._right
        for confidence, right, was_open in answers:
            place = min(int(confidence * PLACES), PLACES - 1)
            if was_open and open_n[place]:
                open_n[place] -= 1
                open_sums[place] -= confidence
            n[place] += 1.0
            sums[place] += confidence
            rights[place] += right
            self._labelled += 1.0
            self._fresh += 1
            if self._fresh >= self._memory:
                self._fade()

    def _fade(self) -> None:
        for values in (self._n, self._sums, self._right):
            values[:] = [v / 2.0 for v in values]
        self._labelled /= 2.0
        self._fresh = 0

    def counters(self) -> dict[str, float]:
        """Flat counts, added by name to merge replicas."""
        found: dict[str, float] = {}
        tables: dict[str, Sequence[float]] = {
            "n": self._n, "sum": self._sums, "right": self._right,
            "open": self._open_n, "open_sum": self._open_sums,
        }  # fmt: skip
        for name, values in tables.items():
            found |= {f"{name}/{i}": float(v) for i, v in enumerate(values) if v}
        return found

    def merge(self, counters: Mapping[str, float]) -> None:
        """Add what :meth:`counters` of another one gave.

        Raises:
            ReferenceUnusable: A name that is none of these.
        """
        tables: dict[str, list[float]] = {
            "n": self._n, "sum": self._sums, "right": self._right,
            "open": self._open_n, "open_sum": self._open_sums,  # type: ignore[dict-item]
        }  # fmt: skip
        for key in counters:
            name, _, place = key.partition("/")
            if name not in tables or not place.isdecimal() or int(place) >= PLACES:
                raise ReferenceUnusable(
                    f"no counter of confidence: {key!r:.60}", "Give what counters() gave"
                )
        for key, value in counters.items():
            name, _, place = key.partition("/")
            tables[name][int(place)] += int(value) if name == "open" else value
        self._labelled = sum(self._n)

    def calibrated(self) -> np.ndarray:
        """Probability of being right in each bin of confidence, never falling; length ``PLACES``.

        Bins without rows lie between their neighbours.
        """
        n = np.array(self._n)
        middle = (np.arange(PLACES) + 0.5) / PLACES
        some = n > 0
        if not some.any():
            return middle
        says = np.array(self._sums)[some] / n[some]
        weights = n[some] + self._prior
        shares = (np.array(self._right)[some] + self._prior * says) / weights
        found: np.ndarray = np.interp(middle, middle[some], isotonic(shares, weights))
        return found

    def estimate(self) -> Estimate:
        """Accuracy of the rows that were served and have no label yet."""
        n = sum(self._open_n)
        if n < ROWS_MIN:
            why = f"{n} rows without a label; {ROWS_MIN} are needed"
            return Estimate("not enough data", why, None, n, self._labelled, None)
        if self._labelled < CALIBRATED_MIN:
            accuracy = sum(self._open_sums) / n
            why = f"not calibrated: {self._labelled:,.0f} labelled rows, {CALIBRATED_MIN} needed"
            labelled = 0.0
        else:
            accuracy = float((np.array(self._open_n) * self.calibrated()).sum() / n)
            why, labelled = "calibrated", self._labelled
        accuracy = min(max(accuracy, 0.0), 1.0)
        error = (accuracy * (1.0 - accuracy) / n) ** 0.5
        return Estimate("estimated", why, accuracy, n, labelled, error)


def _place(confidence: float) -> int:
    try:
        if 0.0 <= confidence <= 1.0:
            return min(int(confidence * PLACES), PLACES - 1)
    except TypeError:
        pass
    raise ShareUnusable(f"{confidence!r:.60}")


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The nearest sequence that never falls, by weighted squares (pool adjacent violators).

    Parameters:
        weights: > 0, as many as values.
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, total, length = float(value), float(weight), 1
        while pools and pools[-1][0] >= mean:
            other, more, longer = pools.pop()
            mean = (other * more + mean * total) / (more + total)
            total, length = total + more, length + longer
        pools.append((mean, total, length))
    return np.array([mean for mean, _, length in pools for _ in range(length)])
