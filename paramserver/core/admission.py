"""Admission to and eviction from tables of bounded size.  Only the server decides on them.

A new row is admitted once enough pushes have touched its id.  The sightings of each id are counted
in a count-min sketch (Cormode and Muthukrishnan 2005, *An improved data stream summary: the
count-min sketch*) with a secret key, so that nobody can choose names that collide.  All counts are
halved after as many sightings as the table may have rows (Einziger et al. 2017, *TinyLFU*), so
that ids that are no longer seen make room for others.

Beyond the bound the least used rows are evicted, out of a sample spread over the table, so that no
push scans all rows.  The weight of a use decays by a twentieth each time that new rows amounting
to a thirty-second of the bound have come.

An id that is not admitted or was evicted is reported as touched and has no row, so every replica
has the same ids as the server at the same version.  A delta that began before its row was evicted
is acknowledged but not added to a newer row of the same id: it is a difference to numbers that no
longer exist.
"""

from __future__ import annotations

import math
import struct
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import urandom
from typing import Final

import numpy as np
import numpy.typing as npt

from paramserver.core.blocks import OPAQUE, ROWS, Block, Blocks, Touched, copy_block
from paramserver.core.tables.ids import IdArray, distinct
from paramserver.core.tables.rows import Rows

KEPT: Final = "kept."
"""Prefix of the names of blocks in snapshots that only the server uses."""

TOMBS_MAX: Final = 65_536
"""Number of evicted rows whose time of eviction is remembered."""

_SIGHTS, _RANKS, _AGE = f"{KEPT}sights.", f"{KEPT}ranks.", f"{KEPT}age."
_HASHES: Final = 3
_CELLS: Final = 4  # counters per hash function, for each row of the table
_SIGHTS_MAX: Final = 255
_MIXED: Final = np.uint64(0x9E3779B97F4A7C15)
_AGES: Final = 32  # a table ages by this much while rows_max new rows come
_AGED: Final = 0.95  # weight of a use after one unit of age
_LOOKED: Final = 8  # rows sampled for each row to evict
_LOOKED_LEAST: Final = 512
_LEAVE_SHARE: Final = 32  # besides the excess, rows_max / 32 rows are evicted, at most 64
_LEAVE_MOST: Final = 64
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)  # golden-ratio steps visit all places, far apart

_DOUBLE: Final = struct.Struct("<d")
_NO_IDS: Final[IdArray] = np.zeros(0, dtype=np.uint64)
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TableBounds:
    """The greatest number of rows of a table, and the pushes with an id before it gets a row."""

    rows_max: int
    sights: int = 1


class SightingSketch:
    """A count-min sketch of how many pushes have touched each id.

    Parameters:
        key: Secret random bytes, eight for each hash function.
        cells: Number of counters for each hash function, a power of two.

    Attributes:
        since: Sightings since the counts were halved last.
    """

    def __init__(self, key: bytes, cells: int) -> None:
        self._key, self._cells, self.since = key, cells, 0
        self._counts = np.zeros((_HASHES, cells), dtype=np.uint8)
        self._factors = np.frombuffer(key, dtype="<u8") | np.uint64(1)

    def packed(self) -> bytes:
        """Return the sketch as bytes."""
        return self._key + self.since.to_bytes(8, "little") + self._counts.tobytes()

    @classmethod
    def read(cls, data: bytes) -> SightingSketch:
        """Return the sketch that :meth:`packed` encoded."""
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
        """Return an upper bound on how often each id was seen; collisions make it too high."""
        counts = [c[at] for c, at in zip(self._counts, self._at(ids), strict=True)]
        return np.asarray(np.min(counts, axis=0))

    def add(self, ids: IdArray, window: int) -> None:
        """Count one sighting of each id; halve all counts after ``window`` sightings."""
        self.since += len(ids)
        for row, at in zip(self._counts, self._at(ids), strict=True):
            row[at] = np.minimum(row[at], _SIGHTS_MAX - 1) + np.uint8(1)
        if self.since >= window:
            self.since = 0
            self._counts >>= 1


