"""Line ends of a CSV or JSON file that is read in pieces, those within quoted values left out.

A quote begins a quoted value only where a value begins, as pyarrow reads it: in ``5" pipe`` it is a
character like any other.  Quotes are therefore told apart one by one if some stand elsewhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_LINE_END, _QUOTE = b'\n"'


class LineEnds:
    """Finds line ends, piece by piece.

    Parameters:
        quoted: Whether values may be quoted; JSON has no line ends within values.
        delimiter: What stands between values.
    """

    def __init__(self, *, quoted: bool, delimiter: str = ",") -> None:
        self._quoted = quoted
        self._before = delimiter.encode() + b"\n\r"  # what stands before a quoted value
        self._inside = False  # within a quoted value
        self._last = b"\n"  # the byte before the next piece
        self._closed = False  # it was a quote that ended a quoted value

    def within(self, data: bytes) -> npt.NDArray[np.int64]:
        """Return the positions of the line ends in the next piece, which is not empty."""
        numbers = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(numbers == _LINE_END)
        if not self._quoted:
            return ends
        if not self._inside and b'"' not in data:
            self._last, self._closed = data[-1:], False
            return ends
        quotes = self._of_values(numbers)
        before = np.searchsorted(quotes, ends) + self._inside
        self._inside = bool((len(quotes) + self._inside) % 2)
        self._last = data[-1:]
        self._closed = bool(len(quotes)) and quotes[-1] == len(data) - 1 and not self._inside
        outside: npt.NDArray[np.int64] = ends[before % 2 == 0]
        return outside

    def _of_values(self, numbers: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the positions of the quotes that begin and end quoted values, by turns."""
        quotes = np.flatnonzero(numbers == _QUOTE)
        begins = quotes[int(self._inside) :: 2]  # if each quote is one of them
        before = numbers[begins[begins > 0] - 1]
        first = begins[:1].tolist() != [0] or self._begins(self._last[0], self._closed)
        if first and np.isin(before, [*self._before, _QUOTE]).all():
            return quotes
        out: list[int] = []
        inside, closed_at = self._inside, -1 if self._closed else -2
        for at in quotes.tolist():
            last = self._last[0] if at == 0 else int(numbers[at - 1])
            if inside:
                inside, closed_at = False, at
                out.append(at)
            elif self._begins(last, closed_at == at - 1):
                inside = True
                out.append(at)
        return np.array(out, dtype=np.int64)

    def _begins(self, last: int, closed: bool) -> bool:
        """Whether a quote outside of quoted values begins one, or is the second one of a pair.

        ``closed`` is true if the byte before it, ``last``, is a quote that ended a value.
        """
        return closed if last == _QUOTE else last in self._before
