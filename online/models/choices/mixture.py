"""Exponential weights for the experts of the reward model, by their discounted losses.

The method is that of Littlestone and Warmuth 1994, *The weighted majority algorithm*, as in
:mod:`online.models.selfrate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from online.models.experts.linear import Floats
from paramserver.core.blocks import LOCAL, Block, Blocks, array_bytes, array_of

FADE: Final = 0.99
"""Discount factor of the losses at each reward: a window of 1 / (1 − FADE) = 100 rewards."""

_LOSSES: Final = "losses"


class Mixture:
    """The discounted losses of the experts, and the weights that follow from them.

    Attributes:
        losses: Discounted loss of each expert; a change replaces the array.
    """

    def __init__(self, experts: int) -> None:
        self.losses: Floats = np.zeros(experts)
        self._experts = experts
        self._judged = False  # whether a loss was added since the cut

    def votes(self, free: npt.NDArray[np.bool_], losses: Floats | None = None) -> Floats:
        """Return the weight of each expert that is ``free``, 0 for the others; they sum to 1.

        ``losses``: those of other times, one row each; None: the present ones.
        """
        losses = self.losses if losses is None else losses
        votes: Floats = losses[..., free].min(axis=-1, keepdims=True) - losses
        np.exp(votes, out=votes)
        votes *= free
        votes /= np.add.reduce(votes, axis=-1, keepdims=True)
        return votes

    def judge(self, answers: Floats, y: Sequence[float], weights: Sequence[float]) -> Floats:
        """Add the experts' losses at each reward, and return the discounted ones before each.

        ``answers`` have one row for each reward.  A weight of w counts as w rewards.
        """
        miss = np.abs(answers - np.array(y)[:, None])
        losses = ((miss > 0.5) + miss * miss) * (2.0 / 3.0)
        before = np.empty_like(answers)
        for i, weight in enumerate(weights):
            before[i], fade = self.losses, FADE**weight
            self.losses = fade * self.losses + (1.0 - fade) / (1.0 - FADE) * losses[i]
        self._judged = True
        return before

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        if not self._judged:
            return {}
        self._judged = False
        return {_LOSSES: Block(LOCAL, array_bytes(self.losses))}

    def rebase(self, values: Blocks) -> None:
        """Take new values, unless rewards were judged since the cut."""
        if not self._judged and (block := values.get(_LOSSES)) is not None:
            self.losses = array_of(block.data).copy()

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``; empty: as built."""
        self.losses, self._judged = np.zeros(self._experts), False
        self.rebase(values)
