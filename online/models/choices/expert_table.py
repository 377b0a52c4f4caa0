"""The linear experts of :mod:`online.models.experts.linear` in one array indexed by hash.

Each slot has the six numbers of :class:`~online.models.experts.linear.OneOutput` in float32.  A
delta has the changed slots as rows by index.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np

from online.models.choices.interactions import Places
from online.models.experts.linear import ADAGRAD, EXPERTS, Floats
from paramserver.core.blocks import ROWS, Block, Blocks
from paramserver.core.tables.pages import Floats32
from paramserver.core.tables.rows import Rows

_NUMBERS: Final = 6
_ORDER_KEPT: Final = 65_536  # slots: a longer order is not cached
_ADAGRAD: Final[Floats] = np.array(ADAGRAD)[:, None]


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

    def take(self, places: Places) -> Floats32:
        """Return a copy of the numbers in the slots: shape (places, 6)."""
        return self._now.take(places, axis=0)

    def step(
        self, places: Places, held: Floats32, steps: Floats, order: Places | None = None
    ) -> float:
        """Learn one row, and return a sum that is finite only if all changed numbers are.

        Parameters:
            places: Slots of the row, possibly with repetitions.
            held: Their numbers, from :meth:`take`.
            steps: By expert and slot: gradients for the AdaGrad experts, finished steps for the
                normalised ones.
            order: If a slot occurs twice, the last occurrence in this order counts.
        """
        fresh = np.flatnonzero(self._number[places] == 0)
        if len(fresh):
            self._note(places[fresh], held[fresh])
        now = held.T.astype(np.float64, order="C")  # slots in the last axis: long inner loops
        slopes = steps[:2]
        squares = now[EXPERTS:]
        squares += slopes * slopes
        root = np.sqrt(squares)
        root += 1.0
        now[:2] -= _ADAGRAD * slopes / root
        now[2:EXPERTS] -= steps[2:]
        with np.errstate(over="ignore"):
            rounded = now.T.astype(np.float32, order="C")
        total = float(np.add.reduce(rounded, axis=None, dtype=np.float64))
        if order is None:
            self._now[places] = rounded
        else:
            self._now[places[order]] = rounded[order]
        return total

    def cut(self) -> Blocks:
        """Return the open delta and empty it.

        The numbers are rounded to what adding the delta to the values before gives, as it does in
        every other process.
        """
        places, before = self._joined()
        last = self._number[places] == np.arange(1, len(places) + 1)  # a row may repeat a slot
        places, before = places[last], before[last]
        self._close()
        changes = self._now[places] - before
        if not len(changed := np.flatnonzero(changes.any(axis=1))):
            return {}
        places, changes = places[changed], changes[changed]
        self._now[places] = before[changed] + changes
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
            taken, now = new[opened], self._now[place[opened]]
            new[opened] = np.where(taken == before[at], now, taken + (now - before[at]))
            before[at] = taken
        self._now[place] = new

    def reset(self, values: Blocks) -> None:
        """Set the whole state to ``values``, with an empty open delta."""
        self._now = np.zeros((self._size, _NUMBERS), np.float32)
        self._close()
        self.rebase(values)

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


def order_of(features: int, columns: int, of_action: int, plain: int) -> Places:
    """Return the order in which slots are updated; cached unless it is long."""
    long = features * columns + plain * of_action > _ORDER_KEPT
    return (_made_order if long else _kept_order)(features, columns, of_action, plain)


def _made_order(features: int, columns: int, of_action: int, plain: int) -> Places:
    """Compute the order in which slots are updated; of two equal slots the later one counts.

    First come the ids, each with all features of the context; then the action's features, each with
    all features of the context; then the offset.
    """
    size, more = features * columns, plain * of_action
    by_id = np.arange(size).reshape(features, columns).T.ravel()
    by_feature = size + np.arange(more).reshape(plain, of_action).T.ravel()
    return np.concatenate((by_id, by_feature, np.arange(size + more, size + more + bool(plain))))


_kept_order = lru_cache(maxsize=64)(_made_order)
