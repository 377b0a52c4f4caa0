"""Hat functions ("tents"): a number becomes the values of piecewise linear basis functions.

Tents are evenly spaced in the quantiles of a normal distribution; a number lies under two of them.
Pairs of numbers become products of their tents.  :mod:`online.models.auto` uses both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import mmh3

from online.models.experts.linear import Owned

GRAIN: Final = 12
CROSSED_GRAIN: Final = 6

SQUASH: Final = 1.702
"""The logistic function of 1.702 z is within .01 of the normal distribution's (Camilli 1994)."""

_LAST: Final = GRAIN - 1

Row = dict[str, float]
Tent = tuple[int, float]


def _key(view: str, spelled: str, seed: int, mask: int) -> str:
    return f"{view}{mmh3.hash(spelled, seed, signed=False) & mask}"


@lru_cache(maxsize=4096)  # nearly all rows have the same names
def tent_keys(name: str, seed: int, mask: int) -> tuple[str, ...]:
    """Return the hashed key of each tent of a feature, for :func:`bent`."""
    return tuple(_key("b", f"{name}\2{i}", seed, mask) for i in range(GRAIN))


@lru_cache(maxsize=4096)
def _pair_keys(first: str, second: str, seed: int, mask: int) -> tuple[tuple[str, ...], ...]:
    """Return the hashed keys of the products of tents, by tent of either feature."""
    grain, between = range(CROSSED_GRAIN), f"\3{second}\2"
    spelled = [[f"{first}\2{i}{between}{j}" for j in grain] for i in grain]
    return tuple(tuple(_key("c", one, seed, mask) for one in row) for row in spelled)


def tents(z: float, grain: int) -> tuple[Tent, Tent]:
    """Return index and height of the two tents that cover the standardised number ``z``."""
    p = (grain - 1) / (1.0 + math.exp(-SQUASH * z))
    i = min(int(p), grain - 2)
    return (i, 1.0 - (p - i)), (i + 1, p - i)


def bent(shared: Mapping[str, float], numbers: Mapping[str, float], seed: int, mask: int) -> Row:
    """Make the row in which each number is two tents; ``shared`` has all that is no number."""
    row = {f"b{key}": value for key, value in shared.items()}
    exp, get = math.exp, row.get
    for name, z in numbers.items():
        keys = tent_keys(name, seed, mask)
        p = _LAST / (1.0 + exp(-SQUASH * z))  # as `tents`, without calls: each row runs it
        i = int(p)
        i = i if i < _LAST else _LAST - 1
        low, high = keys[i], keys[i + 1]
        row[low] = get(low, 0.0) + (1.0 - (p - i))
        row[high] = get(high, 0.0) + (p - i)
    return row


def crossed(shared: Mapping[str, float], numbers: Mapping[str, float], seed: int, mask: int) -> Row:
    """Make the row in which each pair of numbers is four products of tents."""
    row = {f"c{key}": value for key, value in shared.items()}
    under = [(name, tents(numbers[name], CROSSED_GRAIN)) for name in sorted(numbers)]
    for at, (first, one) in enumerate(under):
        for second, other in under[at + 1 :]:
            keys = _pair_keys(first, second, seed, mask)
            for i, high in one:
                for j, tall in other:
                    row[keys[i][j]] = row.get(keys[i][j], 0.0) + high * tall
    return row


def bent_owned(
    words: Sequence[tuple[str, str]], numbers: Mapping[str, float], seed: int, mask: int
) -> Owned:
    """Return feature name, key and value of each entry of :func:`bent`."""
    owned = _shared_owned("b", words)
    for name, z in numbers.items():
        keys = tent_keys(name, seed, mask)
        for i, high in tents(z, GRAIN):
            _own(owned, name, keys[i], high)
    return owned


def crossed_owned(
    words: Sequence[tuple[str, str]], numbers: Mapping[str, float], seed: int, mask: int
) -> Owned:
    """Return the same for :func:`crossed`; half of each product belongs to each feature."""
    owned = _shared_owned("c", words)
    under = [(name, tents(numbers[name], CROSSED_GRAIN)) for name in sorted(numbers)]
    for at, (first, one) in enumerate(under):
        for second, other in under[at + 1 :]:
            keys = _pair_keys(first, second, seed, mask)
            for i, high in one:
                for j, tall in other:
                    _own(owned, first, keys[i][j], high * tall / 2.0)
                    _own(owned, second, keys[i][j], high * tall / 2.0)
    return owned


def _shared_owned(view: str, words: Sequence[tuple[str, str]]) -> Owned:
    names, keys = [name for name, _ in words], [f"{view}{key}" for _, key in words]
    return Owned(names, keys, [1.0] * len(words))


def _own(owned: Owned, name: str, key: str, number: float) -> None:
    owned.names.append(name)
    owned.keys.append(key)
    owned.numbers.append(number)
