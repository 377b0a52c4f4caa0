"""This module decides which rows a bounded table has: the server alone does, at a version.

A new row is admitted once enough pushes have touched it.  Sights are counted in a sketch (Cormode
and Muthukrishnan 2005, *An improved data stream summary: the count-min sketch*) with a key of its
own, so that nobody finds names that count for each other.  Beyond the bound the rows used least
leave, of some that are looked at, spread over the order of the table: so no push waits for all.  A
use counts a twentieth less each time that a thirty-second of the rows is new.  Half of all sights
are forgotten after as many as there may be rows (Einziger et al. 2017, *TinyLFU*): what is seen
once, and then no more, leaves room for others.

What is not admitted, or has left, is touched, and has no row: so every replica comes to have the
same ids as the server at the same version.  A delta that was begun before its row left is
acknowledged and not added to one that came later: it is a difference to what is not there any more.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from os import urandom
from typing import Final

import numpy as np
import numpy.typing as npt

from paramserver.core.blocks import OPAQUE, ROWS, Block, Blocks, Touched, copy_block
from paramserver.core.ids import IdArray, distinct
from paramserver.core.rows import Rows

KEPT: Final = "kept."
"""Blocks of snapshots whose names begin so are the server's alone."""

TOMBS_MAX: Final = 65_536
"""Rows of which is known when they left."""

_SIGHTS, _RANKS, _AGE = f"{KEPT}sights.", f"{KEPT}ranks.", f"{KEPT}age."
_HASHES: Final = 3
_CELLS: Final = 4  # of a hash, for each row of the table
_SIGHTS_MAX: Final = 255
_MIXED: Final = np.uint64(0x9E3779B97F4A7C15)
_AGES: Final = 32  # in which as many rows come as there may be
_AGED: Final = 0.95  # what a use counts after one of them
_LOOKED: Final = 8  # rows that are looked at for one that leaves
_LOOKED_LEAST: Final = 512
_LEAVE_SHARE: Final = 32  # of the rows leave at once, and that many at most
_LEAVE_MOST: Final = 64
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)  # of the golden ratio: each place, and far apart

_DOUBLE: Final = struct.Struct("<d")
_NO_IDS: Final[IdArray] = np.zeros(0, dtype=np.uint64)
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TableBounds:
    """How many rows a table may have, and how many pushes touch a row before it is one."""

    rows_max: int
    sights: int = 1


