"""By number, a table marks which rows it has none of, and which have changed since it was asked."""

from __future__ import annotations

from typing import Final, Self

import numpy as np
import numpy.typing as npt

from paramserver.core.ids import Numbers

Flags = npt.NDArray[np.bool_]

_GONE: Final = np.uint8(1)
_CHANGED: Final = np.uint8(2)
_LEAST: Final = 1024


class Marks:
    """A byte a number, once one of them says something.

    Attributes:
        gone: How many there is no row of.
        tracked: Whether it is known what has changed.
    """

    def __init__(self) -> None:
        self._marks = np.zeros(0, dtype=np.uint8)
        self.gone, self.tracked = 0, False

    def copy(self) -> Self:
        """The same marks; what is marked in one is not in the other."""
        made = type(self)()
        made._marks, made.gone, made.tracked = self._marks.copy(), self.gone, self.tracked
        return made

    def _upto(self, n: int) -> npt.NDArray[np.uint8]:
        """All marks, with room for so many."""
        if len(self._marks) < n:
            marks = np.zeros(max(2 * n, _LEAST), dtype=np.uint8)
            marks[: len(self._marks)] = self._marks
            self._marks = marks
        return self._marks

    def there(self, which: Numbers | slice, n: int) -> Flags:
        """Which of these, all below ``n``, there is a row of."""
        there: Flags = (self._upto(n)[which] & _GONE) == 0
        return there

    def let_go(self, at: Numbers) -> None:
        """There was a row of each of these, and is none now."""
        if len(at):
            marks = self._upto(int(at.max()) + 1)
            marks[at] = _GONE | _CHANGED if self.tracked else _GONE
            self.gone += len(at)

    def have(self, at: Numbers, begin: int, end: int) -> None:
        """Rows were written there: of the new ones, from ``begin`` on, there are no others."""
        if self.gone:
            known = self._upto(begin)[at[at < begin]]
            self.gone -= int(np.count_nonzero(known & _GONE))
        fresh = int(np.count_nonzero(at >= begin))
        if fresh < end - begin:
            self.gone += end - begin - fresh
            self._upto(end)[begin:end] = _GONE
        if self.tracked or len(self._marks):
            self._upto(max(begin, end))[at] = _CHANGED if self.tracked else 0

    def track(self) -> None:
        """Know from now on what changes."""
        self._marks &= _GONE
        self.tracked = True

    def changes(self, n: int) -> int:
        """How many have changed."""
        return int(np.count_nonzero(self._upto(n)[:n] & _CHANGED))

    def changed(self, n: int) -> tuple[Numbers, Numbers]:
        """Those that were written, and those that have left."""
        marks = self._upto(n)[:n]
        return np.flatnonzero(marks == _CHANGED), np.flatnonzero(marks == _GONE | _CHANGED)
