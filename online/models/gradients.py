"""Gradients of a row's loss, for the filters: numbers of a fixed size, whatever the row names.

For linear models the gradient by a weight is (answer − label) · number, and names are hashed to
places, as in "Feature Hashing for Large Scale Multitask Learning" (Weinberger et al. 2009),
without signs: what is compared are gradients of one model.
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
"""Numbers of a linear model's gradient."""

_MASK: Final = PLACES - 1
_SEED: Final = 20_190  # of the hash: the same in all processes


Score = Mapping[str, float] | None
"""What a model answered to a row, as :class:`replay.example.Example` has it."""


@runtime_checkable
class Sloped(Protocol):
    """A model that tells the gradient of a row's loss.

    Attributes:
        slope_size: Numbers of it.
    """

    slope_size: int

    def slope(self, features: Features, label: Label, score: Score) -> Slope | None:
        """Gradient at the present parameters, float32 [``slope_size``].  Changes nothing.

        ``score``: what was answered to the row; None: the model is asked.  None is returned for a
        row that has none (a label that the model can't learn).
        """

    def mean_slope(self, rows: Sequence[tuple[Features, Label]]) -> Slope:
        """Mean gradient of some rows, as the model answers now; zeros for those without."""


class Hashing(Merging):
    """The slope of a linear model that tells the numbers that it multiplies its weights with."""

    slope_size = PLACES

    def numbers(self, features: Features) -> Mapping[str, float]:
        """A row as the weights see it.  Changes nothing."""
        raise NotImplementedError

    def slope(self, features: Features, label: Label, score: Score) -> Slope:
        """Gradient of the row's loss by the weights, their names hashed."""
        answer = self.predict(features) if score is None else score
        return hashed(self.numbers(features), errors(answer, label))

    def mean_slope(self, rows: Sequence[tuple[Features, Label]]) -> Slope:
        """Mean gradient of some rows."""
        total = np.zeros(PLACES, dtype=np.float32)
        for features, label in rows:
            total += self.slope(features, label, None)
        return np.asarray(total / max(len(rows), 1), dtype=np.float32)


def errors(answer: Prediction | Mapping[str, float], label: Label) -> dict[str, float]:
    """Answer less target by output (``""`` of a model with one): the slope of a log loss.

    Half that of a squared loss in regression.  ``answer`` as of a model, or as kept in rows.
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
    """Gradient of a linear model: each number times the error of each output, by its name."""
    out = np.zeros(PLACES, dtype=np.float32)
    sides = (np.array(list(side.values()), dtype=np.float64) for side in (by, numbers))
    with np.errstate(over="ignore"):  # an infinite one is refused by whoever judges it
        values = np.outer(*sides).astype(np.float32)
    np.add.at(out, _places(tuple(by), tuple(numbers)), values.reshape(-1))
    return out


@lru_cache(maxsize=64)  # rows of columns have the same names; rows of words fill it in vain
def _places(outputs: tuple[str, ...], names: tuple[str, ...]) -> npt.NDArray[np.intp]:
    pairs = [_place(f"{output}\0{name}") for output in outputs for name in names]
    return np.array(pairs, dtype=np.intp)


@lru_cache(maxsize=65_536)
def _place(name: str) -> int:
    return mmh3.hash(name, _SEED, signed=False) & _MASK
