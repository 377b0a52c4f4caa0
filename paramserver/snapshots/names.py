"""The names of a snapshot: each is stored once, and a block refers to them by spans of positions.

Blocks share most of their keys, in the same order: a weight, a range of values and a count of the
same feature.  So what takes long to read, millions of strings and their hashes, is read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Final

import numpy as np

from paramserver.core.array_maps import ArrayMap, NameIndex
from paramserver.snapshots.tensors import Array

_CUT_KEYS: Final = 8192  # keys split at a time; parts that fit the CPU cache are a third faster


class Names:
    """The distinct keys of all blocks, in the order in which they were first added.

    Parameters:
        base: The names that come first, in which blocks have their numbers in arrays.
    """

    def __init__(self, base: NameIndex | None = None) -> None:
        self._base = base
        self._names: list[str] = []
        self._places: dict[str, int] = {}  # of the first names; it follows when it is asked

    def spans(self, data: Mapping[str, object]) -> Array:
        """Add the keys of a block; return their places as rows of (first, end), in their order."""
        if self._base is not None:
            return self._spans_on(self._base, data)
        keys, spans, at, place = [*data], list[list[int]](), 0, 0
        if not self._names:
            self._names += keys
        while at < len(keys):
            place = self._place(keys[at], place)
            n = self._alike(keys, at, place)
            if spans and spans[-1][1] == place:
                spans[-1][1] += n
            else:
                spans.append([place, place + n])
            at, place = at + n, place + n
        return np.array(spans, dtype=np.int64).reshape(-1, 2)

    def _spans_on(self, base: NameIndex, data: Mapping[str, object]) -> Array:
        """Return the spans of a block among the names of the index and those added after them."""
        before = np.empty((0, 2), dtype=np.int64)
        if isinstance(data, ArrayMap) and data.index is base:
            before, data = data.spans, data.new
        keys, places = [*data], self._places
        known = base.look_up(keys)
        for key in keys:
            if known[key] < 0:
                places.setdefault(key, len(base) + len(places))
        at = (place if (place := known[key]) >= 0 else places[key] for key in keys)
        more = np.fromiter(at, dtype=np.int64, count=len(keys))
        return joined_spans(before, spans_of(more))

    def _place(self, key: str, guess: int) -> int:
        """Return where the name stands; it is added if it is new."""
        names, places = self._names, self._places
        if guess < len(names) and names[guess] == key:
            return guess
        if len(places) < len(names):
            places.update(zip(names[len(places) :], count(len(places)), strict=False))
        if (place := places.setdefault(key, len(names))) == len(names):
            names.append(key)
        return place

    def _alike(self, keys: list[str], at: int, place: int) -> int:
        """Return how many keys from ``at`` on are the names from ``place`` on, in their order."""
        n, step = 1, 1
        while keys[at + n : at + n + step] == self._names[place + n : place + n + step]:
            if at + n + step >= len(keys):
                return len(keys) - at
            n, step = n + step, min(2 * step, _CUT_KEYS)
        names = self._names[place + n : place + n + step]
        for key, name in zip(keys[at + n : at + n + step], names, strict=False):
            if key != name:
                break
            n += 1
        return n

    def arrays(self) -> dict[str, Array]:
        """Return all names as arrays: their UTF-8 bytes, and the end of each."""
        raw = [key.encode() for key in (self._names if self._base is None else self._places)]
        keys = np.frombuffer(b"".join(raw), dtype=np.uint8)
        ends = np.cumsum(np.fromiter(map(len, raw), dtype=np.int64, count=len(raw)))
        if self._base is not None:
            blob, stops = self._base.arrays
            keys, ends = np.concatenate((blob, keys)), np.concatenate((stops, ends + len(blob)))
        return {"keys": keys, "ends": ends}


def checked_spans(spans: Array, n: int) -> Array:
    """Return the spans.  Raises ValueError if they leave the ``n`` names."""
    first, end = spans[:, 0], spans[:, 1]
    if (first < 0).any() or (end < first).any() or (end > n).any():
        raise ValueError("a span of keys points beyond the names")
    return spans


def keys_at(names: list[str], spans: Array) -> list[str]:
    """Return the names in these spans.  Raises ValueError if a span leaves them."""
    keys: list[str] = []
    for a, b in checked_spans(spans, len(names)).tolist():
        keys += names[a:b]
    return keys


def spans_of(positions: Array) -> Array:
    """Return successive positions as rows of (first, end)."""
    broken = np.diff(positions) != 1
    first, last = np.append(True, broken), np.append(broken, True)
    if not len(positions):
        return np.empty((0, 2), dtype=np.int64)
    return np.column_stack((positions[first], positions[last] + 1))


def joined_spans(a: Array, b: Array) -> Array:
    """Return the spans of ``a``, then those of ``b``; adjacent ones become one span."""
    if len(a) and len(b) and a[-1, 1] == b[0, 0]:
        middle = [[a[-1, 0], b[0, 1]]]
        return np.concatenate((a[:-1], middle, b[1:]))
    return np.concatenate((a, b))
