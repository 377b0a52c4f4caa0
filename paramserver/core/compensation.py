"""Delay compensation: a late delta, corrected by the curvature that its rows have used up.

A delta was learned from ``start``, and the others have moved the value since.  Had its rows been
learned from the value as it is now, they would have taken back a part of what the others did:
with one step the part is rate · curvature, with many it is near 1 − exp(−Σ rate · curvature),
key by key.  Squared gradients stand for the curvature, as in Zheng et al. 2017, *Asynchronous
stochastic gradient descent with delay compensation*.  Where little is used up, deltas therefore
add up, and where all is used up they replace each other; half of the way between, replacing is
done by averaging over those who learned, which costs less noise::

    used   = 1 − exp(−4 · curvature)
    value += (1 + used / 2 · (K − 1)) / (1 + used · (K − 1)) · delta − used / 2 · (value − start)

K is the effective number of learners since the delta's base, (Σ n)² / Σ n² over the rows n of
each partition: 1 if one does nearly all of the work, and the number of partitions if they share
it evenly.  ``docs/decisions/merge.md`` has what was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import exp, isfinite
from typing import Final

from paramserver.core.blocks import ADDITIVE, Block, Blocks
from paramserver.core.wire import Curved
from paramserver.errors import BlockError

STRENGTH: Final = 4.0
"""Factor of the curvature: what one key says of itself leaves out how keys go together."""


def effective_learners(rows: Iterable[int]) -> float:
    """(Σ n)² / Σ n² of the rows that each learned; 1 if there are none."""
    counts = [float(n) for n in rows if n > 0]
    return sum(counts) ** 2 / sum(n * n for n in counts) if counts else 1.0


def compensated(
    values: Blocks, delta: Blocks, curved: Curved, learners: float, scale: float
) -> Blocks:
    """The additive blocks of ``delta`` whose curvature is known, as they have to be added.

    Keys whose curvature is not known are scaled by ``scale``.  Nothing is changed.

    Raises:
        BlockError: A start or a curvature is no number that it can be.
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
        kept = (1.0 + used / 2 * (learners - 1.0)) / (1.0 + used * (learners - 1.0))
        new[key] = kept * x - used / 2 * (now.get(key, 0.0) - start)
    return new
