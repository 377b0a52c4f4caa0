"""Contexts and actions as numbers by hashed feature, and their products.

A row of a choice holds one context and one action: features of the context under their own names,
the action's id under ``@`` and its features under ``@`` and their names.  A product of two features
has a place in a table that follows from both their hashes, worked out in arrays: nothing is looked
up by name.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple

import mmh3
import numpy as np
import numpy.typing as npt

from online.models.experts.linear import Floats
from online.models.features.hashed import Hashed
from online.models.limited import Limited
from online.models.state.composite import OfParts
from replay.example import Features, Value

ACTION: Final = "@"
"""Name of the action's id in a row, and what the names of an action's features begin with."""

Places = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_REACH: Final = 3.0
_SPACING: Final = 0.5
_KNOTS: Final = 13
"""Knots from −3 to 3 standard deviations, half a one apart."""

_BIAS: Final = "bias"
_BIAS_HASH: Final = 0x9E3779B9
_NO_WORDS: Final = {_BIAS: 1.0}
_LEFT: Final = np.uint64(0x9E3779B97F4A7C15)
_RIGHT: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_SHIFT: Final = np.uint64(32)
_KNOT: Final = np.uint64(0xA0761D6478BD642F)
_SIDES: Final[Hashes] = np.arange(1, _KNOTS + 1, dtype=np.uint64) * _KNOT * _LEFT
"""Each knot as a side of products: added to that of a feature, it is that of the feature there."""

_BITS: Final = 31
_SEED: Final = 31
_NUMBERS: Final[frozenset[type]] = frozenset({float, int})
_WHOLE_MAX: Final = 2**53
_BRIEF: Final = 16_384


def row(context: Features, action: str, features: Mapping[str, Value]) -> Features:
    """One context and one action as a row.  ValueError: a name of the context begins with ``@``."""
    if wrong := next((name for name in context if name.startswith(ACTION)), None):
        raise ValueError(f"context feature {wrong!r} begins with {ACTION!r}; name it otherwise")
    joined = dict(context)
    joined[ACTION] = action
    for name, value in features.items():
        joined[ACTION + name] = value
    return joined


def split(features: Features) -> tuple[Features, str, Features]:
    """Context, the action's id and the action's features that :func:`row` has joined."""
    context: Features = {}
    action: Features = {}
    own = ""
    for name, value in features.items():
        if not name.startswith(ACTION):
            context[name] = value
        elif name == ACTION:
            own = str(value)
        else:
            action[name[len(ACTION) :]] = value
    return context, own, action


class Vector(NamedTuple):
    """Hashes of features, 64 bits wide to be mixed, and the features' numbers."""

    hashes: Hashes
    numbers: Floats


class Taken(NamedTuple):
    """Features of what is no number, the bias first, and those of numbers: hashes and numbers."""

    hashes: list[int]
    values: list[float]
    names: list[int]
    numbers: list[float]


class Context(NamedTuple):
    """Contexts of the same shape, each twice, the bias first: its numbers as are, and on knots.

    The knots are those beside the number: what is linear in its shares of two of them is piecewise
    linear in it.

    Attributes:
        sides: Hashes of the features as they are, then of those on knots, as left sides of
            products: shape (contexts, features).
        forms: Numbers of both, (contexts, 2, features), 0 where the other form has its features.
        plain: How many features there are as they are.
    """

    sides: Hashes
    forms: Floats
    plain: int

    @property
    def plain_numbers(self) -> Floats:
        """The numbers of the features as they are."""
        return self.forms[:, 0, : self.plain]


class Alike(NamedTuple):
    """Rows of the same names in the same order, and only numbers: shape (rows, names).

    ``whole``: some were sent as whole numbers.  ``least`` and ``most`` are those of each name.
    """

    names: tuple[str, ...]
    numbers: Floats
    whole: bool
    least: list[float]
    most: list[float]


def alike(rows: Sequence[Features]) -> Alike | None:
    """The rows in one array, if they are alike and have a name at all."""
    names = tuple(rows[0])
    if not names or [*chain.from_iterable(rows)] != [*names] * len(rows):
        return None
    flat = [*chain.from_iterable([row.values() for row in rows])]
    kinds = set(map(type, flat))
    if not kinds <= _NUMBERS:
        return None
    whole = int in kinds
    if whole and any(type(value) is int and abs(value) > _WHOLE_MAX for value in flat):
        return None
    numbers = np.frombuffer(array("d", flat)).reshape(len(rows), len(names))  # type: ignore[type-var]
    least, most = np.minimum.reduce(numbers).tolist(), np.maximum.reduce(numbers).tolist()
    return Alike(names, numbers, whole, least, most)


@lru_cache(maxsize=65_536)
def hash_of(action: str) -> int:
    """32 bits that stand for an action's id, in notes and in places."""
    return mmh3.hash(action, _SEED, signed=False)


def are_brief(ids: tuple[str, ...]) -> bool:
    """Whether a choice's ids are kept for the next one: not if they take much together."""
    return sum(map(len, ids)) <= _BRIEF


def hashes_of(actions: tuple[str, ...]) -> tuple[int, ...]:
    """The same of each of the ids: they often are those of the choice before."""
    return _hashes(actions) if are_brief(actions) else _hashes.__wrapped__(actions)


@lru_cache(maxsize=64)
def _hashes(actions: tuple[str, ...]) -> tuple[int, ...]:
    return tuple([hash_of(action) for action in actions])


