"""Writes arrays as a safetensors file piece by piece, and reads them without a copy.

The safetensors package holds two or three copies of everything in memory, which is gigabytes with a
large table.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

import msgspec
import numpy as np
import numpy.typing as npt

from paramserver.snapshots.mapped import Source
from paramserver.snapshots.pieces import Piece

Array = npt.NDArray[Any]

_LENGTH: Final = struct.Struct("<Q")
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "U8": np.dtype(np.uint8),
    "I64": np.dtype(np.int64),
    "U64": np.dtype(np.uint64),
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_ALIGNED: Final = 8


class _Tensor(msgspec.Struct, frozen=True):
    """The description of an array in the header of the file."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


_TENSORS: Final = dict[str, _Tensor]


@dataclass(frozen=True, slots=True)
class Stored:
    """An array to be written: its dtype, its shape, and its elements in pieces."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[Array]]

    @classmethod
    def of(cls, array: Array) -> Self:
        """Return the description of an array that is in memory."""
        return cls(array.dtype, array.shape, lambda: (array,))

    @property
    def size(self) -> int:
        """Size of its elements in bytes."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def write_arrays(
    arrays: Mapping[str, Stored], begin: int
) -> tuple[int, Callable[[], Iterator[Piece]]]:
    """Return the size of the file in bytes and a function that generates its pieces.

    The widest elements come first, so that all arrays are aligned.

    Parameters:
        begin: Number of bytes that precede the file, for the alignment.
    """
    names = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    described, end = {}, 0
    for name in names:
        one, start = arrays[name], end
        end += one.size
        described[name] = _Tensor(_NAMES[one.dtype], list(one.shape), (start, end))
    head = msgspec.json.encode(described)
    head += b" " * (-(begin + _LENGTH.size + len(head)) % _ALIGNED)
    size = _LENGTH.size + len(head) + end
    return size, partial(_pieces, head, [arrays[name] for name in names])


def _pieces(head: bytes, arrays: Iterable[Stored]) -> Iterator[Piece]:
    yield _LENGTH.pack(len(head))
    yield head
    for one in arrays:
        for piece in one.pieces():
            yield np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data


class Arrays:
    """The arrays of a file, by name, without copies.  Damaged bytes may raise any exception.

    Parameters:
        source: Holds the file.
        begin, end: Where the arrays with their header stand in it.
    """

    def __init__(self, source: Source, begin: int, end: int) -> None:
        source.until(begin + _LENGTH.size)
        (length,) = _LENGTH.unpack_from(source.view, begin)
        begin += _LENGTH.size
        source.until(begin + length)
        head = source.view[begin : begin + length]
        self._source, self._payload = source, source.view[begin + length : end]
        self._begin, self._tensors = begin + length, msgspec.json.decode(head, type=_TENSORS)
        self.mapped = source.mapped

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> Array:
        """Return an array; waits until it has been read.  Raises OSError if the disk fails."""
        tensor = self._tensors[name]
        begin, end = tensor.data_offsets
        self._source.until(self._begin + end)
        numbers = np.frombuffer(self._payload[begin:end], dtype=_DTYPES[tensor.dtype])
        return numbers.reshape(tensor.shape)
