"""Tables of a factorization machine: one line of numbers for each hashed feature.

A line has the learned sums of a feature, followed by the initial values of its vector.  The initial
values are not stored: they are drawn from the seed and the key.  Two classes with the same methods
hold lines.  :class:`NamedLines` has a dict, and one block for each column.  :class:`TableLines` has
a float32 table, one block of kind ``rows``, and keeps in a dict only the lines in use.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from online.models.errors import StateNotFinite
from paramserver.core.blocks import ADDITIVE, ROWS, Block, Blocks
from paramserver.core.tables.layered import LayeredRows, on_top_of
from paramserver.core.tables.pages import Floats32
from paramserver.core.tables.row_message import HALF
from paramserver.core.tables.rows import Rows

Floats = npt.NDArray[np.float64]
_Flags = npt.NDArray[np.bool_]

BIAS: Final = "bias"
"""The key of the intercept, which has no vector."""

TABLE: Final = "table"
"""Name of the block of a table."""

_BIAS_ID: Final = 2**64 - 1  # hashed features are below 2^31
_HOT_MAX: Final = 16_384  # lines that stay in the cache after a cut


class Starts:
    """The initial vectors: uniform pseudorandom numbers, the same in each process; 0 for the bias.

    ``k`` is the length of a vector, ``deviation`` the standard deviation.
    """

    def __init__(self, seed: int, k: int, deviation: float) -> None:
        self._seed, self.k, self._deviation = seed, k, deviation

    def of(self, key: str) -> Floats:
        """Return the initial vector of one feature."""
        if key == BIAS:
            return np.zeros(self.k)
        return first_vector(self._seed, key, self.k, self._deviation)


def first_vector(seed: int, key: str, k: int, deviation: float) -> Floats:
    """Return a feature's initial vector of ``k`` uniform numbers, the same in each process."""
    drawn = hashlib.shake_128(f"{seed}\0{key}".encode()).digest(4 * k)
    shares = np.frombuffer(drawn, dtype="<u4").astype(np.float64) / 2.0**32
    return np.asarray((shares - 0.5) * (math.sqrt(12.0) * deviation))


