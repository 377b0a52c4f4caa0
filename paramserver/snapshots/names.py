"""The names of a snapshot: each is stored once, and a block refers to them by spans of positions.

Blocks share most of their keys, in the same order: a weight, a range of values and a count of the
same feature.  So what takes long to read, millions of strings and their hashes, is read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Final

import numpy as np

from paramserver.snapshots.tensors import Array

_CUT_KEYS: Final = 8192  # keys split at a time; parts that fit the CPU cache are a third faster


class Names:
    """The distinct keys of all blocks, in the order in which they were first added."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._places: dict[str, int] = {}  # of the first names; it follows when it is asked

    def spans(self, data: Mapping[str, object]) -> Array:
        """Add the keys of a block; return their places as rows of (first, end), in their order."""
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
        raw = [key.encode() for key in self._names]
        return {
            "keys": np.frombuffer(b"".join(raw), dtype=np.uint8),
            "ends": np.cumsum(np.fromiter(map(len, raw), dtype=np.int64, count=len(raw))),
        }


def keys_at(names: list[str], spans: Array) -> list[str]:
    """Return the names in these spans.  Raises ValueError if a span leaves them."""
    first, end = spans[:, 0], spans[:, 1]
    if (first < 0).any() or (end < first).any() or (end > len(names)).any():
        raise ValueError("a span of keys points beyond the names")
    keys: list[str] = []
    for a, b in spans.tolist():
        keys += names[a:b]
    return keys


def read_names(blob: Array, ends: Array) -> list[str]:
    """Return names from their bytes and ends.  Raises ValueError."""
    if len(ends) == 0:
        return []
    if ends[0] < 0 or ends[-1] != len(blob) or (np.diff(ends) < 0).any():
        raise ValueError("keys overlap, or end beyond their bytes")
    if blob.all():  # no key contains the separator \0, so split many at once
        keys: list[str] = []
        for i in range(0, len(ends), _CUT_KEYS):
            begin, stops = ends[i - 1] if i else 0, ends[i : i + _CUT_KEYS]
            some = np.insert(blob[begin : stops[-1]], stops[:-1] - begin, 0)
            keys += some.tobytes().decode().split("\0")
        return keys
    raw, stops = blob.tobytes(), ends.tolist()
    return [raw[a:b].decode() for a, b in zip([0, *stops[:-1]], stops, strict=True)]
