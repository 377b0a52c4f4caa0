"""Offsets by key: what each key adds to the answer of a model that all keys share.

An offset is a shrunk mean.  A row says of its key that it *would have had to add* v to the log odds
or the number, with curvature h (1 in regression, p (1 − p) in a binary task; one Newton step)::

    v = c − g / (h x)       c: what the offset is, g: slope of the loss at the answer
    w = h x² (1 + S / L)^(P / (P + 1))             S: the weights w of the key so far
    S ← S + w,  m ← m + (v − m) w / S              the mean, weighted
    n = S / (1 + S / L)^(P / (P + 1))              rows that the mean is worth
    c = a · m · n / (n + ROWS)                     the offset: x times this is added

*Weights grow* with what is known of the key (polynomial decay: Shamir and Zhang 2013, *Stochastic
Gradient Descent for Non-smooth Optimization*, section 4; forward decay: Cormode et al. 2009), so a
new row always moves the mean: by 1 / (L + n' / (P + 1)) after n' of them.  Nothing is ever taken
away, so S and m are moments of what rows have said: they add up (Chan et al. 1979), exactly, in any
order, whoever learned them, however late; and a mean of numbers cannot run away, as a sum of late
steps can.  So no merge rule scales them.

*ROWS* rows of the shared model stand beside each key.  *a*, at most 1 and at least 0, is how much
of all these offsets together has proved right before it was learned: Σ h c' v / Σ h c'², c' the
offset without a, with PROVED rows' worth of belief that a is 1.  Offsets of keys that mean nothing
shrink to nothing by it.  Its sums add up, too.
"""

from __future__ import annotations

import math
from typing import Final

from online.models.errors import StateNotFinite
from online.models.state.scalers import on_top
from paramserver.core.blocks import MOMENTS, Block, Blocks

ROWS: Final = 6.0
"""Rows of the shared model that stand beside each key."""

LATELY: Final = 20.0
"""Rows over which a mean is taken at first; it grows from there by 1 / (POWER + 1) a row."""

POWER: Final = 16
PROVED: Final = 4.0

_SHARE: Final = POWER / (POWER + 1)
_NONE: Final = (0.0, 0.0, 0.0)

Moments = tuple[float, float, float]


class Offsets:
    """The offsets of the keys under one name, with an open delta.

    Parameters:
        block: Its name.
        curvature: The greatest that a row has: 1 in regression, ¼ in a binary task.
    """

    def __init__(self, block: str, curvature: float) -> None:
        self.block = block
        self._rows, self._lately = ROWS * curvature, LATELY * curvature
        self._now: dict[str, Moments] = {}  # weight, mean, offset
        self._open: dict[str, Moments] = {}

    def __len__(self) -> int:
        return len(self._now)

    def of(self, key: str) -> float:
        """Return the key's offset, before all are shrunk; 0 of a key that is not known."""
        return self._now.get(key, _NONE)[2]

    def learned(self, key: str, v: float, curvature: float) -> tuple[Moments, Moments]:
        """Work out what :meth:`put` is to put, of all rows and of those since the cut.

        ``curvature`` is h x².  Raises StateNotFinite; nothing is changed.
        """
        weight, mean, _ = self._now.get(key, _NONE)
        more = curvature * self._grown(weight)
        total = weight + more
        mean += (v - mean) * (more / total)
        since, own, m2 = self._open.get(key, _NONE)
        opened = since + more
        gap = v - own
        own += gap * (more / opened)
        m2 += gap * gap * (since * (more / opened))
        if not math.isfinite(total + mean + m2):
            raise StateNotFinite(total + mean + m2)
        return (total, mean, self._shrunk(total, mean)), (opened, own, m2)

    def put(self, key: str, learned: tuple[Moments, Moments]) -> None:
        """Take what :meth:`learned` has worked out."""
        self._now[key], self._open[key] = learned

    def _grown(self, weight: float) -> float:
        """How much more the next row weighs than the first."""
        return float((1.0 + weight / self._lately) ** _SHARE)

    def _shrunk(self, weight: float, mean: float) -> float:
        rows = weight / self._grown(weight)
        return mean * rows / (rows + self._rows)

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        delta, self._open = self._open, {}
        return {self.block: Block(MOMENTS, delta)} if delta else {}

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        if (block := values.get(self.block)) is None:
            return
        now, shrunk = self._now, self._shrunk
        for key, (weight, mean, _) in on_top(MOMENTS, block.data, {}, self._open).items():
            now[key] = (weight, mean, shrunk(weight, mean))

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._now, self._open = {}, {}
        self.rebase(values)

    def forget(self, values: Blocks) -> None:
        """Drop the keys given.  This copy is asked nothing any more."""
        if (block := values.get(self.block)) is not None:
            for key in block.data:
                self._now.pop(key, None)
