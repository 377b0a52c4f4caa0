"""Values in parts whose names and numbers are sent as arrays, and collected in arrays again.

A run is a stretch of names in the order of their sender's index.  Each run carries its names, so it
can be read without the others; a reader that has met the names compares their bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from paramserver.core.array_maps import Array, ArrayMap, NameIndex, check_names, grown, read_names
from paramserver.errors import BlockError

_WIDTHS: Final = {"additive": 1, "count": 1, "moments": 3, "extrema": 2}
_LEAST: Final = 64  # names from which on a run pays


class Run(NamedTuple):
    """Names and numbers of successive positions in an index.

    Attributes:
        token: The index.
        place: Position of the first name.
        blob, ends: The names' bytes, and the end of each.
        numbers: One number, or one row of numbers, of each.
    """

    token: int
    place: int
    blob: Array
    ends: Array
    numbers: Array

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name."""
        values = self.numbers.T.tolist()
        rows = values if self.numbers.ndim == 1 else zip(*values, strict=True)
        return dict(zip(read_names(self.blob, self.ends), rows, strict=True))

    def cut(self, n: int) -> tuple[Run, Run]:
        """Split the names into the first ``n`` and the rest; neither part may be empty."""
        at = int(self.ends[n - 1])
        head = Run(self.token, self.place, self.blob[:at], self.ends[:n], self.numbers[:n])
        rest = self.blob[at:], self.ends[n:] - at, self.numbers[n:]
        return head, Run(self.token, self.place + n, *rest)


def part_of(data: ArrayMap, first: int, end: int) -> Any:
    """Return a part of the values for a message: a run as a list, or a dict."""
    if end > data.fixed or end - first < _LEAST or (stretch := data.stretch(first, end)) is None:
        return data.part(first, end)
    place, numbers = stretch
    blob, ends = data.index.bytes_of(place, place + end - first)
    arrays = (blob, ends.astype("<i4"), numbers)
    return [data.index.token, place, *(array.tobytes() for array in arrays)]


def read_run(name: str, kind: str, data: list[Any]) -> Run:
    """Return the run of a message.  Raises BlockError if it is none of a block of this kind."""
    try:
        token, place, *raw = data
        (blob, ends, numbers), width = raw, _WIDTHS[kind]
        read = np.frombuffer(numbers, dtype="<i8" if kind == "count" else "<f8")
        run = Run(
            int(token),
            int(place),
            np.frombuffer(blob, dtype=np.uint8),
            np.frombuffer(ends, dtype="<i4").astype(np.int64),
            read if width == 1 else read.reshape(-1, width),
        )
        if not 0 < len(run.ends) == len(run.numbers) or run.place < 0:
            raise ValueError(f"{len(run.ends)} names with {len(run.numbers)} numbers")
        check_names(run.blob, run.ends)
    except (KeyError, TypeError, ValueError) as error:
        raise BlockError(name, None, f"names and numbers can't be read: {error}") from error
    good = np.isfinite(run.numbers).all()
    if kind == "extrema":
        good = good and (run.numbers[:, 0] <= run.numbers[:, 1]).all()
    if kind == "moments":
        good = good and (run.numbers[:, 0] >= 0).all() and (run.numbers[:, 2] >= 0).all()
    if not good:
        raise BlockError(name, None, "its numbers are not finite, or not in order")
    return run


@dataclass(slots=True)
class _Block:
    """The arrived part of a block: its numbers, and the stretches of their names."""

    numbers: Array
    n: int
    spans: list[tuple[int, int]]


class Collected:
    """The runs of some blocks that have arrived, of one sender's index."""

    def __init__(self) -> None:
        self._index, self._token = NameIndex(), 0
        self._blocks: dict[str, _Block] = {}

    def take(self, name: str, run: Run) -> bool:
        """Take a run of a block; return False if its names can't be collected with the others."""
        taken, n, have = self._blocks.get(name), len(run.ends), len(self._index)
        self._token = self._token or run.token
        if run.token != self._token or run.place > have:
            return False
        if taken is not None and run.place < taken.spans[-1][1]:
            return False  # a part that was taken before, or names in another order
        if run.place < have < run.place + n:
            return all(self.take(name, one) for one in run.cut(have - run.place))
        if run.place == have:
            self._index.add(run.blob, run.ends)
        elif not self._index.has(run.place, run.blob, run.ends):
            return False
        span = (run.place, run.place + n)
        if taken is None:
            self._blocks[name] = _Block(run.numbers.copy(), n, [span])
            return True
        taken.numbers = grown(taken.numbers, taken.n, run.numbers)
        taken.n += n
        if taken.spans[-1][1] == run.place:
            taken.spans[-1] = (taken.spans[-1][0], span[1])
        else:
            taken.spans.append(span)
        return True

    def maps(self) -> dict[str, ArrayMap]:
        """Return the blocks, and begin anew."""
        index, made = self._index, dict[str, ArrayMap]()
        index.lay_out()
        for name, block in self._blocks.items():
            spans = np.array(block.spans, dtype=np.int64)
            made[name] = ArrayMap(index, spans, block.numbers[: block.n])
        self._index, self._token, self._blocks = NameIndex(), 0, {}
        return made
