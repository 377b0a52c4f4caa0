"""Linear experts of :mod:`online.models.experts` in one array by place, many rows at once.

The rows are the actions of one choice: their places have the shape (actions, features), their
numbers too.  At a place stand the six numbers of :class:`~online.models.experts.OneOutput`.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from online.models.crossed import Places
from online.models.experts import ADAGRAD, EXPERTS, NORMALISED, Floats
from paramserver.blocks import ADDITIVE, Block, Blocks

_NUMBERS: Final = 6
_PRIOR: Final = 0.3
"""Squared slopes that stand for a standard logistic distribution of a weight before any row."""

_ADAGRAD: Final[Floats] = np.array(ADAGRAD)
_NORMALISED: Final[Floats] = np.array(NORMALISED)


class Table:
    """Numbers by place, and what they were at the first touch since the cut."""

    def __init__(self, block: str, bits: int) -> None:
        self._block, self._size = block, 2**bits
        self._now: Floats = np.zeros((self._size, _NUMBERS))
        self._start: dict[int, list[float]] = {}

    def outputs(self, places: Places, numbers: Floats) -> Floats:
        """Return what each expert makes of each action: shape (EXPERTS, actions)."""
        held = self._now[places, :EXPERTS]
        sums: Floats = np.einsum("kde,kd->ek", held, numbers)
        return sums

    def met(self, places: Places, numbers: Floats) -> Floats:
        """Variance of each action's output, by the squared slopes that the slow expert has met.

        A mean over the row's features, each by its number's square: were they all one feature, or
        all alike, it would be that of a logistic regression.
        """
        squares = numbers**2
        spread = squares / (_PRIOR + self._now[places, EXPERTS])
        found: Floats = spread.sum(axis=1) / squares.sum(axis=1)
        return found

    def step(self, places: Places, numbers: Floats, slopes: Floats) -> float:
        """Learn: ``slopes`` (EXPERTS, actions); finite only if all numbers touched are."""
        held = self._now[places]
        start = self._start
        for place, before in zip(
            places.ravel().tolist(), held.reshape(-1, _NUMBERS).tolist(), strict=True
        ):
            if place not in start:
                start[place] = before
        g = numbers[..., None] * slopes.T[:, None, :]
        held[..., EXPERTS:] += g[..., :2] ** 2
        held[..., :2] -= _ADAGRAD * g[..., :2] / (1.0 + np.sqrt(held[..., EXPERTS:]))
        square = 1.0 + (numbers**2).sum(axis=1)
        held[..., 2:EXPERTS] -= g[..., 2:] * (_NORMALISED / square[:, None])[:, None, :]
        self._now[places] = held
        return float(np.abs(held).sum())

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        delta: dict[str, float] = {}
        if self._start:
            places = np.fromiter(self._start, np.int64, len(self._start))
            changes = (self._now[places] - np.array(list(self._start.values()))).tolist()
            for place, change in zip(places.tolist(), changes, strict=True):
                for i, x in enumerate(change):
                    if x != 0.0:
                        delta[f"{i}:{place}"] = x
        self._start = {}
        return {self._block: Block(ADDITIVE, delta)} if delta else {}

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""
        if (block := values.get(self._block)) is None:
            return
        now, opened = self._now, self._start
        for name, value in block.data.items():
            number, _, key = name.partition(":")
            i, place = int(number), int(key)
            if (start := opened.get(place)) is None:
                now[place, i] = value
            elif value != start[i]:
                now[place, i] = value + (now[place, i] - start[i])
                start[i] = value

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._now, self._start = np.zeros((self._size, _NUMBERS)), {}
        self.rebase(values)
