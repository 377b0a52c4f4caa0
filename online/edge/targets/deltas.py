"""Exact deltas from a client's pack to the next one.

=========== ================================================================================
``EPD0``    every byte XORed with the old one, in four byte planes
``EPD8``    before that, float32 tensors are moved by whole steps: a scale (float32) per tensor,
            then the steps, a signed byte each; 127 and -128 continue in the next byte
=========== ================================================================================

Both are compressed with raw deflate, and need packs of one structure; trees that have grown, or a
table with new keys, are sent completely.  Steps are for packs whose weights are on a grid
(:mod:`online.edge.targets.grid`).
"""

from __future__ import annotations

import contextlib
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from online.edge.errors import DifferenceUnfit, PackCorrupt
from online.edge.targets.pack import tensors_of

_BYTES: Final = b"EPD0"
STEPS: Final = b"EPD8"
_PLANES: Final = 4
_UP, _DOWN = 127, -128  # bytes that continue in the next one
_LONG_MAX: Final = 2  # average number of bytes per step, at most

Bytes = npt.NDArray[np.uint8]


def smallest(old: bytes, new: bytes) -> bytes:
    """Return the smallest delta from ``old`` to ``new``.

    Raises DifferenceUnfit if their lengths differ.
    """
    ways = [exact(old, new)]
    with contextlib.suppress(DifferenceUnfit):
        ways.append(steps(old, new))
    return min(ways, key=len)


def exact(old: bytes, new: bytes) -> bytes:
    """The delta of any two packs of equal length.  Raises DifferenceUnfit."""
    a, b = _pair(old, new)
    return _BYTES + _deflate(_planes(a ^ b))


def steps(old: bytes, new: bytes) -> bytes:
    """The delta of two packs on a grid.

    Raises DifferenceUnfit if their structures differ, or their difference is not in whole steps.
    """
    a, b = _pair(old, new)
    if tensors_of(old) != tensors_of(new):
        raise DifferenceUnfit("the packs differ in more than weights")
    scales, taken = [], []
    moved = a.copy()
    for at, count in _float32(old):
        here = np.frombuffer(old, "<f4", count, at).astype(np.float64)
        there = np.frombuffer(new, "<f4", count, at).astype(np.float64)
        scale = step_of(there - here)
        q = (there - here) / scale
        if np.abs(q).sum() > _UP * _LONG_MAX * count:
            raise DifferenceUnfit("the weights are not multiples of a common step")
        scales.append(scale)
        taken.append(_written(q.astype(np.int64)))
        moved[at : at + 4 * count] = (here + q * scale).astype("<f4").view(np.uint8)
    payload = [np.array(scales, "<f4").tobytes(), *taken, _planes(moved ^ b)]
    return STEPS + _deflate(b"".join(payload))


def apply(old: bytes, delta: bytes) -> bytes:
    """Apply a delta to ``old``; the result's hash tells whether it is the intended pack.

    Raises PackCorrupt for bytes that are no delta of ``old``.
    """
    if delta[:4] not in (_BYTES, STEPS):
        raise PackCorrupt("it does not begin like a difference")
    out = np.frombuffer(old, np.uint8).copy()
    places = _float32(old) if delta[:4] == STEPS else []
    numbers = sum(count for _, count in places)
    raw = _inflate(delta[4:], len(old) + 4 * len(places) + (1 + _LONG_MAX) * numbers)
    try:
        scales = np.frombuffer(raw, "<f4", len(places)).astype(np.float64)
        moves, at = _read_back(np.frombuffer(raw, np.int8, offset=4 * len(places)), numbers)
        at += 4 * len(places)
        if len(raw) - at != len(old):
            raise ValueError(f"{len(raw) - at} bytes are left for {len(old)}")
    except ValueError as error:
        problem = f"the difference is of another pack than this one of {len(old)} bytes"
        raise PackCorrupt(f"{problem}: {error}") from None
    for (begin, count), scale in zip(places, scales, strict=True):
        here = np.frombuffer(old, "<f4", count, begin).astype(np.float64)
        own, moves = moves[:count], moves[count:]
        with np.errstate(over="ignore", invalid="ignore"):
            out[begin : begin + 4 * count] = (here + own * scale).astype("<f4").view(np.uint8)
    planes = np.frombuffer(raw, np.uint8, offset=at)
    for k in range(_PLANES):
        count = len(out[k::_PLANES])
        out[k::_PLANES] ^= planes[:count]
        planes = planes[count:]
    return out.tobytes()


def _planes(differing: Bytes) -> bytes:
    return np.concatenate([differing[k::_PLANES] for k in range(_PLANES)]).tobytes()


def _written(q: npt.NDArray[np.int64]) -> bytes:
    """Encode each number as bytes that sum to it; all but the last are ends of the range."""
    edge = np.where(q >= 0, _UP, _DOWN)
    times = q // edge
    out = np.repeat(edge, times + 1)
    out[np.cumsum(times + 1) - 1] = q - times * edge
    return out.astype(np.int8).tobytes()


def _read_back(taken: npt.NDArray[np.int8], numbers: int) -> tuple[npt.NDArray[np.int64], int]:
    """Decode ``numbers`` numbers; also return how many bytes they took.  Raises ValueError."""
    ends = np.flatnonzero((taken != _UP) & (taken != _DOWN))[:numbers]
    if len(ends) < numbers:
        raise ValueError(f"{len(ends)} steps of {numbers}")
    used = int(ends[-1]) + 1 if numbers else 0
    total = np.cumsum(taken[:used], dtype=np.int64)[ends]
    return np.diff(total, prepend=0), used


def step_of(numbers: npt.NDArray[Any]) -> float:
    """The largest power of two that divides all numbers; 1.0 if all are zero."""
    present = np.asarray(numbers, dtype=np.float64).ravel()
    present = present[present != 0]
    if not present.size:
        return 1.0
    mantissa, exponent = np.frexp(present)
    digits = np.abs(mantissa * 2.0**53).astype(np.int64)
    last = np.log2((digits & -digits).astype(np.float64)).astype(np.int64)
    return float(2.0 ** int((exponent - 53 + last).min()))


def _pair(old: bytes, new: bytes) -> tuple[Bytes, Bytes]:
    if len(old) != len(new):
        raise DifferenceUnfit(f"{len(old)} bytes became {len(new)}, other names or sizes")
    return np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)


def _float32(pack: bytes) -> list[tuple[int, int]]:
    """Offset and count of numbers of each float32 tensor, in the file's order."""
    return [
        (at, int(np.prod(shape, dtype=np.int64)))
        for _, kind, shape, at in tensors_of(pack)
        if kind == "f4"
    ]


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes, most: int) -> bytes:
    """Decompress at most ``most`` bytes, so that a decompression bomb is refused."""
    reader = zlib.decompressobj(-15)
    try:
        out = reader.decompress(data, most + 1)
    except zlib.error as error:
        raise PackCorrupt(f"the difference can't be read: {error}") from None
    if len(out) > most or not reader.eof or reader.unused_data:
        raise PackCorrupt("the difference has another length than its steps")
    return out
