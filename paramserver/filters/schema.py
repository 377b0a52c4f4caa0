"""Refuses events that cannot be judged: wrong shapes, non-finite numbers, overlong names."""

from __future__ import annotations

import math
import sys
from typing import Final

import numpy as np

from paramserver.filters.base import PASS, Event, Filter, Opinion, Source

SOURCE_CHARS_MAX: Final = 256
LARGEST: Final = 1e6
"""Greatest norm of a gradient, and greatest loss.  Beyond that a model has diverged."""


class Schema(Filter):
    """The first filter of a chain, which validates events.

    Parameters:
        size: Length of gradients; None: the model has none, so events must have none.
        longest: Greatest Euclidean norm of a gradient, and greatest loss.
        numbers: Whether losses are errors in the unit of the labels, and so may have any size.
    """

    name = "schema"

    def __init__(
        self, size: int | None, *, longest: float = LARGEST, numbers: bool = False
    ) -> None:
        self.size = size
        self.longest = longest
        self._loss_max = sys.float_info.max if numbers else longest

    def judge(self, event: Event, source: Source) -> Opinion:
        loss = event.loss
        plain = event.gradient is None and 1 <= len(event.source) <= SOURCE_CHARS_MAX
        if plain and (loss is None or 0.0 <= loss <= self._loss_max):
            return PASS
        problem = self._problem(event)
        return PASS if problem is None else Opinion(0.0, reason=problem, stop=True, refuse=True)

    def _problem(self, event: Event) -> str | None:
        if not 1 <= len(event.source) <= SOURCE_CHARS_MAX:
            return f"a source's name has 1 to {SOURCE_CHARS_MAX} characters"
        loss = event.loss
        if loss is not None and not 0.0 <= loss <= self._loss_max:
            return f"loss {loss!r} is not in [0, {self._loss_max:g}]"
        return self._gradient_problem(event)

    def _gradient_problem(self, event: Event) -> str | None:
        gradient = event.gradient
        if gradient is None:
            return None
        if self.size is None:
            return "a gradient for a model that has none"
        if not isinstance(gradient, np.ndarray) or gradient.shape != (self.size,):
            shape = getattr(gradient, "shape", type(gradient).__name__)
            return f"gradient of shape {shape}, expected ({self.size},)"
        if gradient.dtype != np.float32:
            return f"gradient of {gradient.dtype}, expected float32"
        # NaN, infinity and overflow are preserved in a sum of squares
        square = event.square
        if not math.isfinite(square):
            return "a number of the gradient is not finite, or its length overflows"
        if square > self.longest**2:
            return f"gradient of length {math.sqrt(square):.3g}; at most {self.longest:g} is taken"
        return None
