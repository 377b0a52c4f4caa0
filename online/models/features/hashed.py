"""Feature hashing: a row of any values becomes numbers by hashed feature.

=================== ===============================  ==========================================
value in a row      becomes                          number
=================== ===============================  ==========================================
number              its name                         standardised if there is a scaler, or as is
text, true, false   name and value                   1
words of a text     name and word, in lower case     1, however often it occurs
null                name, as missing                 1
(each row)          the bias                         1
=================== ===============================  ==========================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, Final

import mmh3

from online.models.errors import LearnerUnusable
from online.models.experts.linear import Owned
from online.models.limited import Limited
from online.models.state.composite import Composite
from online.models.state.scalers import Standard
from replay.example import Features, Value

_WORD: Final = re.compile(r"\w+")
_BIAS: Final = "bias"
_SHORT: Final = 100  # most characters of a category whose key is kept: it bounds the memory


def check_hashing(model: str, text: Sequence[str], bits: int) -> None:
    """Check the settings of a hashed model.  Raises LearnerUnusable, with the model's name."""
    if isinstance(text, str):
        raise LearnerUnusable(model, f"text is {text!r}", "Give a list of names")
    if not 1 <= bits <= 31:
        raise LearnerUnusable(model, f"bits is {bits!r}", "Give 1 to 31")


class Words:
    """The keys under which a hashed model stores the values of a row.

    Texts, booleans and null are hashed; a number has the name of its feature, as in the scaler.
    ``text``, ``bits`` and ``seed`` are those of :class:`Hashed`.

    Attributes:
        ids: Features whose numbers are identifiers: they are treated as texts.
    """

    ids: frozenset[str] = frozenset()

    def __init__(self, text: Collection[str], bits: int, seed: int) -> None:
        self._text, self._mask, self._seed = frozenset(text), 2**bits - 1, seed

    def keys(self, name: str, value: Value) -> Sequence[str]:
        """Return the keys of one value."""
        if value is None:
            return (self._place(f"{name}\0"),)
        if isinstance(value, str) and name in self._text:
            words = dict.fromkeys(_WORD.findall(value.lower()))
            return [self._place(f"{name}\1{word}") for word in words]
        if isinstance(value, (str, bool)):
            return (_category_place(name, value, self._seed, self._mask),)
        return (name,)

    def without(self, name: str, value: Value, absent: Collection[str]) -> Value | None:
        """Return the text without the words whose keys are ``absent``; None if none is left."""
        if not isinstance(value, str) or name not in self._text:
            return None
        words = dict.fromkeys(_WORD.findall(value.lower()))
        return " ".join(w for w in words if self._place(f"{name}\1{w}") not in absent) or None

    def _place(self, feature: str) -> str:
        return _place(feature, self._seed, self._mask)


class Hashed(Composite):
    """Hashes rows, and keeps the moments by which their numbers are standardised.

    Parameters:
        text: Names of features that are treated as bags of words.
        bits: Features are hashed to 2^bits buckets, by 32-bit murmur3.
        seed: Seed of the hash, the same in all processes.
        scaler: The scaler of the numbers; None: they are not standardised.
    """

    def __init__(
        self, text: Sequence[str], bits: int, seed: int, scaler: Standard | Limited | None
    ) -> None:
        self._text, self._mask, self._seed = frozenset(text), 2**bits - 1, seed
        self.scaler = self._scaler = scaler
        self._parts = () if scaler is None else (scaler,)

    def row(self, features: Features, *, learns: bool) -> dict[str, float]:
        """Return the hashed row; if it ``learns``, the moments are updated with it first."""
        row, numbers = self.parts(features, learns=learns)
        return self.joined(row, numbers)

    def joined(self, row: dict[str, float], numbers: dict[str, float]) -> dict[str, float]:
        """Add the hashed numbers to ``row``, in place, and return it."""
        seed, mask = self._seed, self._mask
        for name, value in numbers.items():
            key = _name_place(name, seed, mask)
            row[key] = row.get(key, 0.0) + value
        return row

    def parts(
        self, features: Features, *, learns: bool
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return the hashed row of all but numbers (bias included), and the scaled numbers by name.

        If it ``learns``, the moments are updated with the numbers first.
        """
        numbers: dict[str, Any] = {}
        row = {_BIAS: 1.0}
        for name, value in features.items():
            if type(value) is float:
                numbers[name] = value
            elif value is None:
                self._add(row, f"{name}\0", 1.0)
            elif isinstance(value, str) and name in self._text:
                for word in dict.fromkeys(_WORD.findall(value.lower())):
                    self._add(row, f"{name}\1{word}", 1.0)
            elif isinstance(value, (str, bool)):
                place = _category_place(name, value, self._seed, self._mask)
                row[place] = row.get(place, 0.0) + 1.0
            else:
                numbers[name] = value
        if self._scaler is not None and numbers:
            scaler = self._scaler
            numbers = scaler.learn(numbers) if learns else scaler.transform(numbers)
        return row, numbers

    def owned(self, words: Sequence[tuple[str, str]], numbers: dict[str, float]) -> Owned:
        """Return feature name, hashed key and value of each part of a row."""
        seed, mask = self._seed, self._mask
        return Owned(
            [name for name, _ in words] + list(numbers),
            [key for _, key in words] + [_name_place(name, seed, mask) for name in numbers],
            [1.0] * len(words) + list(numbers.values()),
        )

    def keys(self, names: Sequence[str]) -> list[str] | None:
        """Return the hashed keys of numbers, the bias first; None if two of them collide."""
        places = [_BIAS, *(_name_place(name, self._seed, self._mask) for name in names)]
        return places if len(set(places)) == len(places) else None

    def _add(self, row: dict[str, float], feature: str, number: float) -> None:
        key = _place(feature, self._seed, self._mask)
        row[key] = row.get(key, 0.0) + number


def counted(words: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Return the hashed row of the bias and of words, which are pairs of feature and key."""
    row = {_BIAS: 1.0}
    for _, key in words:
        row[key] = row.get(key, 0.0) + 1.0
    return row


def _place(feature: str, seed: int, mask: int) -> str:
    return str(mmh3.hash(feature, seed, signed=False) & mask)


_name_place = lru_cache(maxsize=4096)(_place)  # nearly all rows have the same names


def _category_place(name: str, value: str | bool, seed: int, mask: int) -> str:
    """Return the key of a category; those of short values are kept, since most come again."""
    long = isinstance(value, str) and len(value) > _SHORT
    place = _new_category_place if long else _seen_category_place
    return place(name, value, seed, mask)


def _new_category_place(name: str, value: str | bool, seed: int, mask: int) -> str:
    return _place(f"{name}={json.dumps(value)}", seed, mask)


_seen_category_place = lru_cache(maxsize=4096)(_new_category_place)
