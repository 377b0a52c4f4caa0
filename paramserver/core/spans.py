"""Positions as spans: rows of (first, end), each of successive positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def spans_of(positions: Array) -> Array:
    """Return successive positions as rows of (first, end)."""
    broken = np.diff(positions) != 1
    first, last = np.append(True, broken), np.append(broken, True)
    if not len(positions):
        return np.empty((0, 2), dtype=np.int64)
    return np.column_stack((positions[first], positions[last] + 1))


def joined_spans(a: Array, b: Array) -> Array:
    """Return the spans of ``a`` and then those of ``b``; one that goes on is not divided."""
    if len(a) and len(b) and a[-1, 1] == b[0, 0]:
        middle = [[a[-1, 0], b[0, 1]]]
        return np.concatenate((a[:-1], middle, b[1:]))
    return np.concatenate((a, b))
