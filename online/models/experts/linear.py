"""Four linear experts that learn the same rows, each with its own update rule and learning rate.

======= ============================ ============================== ==========
expert  method                       update                         rates
======= ============================ ============================== ==========
0, 1    AdaGrad (Duchi et al. 2011)  n += (g x)²;                   a = .2, 1
                                     w −= a g x / (1 + √n)
2, 3    normalised (Nagumo and Noda  w −= r g x / (1 + ‖x‖²)        r = 1, 5;
        1967)                                                       .05, .5 in
                                                                    regression
======= ============================ ============================== ==========

g is the derivative of the loss with respect to the expert's own output.  Each feature and output
has six numbers: the weights of the four experts, then n of the first two.  The key of a number in a
block is its index (0 to 5), ``:``, and the feature.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from online.models.errors import LabelUnknown
from paramserver.core.blocks import ADDITIVE, Block, Blocks
from replay.example import Label, label_text

EXPERTS: Final = 4
ADAGRAD: Final = (0.2, 1.0)
NORMALISED: Final = (1.0, 5.0)
NORMALISED_REGRESSION: Final = (0.05, 0.5)
CLASSES_MAX: Final = 256
"""Most labels of a multiclass task: each row updates all of them, and each has a block."""

AVERAGED: Final = 1.0 / 3_000.0
"""Least share of a row in averages of weights: the newest 3,000 rows of a feature count."""

_NUMBERS: Final = 6
_PLACES: Final = range(_NUMBERS)
_BLOCK: Final = "experts"
_PREFIX: Final = f"{_BLOCK}/"

Floats = npt.NDArray[np.float64]


class Owned(NamedTuple):
    """A row as parallel lists: feature name, key of the weights, and value."""

    names: list[str]
    keys: list[str]
    numbers: list[float]


class OneOutput:
    """Experts with one output.  Weights are in dicts, faster than numpy for some dozen features.

    ``normalised`` are the learning rates of experts 2 and 3.  ``block`` is the name of the block.
    """

    block: ClassVar[str] = _BLOCK

    def __init__(self, normalised: Sequence[float]) -> None:
        self._rates = tuple(normalised)
        self._now: dict[str, list[float]] = {}
        self._start: dict[str, list[float]] = {}  # values before the first change since the cut

    def outputs(self, row: Mapping[str, float]) -> tuple[float, float, float, float]:
        """Return the output of each expert for the row."""
        a = b = c = d = 0.0
        now = self._now
        for key, x in row.items():
            if (held := now.get(key)) is not None:
                a += held[0] * x
                b += held[1] * x
                c += held[2] * x
                d += held[3] * x
        return a, b, c, d

    def add_contributions(
        self, row: Owned, worths: Sequence[float], added: dict[str, float]
    ) -> None:
        """Add to ``added`` each feature's contribution, with each expert weighted by ``worths``."""
        now, (a, b, c, d) = self._now, worths
        for name, key, x in zip(*row, strict=True):
            if (held := now.get(key)) is not None:
                added[name] += (a * held[0] + b * held[1] + c * held[2] + d * held[3]) * x

    def step(
        self,
        row: Mapping[str, float],
        slopes: Sequence[float],
        adagrad: tuple[float, float] = ADAGRAD,
    ) -> float:
        """Learn a row.  Returns a sum of the changed numbers: not finite if one of them is not."""
        now, start, sqrt = self._now, self._start, math.sqrt
        slow, fast = adagrad
        square = 1.0 + sum([x * x for x in row.values()])
        ga, gb, gc, gd = slopes
        gc *= self._rates[0] / square
        gd *= self._rates[1] / square
        total = 0.0
        for key, x in row.items():
            if (held := now.get(key)) is None:
                held = now[key] = [0.0] * _NUMBERS
            if key not in start:
                start[key] = held.copy()
            g = ga * x
            held[4] = n = held[4] + g * g
            held[0] -= slow * g / (1.0 + sqrt(n))
            g = gb * x
            held[5] = m = held[5] + g * g
            held[1] -= fast * g / (1.0 + sqrt(m))
            held[2] = c = held[2] - gc * x
            held[3] = d = held[3] - gd * x
            total += n + m + c + d
        return total

    def held(self, keys: Sequence[str]) -> list[list[float]]:
        """Return a copy of the six numbers of each feature; zeros for a new feature."""
        return [list(self._now.get(key) or [0.0] * _NUMBERS) for key in keys]

    def walk(self, held: list[list[float]], x: Sequence[float], slopes: Sequence[float]) -> None:
        """Apply the update of :meth:`step` to numbers from :meth:`held`, in place."""
        sqrt, (slow, fast) = math.sqrt, ADAGRAD
        square = 1.0 + sum([v * v for v in x])
        ga, gb, gc, gd = slopes
        gc *= self._rates[0] / square
        gd *= self._rates[1] / square
        for h, v in zip(held, x, strict=True):
            g = ga * v
            h[4] = n = h[4] + g * g
            h[0] -= slow * g / (1.0 + sqrt(n))
            g = gb * v
            h[5] = m = h[5] + g * g
            h[1] -= fast * g / (1.0 + sqrt(m))
            h[2] -= gc * v
            h[3] -= gd * v

    def put(self, keys: Sequence[str], held: Sequence[list[float]]) -> None:
        """Set the numbers of the features."""
        for key, numbers in zip(keys, held, strict=True):
            if key not in self._start:
                self._start[key] = self._now.get(key) or [0.0] * _NUMBERS
            self._now[key] = numbers

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        delta = {}
        for key, before in self._start.items():
            after = self._now[key]
            for i in _PLACES:
                if after[i] != before[i]:
                    delta[f"{i}:{key}"] = after[i] - before[i]
        self._start = {}
        return {self.block: Block(ADDITIVE, delta)} if delta else {}

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        if (block := values.get(self.block)) is None:
            return
        for name, value in block.data.items():
            place, _, key = name.partition(":")
            i, start = int(place), self._start.get(key)
            if (held := self._now.get(key)) is None:
                held = self._now[key] = [0.0] * _NUMBERS
            if start is None:
                held[i] = value
            elif value != start[i]:
                held[i] = value + (held[i] - start[i])
                start[i] = value


