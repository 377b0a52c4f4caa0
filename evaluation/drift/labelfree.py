"""Estimates a classifier's accuracy on rows without labels from its own confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from evaluation.drift.alarm import share
from evaluation.drift.errors import ReferenceUnusable

BLIND: Final = (
    "An estimate from confidence sees inputs that changed; it cannot see that the same inputs now "
    "have other labels (concept drift): only labels show that."
)
"""A note that is shown beside every estimate."""

PLACES: Final = 100
"""Number of bins of confidence."""
ROWS_MIN: Final = 200
"""Least number of rows without labels for an estimate."""
CALIBRATED_MIN: Final = 1_000
"""With fewer labelled rows the confidence is not calibrated."""
MEMORY: Final = 20_000
"""Number of labelled rows after which earlier ones count half."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimated accuracy without labels.

    Attributes:
        accuracy: The estimate; None if the data do not suffice.
        n: Number of rows without labels that it is for.
        labelled: Number of labelled rows used for calibration; 0: not calibrated.
        error: Standard error of the true accuracy of ``n`` rows by chance alone, without the effect
            of concept drift.
        note: The limitation, in a sentence.
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

    The expected accuracy is the mean probability that a prediction is correct, which is the
    calibrated probability of the predicted label.  Calibration is isotonic (Zadrozny & Elkan 2002),
    on counts in ``PLACES`` bins of confidence, so memory is fixed and replicas' counts add up.

    Deviations: the calibration map has one value per bin, shrunk towards the bin's mean confidence
    by ``prior`` pseudo-rows; old labelled rows are discounted.

    Parameters:
        prior: Pseudo-rows per bin, ≥ 0; with 0 a bin with one row would be 0 or 1.
        memory: Labelled rows after which older ones count half; ≥ 1.
    """

    def __init__(self, *, prior: float = 10.0, memory: int = MEMORY) -> None:
        self._prior, self._memory = prior, memory
        self._n, self._sums, self._right = ([0.0] * PLACES for _ in range(3))
        self._open_n, self._open_sums = [0] * PLACES, [0.0] * PLACES
        self._labelled, self._fresh = 0.0, 0

    def served(self, confidence: float) -> None:
        """Record a prediction; ``confidence`` is the probability of the predicted label.

        Raises:
            ShareUnusable: It is not a number in [0, 1].
        """
        place = _place(share(confidence))
        self._open_n[place] += 1
        self._open_sums[place] += confidence

    def judged(self, confidence: float, right: bool, *, was_open: bool = True) -> None:
        """Record the label of a prediction.

        Parameters:
            right: Whether the prediction was correct.
            was_open: Whether :meth:`served` was called for it, so that it is removed from the rows
                without labels.
        """
        self.judged_all([(share(confidence), right, was_open)])

    def judged_all(self, answers: Sequence[tuple[float, bool, bool]]) -> None:
        """Record the labels of several predictions, with the arguments of :meth:`judged`.

        The confidences must be in [0, 1]; they are not checked.
        """
        open_n, open_sums = self._open_n, self._open_sums
        n, sums, rights = self._n, self._sums, self._right
        for confidence, right, was_open in answers:
            place = _place(confidence)
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
        """Return counters by name; counters of replicas are merged by adding them."""
        counters: dict[str, float] = {}
        tables: dict[str, Sequence[float]] = {
            "n": self._n, "sum": self._sums, "right": self._right,
            "open": self._open_n, "open_sum": self._open_sums,
        }  # fmt: skip
        for name, values in tables.items():
            counters |= {f"{name}/{i}": float(v) for i, v in enumerate(values) if v}
        return counters

    def merge(self, counters: Mapping[str, float]) -> None:
        """Add another replica's :meth:`counters`.

        Raises:
            ReferenceUnusable: There is a counter of another name.
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
        """Return the probability of a correct prediction by bin of confidence, non-decreasing.

        The array has ``PLACES`` elements; empty bins are interpolated.
        """
        n = np.array(self._n)
        middle = (np.arange(PLACES) + 0.5) / PLACES
        some = n > 0
        if not some.any():
            return middle
        says = np.array(self._sums)[some] / n[some]
        weights = n[some] + self._prior
        shares = (np.array(self._right)[some] + self._prior * says) / weights
        calibrated: np.ndarray = np.interp(middle, middle[some], isotonic(shares, weights))
        return calibrated

    def estimate(self) -> Estimate:
        """Estimate the accuracy of the predictions without labels."""
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
    return min(int(confidence * PLACES), PLACES - 1)


def isotonic(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted least-squares non-decreasing fit (pool adjacent violators).

    Parameters:
        weights: Positive weights, one per value.
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
