"""Flags for the rows of a table: which row numbers are unused, and which rows have changed."""

from __future__ import annotations

from typing import Final, Self

import numpy as np
import numpy.typing as npt

from paramserver.core.tables.ids import Numbers

Flags = npt.NDArray[np.bool_]

_GONE: Final = np.uint8(1)
_CHANGED: Final = np.uint8(2)
_LEAST: Final = 1024


class RowFlags:
    """One byte of flags for each row number, allocated when the first flag is set.

    Attributes:
        gone: Count of numbers without a row.
        tracked: Whether changes are recorded.
    """

    def __init__(self) -> None:
        self._marks = np.zeros(0, dtype=np.uint8)
        self.gone, self.tracked = 0, False

    def copy(self) -> Self:
        """Return an independent copy."""
        made = type(self)()
        made._marks, made.gone, made.tracked = self._marks.copy(), self.gone, self.tracked
        return made

    def _upto(self, n: int) -> npt.NDArray[np.uint8]:
        """Return the array of flags, grown to at least ``n`` elements."""
        if len(self._marks) < n:
            marks = np.zeros(max(2 * n, _LEAST), dtype=np.uint8)
            marks[: len(self._marks)] = self._marks
            self._marks = marks
        return self._marks

    def there(self, which: Numbers | slice, n: int) -> Flags:
        """Return for each number, all below ``n``, whether it has a row."""
        there: Flags = (self._upto(n)[which] & _GONE) == 0
        return there

    def let_go(self, at: Numbers) -> None:
        """Clear the flags of these numbers, all of which were set."""
        if len(at):
            marks = self._upto(int(at.max()) + 1)
            marks[at] = _GONE | _CHANGED if self.tracked else _GONE
            self.gone += len(at)

    def have(self, at: Numbers, begin: int, end: int) -> None:
        """Note that rows were written at ``at``; other numbers in ``begin … end`` have no row."""
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
        """Start to record changes from now on."""
        self._marks &= _GONE
        self.tracked = True

    def changes(self, n: int) -> int:
        """Return how many of the first ``n`` rows have changed."""
        return int(np.count_nonzero(self._upto(n)[:n] & _CHANGED))

    def changed(self, n: int) -> tuple[Numbers, Numbers]:
        """Return the numbers below ``n`` whose rows were written, and those that were removed."""
        marks = self._upto(n)[:n]
        return np.flatnonzero(marks == _CHANGED), np.flatnonzero(marks == _GONE | _CHANGED)