class Keeper:
    """Decides which rows the tables of one server admit and which they evict.

    Parameters:
        kept: Blocks from :meth:`blocks` of the keeper that this one continues.
        draw: Returns the given number of random bytes.

    Attributes:
        waiting: Rows of deltas that were not added because their ids were not seen often enough.
        late: Rows of deltas that were not added because they began before the row was evicted.
        left: Rows evicted.
    """

    def __init__(
        self, bounds: TableBounds, kept: Blocks, draw: Callable[[int], bytes] = urandom
    ) -> None:
        self._bounds, self._draw = bounds, draw
        self._sights = {
            n: SightingSketch.read(b.data) for n, b in kept.items() if n.startswith(_SIGHTS)
        }
        self._ranks = {n: b.data.copy() for n, b in kept.items() if n.startswith(_RANKS)}
        self._ages = {n: _DOUBLE.unpack(b.data)[0] for n, b in kept.items() if n.startswith(_AGE)}
        self._looked = 0
        self._tombs: OrderedDict[tuple[str, int], int] = OrderedDict()
        self.waiting = self.late = self.left = 0

    def blocks(self) -> Blocks:
        """Return the keeper's state as blocks for a snapshot."""
        blocks = {n: Block(OPAQUE, sights.packed()) for n, sights in self._sights.items()}
        blocks |= {n: Block(OPAQUE, _DOUBLE.pack(age)) for n, age in self._ages.items()}
        return blocks | {n: Block(ROWS, ranks.copy()) for n, ranks in self._ranks.items()}

    def track(self) -> None:
        """Start to record which ranks change."""
        for ranks in self._ranks.values():
            ranks.track()

    def counts(self, values: Blocks) -> dict[str, int]:
        """Return the present number of rows and the counters since the start."""
        rows = sum(len(block.data) for block in values.values() if block.kind == ROWS)
        return {"rows": rows, "waiting": self.waiting, "late": self.late, "left": self.left}

    def admitted(self, values: Blocks, delta: Blocks, base: int) -> Blocks:
        """Return the delta without rows that are not admitted.  Changes nothing.

        Parameters:
            base: Version count that the delta was begun on.
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
        """Evict rows from restored tables that exceed the bound."""
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
        """Count the ids of a push that was just merged into ``values``, and evict rows.

        Parameters:
            delta: The push before :meth:`admitted`.
            base: Version count that the delta was begun on.
            count: Version count after the push.

        Returns:
            Ids without a row now that were pushed or evicted.
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
        """Count one use of each id.

        A rank is the logarithm of the decayed number of uses plus the age of the table.  So a rank
        need not change while its uses decay, and ranks can be compared at any time.
        """
        ranks = self._ranks.setdefault(_RANKS + name, Rows.empty(1))
        rank, known = ranks.get(ids)
        new = _AGES * float(np.count_nonzero(~known)) / self._bounds.rows_max
        age = self._ages[_AGE + name] = self._ages.get(_AGE + name, 0.0) + new
        before = np.where(known, _AGED ** (age - rank[:, 0].astype(np.float64)), 0.0)
        rank[:, 0] = age - np.log1p(before) / math.log(_AGED)
        ranks.put(ids, rank)

    def _leave(self, name: str, table: Rows, count: int) -> IdArray:
        """If there are too many rows, evict the least used ones of a sample; return their ids."""
        most = self._bounds.rows_max
        many = len(table) - most
        if many <= 0:
            return _NO_IDS
        many += min(most // _LEAVE_SHARE, _LEAVE_MOST)
        ranks = self._ranks[_RANKS + name]
        some = self._look(table, many)
        rank, known = ranks.get(some)
        size, unused = np.zeros(len(some)), np.flatnonzero(~known)
        if len(unused):  # learned before ranks existed: evict those with the smallest norm first
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
        """Return a sample of ids from all over the table; of a small table, all ids."""
        wanted, span = max(_LOOKED * many, _LOOKED_LEAST), table.end - table.begin
        if 2 * wanted >= span:
            return table.ids
        steps = np.arange(self._looked, self._looked + 2 * wanted, dtype=np.uint64)
        self._looked += 2 * wanted
        places = ((steps * _SPREAD) >> np.uint64(32)) * np.uint64(span) >> np.uint64(32)
        some = table.ids_at(distinct(places).astype(np.int64) + table.begin)
        return some if len(some) >= many else table.ids

    def _sights_of(self, name: str) -> SightingSketch:
        sketch = self._sights.get(_SIGHTS + name)
        if sketch is None:
            cells = 1 << (_CELLS * self._bounds.rows_max - 1).bit_length()
            sketch = self._sights[_SIGHTS + name] = SightingSketch(self._draw(8 * _HASHES), cells)
        return sketch


def joined_ranks(parts: Sequence[Blocks]) -> Blocks:
    """Join the ranks of the rows of several servers' tables, without what these have sighted.

    A table's rows have ranks on top of its age, so those of a younger one are raised to the oldest.
    """
    ages, ranks = dict[str, float](), dict[str, Rows]()
    for name, block in ((n, b) for part in parts for n, b in part.items() if n.startswith(_AGE)):
        ages[name] = max(ages.get(name, 0.0), _DOUBLE.unpack(block.data)[0])
    for part in parts:
        for name, block in part.items():
            if name.startswith(_RANKS):
                own = _AGE + name.removeprefix(_RANKS)
                mine = part.get(own)
                younger = ages.get(own, 0.0) - (_DOUBLE.unpack(mine.data)[0] if mine else 0.0)
                joined = ranks.setdefault(name, Rows.empty(1))
                joined.put(block.data.ids, block.data.numbers + np.float32(younger))
    blocks = {name: Block(OPAQUE, _DOUBLE.pack(age)) for name, age in ages.items()}
    return blocks | {name: Block(ROWS, rows) for name, rows in ranks.items()}


def taken_out(values: Blocks) -> Blocks:
    """Remove the blocks of a :class:`Keeper` from a snapshot's values; return them."""
    return {name: values.pop(name) for name in list(values) if name.startswith(KEPT)}
