"""Memory for a table's arrays: of this process, or another kind that a subclass provides."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Memory:
    """Provides arrays in the memory of this process, in which untouched pages cost nothing."""

    def empty(self, shape: tuple[int, ...], kind: npt.DTypeLike, n: int) -> Array:
        """Return an array of undefined numbers, of which the first ``n`` rows may be used."""
        return np.empty(shape, kind)

    def zeros(self, n: int, kind: npt.DTypeLike) -> Array:
        """Return an array of zeros."""
        return np.zeros(n, kind)

    def reserve(self, array: Array, n: int) -> bool:
        """Allow the use of the first ``n`` rows of an array; False if there is no room for them."""
        return True


OF_PROCESS: Final = Memory()
"""The memory of this process."""
