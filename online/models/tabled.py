"""Linear experts of :mod:`online.models.experts` in one array by place, many rows at once.

The rows are the actions of one choice: their places have the shape (actions, features), their
numbers too, or (1, features) where all have the same.  At a place stand the six numbers of
:class:`~online.models.experts.OneOutput`, in float32: they travel as rows by place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from online.models.crossed import Places
from online.models.experts import ADAGRAD, EXPERTS, NORMALISED, Floats
from paramserver.blocks import ROWS, Block, Blocks
from paramserver.pages import Floats32
from paramserver.rows import Rows

_NUMBERS: Final = 6
_PRIOR: Final = 0.3
"""Squared slopes that stand for a standard logistic distribution of a weight before any row."""

_ADAGRAD: Final[Floats] = np.array(ADAGRAD)[:, None]
_NORMALISED: Final[Floats] = np.array(NORMALISED)[:, None]


_NOTHING: Final[tuple[Places, Floats32]] = (
    np.zeros(0, np.int64),
    np.zeros((0, _NUMBERS), np.float32),
)


class Part(NamedTuple):
    """Features of some actions, and their steps by expert: (EXPERTS, actions, features)."""

    places: Places
    steps: Floats


def steps_of(numbers: Floats, slopes: Floats, square: Floats) -> Floats:
    """Slopes of the AdaGrad experts and steps of the normalised ones: (EXPERTS, actions, features).

    ``numbers`` are the features', ``slopes`` what to change of each expert's output by feature, and
    ``square`` one more than the sum of the squares of all numbers that the output is of.
    """
    found: Floats = numbers * slopes
    found[2:] *= _NORMALISED[:, :, None] / square
    return found


class Table:
    """Numbers by place, and what they were at the first touch since the cut."""

    def __init__(self, block: str, bits: int) -> None:
        self._block, self._size = block, 2**bits
        self._now: Floats32 = np.zeros((self._size, _NUMBERS), np.float32)
        self._touched = np.zeros(self._size, dtype=np.bool_)  # since the cut
        self._opened: list[tuple[Places, Floats32]] = []

    def outputs(self, places: Places, numbers: Floats) -> Floats:
        """Return what each expert makes of sums over features: shape (…, sums, EXPERTS).

        Places have the shape (…, features), and numbers (sums, features).
        """
        sums: Floats = numbers @ self._now.take(places, axis=0)
        return sums[..., :EXPERTS]

    def crossed(self, places: Places, left: Floats, right: Floats) -> tuple[Floats, Floats]:
        """Return the same of products of two rows of numbers, and how unsure each is by ``left``.

        ``left`` has the shape (actions, l), ``right`` (r,), and places (actions or 1, l, r); the
        first has (actions, EXPERTS).  The other is the variance of each action's output, by the
        squared slopes that the slow expert has met at the first of the r places: a mean over the
        row's features, each by its number's square.  Were they all one feature, or all alike, it
        would be that of a logistic regression.
        """
        held = self._now.take(places, axis=0)
        inner = right @ held
        sums = left @ inner[0] if len(inner) == 1 else (left[:, None, :] @ inner)[:, 0]
        squares = left * left
        spread = squares / (_PRIOR + held[:, :, 0, EXPERTS])
        met: Floats = spread.sum(axis=1) / squares.sum(axis=1)
        return sums[:, :EXPERTS], met

    def step(self, parts: Sequence[Part]) -> float:
        """Learn several parts of a row at once; finite only if all numbers touched are.

        A place that is met twice in a row learns what was said of it last.
        """
        at = np.concatenate([part.places.ravel() for part in parts])
        steps = np.concatenate([part.steps.reshape(EXPERTS, -1) for part in parts], axis=1)
        before = self._now.take(at, axis=0)
        fresh = ~self._touched[at]
        if fresh.any():
            new = at[fresh]
            self._touched[new] = True
            self._opened.append((new, before[fresh]))
        held = before.T.astype(np.float64, order="C")  # by number: the inner loops are long
        held[EXPERTS:] += steps[:2] ** 2
        held[:2] -= _ADAGRAD * steps[:2] / (1.0 + np.sqrt(held[EXPERTS:]))
        held[2:EXPERTS] -= steps[2:]
        with np.errstate(over="ignore"):
            self._now[at] = kept = held.T.astype(np.float32)
        return float(np.abs(kept).sum(dtype=np.float64))

    def cut(self) -> Blocks:
        """The open delta, and reset it.

        From here on the numbers are what whoever adds the delta to those before makes of them.
        """
        places, before = self._start()
        self._open(places[:0], before[:0])
        changes = self._now[places] - before
        if not len(changed := np.flatnonzero(changes.any(axis=1))):
            return {}
        places, changes = places[changed], changes[changed]
        self._now[places] = before[changed] + changes
        return {self._block: Block(ROWS, Rows(places.astype(np.uint64), changes))}

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""
        if (block := values.get(self._block)) is None:
            return
        place, new, gone = block.data.ids, block.data.numbers, block.data.gone
        if len(gone):  # the server has let these rows leave
            new = np.concatenate((new, np.zeros((len(gone), _NUMBERS), np.float32)))
            place = np.concatenate((place, gone))
        if not len(place):
            return
        place = place.astype(np.int64)
        if (opened := np.flatnonzero(self._touched[place])).size:
            places, before = self._start()
            order = np.argsort(places)
            at = order[np.searchsorted(places, place[opened], sorter=order)]
            taken, now = new[opened], self._now[place[opened]]
            new[opened] = np.where(taken == before[at], now, taken + (now - before[at]))
            before[at] = taken
            self._open(places, before)
        self._now[place] = new

    def reset(self, values: Blocks) -> None:
        """Become exactly ``values``, with an empty open delta."""
        self._now = np.zeros((self._size, _NUMBERS), np.float32)
        self._open(*_NOTHING)
        self.rebase(values)

    def _start(self) -> tuple[Places, Floats32]:
        """Return each place that was touched since the cut, once, and what was there."""
        if not self._opened:
            return _NOTHING
        places = np.concatenate([places for places, _ in self._opened])
        before = np.concatenate([before for _, before in self._opened])
        places, first = np.unique(places, return_index=True)  # a row may have one twice
        return places, before[first]

    def _open(self, places: Places, before: Floats32) -> None:
        """Take these places as the ones that were touched since the cut."""
        for old, _ in self._opened:
            self._touched[old] = False
        self._touched[places] = True
        self._opened = [(places, before)] if len(places) else []