class Crossing(OfParts):
    """Takes contexts and actions, and keeps the moments that their numbers are standardised by."""

    def __init__(self, text: Sequence[str], seed: int) -> None:
        self._words = Hashed(text, _BITS, seed, None)
        self._seed = seed
        self._parts: tuple[Limited, Limited] = (Limited("scaler"), Limited("actions"))

    def context(self, features: Features, *, learns: bool) -> Taken:
        """Return a context for :func:`laid_out`; the moments learn it first if it ``learns``."""
        return self._taken(self._parts[0], features, learns=learns)

    def action(self, features: Features, *, learns: bool) -> Vector:
        """Return an action without its id, the bias first."""
        named = {ACTION + name: value for name, value in features.items()}
        hashes, values, names, numbers = self._taken(self._parts[1], named, learns=learns)
        return Vector(_array(tuple(hashes + names)), np.array(values + numbers))

    def alike(self, tables: Sequence[Alike]) -> Vector:
        """The actions of choices that have the same names, none of them learned.

        Numbers have the shape (choices, actions, features), hashes (1, features).
        """
        first = tables[0]
        several = len(tables) > 1
        rows = np.concatenate([table.numbers for table in tables]) if several else first.numbers
        kept, z = self._parts[1].transform_many(_as_sent(first.names), rows)
        numbers = np.empty((len(z), len(kept) + 1))
        numbers[:, 0], numbers[:, 1:] = 1.0, z
        shape = len(tables), len(first.numbers), len(kept) + 1
        return Vector(_placed(tuple(kept), self._seed), numbers.reshape(shape))

    def actions(self, rows: Sequence[Features]) -> Vector:
        """The actions of one choice whatever they have, none of them learned.

        Numbers have the shape (1, actions, features), hashes (actions, features).
        """
        each = [self.action(features, learns=False) for features in rows]
        shape = len(each), max(len(one.numbers) for one in each)
        out = Vector(np.zeros(shape, np.uint64), np.zeros((1, *shape)))
        for i, one in enumerate(each):
            size = len(one.hashes)
            out.hashes[i, :size], out.numbers[0, i, :size] = one
        return out

    def _taken(self, scaler: Limited, features: Features, *, learns: bool) -> Taken:
        numbers = {n: v for n, v in features.items() if type(v) is float or type(v) is int}
        row = _NO_WORDS
        if len(numbers) < len(features):
            words = {n: v for n, v in features.items() if n not in numbers}
            row = self._words.row(words, learns=False)
        z: dict[str, float] = scaler.learn(numbers) if learns else scaler.transform(numbers)
        return Taken(
            [_BIAS_HASH if name == _BIAS else int(name) for name in row],
            list(row.values()),
            _places(tuple(z), self._seed),
            list(z.values()),
        )


def laid_out(contexts: Sequence[Taken]) -> Context:
    """Contexts in arrays: they have as many numbers as each other, and as much that is none."""
    words, n = len(contexts[0].hashes), len(contexts[0].names)
    plain = words + n
    sides = np.array([_sides(tuple(one.hashes + one.names), words) for one in contexts])
    forms = np.zeros((len(contexts), 2, sides.shape[1]))
    forms[:, 0, :plain] = [one.values + one.numbers for one in contexts]
    forms[:, 1, plain : plain + words] = forms[:, 0, :words]
    if n:
        u = np.maximum(forms[:, 0, words:plain], -_REACH)
        np.minimum(u, _REACH, out=u)
        u += _REACH
        u /= _SPACING
        at = u.astype(np.int64)
        np.minimum(at, _KNOTS - 2, out=at)
        share = np.subtract(u, at, out=forms[:, 1, -n:])
        np.subtract(1.0, share, out=forms[:, 1, -2 * n : -n])
        sides[:, -2 * n : -n] += _SIDES[at]
        at += 1
        sides[:, -n:] += _SIDES[at]
    return Context(sides, forms, plain)


@lru_cache(maxsize=65_536)
def _place(name: str, seed: int) -> int:
    return mmh3.hash(name, seed, signed=False)


@lru_cache(maxsize=256)
def _places(names: tuple[str, ...], seed: int) -> list[int]:
    """The hash of each name; not to be changed."""
    return [_place(name, seed) for name in names]


@lru_cache(maxsize=256)
def _array(hashes: tuple[int, ...]) -> Hashes:
    """The hashes in one array, to be read only."""
    return np.array(hashes, np.uint64)


@lru_cache(maxsize=256)
def _sides(hashes: tuple[int, ...], words: int) -> Hashes:
    """Sides of a context's features, of numbers twice more, for the knots; to be read only."""
    plain = np.array(hashes, np.uint64)
    named = plain[words:]
    return left(np.concatenate((plain, plain[:words], named, named)))


@lru_cache(maxsize=256)
def _as_sent(names: tuple[str, ...]) -> list[str]:
    """Names of an action's features as rows have them."""
    return [ACTION + name for name in names]


@lru_cache(maxsize=256)
def _placed(names: tuple[str, ...], seed: int) -> Hashes:
    """Hashes of numbers by name, the bias first: shape (1, names + 1), to be read only."""
    return np.array([[_BIAS_HASH, *(_place(name, seed) for name in names)]], np.uint64)


def left(hashes: Hashes) -> Hashes:
    """One side of products, for :func:`settled`."""
    return hashes * _LEFT


def right(hashes: Hashes) -> Hashes:
    """The other side of products."""
    return hashes * _RIGHT


def settled(mixed: Hashes, bits: int) -> Places:
    """Places of products below 2^bits, made in place of left and right sides by exclusive or."""
    mixed ^= mixed >> _SHIFT
    mixed *= _RIGHT
    mixed >>= np.uint64(64 - bits)
    return mixed.view(np.int64)  # at most 31 bits
