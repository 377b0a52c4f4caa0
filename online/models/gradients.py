"""Gradients of a row's loss, for the filters: vectors of a fixed size, whatever features it has.

For linear models the gradient with respect to a weight is (answer − label) · value.  Feature names
are hashed to indices, as in "Feature Hashing for Large Scale Multitask Learning" (Weinberger et al.
2009), but without random signs: only gradients of the same model are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final, Protocol, runtime_checkable

import mmh3
import numpy as np
import numpy.typing as npt

from online.models.base import Merging, Prediction
from replay.example import Features, Label, label_text

Slope = npt.NDArray[np.float32]

PLACES: Final = 2048
"""Length of a linear model's hashed gradient."""

_MASK: Final = PLACES - 1
_SEED: Final = 20_190  # seed of the hash, the same in all processes


Score = Mapping[str, float] | None
"""A model's answer to a row, in the form of :class:`replay.example.Example`."""


@runtime_checkable
class HasGradient(Protocol):
    """A model that can compute the gradient of a row's loss.

    Attributes:
        slope_size: Length of the gradient.
    """

    slope_size: int

    def slope(self, features: Features, label: Label, score: Score) -> Slope | None:
        """Return the gradient at the present parameters: float32, shape (``slope_size``,).

        Changes no state.  ``score`` is the answer that the row got; if None, the model predicts
        it now.  Returns None for a row without a gradient: the model can't learn its label.
        """

    def mean_slope(self, rows: Sequence[tuple[Features, Label]]) -> Slope:
        """Return the mean gradient of the rows; rows without a gradient count as zeros."""


class Hashing(Merging):
    """Base class of linear models whose gradient is hashed by feature name."""

    slope_size = PLACES

    def numbers(self, features: Features) -> Mapping[str, float]:
        """Return the values by name that the weights are multiplied with.  Changes no state."""
        raise NotImplementedError

    def slope(self, features: Features, label: Label, score: Score) -> Slope:
        """Return the gradient of the row's loss with respect to the weights, hashed by name."""
        answer = self.predict(features) if score is None else score
        return hashed(self.numbers(features), errors(answer, label))

    def mean_slope(self, rows: Sequence[tuple[Features, Label]]) -> Slope:
        """Return the mean gradient of the rows."""
        total = np.zeros(PLACES, dtype=np.float32)
        for features, label in rows:
            total += self.slope(features, label, None)
        return np.asarray(total / max(len(rows), 1), dtype=np.float32)


def errors(answer: Prediction | Mapping[str, float], label: Label) -> dict[str, float]:
    """Return answer − target by output: the derivative of the log loss by the output.

    In regression it is half the derivative of the squared loss.  The key is ``""`` for a model with
    one output.  ``answer`` is a prediction, or the score that a row of the journal has.
    """
    if not isinstance(answer, Mapping):
        shares = answer.probabilities
        if shares is None:
            answer = {"": float(answer.label or 0.0)}
        else:
            answer = {label_text(known): share for known, share in shares.items()}
    if "" in answer:
        return {"": answer[""] - float(label)}
    if isinstance(label, bool):
        return {"": answer.get("true", 0.5) - label}
    own = label_text(label)
    return {text: share - (text == own) for text, share in {own: 0.0, **answer}.items()}


def hashed(numbers: Mapping[str, float], by: Mapping[str, float]) -> Slope:
    """Return the hashed gradient of a linear model: each value times the error of each output."""
    out = np.zeros(PLACES, dtype=np.float32)
    sides = (np.array(list(side.values()), dtype=np.float64) for side in (by, numbers))
    with np.errstate(over="ignore"):  # the filters refuse an infinite gradient
        values = np.outer(*sides).astype(np.float32)
    np.add.at(out, _places(tuple(by), tuple(numbers)), values.reshape(-1))
    return out


@lru_cache(maxsize=64)  # tabular rows share their names; rows of text rarely hit the cache
def _places(outputs: tuple[str, ...], names: tuple[str, ...]) -> npt.NDArray[np.intp]:
    pairs = [_place(f"{output}\0{name}") for output in outputs for name in names]
    return np.array(pairs, dtype=np.intp)


@lru_cache(maxsize=65_536)
def _place(name: str) -> int:
    return mmh3.hash(name, _SEED, signed=False) & _MASK
