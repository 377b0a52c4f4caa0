"""Mappings from names to numbers that are kept in arrays, for blocks with very many names.

A dict of a million names takes a second to make, because each string, number and entry is an
object of its own.  Here the names of all blocks are one array of bytes, found by hash
(:class:`NameIndex`), and the numbers of a block are one array beside it (:class:`ArrayMap`).
Neither changes: a mapping keeps what is set in dicts of its own, so copies share the arrays.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import (
    Collection,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    Sequence,
    ValuesView,
)
from copy import copy
from itertools import count
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from paramserver.core.tables.ids import Ids

Array = npt.NDArray[Any]

ARRAYS_LEAST: Final = 4_096
"""Number of names of a block from which on its numbers are kept in an array."""

NAME_BYTES: Final = 4_096
"""Greatest length of a name in bytes that an index takes."""

_CUT: Final = 8_192  # names decoded, or hashed, at a time; such parts fit the CPU cache
_CHECKED: Final = 65_536  # ends compared at a time: new memory takes longer than comparing
_FOLDED: Final = 4  # a copy is folded when more than one in so many numbers was set
_TOGETHER: Final = 16_384  # names added whose hashes are laid out together
_ROOM: Final = 16  # growth factor
_WORD: Final = 8
_NOTHING: Final = np.empty(0, dtype=np.int64)
_LOW: Final = np.uint64(2**32 - 1)
_HALF: Final = np.uint64(32)
_FACTORS: Final = np.frombuffer(os.urandom(4 * (NAME_BYTES + _WORD)), dtype=np.uint64).reshape(
    -1, 4
)
_MASKS: Final = np.array([2 ** (8 * n) - 1 for n in range(_WORD + 1)], dtype=np.uint64)


def read_names(blob: Array, ends: Array) -> list[str]:
    """Return names from their UTF-8 bytes and ends.  Raises ValueError."""
    if len(ends) == 0:
        return []
    check_ends(blob, ends)
    if blob.all():  # no key contains the separator \0, so split many at once
        keys: list[str] = []
        for i in range(0, len(ends), _CUT):
            begin, stops = ends[i - 1] if i else 0, ends[i : i + _CUT]
            some = np.insert(blob[begin : stops[-1]], stops[:-1] - begin, 0)
            keys += some.tobytes().decode().split("\0")
        return keys
    raw, stops = blob.tobytes(), ends.tolist()
    return [raw[a:b].decode() for a, b in zip([0, *stops[:-1]], stops, strict=True)]


def check_ends(blob: Array, ends: Array) -> None:
    """Raise ValueError unless these are the ends of at least one name in the bytes."""
    if ends[0] < 0 or ends[-1] != len(blob) or (ends[1:] < ends[:-1]).any():
        raise ValueError("keys overlap, or end beyond their bytes")


def longest(ends: Array) -> int:
    """Return the number of bytes of the longest name, given the end of each; 0: there is none."""
    most = int(ends[0]) if len(ends) else 0
    for i in range(0, len(ends) - 1, _CHECKED):
        most = max(most, int(np.diff(ends[i : i + _CHECKED + 1]).max()))
    return most


def check_names(blob: Array, ends: Array) -> None:
    """Raise ValueError if an index cannot hold these names, of which there is at least one."""
    check_ends(blob, ends)
    if longest(ends) > NAME_BYTES:
        raise ValueError(f"a name is longer than {NAME_BYTES} bytes")
    if len(blob) and blob.max() > 127:  # not ASCII
        blob.tobytes().decode()
        if (blob[ends[ends < len(blob)]] & 0xC0 == 0x80).any():
            raise ValueError("a name ends within a character")


class NameIndex:
    """Distinct names by position, as UTF-8 bytes that are found by a hash.

    The hash is drawn once per process, so that nobody can choose names that collide.

    Parameters:
        blob, ends: The bytes of all names, and the end of each in them.  The caller must not change
            them.

    Attributes:
        places: Positions of the names that were looked up; -1: not among the names.
        token: A number that no other index has.

    Raises:
        ValueError: They are no names, or one is longer than ``NAME_BYTES``.
    """

    def __init__(self, blob: Array = _NOTHING, ends: Array = _NOTHING) -> None:
        self.token = int.from_bytes(os.urandom(8), "little") | 2**63  # as long as any other
        self._blob, self._ends = np.empty(0, dtype=np.uint8), np.empty(0, dtype=np.int64)
        self._size = self._count = 0
        self._ids: Ids | None = None  # of hashes; of the newest names they follow
        self.places: dict[str, int] = {}
        if len(ends):
            self.add(blob, ends)
            self.lay_out()

    def add(self, blob: Array, ends: Array) -> None:
        """Add names, all of them new.  Raises ValueError as the constructor."""
        check_names(blob, ends)
        if not self._count:
            self._blob, self._ends = blob, ends
        else:
            self._blob = grown(self._blob, self._size, blob)
            self._ends = grown(self._ends, self._count, ends + self._size)
        self._size += len(blob)
        self._count += len(ends)
        self.places.clear()
        if self._count - self._laid_out >= _TOGETHER:
            self.lay_out()

    @property
    def _laid_out(self) -> int:
        return 0 if self._ids is None else self._ids.count

    def lay_out(self) -> None:
        """Lay out the hashes of the newest names, so that the next look-up need not."""
        if (done := self._laid_out) == self._count:
            return
        hashes = _hashes(*self.bytes_of(done, self._count))
        if self._ids is None:
            self._ids = Ids(hashes)
            self._ids.lay_out()
        else:
            self._ids.add(hashes)

    def __len__(self) -> int:
        return self._count

    def detach(self) -> None:
        """Copy the names into newly allocated memory; nobody may add names meanwhile."""
        self._blob, self._ends = self._blob.copy(), self._ends.copy()

    @property
    def arrays(self) -> tuple[Array, Array]:
        """The bytes of all names, and the end of each."""
        return self._blob[: self._size], self._ends[: self._count]

    def has(self, first: int, blob: Array, ends: Array) -> bool:
        """Whether these are the names from the position ``first`` on."""
        begin, end = self._begin(first), first + len(ends)
        if end > self._count:
            return False
        same = np.array_equal(self._ends[first:end] - begin, ends)
        return same and np.array_equal(self._blob[begin : begin + len(blob)], blob)

    def _begin(self, place: int) -> int:
        return int(self._ends[place - 1]) if place else 0

    def bytes_of(self, first: int, end: int) -> tuple[Array, Array]:
        """Return bytes and ends of the names at the positions from ``first`` up to ``end``."""
        begin = self._begin(first)
        ends = self._ends[first:end]
        return self._blob[begin : self._begin(end)], ends - begin if begin else ends

    def part(self, first: int, end: int) -> list[str]:
        """Return the names at the positions from ``first`` up to ``end``."""
        return read_names(*self.bytes_of(first, end)) if end > first else []

    def at(self, spans: Array) -> list[str]:
        """Return the names at the positions in these spans."""
        names: list[str] = []
        for first, end in spans.tolist():
            names += self.part(first, end)
        return names

    def chars(self, spans: Array) -> int:
        """Return the number of bytes of the names at the positions in these spans."""
        return sum(self._begin(end) - self._begin(first) for first, end in spans.tolist())

    def look_up(self, names: Collection[str]) -> dict[str, int]:
        """Return :attr:`places`, in which all of these names now are."""
        places = self.places
        if fresh := [name for name in names if name not in places]:
            if len(places) + len(fresh) > 2 * self._count + _CUT:  # names that nobody has
                places = self.places = {}  # others may be reading the one before
                fresh = [*dict.fromkeys(names)]
            places.update(zip(fresh, self._found(fresh), strict=True))
        return places

    def _found(self, names: Sequence[str]) -> list[int]:
        raw = [name.encode() for name in names]
        blob = np.frombuffer(b"".join(raw), dtype=np.uint8)
        ends = np.cumsum(np.fromiter(map(len, raw), dtype=np.int64, count=len(raw)))
        if max(map(len, raw)) > NAME_BYTES:
            return [self._found([name])[0] if len(b) <= NAME_BYTES else -1
                    for name, b in zip(names, raw, strict=True)]  # fmt: skip
        self.lay_out()
        if self._ids is None:
            return [-1] * len(raw)
        found: list[int] = self._ids.find(_hashes(blob, ends), len(self)).tolist()
        for place, one in zip(found, raw, strict=True):
            if place >= 0 and self._raw(place) != one:  # two names have one hash: that may not be
                places = dict(zip(self.part(0, len(self)), count(), strict=False))
                return [places.get(name, -1) for name in names]
        return found

    def _raw(self, place: int) -> bytes:
        return self._blob[self._begin(place) : self._ends[place]].tobytes()


def grown(held: Array, n: int, more: Array) -> Array:
    """Return an array with ``more`` after the first ``n`` elements; it has room for others."""
    if (end := n + len(more)) > len(held):  # memory that is not touched yet costs nothing
        made = np.empty((_ROOM * end, *held.shape[1:]), dtype=held.dtype)
        made[:n] = held[:n]
        held = made
    held[n:end] = more
    return held


def _hashes(blob: Array, ends: Array) -> npt.NDArray[np.uint64]:
    """Return a hash of 64 bits of each name.

    It consists of two multilinear hashes (Lemire and Kaser 2014, *Strongly universal string hashing
    is fast*) of 32 bits: two names have the same with a probability of 2**-64.
    """
    hashes, begin = np.empty(len(ends), dtype=np.uint64), 0
    for i in range(0, len(ends), _CUT):
        stops = ends[i : i + _CUT]
        sizes, end = np.diff(stops, prepend=begin), int(stops[-1])
        part = blob[begin : end + _WORD]  # the last word of a name ends in other bytes
        if (lacks := end + _WORD - begin - len(part)) > 0:
            part = np.append(part, np.zeros(lacks, dtype=np.uint8))
        words = np.ndarray((len(part) - _WORD + 1,), "<u8", part.data, strides=(1,))
        hashes[i : i + _CUT] = _hashes_at(words, stops - sizes - begin, sizes)
        begin = end
    return hashes


def _hashes_at(words: Array, at: Array, sizes: Array) -> npt.NDArray[np.uint64]:
    length = sizes.astype(np.uint64)
    high, low = length * _FACTORS[-1, 0], length * _FACTORS[-1, 1]
    least = int(sizes.min()) // _WORD
    for j in range(-(-int(sizes.max()) // _WORD)):
        a, b, c, d = _FACTORS[j]
        some: Any = slice(None) if j < least else np.flatnonzero(sizes > _WORD * j)
        word = words[at[some] + _WORD * j]
        if j >= least:
            word &= _MASKS[np.minimum(sizes[some] - _WORD * j, _WORD)]
        left, right = word & _LOW, word >> _HALF
        high[some] += left * a + right * b
        low[some] += left * c + right * d
    hashes: npt.NDArray[np.uint64] = (high & ~_LOW) | (low >> _HALF)
    return hashes


class _Numbers:
    """The array of a mapping and of its copies, also as a flat buffer.  It is never changed."""

    __slots__ = ("array", "flat")

    def __init__(self, array: Array) -> None:
        self.array, self.flat = array, array.reshape(-1).data

    def detach(self) -> None:
        """Copy it into newly allocated memory; others may read it meanwhile."""
        self.array = array = self.array.copy()
        self.flat = array.reshape(-1).data


class ArrayMap(Mapping[str, Any]):
    """A mapping from names to numbers, or to tuples of two or three, with numbers in an array.

    Its names stand in the order of a dict: what is set under a new name comes last.  No name is
    ever removed.

    Parameters:
        index: Contains the names of the array.
        spans: Their positions in the index, in order, as rows of (first, end).
        numbers: One number, or one row of numbers, for each of them, in C order.  The caller must
            not change it.

    Attributes:
        spans: As given, without empty ones.

    Raises:
        ValueError: A position is given twice.
    """

    def __init__(self, index: NameIndex, spans: Array, numbers: Array) -> None:
        self.index = index
        self.spans = spans = spans[spans[:, 0] < spans[:, 1]]
        self._begins = np.append(0, (spans[:, 1] - spans[:, 0]).cumsum())  # rows
        order = spans[:, 0].argsort()
        firsts, ends, rows = spans[order, 0], spans[order, 1], self._begins[order]
        if (firsts[1:] < ends[:-1]).any():
            raise ValueError("a name stands twice in a block")
        self._sorted = firsts.data, ends.data, rows.data
        self._first, self._end = map(int, spans[0] if len(spans) else (0, 0))
        self._held = _Numbers(numbers)
        self._width = 1 if numbers.ndim == 1 else numbers.shape[1]
        self._set: dict[str, Any] = {}  # under names of the array
        self._new: dict[str, Any] = {}  # under other names

    @property
    def _numbers(self) -> Array:
        return self._held.array

    def detach(self) -> None:
        """Copy the array into newly allocated memory, for copies, too; others may read it."""
        self._held.detach()

    def __len__(self) -> int:
        return len(self._numbers) + len(self._new)

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _CUT):
            yield from self.part(first, first + _CUT)

    def __getitem__(self, name: str) -> Any:
        if (value := self.get(name)) is None:
            raise KeyError(name)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of the name."""
        if (value := self._set.get(name)) is not None:
            return value
        if (value := self._new.get(name)) is not None:
            return value
        row = self._row(name)
        return default if row < 0 else self._value(row)

    def __contains__(self, name: object) -> bool:
        return name in self._set or name in self._new or self._row(str(name)) >= 0

    def _row(self, name: str) -> int:
        place = self.index.places.get(name)
        if place is None:
            place = self.index.look_up((name,))[name]
        if self._first <= place < self._end:
            return place - self._first
        firsts, ends, rows = self._sorted
        i = bisect_right(firsts, place) - 1
        return -1 if i < 0 or place >= ends[i] else rows[i] + place - firsts[i]

    def _value(self, row: int) -> Any:
        flat, width = self._held.flat, self._width
        return flat[row] if width == 1 else (*flat[row * width : (row + 1) * width],)

    def update(self, more: Mapping[str, Any]) -> None:
        """Set the values of these names."""
        self.index.look_up(more)
        for name, value in more.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        (self._set if self._row(name) >= 0 else self._new)[name] = value

    def copy(self) -> Self:
        """Return a copy that shares the arrays."""
        made = copy(self)
        made._set, made._new = self._set.copy(), self._new.copy()
        many = len(self._set) * _FOLDED > len(self._numbers)
        if many and (folded := self._folded()) is not None:
            made._set, made._held = {}, _Numbers(folded)
        return made

    def part(self, first: int, end: int) -> dict[str, Any]:
        """Return the values of the names from the ``first`` one up to ``end``, in order."""
        some: dict[str, Any] = {}
        numbers = self._numbers[first:end]
        if len(numbers):
            names = self._names(first, first + len(numbers))
            values = numbers.tolist() if self._width == 1 else zip(*numbers.T.tolist(), strict=True)
            some = dict(zip(names, values, strict=True))
            if self._set:
                changed = self._set
                some.update([(name, changed[name]) for name in names if name in changed])
        if end > len(self._numbers) and self._new:
            begin = max(first - len(self._numbers), 0)
            some |= [*self._new.items()][begin : end - len(self._numbers)]
        return some

    @property
    def fixed(self) -> int:
        """Number of names of the array, which are the first ones."""
        return len(self._numbers)

    def stretch(self, first: int, end: int) -> tuple[int, Array] | None:
        """Return the position of the ``first`` name of the array, and the numbers up to ``end``.

        None: their positions do not follow each other, or a number is of another type.
        """
        numbers, spans = self._numbers[first:end], self._between(first, end)
        if len(spans) != 1:
            return None
        place = int(spans[0, 0])
        if self._set:
            names = self._names(first, end)
            changed = {i: self._set[name] for i, name in enumerate(names) if name in self._set}
            if not self._fits(changed.values()):
                return None
            numbers = numbers.copy()
            if changed:
                numbers[[*changed]] = [*changed.values()]
        return place, numbers

    def _fits(self, values: Iterable[Any]) -> bool:
        """Whether the array can hold the values as they are."""
        kind = int if self._numbers.dtype == np.int64 else float
        return self._width > 1 or set(map(type, values)) <= {kind}

    def _names(self, first: int, end: int) -> list[str]:
        return self.index.at(self._between(first, end))

    def _between(self, first: int, end: int) -> Array:
        """Return the spans of the names of the array from the ``first`` one up to ``end``."""
        begins = self._begins
        i, j = (int(begins.searchsorted(at, "right")) - 1 for at in (first, end - 1))
        spans = self.spans[i : j + 1].copy()
        if len(spans):
            spans[-1, 1] = spans[-1, 0] + end - begins[j]
            spans[0, 0] += first - begins[i]
        return spans

    def keys(self) -> KeysView[str]:
        """Return all names in their order."""
        return self._made().keys()

    def items(self) -> ItemsView[str, Any]:
        """Return names and values."""
        return self._made().items()

    def values(self) -> ValuesView[Any]:
        """Return all values in the order of their names."""
        return self._made().values()

    def _made(self) -> dict[str, Any]:
        return self.part(0, len(self))

    @property
    def chars(self) -> int:
        """Number of bytes of all names."""
        return self.index.chars(self.spans) + sum(map(len, self._new))

    @property
    def new(self) -> Mapping[str, Any]:
        """The values under names that are not in the array."""
        return self._new

    def _folded(self) -> Array | None:
        """Return the array with what was set; None if not all of it is of the array's type."""
        changed, numbers = self._set, self._numbers
        if not self._fits(changed.values()):
            return None
        made = numbers.copy()
        rows = np.fromiter(map(self._row, changed), dtype=np.int64, count=len(changed))
        made[rows] = np.array([*changed.values()], dtype=numbers.dtype)
        return made

    def numbers(self) -> Array | None:
        """Return all numbers in order; None if they are of several types."""
        if (made := self._folded() if self._set else self._numbers) is None or not self._new:
            return made
        if not self._fits(new := self._new.values()):
            return None
        return np.concatenate((made, np.array([*new], dtype=made.dtype)))


def expect(data: Any, names: Collection[str]) -> None:
    """Look the names up together if the data is in an array: one by one takes ten times as long."""
    if isinstance(data, ArrayMap):
        data.index.look_up(names)


def as_dict(data: Any) -> Any:
    """Return the data, as a dict if it is in an array."""
    return data.part(0, len(data)) if isinstance(data, ArrayMap) else data


def total_chars(data: Mapping[str, Any]) -> int:
    """Return the number of characters of all names; of names in an array, that of their bytes."""
    return data.chars if isinstance(data, ArrayMap) else sum(map(len, data))
