"""Linear experts of :mod:`online.models.experts` in one array by place, many rows at once.

The rows are the actions of one choice: their places have the shape (actions, features), their
numbers too, or (1, features) where all have the same.  At a place stand the six numbers of
:class:`~online.models.experts.OneOutput`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from online.models.crossed import Places
from online.models.experts import ADAGRAD, EXPERTS, NORMALISED, Floats
from paramserver.blocks import ADDITIVE, Block, Blocks

_NUMBERS: Final = 6
_PRIOR: Final = 0.3
"""Squared slopes that stand for a standard logistic distribution of a weight before any row."""

_ADAGRAD: Final[Floats] = np.array(ADAGRAD)[:, None]
_NORMALISED: Final[Floats] = np.array(NORMALISED)[:, None]


_NOTHING: Final[tuple[Places, Floats]] = (np.zeros(0, np.int64), np.zeros((0, _NUMBERS)))


class Part(NamedTuple):
    """Some actions, and the slopes of what each expert made of them: shape (EXPERTS, actions)."""

    places: Places
    numbers: Floats
    slopes: Floats


def _steps(part: Part) -> Floats:
    """Slopes of the AdaGrad experts and steps of the normalised ones by place: (EXPERTS, all)."""
    found: Floats = part.numbers * part.slopes[:, :, None]
    square = 1.0 + (part.numbers**2).sum(axis=1)
    found[2:] *= (_NORMALISED / square)[:, :, None]
    return found.reshape(EXPERTS, -1)


class Table:
    """Numbers by place, and what they were at the first touch since the cut."""

    def __init__(self, block: str, bits: int) -> None:
        self._block, self._size = block, 2**bits
        self._now: Floats = np.zeros((self._size, _NUMBERS))
        self._touched = np.zeros(self._size, dtype=np.bool_)  # since the cut
        self._opened: list[tuple[Places, Floats]] = []

    def outputs(self, places: Places, numbers: Floats) -> Floats:
        """Return what each expert makes of each action: shape (EXPERTS, actions)."""
        held = self._now[places, :EXPERTS]
        sums: Floats = np.einsum("kde,kd->ek", held, numbers)
        return sums

    def crossed(self, places: Places, left: Floats, right: Floats) -> Floats:
        """Return the same of products of two rows of numbers: shape (EXPERTS, actions).

        ``left`` has the shape (actions, l), ``right`` (r,), and places (actions or 1, l, r).
        """
        inner = right @ self._now[places, :EXPERTS]
        if len(inner) == 1:
            return np.asarray((left @ inner[0]).T)
        return np.asarray((left[:, None, :] @ inner)[:, 0].T)

    def met(self, places: Places, numbers: Floats) -> Floats:
        """Variance of each action's output, by the squared slopes that the slow expert has met.

        A mean over the row's features, each by its number's square: were they all one feature, or
        all alike, it would be that of a logistic regression.
        """
        squares = numbers**2
        spread = squares / (_PRIOR + self._now[places, EXPERTS])
        found: Floats = spread.sum(axis=1) / squares.sum(axis=1)
        return found

    def step(self, parts: Sequence[Part]) -> float:
        """Learn several parts of a row at once; finite only if all numbers touched are.

        A place that is met twice in a row learns what was said of it last.
        """
        at = np.concatenate([part.places.ravel() for part in parts])
        steps = np.concatenate([_steps(part) for part in parts], axis=1)
        before = self._now[at]
        fresh = ~self._touched[at]
        if fresh.any():
            new = at[fresh]
            self._touched[new] = True
            self._opened.append((new, before[fresh]))
        held = np.ascontiguousarray(before.T)  # by number: the inner loops are long
        held[EXPERTS:] += steps[:2] ** 2
        held[:2] -= _ADAGRAD * steps[:2] / (1.0 + np.sqrt(held[EXPERTS:]))
        held[2:EXPERTS] -= steps[2:]
        self._now[at] = held.T
        return float(np.abs(held).sum())

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        places, before = self._start()
        self._open(places[:0], before[:0])
        changes = self._now[places] - before
        rows, numbers = np.nonzero(changes)
        named = zip(numbers.tolist(), places[rows].tolist(), strict=True)
        keys = [f"{number}:{place}" for number, place in named]
        delta = dict(zip(keys, changes[rows, numbers].tolist(), strict=True))
        return {self._block: Block(ADDITIVE, delta)} if delta else {}

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""
        if (block := values.get(self._block)) is None or not block.data:
            return
        n = len(block.data)
        number, place = (
            np.fromstring(":".join(block.data), np.int64, 2 * n, sep=":").reshape(n, 2).T
        )
        new = np.fromiter(block.data.values(), np.float64, n)
        if (opened := np.flatnonzero(self._touched[place])).size:
            places, before = self._start()
            order = np.argsort(places)
            at = order[np.searchsorted(places, place[opened], sorter=order)]
            i, taken = number[opened], new[opened]
            own = self._now[place[opened], i] - before[at, i]
            same = taken == before[at, i]
            new[opened] = np.where(same, self._now[place[opened], i], taken + own)
            before[at, i] = taken
            self._open(places, before)
        self._now[place, number] = new

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._now = np.zeros((self._size, _NUMBERS))
        self._open(*_NOTHING)
        self.rebase(values)

    def _start(self) -> tuple[Places, Floats]:
        """Return each place that was touched since the cut, once, and what was there."""
        if not self._opened:
            return _NOTHING
        places = np.concatenate([places for places, _ in self._opened])
        before = np.concatenate([before for _, before in self._opened])
        places, first = np.unique(places, return_index=True)  # a row may have one twice
        return places, before[first]

    def _open(self, places: Places, before: Floats) -> None:
        """Take these places as the ones that were touched since the cut."""
        for old, _ in self._opened:
            self._touched[old] = False
        self._touched[places] = True
        self._opened = [(places, before)] if len(places) else []
