"""How float64 thresholds become float32 without moving a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from online.edge.ir import Floats


def floor32(numbers: Floats) -> npt.NDArray[np.float32]:
    """The largest float32 at most each number: ``x <= number`` stays so for every float32 x."""
    with np.errstate(over="ignore"):
        near = numbers.astype(np.float32)
    below: Any = np.nextafter(near, np.float32(-np.inf))
    low: npt.NDArray[np.float32] = np.where(near > numbers, below, near)
    return low
