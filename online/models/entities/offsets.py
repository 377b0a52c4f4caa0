"""Offsets by key: a random effect that each key adds to the answer of a shared model.

An offset is a shrunk weighted mean.  Each row of a key gives one observation v: the value that the
offset should have had, by one Newton step with curvature h (1 in regression, p (1 − p) in a binary
task)::

    v = c − g / (h x)       c: the present offset, g: gradient of the loss at the answer
    w = h x² (1 + S / L)^(P / (P + 1))             S: sum of the key's weights w so far
    S ← S + w,  m ← m + (v − m) w / S              weighted mean
    n = S / (1 + S / L)^(P / (P + 1))              effective number of rows
    c = a · m · n / (n + ROWS)                     the offset: x times this is added

*Weights grow* with the number of rows of the key (polynomial decay: Shamir and Zhang 2013,
*Stochastic Gradient Descent for Non-smooth Optimization*, section 4; forward decay: Cormode et al.
2009), so a new row always moves the mean: by 1 / (L + n' / (P + 1)) after n' rows.  Nothing is ever
subtracted, so S and m are moments of the observations: they merge exactly (Chan et al. 1979), in
any order and however late.  A mean of observations cannot diverge, as a sum of late steps can, so
no merge rule scales it.

*ROWS* shrinks the mean towards 0, the shared model, as that many rows would.  *a* in [0, 1] shrinks
all offsets of a block by how well they predicted new observations: Σ h c' v / Σ h c'², where c' is
the offset without a, and with a prior of PROVED rows that a is 1.  If keys carry no information, a
goes to 0.  Its sums merge by addition.
"""

from __future__ import annotations

import math
from typing import Final

from online.models.errors import StateNotFinite
from online.models.state.scalers import on_top
from paramserver.core.blocks import MOMENTS, Block, Blocks

ROWS: Final = 6.0
"""Strength of the shrinkage towards the shared model, in rows."""

LATELY: Final = 20.0
"""L: the mean's initial window in rows; it grows by 1 / (POWER + 1) for each row."""

POWER: Final = 16
PROVED: Final = 4.0

_SHARE: Final = POWER / (POWER + 1)
_NONE: Final = (0.0, 0.0, 0.0)

Moments = tuple[float, float, float]


class Offsets:
    """The offsets of the keys under one name, with an open delta.

    Parameters:
        block: Name of the block.
        curvature: Greatest curvature of a row: 1 in regression, ¼ in a binary task.
    """

    def __init__(self, block: str, curvature: float) -> None:
        self.block = block
        self._rows, self._lately = ROWS * curvature, LATELY * curvature
        self._now: dict[str, Moments] = {}  # weight, mean, offset
        self._open: dict[str, Moments] = {}

    def __len__(self) -> int:
        return len(self._now)

    def of(self, key: str) -> float:
        """Return the key's offset without the factor a; 0 for an unknown key."""
        return self._now.get(key, _NONE)[2]

    def learned(self, key: str, v: float, curvature: float) -> tuple[Moments, Moments]:
        """Compute a key's new moments, over all rows and since the cut, for :meth:`put`.

        ``v`` is the observation, ``curvature`` is h x².  Changes no state.  Raises StateNotFinite.
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
        """Store the result of :meth:`learned`."""
        self._now[key], self._open[key] = learned

    def _grown(self, weight: float) -> float:
        """Return the weight of the next row relative to the first."""
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
        """Drop the given keys.  The model is not used after the first call."""
        if (block := values.get(self.block)) is not None:
            for key in block.data:
                self._now.pop(key, None)
