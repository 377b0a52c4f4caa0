"""A hash table from 64-bit ids to row numbers, vectorised over arrays of ids.

Ids are numbered in the order in which they are added, and are never removed.  A table and its
copies share one numbering; each of them records itself which numbers it has rows for.

Collisions are resolved by linear probing from a home slot, the id times a random odd factor.  The
factor is drawn once per process, like Python's string hash seed, so that nobody can choose ids that
collide.  It affects only the time that a look-up takes.

When half of the slots are taken, an array of twice the size is allocated, and each later batch
moves some of the old slots into it, in their order, so that no batch waits for the whole move.
Ids whose home slot lies before the point reached are in the new array, the others in the old one.
"""

from __future__ import annotations

import os
from threading import Lock
from typing import Any, Final, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from paramserver.core.tables.memory import OF_PROCESS, Memory

IdArray = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
_Number = TypeVar("_Number", bound=np.integer[Any])
Slots = npt.NDArray[np.int32]
_Marks = npt.NDArray[np.int32]

_FACTOR: Final = np.uint64(int.from_bytes(os.urandom(8), "little") | 1)
_BITS_LEAST: Final = 6
_MOVED_LEAST: Final = 256
_MOVED: Final = 8  # slots moved for each id that is added
_TAIL: Final = 1024  # slots after the last home slot, so that probing need not wrap around
_RESERVED_LEAST: Final = 2**20
_RESERVED: Final = 16  # growth factor of the id array: memory pages not yet touched cost nothing

_NUMBER_BITS: Final = 31
_AT_ONCE: Final = 65_536  # ids that are laid out without parts that fit into the CPU cache
_BLOCK: Final = 2**20  # ids that are sorted into parts at a time
_PART_BITS: Final = 17  # slots of a part, which are 512 kB; more in tables of more than 2**25 slots

ROWS_MAX: Final = 2**_NUMBER_BITS - 1
"""Greatest number of ids."""


class IdArrays(NamedTuple):
    """The arrays of a numbering at one moment; ids that are added later do not change what it says.

    Attributes:
        ids: At least the ids that there are, by number.
        slots, coming, moved: The slots, those of twice the size that are being filled (None: none
            are), and the number of the old ones that have been moved.
        factor: The factor that places the ids.
    """

    ids: IdArray
    slots: Slots
    coming: Slots | None
    moved: int
    factor: int


class Ids:
    """Numbers ids 0, 1, 2 … in the order in which they are added.

    Parameters:
        ids: The first ids, each once.
    """

    def __init__(self, ids: IdArray) -> None:
        self.count = len(ids)
        self._ids = ids
        self._memory, self._factor, self._fixed = OF_PROCESS, _FACTOR, False
        self._slots: Slots | None = None  # number + 1; 0: free.  Built at the first look-up
        self._next: Slots | None = None
        self._moved = 0
        self._lock = Lock()  # held while the array of ids is replaced

    @classmethod
    def read_only(cls, arrays: IdArrays, count: int) -> Self:
        """Return a numbering of the first ``count`` ids, at least one, that is never added to.

        Another process may go on adding ids to the same arrays.
        """
        made = cls(arrays.ids[:count])
        made._slots, made._next, made._moved = arrays.slots, arrays.coming, arrays.moved
        made._factor, made._fixed = np.uint64(arrays.factor), True
        return made

    def arrays(self) -> IdArrays:
        """Return the arrays as they are now; nobody may add ids meanwhile."""
        slots = self._built()
        return IdArrays(self._ids, slots, self._next, self._moved, int(self._factor))

    def move(self, memory: Memory) -> None:
        """Continue in arrays of another memory; nobody may add ids meanwhile."""
        with self._lock:
            self._memory = memory
            self._ids = self._with_room(self.count)
            self._slots = self._slots if self._slots is None else self._placed(self._slots)
            self._next = self._next if self._next is None else self._placed(self._next)

    def _placed(self, slots: Slots) -> Slots:
        """Return the slots in the memory that is used."""
        if self._memory is OF_PROCESS:
            return slots
        placed = self._memory.zeros(len(slots), np.int32)
        placed[:] = slots
        return placed

    def _with_room(self, n: int) -> IdArray:
        """Return a larger array with the ids so far, of which ``n`` ids and more can be used."""
        made = self._memory.empty((max(_RESERVED * n, _RESERVED_LEAST),), np.uint64, n)
        made[: self.count] = self._ids[: self.count]
        return made

    def detach(self) -> None:
        """Copy the ids into newly allocated memory; others may use them meanwhile."""
        mapped = self._ids
        copied = mapped.copy()
        with self._lock:
            if self._ids is mapped:
                self._ids = copied

    def first(self, n: int) -> IdArray:
        """Return the first ``n`` ids as a view that must not be changed."""
        return self._ids[:n]

    def find(self, ids: IdArray, below: int) -> Numbers:
        """Return the number of each id, or -1 if it has no number less than ``below``."""
        slots = self._built()
        if self._next is None:
            return self._found(slots, ids, below)
        moved = _home(slots, ids, self._factor) < self._moved
        numbers: Numbers = np.empty(len(ids), dtype=np.int64)
        for mine, among in ((moved, self._next), (~moved, slots)):
            numbers[mine] = self._found(among, ids[mine], below)
        return numbers

    def add(self, ids: IdArray) -> None:
        """Number more ids, each given once and none known yet."""
        n = len(ids)
        if self.count + n >= ROWS_MAX:
            raise MemoryError(f"{self.count + n} rows in one table, at most {ROWS_MAX}")
        slots = self._built()
        end = self.count + n
        if end > len(self._ids) or not self._memory.reserve(self._ids, end):
            with self._lock:
                self._ids = self._with_room(end)
        self._ids[self.count : self.count + n] = ids
        numbers = np.arange(self.count, self.count + n)
        if 4 * (self.count + n) > 3 * _homes(slots):  # too many to move step by step
            self.count += n
            slots = self._placed(_laid_out(self._ids[: self.count]))
            self._slots, self._next, self._moved = slots, None, 0
            return
        if self._next is None and 2 * (self.count + n) > _homes(slots):
            self._next = self._memory.zeros(2 * _homes(slots) + _TAIL, np.int32)
        if self._next is not None:
            moved = _home(slots, ids) < self._moved
            _insert(self._next, _home(self._next, ids[moved]), _marks(numbers[moved]))
            ids, numbers = ids[~moved], numbers[~moved]
        _insert(slots, _home(slots, ids), _marks(numbers))
        self.count += n
        if self._next is not None:
            self._move(self._next, slots, max(_MOVED * n, _MOVED_LEAST))

    def _move(self, into: Slots, old: Slots, n: int) -> None:
        """Move about ``n`` more slots, up to a free one, so that no run of probes is split."""
        end = min(self._moved + n, len(old))
        while end < len(old) and old[end - 1]:
            end += 1
        numbers = old[self._moved : end].astype(np.int64) - 1
        numbers = numbers[numbers >= 0]
        _insert(into, _home(into, self._ids[numbers]), _marks(numbers))
        self._moved = end
        if end == len(old):
            self._slots, self._next, self._moved = into, None, 0

    def lay_out(self) -> None:
        """Build the slots now, so that the first look-up need not."""
        self._built()

    def _built(self) -> Slots:
        if self._slots is None:
            self._slots = self._placed(_laid_out(self._ids[: self.count]))
        return self._slots

    def _found(self, slots: Slots, ids: IdArray, below: int) -> Numbers:
        """Probe for all ids at once, slot by slot; ids that are decided drop out."""
        known = self._ids
        at = _home(slots, ids, self._factor)
        held = self._held(slots, at)
        if not len(known):
            return held
        other = known[held] != ids  # at a free slot (-1) this compares the last id: ignored below
        numbers: Numbers = held.copy()
        numbers[other | (held >= below)] = -1
        left = (other & (held >= 0)).nonzero()[0]
        at, ids = at[left], ids[left]
        while len(left):
            at += 1
            held = self._held(slots, at)
            taken = held >= 0
            same = taken & (known[held] == ids)
            hit = same & (held < below)
            numbers[left[hit]] = held[hit]
            on = taken & ~same
            left, at, ids = left[on], at[on], ids[on]
        return numbers

    def _held(self, slots: Slots, at: Numbers) -> Numbers:
        """Return the numbers in these slots; -1: free."""
        held = slots.take(at).astype(np.int64)
        held -= 1
        if self._fixed:  # another process has added ids: such a slot stands for the last one here
            np.minimum(held, self.count - 1, out=held)
        return held


