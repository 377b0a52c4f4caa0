"""Interaction features: contexts, actions and their products, by hashed name.

The row of a choice has one context and one action: the context's features under their own names,
the action's id under ``@``, and the action's features under ``@`` + name.  The table's slot for a
product of two features is computed from their two hashes, for whole arrays at once; nothing is
looked up by name.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple

import mmh3
import numpy as np
import numpy.typing as npt

from online.models.experts.linear import Floats
from online.models.features.hashed import Hashed
from online.models.limited import Limited
from online.models.state.composite import Composite
from online.models.state.scalers import Walked
from replay.example import Features, Value

ACTION: Final = "@"
"""Name of the action's id in a row, and prefix of the names of the action's features."""

Places = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_REACH: Final = 3.0
_SPACING: Final = 0.5
_KNOTS: Final = 13
"""Number of knots: from −3 to 3 standard deviations, 0.5 apart."""

_BIAS: Final = "bias"
_BIAS_HASH: Final = 0x9E3779B9
_NO_WORDS: Final = {_BIAS: 1.0}
_LEFT: Final = np.uint64(0x9E3779B97F4A7C15)
_RIGHT: Final = np.uint64(0xC2B2AE3D27D4EB4F)
_SHIFT: Final = np.uint64(32)
_KNOT: Final = np.uint64(0xA0761D6478BD642F)
_SIDES: Final[Hashes] = np.arange(1, _KNOTS + 1, dtype=np.uint64) * _KNOT * _LEFT
"""Hash of each knot: added to the left side of a feature, it gives that of the feature's knot."""

_BITS: Final = 31
_SEED: Final = 31
_NUMBERS: Final[frozenset[type]] = frozenset({float, int})
_WHOLE_MAX: Final = 2**53
_BRIEF: Final = 16_384


def row(context: Features, action: str, features: Mapping[str, Value]) -> Features:
    """Join one context and one action to a row.  ValueError: a context name begins with ``@``."""
    if wrong := next((name for name in context if name.startswith(ACTION)), None):
        raise ValueError(f"context feature {wrong!r} begins with {ACTION!r}; name it otherwise")
    joined = dict(context)
    joined[ACTION] = action
    for name, value in features.items():
        joined[ACTION + name] = value
    return joined


def split(features: Features) -> tuple[Features, str, Features]:
    """Split a row that :func:`row` joined into context, action's id and action's features."""
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
    """Hashes of features, 64 bits wide, and the features' values."""

    hashes: Hashes
    numbers: Floats


class Taken(NamedTuple):
    """A context's features: hashes and values of non-numbers (bias first), then of numbers."""

    hashes: list[int]
    values: list[float]
    names: list[int]
    numbers: list[float]


class Context(NamedTuple):
    """Contexts of the same shape in arrays, each in two forms: plain, and with numbers on knots.

    On knots, a number becomes its shares of the two knots around it, so a linear function of the
    shares is piecewise linear in the number.  The bias comes first.

    Attributes:
        sides: Hashes of the plain features, then of those on knots, as left sides of products:
            shape (contexts, features).
        forms: Values in both forms: (contexts, 2, features), 0 for features of the other form.
        plain: Number of plain features.
    """

    sides: Hashes
    forms: Floats
    plain: int

    @property
    def plain_numbers(self) -> Floats:
        """Return the values of the plain features: shape (contexts, plain)."""
        return self.forms[:, 0, : self.plain]


Moments = tuple[tuple[Mapping[str, Any], Walked], ...]
"""Names and new moments of the contexts, and of the actions."""


class Taught(NamedTuple):
    """Rows of a context and an action each: the actions' ids, both sides, and the new moments."""

    own: list[str]
    context: Context
    action: Vector
    moments: Moments


class Alike(NamedTuple):
    """Rows that have the same names in the same order and only numbers: shape (rows, names).

    ``whole`` is true if some values were sent as whole numbers.  ``least`` and ``most`` are the
    minimum and maximum of each name.
    """

    names: tuple[str, ...]
    numbers: Floats
    whole: bool
    least: list[float]
    most: list[float]


def alike(rows: Sequence[Features]) -> Alike | None:
    """Convert rows to an array; None if they differ in names, have none, or have non-numbers."""
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
    """Return the 32-bit hash of an action's id, for notes and slots."""
    return mmh3.hash(action, _SEED, signed=False)


def are_brief(ids: tuple[str, ...]) -> bool:
    """Return whether a choice's ids may be cached: not if they are long together."""
    return sum(map(len, ids)) <= _BRIEF


def hashes_of(actions: tuple[str, ...]) -> tuple[int, ...]:
    """Return :func:`hash_of` of each id; cached, since choices often repeat the same ids."""
    return _hashes(actions) if are_brief(actions) else _hashes.__wrapped__(actions)


@lru_cache(maxsize=64)
def _hashes(actions: tuple[str, ...]) -> tuple[int, ...]:
    return tuple([hash_of(action) for action in actions])


