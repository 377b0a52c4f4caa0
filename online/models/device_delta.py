"""Deltas of devices: how they are decoded, and the interface of a model that can apply them.

A device that has learned from an edge release sends the change of the parameters, not its rows
(:class:`replay.example.Moved`).  The journal's row has everything that is needed to apply it: the
release may have been deleted by the time the row is replayed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from replay.example import Moved, Tensor

Floats = npt.NDArray[np.float64]


def numbers(tensor: Tensor) -> Floats:
    """Decode a tensor (float32, or int8 with a scale) to a flat float64 array."""
    if tensor.scale == 0.0:
        return np.frombuffer(tensor.data, dtype="<f4").astype(np.float64)
    return np.frombuffer(tensor.data, dtype=np.int8).astype(np.float64) * tensor.scale


def by_output(moved: Moved) -> dict[str, Mapping[str, float]]:
    """Return the changes of a linear model's weights, by output and by column."""
    table = numbers(moved.weights).reshape(len(moved.columns), len(moved.outputs))
    return {
        output: dict(zip(moved.columns, table[:, i].tolist(), strict=True))
        for i, output in enumerate(moved.outputs)
    }


@runtime_checkable
class Movable(Protocol):
    """A model that can apply deltas of devices.

    Attributes:
        by_column: True if deltas change weights by column and output; False if they change a
            network's last layer.
    """

    by_column: bool

    def misfit(self, moved: Moved) -> str | None:
        """Return why the delta does not fit the model's parameters; None if it does."""

    def move(self, moved: Moved, weight: float) -> None:
        """Add the delta times ``weight``.  If it raises, the state is undefined."""

    def moved_slope(self, moved: Moved) -> npt.NDArray[np.float32]:
        """Return the negated delta in the form of a gradient (:mod:`online.models.gradients`)."""