class NamedLines:
    """Lines in a dict by key, with their values before the first change since the cut.

    Parameters:
        names: Names of the learned columns; each is a block.
        starts: The initial vectors, which follow the learned columns in a line.
    """

    def __init__(self, names: Sequence[str], starts: Starts) -> None:
        self._names, self._starts, self._learned = names, starts, len(names)
        self._columns = {name: i for i, name in enumerate(names)}
        self._now: dict[str, Floats] = {}
        self._start: dict[str, Floats] = {}

    def held(self, keys: Sequence[str]) -> tuple[Floats, _Flags]:
        """Return the line of each key, and which of them were learned.  Changes no state."""
        known = np.array([key in self._now for key in keys])
        return np.array([self._line(key) for key in keys]), known

    def put(self, keys: Sequence[str], lines: Floats, before: Floats) -> None:
        """Store lines after a learning step; ``before`` has them as they were before it."""
        for key, line, old in zip(keys, lines, before, strict=True):
            if (line != old).any():
                if key not in self._start:
                    self._start[key] = old[: self._learned].copy()
                self._now[key] = line.copy()

    def _line(self, key: str) -> Floats:
        line = self._now.get(key)
        if line is not None:
            return line
        return np.concatenate((np.zeros(self._learned), self._starts.of(key)))

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        out: dict[str, dict[str, float]] = {}
        for key, start in self._start.items():
            delta = (self._now[key][: self._learned] - start).tolist()
            for name, change in zip(self._names, delta, strict=True):
                if change != 0.0:
                    out.setdefault(name, {})[key] = change
        self._start = {}
        return {name: Block(ADDITIVE, data) for name, data in out.items()}

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top; blocks with other names are ignored."""
        for name, block in values.items():
            if (column := self._columns.get(name)) is not None:
                self._take(column, block.data.items())

    def _take(self, column: int, values: Iterable[tuple[str, float]]) -> None:
        for key, value in values:
            line = self._now.get(key)
            if line is None:
                line = self._now[key] = self._line(key)
            start = self._start.get(key)
            if start is None:
                line[column] = value
            elif value != start[column]:
                line[column] = value + (line[column] - start[column])
                start[column] = value

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._now, self._start = {}, {}
        self.rebase(values)


class TableLines:
    """Lines as rows of a float32 table, with a cache of those that were learned recently.

    The table has the values of the last cut.  Changes since then are kept apart, in float32, and a
    line is the sum of both: so the delta that is sent is, bit for bit, what was learned.  A line
    whose sums are all 0 counts as not learned.

    After :meth:`round_from` the last columns of a delta are rounded to float16.  The table then has
    what was sent, and the line's *rest*, what rounding has left over, is a change since the cut
    again: it is sent with the next change of its line (error feedback, Seide et al. 2014, *1-bit
    stochastic gradient descent*).  Only lines in the cache have a rest.

    Parameters:
        learned: Number of learned columns, which the table has.
        starts: The initial vectors, which follow the learned columns in a line.
    """

    def __init__(self, learned: int, starts: Starts) -> None:
        self._learned, self._starts = learned, starts
        self._table: Rows | LayeredRows = Rows.empty(learned)
        self._rounded = 0  # columns, the last ones
        self._forget_hot()

    def round_from(self, column: int) -> None:
        """Round the columns from this one on in deltas; call it before any line is learned."""
        self._rounded = self._learned - column
        self._forget_hot()

    def _forget_hot(self) -> None:
        self._hot: dict[int, int] = {}  # id → index in the arrays below
        self._ids = np.zeros(0, dtype=np.uint64)
        self._base = np.zeros((0, self._learned), dtype=np.float32)
        self._moved = np.zeros((0, self._learned), dtype=np.float32)
        self._rest = np.zeros((0, self._rounded), dtype=np.float32)  # as it was at the cut
        self._first = np.zeros((0, self._starts.k))
        self._open: dict[int, None] = {}

    def held(self, keys: Sequence[str]) -> tuple[Floats, _Flags]:
        """Return the line of each key, and which of them were learned.  Changes no state."""
        n, get = self._learned, self._hot.get
        ids = [id_of(key) for key in keys]
        hot = np.array([get(i, -1) for i in ids], dtype=np.int64)
        out = np.empty((len(keys), n + self._starts.k))
        cold = np.flatnonzero(hot < 0).tolist()
        if not cold:
            out[:, :n], out[:, n:] = self._base[hot] + self._moved[hot], self._first[hot]
            return out, _learned(out[:, :n])
        if len(cold) < len(keys):
            at = np.flatnonzero(hot >= 0)
            there = hot[at]
            out[at, :n], out[at, n:] = self._base[there] + self._moved[there], self._first[there]
        out[cold, :n], _ = self._table.get(np.array([ids[i] for i in cold], dtype=np.uint64))
        out[cold, n:] = [self._starts.of(keys[i]) for i in cold]
        return out, _learned(out[:, :n])

    def put(self, keys: Sequence[str], lines: Floats, before: Floats) -> None:
        """Store lines after a learning step; ``before`` has them as they were before it.

        Raises StateNotFinite if a float32 can't hold them, without a change of state.
        """
        n, hot = self._learned, self._hot
        changed = np.flatnonzero((lines != before).any(axis=1)).tolist()
        ids = [id_of(keys[i]) for i in changed]
        if fresh := [(i, at) for i, at in zip(ids, changed, strict=True) if i not in hot]:
            self._warm([i for i, _ in fresh], before[[at for _, at in fresh]])
        at = np.array([hot[i] for i in ids], dtype=np.int64)
        with np.errstate(over="ignore", invalid="ignore"):
            moved = self._moved[at] + (lines[changed, :n] - before[changed, :n]).astype(np.float32)
            total = float((self._base[at] + moved).sum(dtype=np.float64))
        if not math.isfinite(total):
            raise StateNotFinite(total)
        self._moved[at] = moved
        self._open.update(dict.fromkeys(at.tolist()))

    def _warm(self, ids: Sequence[int], lines: Floats) -> None:
        """Put lines into the cache that did not change since the cut."""
        begin, end = len(self._hot), len(self._hot) + len(ids)
        if end > len(self._base):
            self._widen(2 * end)
        self._hot.update(zip(ids, range(begin, end), strict=True))
        self._ids[begin:end] = ids
        self._base[begin:end] = lines[:, : self._learned]
        self._moved[begin:end] = 0.0
        self._rest[begin:end] = 0.0
        self._first[begin:end] = lines[:, self._learned :]

    def _widen(self, n: int) -> None:
        for name in ("_ids", "_base", "_moved", "_rest", "_first"):
            held = getattr(self, name)
            wider = np.zeros((n, *held.shape[1:]), dtype=held.dtype)
            wider[: len(held)] = held
            setattr(self, name, wider)

    def cut(self) -> Blocks:
        """Return the open delta and empty it."""
        at = np.fromiter(self._open, dtype=np.int64, count=len(self._open))
        at = at[self._moved[at].any(axis=1)]
        self._open = {}
        if not len(at):
            return {}
        delta, rounded = self._to_send(self._moved[at])
        self._moved[at] -= delta  # exact: the difference has no more digits than the change had
        self._rest[at] = self._moved[at, self._learned - self._rounded :]
        if not (sent := delta.any(axis=1)).all():
            at, delta = at[sent], delta[sent]
        if not len(at):
            return {}
        ids = self._ids[at]
        self._base[at] += delta
        self._table.put(ids, self._base[at])
        if len(self._hot) > _HOT_MAX:
            self._forget_hot()
        rows = Rows(ids, delta)
        rows.rounded = rounded
        return {TABLE: Block(ROWS, rows)}

    def _to_send(self, moved: Floats32) -> tuple[Floats32, int]:
        """Return what is sent of changes, and how many columns of it have float16 numbers.

        Nothing is rounded if one of them would be infinite.
        """
        if not self._rounded:
            return moved, 0
        exact, delta = self._learned - self._rounded, moved.copy()
        with np.errstate(over="ignore"):
            delta[:, exact:] = moved[:, exact:].astype(HALF)
        return (delta, self._rounded) if np.isfinite(delta).all() else (moved, 0)

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top; blocks with other names are ignored."""
        block = values.get(TABLE)
        if block is None:
            return
        ids, numbers, gone = block.data.ids, block.data.numbers, block.data.gone
        self._table.update(block.data)
        if len(gone):
            ids = np.concatenate((ids, gone))
            numbers = np.concatenate((numbers, np.zeros((len(gone), self._learned), np.float32)))
        if self._hot:
            at = np.array([self._hot.get(i, -1) for i in ids.tolist()], dtype=np.int64)
            self._base[at[at >= 0]] = numbers[at >= 0]
            if self._rounded and len(gone):  # the rest of a removed row goes with it
                left = at[len(at) - len(gone) :]
                self._drop_rest([i for i in left.tolist() if i >= 0 and i not in self._open])

    def _drop_rest(self, at: list[int]) -> None:
        self._moved[at], self._rest[at] = 0.0, 0.0

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        block = values.get(TABLE)
        self._table = Rows.empty(self._learned) if block is None else block.data.copy()
        self._forget_hot()

    def rest_on(self, below: Rows) -> Iterator[None]:
        """Read rows from this table where they have no value of their own; see ``on_top_of``."""
        self._table, steps = on_top_of(below, self._table)
        return steps

    def revert(self) -> None:
        """Discard the open delta; values that arrived since the cut stay, and so does the rest."""
        at = list(self._open)
        self._moved[at] = 0.0
        self._moved[at, self._learned - self._rounded :] = self._rest[at]
        self._open = {}

    def drop_rest(self) -> None:
        """Drop what rounding has left over; no line may have changed since the cut."""
        self._forget_hot()


def _learned(sums: Floats) -> _Flags:
    return np.asarray(sums.any(axis=1))


def id_of(key: str) -> int:
    """Return the id of a key: a hashed feature (a whole number as text), or the bias."""
    return _BIAS_ID if key == BIAS else int(key)
