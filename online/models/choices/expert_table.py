"""The linear experts of :mod:`online.models.experts.linear` in one array indexed by hash.

Each slot has the six numbers of :class:`~online.models.experts.linear.OneOutput` in float32.  A
delta has the changed slots as rows by index.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from online.models.choices.interactions import Places
from paramserver.core.blocks import ROWS, Block, Blocks
from paramserver.core.tables.pages import Floats32
from paramserver.core.tables.rows import Rows

_NUMBERS: Final = 6
_ROW: Final = np.dtype((np.void, _NUMBERS * np.dtype(np.float32).itemsize))

_NOTHING: Final[tuple[Places, Floats32]] = (
    np.zeros(0, np.int64),
    np.zeros((0, _NUMBERS), np.float32),
)


class Table:
    """An array of 2^bits slots, with their values before the first change since the cut."""

    def __init__(self, block: str, bits: int) -> None:
        self._block, self._size = block, 2**bits
        self._now: Floats32 = np.zeros((self._size, _NUMBERS), np.float32)
        # Number of a slot's value before its first change since the cut, from 1; 0: unchanged.
        self._number = np.zeros(self._size, dtype=np.int32)
        self._numbered = 0
        self._opened: list[tuple[Places, Floats32]] = []
        self._index: npt.NDArray[np.int32] | None = None  # for `opened`; its content is arbitrary

    def __getstate__(self) -> dict[str, object]:
        """Return the state without the arbitrary numbers, so that a query does not change it."""
        return {**self.__dict__, "_index": None}

    def take(self, places: Places) -> Floats32:
        """Return a copy of the numbers in the slots: shape (places, 6)."""
        return self._now.take(places, axis=0)

    def opened(self, places: Places) -> tuple[Places, Floats32, Places]:
        """Return the slots without repetitions, their numbers (6, slots), and each place's index.

        Slots come in the order of their first places.  The numbers are a copy, for :meth:`put`.
        """
        flat, index = places.ravel(), self._index
        if index is None:
            index = self._index = np.empty(self._size, dtype=np.int32)
        steps = np.arange(len(flat), dtype=np.int32)
        index[flat[::-1]] = steps[::-1]  # of equal ones the last assigned stays
        slots = flat[index[flat] == steps]
        index[slots] = steps[: len(slots)]
        numbers = np.ascontiguousarray(self._now.take(slots, axis=0).T)
        return slots, numbers, index[flat].astype(np.int64).reshape(places.shape)

    def put(self, slots: Places, numbers: Floats32) -> bool:
        """Set the numbers of slots, each given once; False: one is not finite, and none was set."""
        if not np.isfinite(numbers).all():
            return False
        fresh = slots[self._number[slots] == 0]
        if len(fresh):
            self._note(fresh, self.take(fresh))
        self._put(slots, np.ascontiguousarray(numbers.T))
        return True

    def cut(self) -> Blocks:
        """Return the open delta and empty it.

        The numbers are rounded to what adding the delta to the values before gives, as it does in
        every other process.
        """
        places, before = self._joined()
        last = self._number[places] == np.arange(1, len(places) + 1)  # a row may repeat a slot
        if not last.all():
            places, before = places[last], before.compress(last, axis=0)
        self._close()
        changes = self.take(places) - before
        if not len(changed := np.flatnonzero(changes.any(axis=1))):
            return {}
        places, changes = places[changed], changes.take(changed, axis=0)
        self._put(places, before.take(changed, axis=0) + changes)
        return {self._block: Block(ROWS, Rows(places.astype(np.uint64), changes))}

    def rebase(self, values: Blocks) -> None:
        """Set new values with the open delta on top."""
        if (block := values.get(self._block)) is None:
            return
        place, new, gone = block.data.ids, block.data.numbers, block.data.gone
        if len(gone):  # rows that the server has expired
            new = np.concatenate((new, np.zeros((len(gone), _NUMBERS), np.float32)))
            place = np.concatenate((place, gone))
        if not len(place):
            return
        place = place.astype(np.int64)
        number = self._number[place]
        if (opened := np.flatnonzero(number)).size:
            before, at = self._joined()[1], number[opened] - 1
            taken, now = new[opened], self.take(place[opened])
            new[opened] = np.where(taken == before[at], now, taken + (now - before[at]))
            before[at] = taken
        self._put(place, np.ascontiguousarray(new))

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._now = np.zeros((self._size, _NUMBERS), np.float32)
        self._close()
        self.rebase(values)

    def _put(self, places: Places, numbers: Floats32) -> None:
        """Set the numbers of slots, in C order; as whole rows, a third of an assignment's time."""
        self._now.view(_ROW).reshape(-1).put(places, numbers.view(_ROW).reshape(-1))

    def _note(self, places: Places, before: Floats32) -> None:
        """Keep the values of slots before their first change."""
        begin, self._numbered = self._numbered, self._numbered + len(places)
        self._number[places] = np.arange(begin + 1, self._numbered + 1)
        self._opened.append((places, before))

    def _joined(self) -> tuple[Places, Floats32]:
        """Return the slots that changed since the cut, by number, and their values before."""
        if len(self._opened) > 1:
            places = np.concatenate([places for places, _ in self._opened])
            before = np.concatenate([before for _, before in self._opened])
            self._opened = [(places, before)]
        return self._opened[0] if self._opened else _NOTHING

    def _close(self) -> None:
        """Forget which slots have changed."""
        for places, _ in self._opened:
            self._number[places] = 0
        self._opened, self._numbered = [], 0