class Taken(NamedTuple):
    """A row's indices in the array, its values, and a copy of the array's rows there."""

    at: npt.NDArray[np.intp]
    x: Floats
    held: Floats

    def outputs(self) -> Floats:
        """Return the output of each expert for each class: shape (EXPERTS, classes)."""
        sums: Floats = (self.x @ self.held.reshape(len(self.x), -1)).reshape(_NUMBERS, -1)
        return sums[:EXPERTS]


class OutputPerClass:
    """Experts with one output for each class, in one array.

    The array has the shape (features, 6, classes).  Row 0 belongs to no feature and stays 0.
    """

    def __init__(self) -> None:
        self.labels: dict[Label, int] = {}
        self._new: dict[Label, None] = {}  # classes that are in no delta yet
        self._at: dict[str, int] = {}
        self._keys = [""]
        self._now: Floats = np.zeros((64, _NUMBERS, 0))
        self._start: dict[int, Floats] = {}  # values before the first change since the cut

    def meet(self, label: Label) -> None:
        """Add an output for the label if it is new.  Raises LabelUnknown above CLASSES_MAX."""
        if label in self.labels:
            return
        if len(self.labels) >= CLASSES_MAX:
            raise LabelUnknown(label, list(self.labels))
        self._add_class(label)
        self._new[label] = None

    def take(self, row: Mapping[str, float], *, learns: bool) -> Taken:
        """Look up the numbers of a row's features; new ones are added if it ``learns``."""
        known, places = self._at, []
        for key in row:
            place = known.get(key, 0)
            places.append(place or (self._place(key) if learns else 0))
        at = np.array(places)
        return Taken(at, np.fromiter(row.values(), np.float64, len(row)), self._now[at])

    def add_contributions(self, row: Owned, worths: Floats, added: dict[str, float]) -> None:
        """Add to ``added`` each feature's contribution, with each expert weighted by ``worths``."""
        held = self._now[[self._at.get(key, 0) for key in row.keys], :EXPERTS]
        each = held.reshape(len(held), worths.size) @ worths.ravel()  # also of no feature
        for name, worth, x in zip(row.names, each.tolist(), row.numbers, strict=True):
            added[name] += worth * x

    def step(self, taken: Taken, slopes: Floats, adagrad: tuple[float, float] = ADAGRAD) -> float:
        """Learn a row.  Returns a sum of the changed numbers: not finite if one of them is not."""
        at, x, held = taken
        rates = _ADAGRAD if adagrad is ADAGRAD else np.array(adagrad)[:, None]
        self._begin(taken)
        g = x[:, None, None] * slopes[:2]
        n = held[:, EXPERTS:]
        n += g * g
        held[:, :2] -= rates * g / (1.0 + np.sqrt(n))
        held[:, 2:EXPERTS] -= (x / (1.0 + x @ x))[:, None, None] * (_NORMALISED * slopes[2:])
        self._now[at] = held
        return float(held.sum())

    def average(self, taken: Taken, own: Taken) -> None:
        """Add the weights of ``taken`` to the averages of ``own``, which count their rows."""
        self._begin(own)
        held = own.held
        held[:, EXPERTS] += 1.0
        share = np.maximum(1.0 / held[:, EXPERTS], AVERAGED)[:, None]
        held[:, :EXPERTS] += share * (taken.held[:, :EXPERTS] - held[:, :EXPERTS])
        self._now[own.at] = held

    def _begin(self, taken: Taken) -> None:
        """Note the numbers of the row's features before they change."""
        start = self._start
        for i, place in enumerate(taken.at.tolist()):
            if place not in start:
                start[place] = taken.held[i].copy()

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        blocks: Blocks = {}
        keys = [self._keys[place] for place in self._start]
        changes = np.zeros((len(keys), _NUMBERS, len(self.labels)))
        for i, (place, before) in enumerate(self._start.items()):
            changes[i] = self._now[place] - before
        for label, column in self.labels.items():
            delta = {
                f"{i}:{key}": change
                for key, row in zip(keys, changes[:, :, column].tolist(), strict=True)
                for i, change in enumerate(row)
                if change != 0.0
            }
            if delta or label in self._new:
                blocks[_PREFIX + label_text(label)] = Block(ADDITIVE, delta)
        self._start, self._new = {}, {}
        return blocks

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top, and add classes that are new."""
        for block_name, block in values.items():
            if not block_name.startswith(_PREFIX):
                continue
            label: Label = json.loads(block_name[len(_PREFIX) :])
            if label not in self.labels:
                self._add_class(label)
            column = self.labels[label]
            for name, value in block.data.items():
                number, _, key = name.partition(":")
                i, place = int(number), self._place(key)
                if (start := self._start.get(place)) is None:
                    self._now[place, i, column] = value
                elif value != start[i, column]:
                    learned = self._now[place, i, column] - start[i, column]
                    self._now[place, i, column] = value + learned
                    start[i, column] = value

    def _add_class(self, label: Label) -> None:
        self.labels[label] = len(self.labels)
        self._now = _wider(self._now)
        self._start = {place: _wider(held) for place, held in self._start.items()}

    def _place(self, key: str) -> int:
        """Return the feature's index in the array, adding it if it is new."""
        if (place := self._at.get(key)) is None:
            place = self._at[key] = len(self._keys)
            self._keys.append(key)
            if place == len(self._now):
                self._now = np.concatenate([self._now, np.zeros_like(self._now)])
        return place


_ADAGRAD: Final[Floats] = np.array(ADAGRAD)[:, None]
_NORMALISED: Final[Floats] = np.array(NORMALISED)[:, None]


def _wider(held: Floats) -> Floats:
    """Return the array with one more class, filled with 0."""
    return np.concatenate([held, np.zeros((*held.shape[:-1], 1))], axis=-1)