class Sights:
    """How many pushes have touched each id, at least.

    Parameters:
        key: Bytes that nobody knows, eight for each hash.
        cells: Counters of each hash: a power of two.

    Attributes:
        since: Sights since half of them were forgotten.
    """

    def __init__(self, key: bytes, cells: int) -> None:
        self._key, self._cells, self.since = key, cells, 0
        self._counts = np.zeros((_HASHES, cells), dtype=np.uint8)
        self._factors = np.frombuffer(key, dtype="<u8") | np.uint64(1)

    def packed(self) -> bytes:
        """All of it as bytes."""
        return self._key + self.since.to_bytes(8, "little") + self._counts.tobytes()

    @classmethod
    def read(cls, data: bytes) -> Sights:
        """One that :meth:`packed` has made."""
        n = 8 * _HASHES
        made = cls(data[:n], (len(data) - n - 8) // _HASHES)
        made.since = int.from_bytes(data[n : n + 8], "little")
        counts = np.frombuffer(data, np.uint8, offset=n + 8)
        made._counts = counts.reshape(_HASHES, -1).copy()
        return made

    def _at(self, ids: IdArray) -> list[npt.NDArray[np.uint64]]:
        shift = np.uint64(64 - (self._cells.bit_length() - 1))
        at = []
        for factor in self._factors:
            mixed = (ids ^ factor) * _MIXED
            mixed ^= mixed >> np.uint64(32)
            at.append((mixed * factor) >> shift)
        return at

    def of(self, ids: IdArray) -> npt.NDArray[np.uint8]:
        """How often each was seen: too often, if others fall together with it."""
        counts = [c[at] for c, at in zip(self._counts, self._at(ids), strict=True)]
        return np.asarray(np.min(counts, axis=0))

    def add(self, ids: IdArray, window: int) -> None:
        """Each was seen once more; half are forgotten if that makes so many since the last time."""
        self.since += len(ids)
        for row, at in zip(self._counts, self._at(ids), strict=True):
            row[at] = np.minimum(row[at], _SIGHTS_MAX - 1) + np.uint8(1)
        if self.since >= window:
            self.since = 0
            self._counts >>= 1


class Keeper:
    """The rows of one server's tables that may stay.

    Parameters:
        kept: Blocks that another one has told of: it goes on from them.
        draw: Makes so many random bytes.

    Attributes:
        waiting, late, left: Rows of deltas that were not added, as their ids were not seen often
            enough; those that were begun before their row had left; rows that had to leave.
    """

    def __init__(
        self, bounds: TableBounds, kept: Blocks, draw: Callable[[int], bytes] = urandom
    ) -> None:
        self._bounds, self._draw = bounds, draw
        self._sights = {n: Sights.read(b.data) for n, b in kept.items() if n.startswith(_SIGHTS)}
        self._ranks = {n: b.data.copy() for n, b in kept.items() if n.startswith(_RANKS)}
        self._ages = {n: _DOUBLE.unpack(b.data)[0] for n, b in kept.items() if n.startswith(_AGE)}
        self._looked = 0
        self._tombs: OrderedDict[tuple[str, int], int] = OrderedDict()
        self.waiting = self.late = self.left = 0

    def blocks(self) -> Blocks:
        """Make the blocks that a snapshot has of it."""
        blocks = {n: Block(OPAQUE, sights.packed()) for n, sights in self._sights.items()}
        blocks |= {n: Block(OPAQUE, _DOUBLE.pack(age)) for n, age in self._ages.items()}
        return blocks | {n: Block(ROWS, ranks.copy()) for n, ranks in self._ranks.items()}

    def track(self) -> None:
        """Know from now on what changes."""
        for ranks in self._ranks.values():
            ranks.track()

    def counts(self, values: Blocks) -> dict[str, int]:
        """Rows that there are, and what became of others since the start."""
        rows = sum(len(block.data) for block in values.values() if block.kind == ROWS)
        return {"rows": rows, "waiting": self.waiting, "late": self.late, "left": self.left}

    def admitted(self, values: Blocks, delta: Blocks, base: int) -> Blocks:
        """The delta without rows that there are none of yet, or no more.  Changes nothing.

        ``base``: version that the delta was begun on.
        """
        out = dict(delta)
        for name, block in delta.items():
            if block.kind == ROWS:
                ids = block.data.ids
                stays = self._stays(name, values.get(name), ids, base)
                if not stays.all():
                    out[name] = Block(ROWS, Rows(ids[stays], block.data.numbers[stays]))
        return out

    def fit(self, values: Blocks, count: int) -> None:
        """Let rows leave tables that have too many from the start, by whoever restores them."""
        for name, block in values.items():
            if block.kind == ROWS and len(block.data) > self._bounds.rows_max:
                values[name] = copy_block(block)
                self._use(name, block.data.ids[:0])
                self._leave(name, values[name].data, count)

    def _stays(self, name: str, table: Block | None, ids: IdArray, base: int) -> _Flags:
        stays = np.zeros(len(ids), bool) if table is None else table.data.has(ids)
        new = np.flatnonzero(~stays)
        stays[new] = ~self._is_late(name, ids[new], base)
        if self._bounds.sights > 1:
            stays[new] &= self._sights_of(name).of(ids[new]) >= self._bounds.sights - 1
        return stays

    def _is_late(self, name: str, ids: IdArray, base: int) -> _Flags:
        tombs = self._tombs
        return np.array([tombs.get((name, i), 0) > base for i in ids.tolist()], dtype=bool)

    def settle(self, values: Blocks, delta: Blocks, base: int, count: int) -> Touched:
        """Count what was pushed, which is in the values of this version, and let rows leave.

        Returns what has no row now, though it was pushed or had one.
        """
        touched: Touched = {}
        for name, block in delta.items():
            if block.kind != ROWS:
                continue
            ids, table = block.data.ids, values[name].data
            known = table.has(ids)
            late = self._is_late(name, ids[~known], base)
            self.late += int(late.sum())
            self.waiting += len(late) - int(late.sum())
            if self._bounds.sights > 1:
                self._sights_of(name).add(ids[~known][~late], self._bounds.rows_max)
            self._use(name, ids[known])
            touched[name] = [ids[~known], self._leave(name, table, count)]
        return touched

    def _use(self, name: str, ids: IdArray) -> None:
        """Each was used once more.

        A rank is the logarithm of the uses, each counted by its age, plus the age of the table: so
        it stays as it is while they count less and less, and ranks compare at any time.
        """
        ranks = self._ranks.setdefault(_RANKS + name, Rows.empty(1))
        rank, known = ranks.get(ids)
        new = _AGES * float(np.count_nonzero(~known)) / self._bounds.rows_max
        age = self._ages[_AGE + name] = self._ages.get(_AGE + name, 0.0) + new
        before = np.where(known, _AGED ** (age - rank[:, 0].astype(np.float64)), 0.0)
        rank[:, 0] = age - np.log1p(before) / math.log(_AGED)
        ranks.put(ids, rank)

    def _leave(self, name: str, table: Rows, count: int) -> IdArray:
        """Let rows leave, if there are too many: the least used of some that are looked at."""
        most = self._bounds.rows_max
        many = len(table) - most
        if many <= 0:
            return _NO_IDS
        many += min(most // _LEAVE_SHARE, _LEAVE_MOST)
        ranks = self._ranks[_RANKS + name]
        some = self._look(table, many)
        rank, known = ranks.get(some)
        size, unused = np.zeros(len(some)), np.flatnonzero(~known)
        if len(unused):  # they were learned before there were ranks: the smallest say least
            numbers, _ = table.get(some[unused])
            size[unused] = np.square(numbers, dtype=np.float64).sum(axis=1)
        order = np.lexsort((some, size, np.where(known, rank[:, 0], -np.inf)))
        gone = some[order[:many]].copy()
        table.drop(gone)
        ranks.drop(gone)
        self.left += len(gone)
        self._tombs.update(dict.fromkeys(((name, i) for i in gone.tolist()), count))
        while len(self._tombs) > TOMBS_MAX:
            self._tombs.popitem(last=False)
        return gone

    def _look(self, table: Rows, many: int) -> IdArray:
        """Some times as many rows as are to leave, from all over the table; or all of them."""
        wanted, span = max(_LOOKED * many, _LOOKED_LEAST), table.end - table.begin
        if 2 * wanted >= span:
            return table.ids
        steps = np.arange(self._looked, self._looked + 2 * wanted, dtype=np.uint64)
        self._looked += 2 * wanted
        places = ((steps * _SPREAD) >> np.uint64(32)) * np.uint64(span) >> np.uint64(32)
        some = table.ids_at(distinct(places).astype(np.int64) + table.begin)
        return some if len(some) >= many else table.ids

    def _sights_of(self, name: str) -> Sights:
        found = self._sights.get(_SIGHTS + name)
        if found is None:
            cells = 1 << (_CELLS * self._bounds.rows_max - 1).bit_length()
            found = self._sights[_SIGHTS + name] = Sights(self._draw(8 * _HASHES), cells)
        return found


def taken_out(values: Blocks) -> Blocks:
    """Take what a :class:`Keeper` has told of out of a snapshot's values."""
    return {name: values.pop(name) for name in list(values) if name.startswith(KEPT)}
