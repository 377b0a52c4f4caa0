"""Delay compensation: corrects a stale delta by the curvature of the loss along its steps.

A delta was learned from the value ``start``, and other partitions have moved the value since.
Learned from the present value, its rows would have undone a part of that movement: with one
gradient step the part is rate · curvature, with many steps about 1 − exp(−Σ rate · curvature), per
key.  Squared gradients approximate the curvature, as in Zheng et al. 2017, *Asynchronous stochastic
gradient descent with delay compensation*.  ``used`` is that part.  Where it is near 0, deltas add
up; where it is near 1, they replace each other.  Half of the replacement is done by averaging over
the learners, because that adds less noise::

    used   = 1 − exp(−4 · curvature)
    value += (1 + used / 2 · (K − 1)) / (1 + used · (K − 1)) · delta − used / 2 · (value − start)

K is the effective number of learners since the delta's base version, (Σ n)² / Σ n² over the rows n
of each partition: 1 if one partition has nearly all rows, and the number of partitions if they
have equally many.  Measurements are in ``docs/decisions/merge.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import exp, isfinite
from typing import Final

from paramserver.core.blocks import ADDITIVE, Block, Blocks
from paramserver.core.wire import Curved
from paramserver.errors import BlockError

STRENGTH: Final = 4.0
"""Factor of the curvature: the curvature of single keys leaves out their correlation."""


def effective_learners(rows: Iterable[int]) -> float:
    """Return (Σ n)² / Σ n² over the row counts n of the learners; 1 if there are none."""
    counts = [float(n) for n in rows if n > 0]
    return sum(counts) ** 2 / sum(n * n for n in counts) if counts else 1.0


def compensated(
    values: Blocks, delta: Blocks, curved: Curved, learners: float, scale: float
) -> Blocks:
    """Return the corrected deltas of the additive blocks whose curvature is known.

    Changes nothing.

    Parameters:
        curved: By block and key, the start value and the summed curvature.
        learners: Effective number of learners, K in the formula.
        scale: Factor for keys whose curvature is not known.

    Raises:
        BlockError: A start value is not finite, a curvature is not finite or negative, or a block
            in ``curved`` is not an additive block of ``delta``.
    """
    out: Blocks = {}
    for name, keys in curved.items():
        block = delta.get(name)
        if block is None or block.kind != ADDITIVE:
            raise BlockError(name, None, "has a curvature, but is no additive block of the push")
        held = values.get(name)
        now: Mapping[str, float] = {} if held is None or held.kind != ADDITIVE else held.data
        out[name] = Block(ADDITIVE, _corrected(name, now, block.data, keys, learners, scale))
    return out


def _corrected(
    name: str,
    now: Mapping[str, float],
    delta: Mapping[str, float],
    keys: Mapping[str, tuple[float, float]],
    learners: float,
    scale: float,
) -> dict[str, float]:
    new = {}
    for key, x in delta.items():
        if key not in keys:
            new[key] = scale * x
            continue
        start, curvature = keys[key]
        if not (isfinite(start) and 0 <= curvature < float("inf")):
            raise BlockError(
                name, key, f"start {start}, curvature {curvature}: must be finite, ≥ 0"
            )
        used = 1.0 - exp(-STRENGTH * curvature)
        share = (1.0 + used / 2 * (learners - 1.0)) / (1.0 + used * (learners - 1.0))
        new[key] = share * x - used / 2 * (now.get(key, 0.0) - start)
    return new
