"""Checks the value of one key in a message, by the kind of its block."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain
from math import isfinite
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paramserver.errors import BlockError

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
DIGEST_MODULUS: Final = 2**64
_EXACT_INT: Final = 2**53

Moments = tuple[float, float, float]


def check_float(name: str, key: str, x: Any) -> float:
    """Return ``x`` if it is a finite number, as a float.  Raises BlockError otherwise."""
    if type(x) is float:
        if isfinite(x):
            return x
        raise BlockError(name, key, f"{x} is not a finite number")
    if type(x) is int and -_EXACT_INT <= x <= _EXACT_INT:
        return float(x)
    raise BlockError(name, key, f"{x!r:.80} is not a finite float64")


def check_count(name: str, key: str, x: Any) -> int | float:
    """Return ``x`` if it is an int64 or a finite float.  Raises BlockError otherwise."""
    if type(x) is int:
        if INT64_MIN <= x <= INT64_MAX:
            return x
        raise BlockError(name, key, f"{x} is beyond int64")
    return check_float(name, key, x)


def check_moments(name: str, key: str, x: Any) -> Moments:
    """Return ``x`` as (n, mean, M2).  Raises BlockError if it is not that."""
    if not isinstance(x, list | tuple) or len(x) != 3:
        raise BlockError(name, key, f"moments are (n, mean, M2), not {x!r:.80}")
    n, mean, m2 = (check_float(name, key, part) for part in x)
    if n < 0 or m2 < 0:
        raise BlockError(name, key, f"n = {n} and M2 = {m2} must not be negative")
    return (n, mean, m2)


def check_extrema(name: str, key: str, x: Any) -> tuple[float, float]:
    """Return ``x`` as (min, max).  Raises BlockError if it is not that."""
    if not isinstance(x, list | tuple) or len(x) != 2:
        raise BlockError(name, key, f"extrema are (min, max), not {x!r:.80}")
    low, high = (check_float(name, key, part) for part in x)
    if low > high:
        raise BlockError(name, key, f"min {low} is above max {high}")
    return (low, high)


def check_digest(name: str, data: dict[Any, Any]) -> dict[str, int]:
    """Return the count and sum of a digest.  Raises BlockError if they are invalid."""
    if set(data) != {"count", "sum"}:
        raise BlockError(name, None, "a digest has the keys 'count' and 'sum'")
    for key, top in (("count", INT64_MAX), ("sum", DIGEST_MODULUS - 1)):
        x = data[key]
        if type(x) is not int or not 0 <= x <= top:
            raise BlockError(name, key, f"{x!r:.80} is not an integer in 0 … {top}")
    return {"count": data["count"], "sum": data["sum"]}


def all_floats(numbers: Collection[Any]) -> Collection[float] | None:
    """Return the numbers if all are finite floats, else None."""
    return numbers if set(map(type, numbers)) <= {float} and all(map(isfinite, numbers)) else None


def all_counts(numbers: Collection[Any]) -> Collection[float] | None:
    """Return the numbers if all are int64, or all are finite floats, else None."""
    if set(map(type, numbers)) != {int}:
        return all_floats(numbers)
    return numbers if min(numbers) >= INT64_MIN and max(numbers) <= INT64_MAX else None


def all_pairs(pairs: Collection[Any]) -> Collection[tuple[float, float]] | None:
    """Return what :func:`shared_pairs` makes of them if all are (min, max), else None."""
    if not (set(map(type, pairs)) <= {list, tuple} and set(map(len, pairs)) <= {2}):
        return None
    flat = [*chain.from_iterable(pairs)]
    if all_floats(flat) is None:
        return None
    numbers = np.array(flat).reshape(-1, 2)
    return shared_pairs(numbers) if (numbers[:, 0] <= numbers[:, 1]).all() else None


def shared_pairs(numbers: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return the rows of an array of shape (n, 2); equal ones in succession are one object.

    Names that were met in the same row have the same ranges, so most pairs take no memory.
    """
    if not len(numbers):
        return []
    bits = np.ascontiguousarray(numbers).view(np.int64)  # -0.0 and 0.0 are different
    begins = np.flatnonzero(np.append(True, (bits[1:] != bits[:-1]).any(axis=1)))
    if len(begins) * 2 > len(numbers):
        return [*zip(*(column.tolist() for column in numbers.T), strict=True)]
    each = zip(*(column.tolist() for column in numbers[begins].T), strict=True)
    pairs = np.fromiter(each, dtype=object, count=len(begins))
    shared: list[tuple[float, float]] = np.repeat(
        pairs, np.diff(np.append(begins, len(numbers)))
    ).tolist()
    return shared
