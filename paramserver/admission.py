"""This module decides which rows a bounded table has: the server alone does, at a version.

A new row is admitted once enough pushes have touched it.  Sights are counted in a sketch (Cormode
and Muthukrishnan 2005, *An improved data stream summary: the count-min sketch*) with a key of its
own, so that nobody finds names that count for each other.  Beyond the bound the rows that were used
least leave, those that were used longest ago first; what was used counts less with each time that
rows leave.  Half of all sights are forgotten after as many as there may be rows (Einziger et al.
2017, *TinyLFU*): what is seen once, and then no more, leaves room for others.

What is not admitted, or has left, is touched, and has no row: so every replica comes to have the
same ids as the server at the same version.  A delta that was begun before its row left is
acknowledged and not added to one that came later: it is a difference to what is not there any more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from os import urandom
from typing import Final

import numpy as np
import numpy.typing as npt

from paramserver.blocks import OPAQUE, ROWS, Block, Blocks, Touched, copy_block
from paramserver.ids import IdArray
from paramserver.rows import Rows

KEPT: Final = "kept."
"""Blocks of snapshots whose names begin so are the server's alone."""

TOMBS_MAX: Final = 65_536
"""Rows of which is known when they left."""

_SIGHTS, _USES = f"{KEPT}sights.", f"{KEPT}uses."
_HASHES: Final = 3
_CELLS: Final = 4  # of a hash, for each row of the table
_SIGHTS_MAX: Final = 255
_MIXED: Final = np.uint64(0x9E3779B97F4A7C15)
_LEAVE_SHARE: Final = 32  # of the rows leave at once
_AGED: Final = np.float32(0.9)  # what a use counts after that
_LAST: Final = 2.0**24  # more than a version is told by

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

    def told(self) -> bytes:
        """All of it as bytes."""
        return self._key + self.since.to_bytes(8, "little") + self._counts.tobytes()

    @classmethod
    def read(cls, data: bytes) -> Sights:
        """One that :meth:`told` has told of."""
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
        self._sights = {n: Sights.read(b.data) for n, b in kept.items() if b.kind == OPAQUE}
        self._uses = {n: b.data.copy() for n, b in kept.items() if b.kind == ROWS}
        self._tombs: OrderedDict[tuple[str, int], int] = OrderedDict()
        self.waiting = self.late = self.left = 0

    def blocks(self) -> Blocks:
        """Make the blocks that a snapshot has of it."""
        told = {n: Block(OPAQUE, sights.told()) for n, sights in self._sights.items()}
        return told | {n: Block(ROWS, uses.copy()) for n, uses in self._uses.items()}

    def track(self) -> None:
        """Know from now on what changes."""
        for uses in self._uses.values():
            uses.track()

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
                self._use(name, block.data.ids[:0], count)
                self._leave(name, values[name].data, count)

    def _stays(self, name: str, table: Block | None, ids: IdArray, base: int) -> _Flags:
        stays = np.zeros(len(ids), bool) if table is None else table.data.has(ids)
        new = np.flatnonzero(~stays)
        seen = self._sights_of(name).of(ids[new]) >= self._bounds.sights - 1
        stays[new] = seen & ~self._is_late(name, ids[new], base)
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
            self._sights_of(name).add(ids[~known][~late], self._bounds.rows_max)
            self._use(name, ids[known], count)
            touched[name] = [ids[~known], self._leave(name, table, count)]
        return touched

    def _use(self, name: str, ids: IdArray, count: int) -> None:
        uses = self._uses.setdefault(_USES + name, Rows.empty(2))
        rows, _ = uses.get(ids)
        rows[:, 0] += 1.0
        rows[:, 1] = count % _LAST
        uses.put(ids, rows)

    def _leave(self, name: str, table: Rows, count: int) -> IdArray:
        """Let the least used rows leave, if there are too many."""
        most, ids = self._bounds.rows_max, table.ids
        if len(ids) <= most:
            return ids[:0]
        uses = self._uses[_USES + name]
        used, _ = uses.get(ids)
        size, unused = np.zeros(len(ids)), np.flatnonzero(used[:, 0] == 0)
        if len(unused):  # they were learned before there were uses: the smallest say least
            numbers, _ = table.get(ids[unused])
            size[unused] = np.square(numbers, dtype=np.float64).sum(axis=1)
        order = np.lexsort((ids, size, used[:, 1], used[:, 0]))
        gone = ids[order[: len(ids) - most + most // _LEAVE_SHARE]].copy()
        table.drop(gone)
        uses.drop(gone)
        kept, numbers = uses.ids.copy(), uses.numbers
        numbers[:, 0] *= _AGED
        uses.put(kept, numbers)
        self.left += len(gone)
        self._tombs.update(dict.fromkeys(((name, i) for i in gone.tolist()), count))
        while len(self._tombs) > TOMBS_MAX:
            self._tombs.popitem(last=False)
        return gone

    def _sights_of(self, name: str) -> Sights:
        found = self._sights.get(_SIGHTS + name)
        if found is None:
            cells = 1 << (_CELLS * self._bounds.rows_max - 1).bit_length()
            found = self._sights[_SIGHTS + name] = Sights(self._draw(8 * _HASHES), cells)
        return found


def taken_out(values: Blocks) -> Blocks:
    """Take what a :class:`Keeper` has told of out of a snapshot's values."""
    return {name: values.pop(name) for name in list(values) if name.startswith(KEPT)}
