"""Does a push move inputs that stand still with everybody else?  A trigger does.

A trigger that no honest row has (a patch in a corner, a column that is always empty) moves inputs
whose value never changes.  In the first layer's gradient, Σ δ·x over the rows, the numbers of such
an input are those of the bias, Σ δ, times its value, whatever the labels and the parameters; with
a trigger in some of the rows they are not.  What lies beside that multiple is measured, and
compared with all that the push moves.  Which inputs stand still is read off the root set's
gradients.  The trigger need not be known, and a gradient's size and label mix do not matter.

An honest source for which such an input has another value (another camera, another default) is set
aside too, as it is by the test on directions, until the root set or most sources have that value.
A layer with fewer than three outputs tells nothing, for there all is a multiple of the bias.

On digits (15 honest sources, three classes each or all) the share of honest pushes is .0002 in the
median, .02 for 99 of 100 and .08 at most.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import log
from statistics import median_low
from typing import Final

import numpy as np
import numpy.typing as npt

from paramserver.filters.base import (
    OFF,
    PASS,
    Event,
    Filter,
    Gradient,
    Opinion,
    Source,
    clipped_step,
)
from paramserver.filters.reference import Reference, RootGradient

_REFRESHES: Final = 4  # its rows do not change, and two show both halves of them
_STILL: Final = 1e-3  # of the mean energy of an input
_ROUNDING: Final = 1e-5
_USUAL_MIN: Final = 0.005
_TIMES: Final = 10.0
"""Shares of honest pushes are taken to scatter around ``usual``, of hostile ones around ten times
that."""

_ALONE: Final = 20.0
"""A push with a share of so many times the usual one is set aside by itself."""

_CALM: Final = 1.0  # nats at most for a push that moves nothing strange: a trigger can wait
_SOURCES_MIN: Final = 8
_REASON: Final = "inputs: moves inputs that stand still elsewhere"


@dataclass(frozen=True, slots=True)
class Layer:
    """Where a gradient holds that of its first layer.

    ``weights`` and ``bias``: places of the first number of each; the weights are
    [inputs, outputs].
    """

    inputs: int
    outputs: int
    weights: int
    bias: int

    def parts(self, gradient: Gradient) -> tuple[Gradient, Gradient]:
        """Weights [inputs, outputs] and bias [outputs]; nothing is copied."""
        flat = gradient[self.weights : self.weights + self.inputs * self.outputs]
        bias = gradient[self.bias : self.bias + self.outputs]
        return flat.reshape(self.inputs, self.outputs), bias


class Still:
    """Which inputs of a layer stand still in the root set, and at which value.

    Attributes:
        which: Their places.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._moved = np.zeros(layer.inputs)
        self._seen = 0
        self._values: Gradient = np.zeros(0, dtype=np.float32)
        self.which: npt.NDArray[np.intp] = np.zeros(0, dtype=np.intp)

    def learn(self, gradients: Sequence[Gradient]) -> None:
        """Take gradients of root rows: of each class, and of mixed ones."""
        if self._seen >= _REFRESHES:
            return
        told: Gradient | None = None
        for gradient in gradients:
            weights, bias = self._layer.parts(gradient)
            square = float(bias @ bias)
            if square == 0.0:
                continue
            energy = np.einsum("ij,ij->i", weights, weights)
            along = weights @ bias
            beside = energy - along * along / np.float32(square)
            mean = float(beside.mean())
            # rows of one class that a fresh model takes for alike are all the bias's multiple
            if mean > _ROUNDING * float(energy.mean()):
                np.maximum(self._moved, beside / mean, out=self._moved)
                told = along / np.float32(square)
        if told is not None:
            self._seen += 1
            self.which = np.flatnonzero(self._moved < _STILL)
            self._values = told[self.which]

    def share(self, gradient: Gradient, square: float) -> float:
        """Part of what a gradient moves that lies on inputs which stand still; in [0, 1].

        ``square``: of the gradient's length, greater than 0.
        """
        layer, values = self._layer, self._values
        weights, bias = layer.parts(gradient)
        still = weights[self.which]
        flat = still.reshape(-1)
        energy, along = float(flat @ flat), still @ bias
        strange = energy - 2.0 * float(values @ along)
        strange = max(strange + float(values @ values) * float(bias @ bias), 0.0)
        before, after = gradient[: layer.weights], gradient[layer.weights + weights.size :]
        moving = square - float(before @ before) - float(after @ after) - energy
        whole = strange + max(moving, 0.0)
        return strange / whole if whole > 0.0 else 0.0


class LayerReference(Reference):
    """A root set that is asked, too, which inputs of the first layer stand still.

    Attributes:
        still: They do.
    """

    def __init__(
        self, labels: Sequence[Hashable], gradient: RootGradient, *, rows: int, layer: Layer
    ) -> None:
        super().__init__(labels, self._noted, rows=rows)
        self.still = Still(layer)
        self._of, self._given = gradient, list[Gradient]()

    def _noted(self, rows: npt.NDArray[np.intp]) -> Gradient:
        self._given.append(self._of(rows))
        return self._given[-1]

    def refresh(self, rng: np.random.Generator, version: int) -> None:
        """Draw as any root set does, and look at what was drawn."""
        self._given = []
        super().refresh(rng, version)
        if all(np.isfinite(gradient).all() for gradient in self._given):
            self.still.learn(self._given)


class Inputs(Filter):
    """The test on inputs that stand still; off where all of them move.

    Parameters:
        still: What the root set says.

    Attributes:
        usual: Share of an honest push: the median source's, .5 % at least.
    """

    name = "inputs"

    def __init__(self, still: Still) -> None:
        self._still = still
        self.usual = _USUAL_MIN

    def judge(self, event: Event, source: Source) -> Opinion:
        if not len(self._still.which):
            return OFF
        if event.gradient is None or event.square == 0.0:
            return PASS
        share = self._still.share(event.gradient, event.square)
        step = log(_TIMES) - (1.0 - 1.0 / _TIMES) * share / self.usual
        step = clipped_step(min(step, _CALM))
        if share > _ALONE * self.usual:
            return Opinion(0.0, step, share, _REASON, stop=True)
        return Opinion(1.0, step, share)

    def learn(self, event: Event, opinion: Opinion, source: Source, *, taken: bool) -> None:
        """Every event moves its own source's mean, taken or not."""
        if not opinion.off and opinion is not PASS:
            source.mean(self.name, opinion.score)

    def refresh(self, sources: Sequence[Source]) -> None:
        means = [s.means[self.name] for s in sources if self.name in s.means]
        among = median_low(means) if len(means) >= _SOURCES_MIN else 0.0
        self.usual = max(_USUAL_MIN, among)
