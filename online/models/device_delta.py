"""A device's delta as numbers, and what a model has to do with it.

A device that has learned from an edge release sends what its rows did to the parameters, not the
rows (:class:`replay.example.Moved`).  The row of the journal has all that it takes to learn it: the
release may be gone by the time it is learned again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from replay.example import Moved, Tensor

Floats = npt.NDArray[np.float64]


def numbers(tensor: Tensor) -> Floats:
    """The numbers of a tensor, flat."""
    if tensor.scale == 0.0:
        return np.frombuffer(tensor.data, dtype="<f4").astype(np.float64)
    return np.frombuffer(tensor.data, dtype=np.int8).astype(np.float64) * tensor.scale


def by_output(moved: Moved) -> dict[str, Mapping[str, float]]:
    """Return what is added to a linear model's weights, by output and by column."""
    table = numbers(moved.weights).reshape(len(moved.columns), len(moved.outputs))
    return {
        output: dict(zip(moved.columns, table[:, i].tolist(), strict=True))
        for i, output in enumerate(moved.outputs)
    }


@runtime_checkable
class Movable(Protocol):
    """A model that takes deltas of devices.

    Attributes:
        by_column: Deltas are of weights by column and output; else of a network's last layer.
    """

    by_column: bool

    def misfit(self, moved: Moved) -> str | None:
        """Why its parameters are not those that the delta is of; None if they are."""

    def move(self, moved: Moved, weight: float) -> None:
        """Add the delta, times ``weight``.  May raise, and then leaves any state."""

    def moved_slope(self, moved: Moved) -> npt.NDArray[np.float32]:
        """The delta turned round, in the places of :meth:`online.models.gradients.Sloped.slope`."""