def distinct(numbers: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """Return the sorted unique numbers, in a quarter of the time of ``np.unique``."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def _free(homes: int) -> Slots:
    """Return empty slots: ``homes`` home slots (a power of two) and the tail after them."""
    return np.zeros(homes + _TAIL, dtype=np.int32)


def _homes(slots: Slots) -> int:
    return len(slots) - _TAIL


def _home(slots: Slots, ids: IdArray, factor: np.uint64 = _FACTOR) -> Numbers:
    """Return the home slot of each id.  In an array of twice the size h becomes 2h or 2h + 1."""
    home = ids * factor
    home >>= np.uint64(64 - (_homes(slots).bit_length() - 1))
    return home.view(np.int64)


def _insert(slots: Slots, at: Numbers, marks: _Marks) -> None:
    """Insert ids into their slots; of ids that probe the same free slot one gets it.

    Parameters:
        at: Home slot of each id.
        marks: Number of each id, plus 1.
    """
    while len(at):
        free = np.flatnonzero(slots.take(at) == 0)  # ``take`` needs two thirds of an index's time
        slots[at.take(free)] = marks.take(free)
        on = np.flatnonzero(slots.take(at) != marks)
        at, marks = at.take(on) + 1, marks.take(on)


def _marks(numbers: Numbers) -> _Marks:
    return (numbers + 1).astype(np.int32)


def _laid_out(ids: IdArray) -> Slots:
    """Return the slots for all ids, filled in parts that fit into the CPU cache."""
    slots = _free(1 << max(int(2 * len(ids) - 1).bit_length(), _BITS_LEAST))
    if len(ids) <= _AT_ONCE:
        _insert(slots, _home(slots, ids), _marks(np.arange(len(ids))))
        return slots
    bits = _homes(slots).bit_length() - 1
    shift = max(min(_PART_BITS, bits - 1), bits - 8)  # at most 256 parts
    for begin in range(0, len(ids), _BLOCK):  # with a block at a time memory is used again
        homes = _home(slots, ids[begin : begin + _BLOCK])
        part = (homes >> shift).astype(np.uint8)
        order = np.argsort(part, kind="stable")  # a radix sort, because the keys are single bytes
        ends = np.bincount(part).cumsum()[:-1]
        homes, marks = homes.take(order), _marks(order + begin)
        for some in zip(np.split(homes, ends), np.split(marks, ends), strict=True):
            _insert(slots, *some)
    return slots
