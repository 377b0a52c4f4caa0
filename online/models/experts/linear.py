"""Linear experts side by side on the same rows, each with a rate of its own.

======= ============================ ============================== ==========
expert  method                       update                         rates
======= ============================ ============================== ==========
0, 1    AdaGrad (Duchi et al. 2011)  n += (g x)²;                   a = .2, 1
                                     w −= a g x / (1 + √n)
2, 3    normalised (Nagumo and Noda  w −= r g x / (1 + ‖x‖²)        r = 1, 5;
        1967)                                                       .05, .5 in
                                                                    regression
======= ============================ ============================== ==========

g is the derivative of the loss by the expert's own output.  For each feature and output there are
six numbers: the experts' weights, then n of the first two.  In a block the key of such a number is
its place among the six, ``:``, and the feature.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

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
"""Labels of a multiclass task: each row touches all of them, and each is a block."""

_NUMBERS: Final = 6
_PLACES: Final = range(_NUMBERS)
_BLOCK: Final = "experts"
_PREFIX: Final = f"{_BLOCK}/"

Floats = npt.NDArray[np.float64]


class Owned(NamedTuple):
    """The places and numbers that a row has in one view, and the feature that each is of."""

    names: list[str]
    keys: list[str]
    numbers: list[float]


class OneOutput:
    """Experts of one output, in dicts: for some dozen features that is faster than numpy.

    ``normalised`` are the rates of the last two.
    """

    def __init__(self, normalised: Sequence[float]) -> None:
        self._rates = tuple(normalised)
        self._now: dict[str, list[float]] = {}
        self._start: dict[str, list[float]] = {}  # at the first touch since the cut

    def outputs(self, row: Mapping[str, float]) -> tuple[float, float, float, float]:
        """Return what each expert makes of the row."""
        a = b = c = d = 0.0
        now = self._now
        for key, x in row.items():
            if (held := now.get(key)) is not None:
                a += held[0] * x
                b += held[1] * x
                c += held[2] * x
                d += held[3] * x
        return a, b, c, d

    def share_out(self, row: Owned, worths: Sequence[float], added: dict[str, float]) -> None:
        """Add to each feature what it adds to the experts' outputs, a unit worth ``worths``."""
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
        """Learn a row; the sum of what it has touched is finite only if each of it is."""
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
            held[2] -= gc * x
            held[3] -= gd * x
            total += n + m + abs(held[2]) + abs(held[3])
        return total

    def held(self, keys: Sequence[str]) -> list[list[float]]:
        """Return a copy of the six numbers of each feature, zeros of those that are new."""
        return [list(self._now.get(key) or [0.0] * _NUMBERS) for key in keys]

    def walk(self, held: list[list[float]], x: Sequence[float], slopes: Sequence[float]) -> None:
        """Do to numbers of :meth:`held` what :meth:`step` does to those of the row's features."""
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
        """Take these numbers for their features."""
        for key, numbers in zip(keys, held, strict=True):
            if key not in self._start:
                self._start[key] = self._now.get(key) or [0.0] * _NUMBERS
            self._now[key] = numbers

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
        delta = {}
        for key, before in self._start.items():
            after = self._now[key]
            for i in _PLACES:
                if after[i] != before[i]:
                    delta[f"{i}:{key}"] = after[i] - before[i]
        self._start = {}
        return {_BLOCK: Block(ADDITIVE, delta)} if delta else {}

    def rebase(self, values: Blocks) -> None:
        """Take new values with the open delta on top."""
        if (block := values.get(_BLOCK)) is None:
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
    """Places of a row's features, the row's numbers, and a copy of what is at the places."""

    at: npt.NDArray[np.intp]
    x: Floats
    held: Floats

    def outputs(self) -> Floats:
        """Return what each expert makes of the row, for each class: shape (EXPERTS, classes)."""
        sums: Floats = (self.x @ self.held.reshape(len(self.x), -1)).reshape(_NUMBERS, -1)
        return sums[:EXPERTS]


class OutputPerClass:
    """Experts with an output for each class, in one array: there are many numbers a row.

    The array has the shape (features, six numbers, classes); feature 0 is nobody's and stays 0.
    """

    def __init__(self) -> None:
        self.labels: dict[Label, int] = {}
        self._new: dict[Label, None] = {}  # classes that no delta has named yet
        self._at: dict[str, int] = {}
        self._keys = [""]
        self._now: Floats = np.zeros((64, _NUMBERS, 0))
        self._start: dict[int, Floats] = {}  # at the first touch since the cut

    def meet(self, label: Label) -> None:
        """Make the label known.  Raises LabelUnknown for one more than CLASSES_MAX."""
        if label in self.labels:
            return
        if len(self.labels) >= CLASSES_MAX:
            raise LabelUnknown(label, list(self.labels))
        self._add_class(label)
        self._new[label] = None

    def take(self, row: Mapping[str, float], *, learns: bool) -> Taken:
        """The numbers of a row's features; they get a place of their own if it ``learns``."""
        known, places = self._at, []
        for key in row:
            place = known.get(key, 0)
            places.append(place or (self._place(key) if learns else 0))
        at = np.array(places)
        return Taken(at, np.fromiter(row.values(), np.float64, len(row)), self._now[at])

    def share_out(self, row: Owned, worths: Floats, added: dict[str, float]) -> None:
        """Add to each feature what it adds to the experts' outputs, a unit worth ``worths``."""
        held = self._now[[self._at.get(key, 0) for key in row.keys], :EXPERTS]
        each = held.reshape(len(held), -1) @ worths.ravel()
        for name, worth, x in zip(row.names, each.tolist(), row.numbers, strict=True):
            added[name] += worth * x

    def step(self, taken: Taken, slopes: Floats, adagrad: tuple[float, float] = ADAGRAD) -> float:
        """Learn a row; the sum of what it has touched is finite only if each of it is."""
        at, x, held = taken
        rates = _ADAGRAD if adagrad is ADAGRAD else np.array(adagrad)[:, None]
        start = self._start
        for i, place in enumerate(at.tolist()):
            if place not in start:
                start[place] = held[i].copy()
        g = x[:, None, None] * slopes[:2]
        n = held[:, EXPERTS:]
        n += g * g
        held[:, :2] -= rates * g / (1.0 + np.sqrt(n))
        held[:, 2:EXPERTS] -= (x / (1.0 + x @ x))[:, None, None] * (_NORMALISED * slopes[2:])
        self._now[at] = held
        return float(held.sum())

    def cut(self) -> Blocks:
        """The open delta, and reset it."""
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
        """Take new values with the open delta on top; a class that is new is met."""
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
        """Where the feature is in the array; it is there from now on."""
        if (place := self._at.get(key)) is None:
            place = self._at[key] = len(self._keys)
            self._keys.append(key)
            if place == len(self._now):
                self._now = np.concatenate([self._now, np.zeros_like(self._now)])
        return place


_ADAGRAD: Final[Floats] = np.array(ADAGRAD)[:, None]
_NORMALISED: Final[Floats] = np.array(NORMALISED)[:, None]


def _wider(held: Floats) -> Floats:
    """Return the numbers with one class more, whose numbers are 0."""
    return np.concatenate([held, np.zeros((*held.shape[:-1], 1))], axis=-1)