class Crossing(Composite):
    """Hashes contexts and actions, and keeps the moments by which numbers are standardised."""

    def __init__(self, text: Sequence[str], seed: int) -> None:
        self._words = Hashed(text, _BITS, seed, None)
        self._seed = seed
        self._parts: tuple[Limited, Limited] = (Limited("scaler"), Limited("actions"))

    def context(self, features: Features) -> Taken:
        """Hash a context, for :func:`laid_out`."""
        return self._taken(self._parts[0], features)

    def action(self, features: Features) -> Vector:
        """Hash an action's features, without its id; the bias comes first."""
        named = {ACTION + name: value for name, value in features.items()}
        hashes, values, names, numbers = self._taken(self._parts[1], named)
        return Vector(_array(tuple(hashes + names)), np.array(values + numbers))

    def alike(self, tables: Sequence[Alike]) -> Vector:
        """Hash the actions of several choices that all have the same feature names.

        The moments are not updated.  Numbers have the shape (choices, actions, features), hashes
        (1, features).
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
        """Hash the actions of one choice, whose features may differ.

        The moments are not updated.  Numbers have the shape (1, actions, features), hashes
        (actions, features).
        """
        each = [self.action(features) for features in rows]
        shape = len(each), max(len(one.numbers) for one in each)
        out = Vector(np.zeros(shape, np.uint64), np.zeros((1, *shape)))
        for i, one in enumerate(each):
            size = len(one.hashes)
            out.hashes[i, :size], out.numbers[0, i, :size] = one
        return out

    def taught(self, rows: Sequence[Features]) -> Taught | None:
        """Read rows of :func:`row`, each scaled as if it was learned after those before it.

        The rows have the same names in the same order.  Changes nothing; :meth:`put` takes the
        moments.  None: the rows differ in shape, or a moment would not be finite.
        """
        own = [""] * len(rows)
        numbers: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        words: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        for name, column in zip(
            rows[0], zip(*[x.values() for x in rows], strict=True), strict=True
        ):
            if name == ACTION:
                own = [str(value) for value in column]
                continue
            of_action = name.startswith(ACTION)
            kinds = set(map(type, column))
            if kinds <= _NUMBERS:
                numbers[of_action][name] = column
            elif kinds.isdisjoint(_NUMBERS):
                words[of_action][name] = column
            else:
                return None
        x = self._walked(self._parts[0], numbers[0], words[0], len(rows))
        a = self._walked(self._parts[1], numbers[1], words[1], len(rows))
        if x is None or a is None:
            return None
        hashes = np.array([one.hashes + one.names for one in a[0]], np.uint64)
        values = np.array([one.values + one.numbers for one in a[0]])
        moments = (numbers[0], x[1]), (numbers[1], a[1])
        return Taught(own, laid_out(x[0]), Vector(hashes, values), moments)

    def put(self, moments: Moments) -> None:
        """Set the moments that :meth:`taught` returned."""
        for scaler, (names, walked) in zip(self._parts, moments, strict=True):
            scaler.put([*names], walked)

    def _walked(
        self, scaler: Limited, numbers: dict[str, Any], words: dict[str, Any], n: int
    ) -> tuple[list[Taken], Walked] | None:
        """Hash and scale columns by name; None: the rows differ in shape, or are not finite."""
        names, read = tuple(numbers), [_NO_WORDS] * n
        if (walked := scaler.walk(names, numbers.values())) is None:
            return None
        if words:
            texts = zip(*words.values(), strict=True)
            read = [self._words.row(dict(zip(words, x, strict=True)), learns=False) for x in texts]
            if len(set(map(len, read))) > 1:
                return None
        places, scaled = _places(names, self._seed), zip(*walked.columns, strict=True)
        each = scaled if names else [()] * n
        return [_joined(one, places, x) for one, x in zip(read, each, strict=True)], walked

    def _taken(self, scaler: Limited, features: Features) -> Taken:
        numbers = {n: v for n, v in features.items() if type(v) is float or type(v) is int}
        words = _NO_WORDS
        if len(numbers) < len(features):
            rest = {n: v for n, v in features.items() if n not in numbers}
            words = self._words.row(rest, learns=False)
        z: dict[str, float] = scaler.transform(numbers)
        return _joined(words, _places(tuple(z), self._seed), z.values())


def _joined(words: dict[str, float], places: list[int], numbers: Iterable[float]) -> Taken:
    hashes = [_BIAS_HASH if name == _BIAS else int(name) for name in words]
    return Taken(hashes, list(words.values()), places, list(numbers))


def laid_out(contexts: Sequence[Taken]) -> Context:
    """Put contexts into arrays; all must have equally many numbers and equally many others."""
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
    """Return the hash of each name; cached, so callers must not change it."""
    return [_place(name, seed) for name in names]


@lru_cache(maxsize=256)
def _array(hashes: tuple[int, ...]) -> Hashes:
    """Return the hashes as an array; cached, so callers must not change it."""
    return np.array(hashes, np.uint64)


@lru_cache(maxsize=256)
def _sides(hashes: tuple[int, ...], words: int) -> Hashes:
    """Return the left sides of a context's features, numbers three times: plain and two knots.

    The array is cached, so callers must not change it.
    """
    plain = np.array(hashes, np.uint64)
    named = plain[words:]
    return left(np.concatenate((plain, plain[:words], named, named)))


@lru_cache(maxsize=256)
def _as_sent(names: tuple[str, ...]) -> list[str]:
    """Return the names of an action's features in rows."""
    return [ACTION + name for name in names]


@lru_cache(maxsize=256)
def _placed(names: tuple[str, ...], seed: int) -> Hashes:
    """Return the hashes of names, the bias first: shape (1, names + 1); cached, read only."""
    return np.array([[_BIAS_HASH, *(_place(name, seed) for name in names)]], np.uint64)


def left(hashes: Hashes) -> Hashes:
    """Return the left sides of products, to be combined by xor for :func:`settled`."""
    return hashes * _LEFT


def right(hashes: Hashes) -> Hashes:
    """Return the right sides of products."""
    return hashes * _RIGHT


def settled(mixed: Hashes, bits: int) -> Places:
    """Return the slots of products, below 2^bits, from left xor right; changes ``mixed``."""
    mixed ^= mixed >> _SHIFT
    mixed *= _RIGHT
    mixed >>= np.uint64(64 - bits)
    return mixed.view(np.int64)  # at most 31 bits
