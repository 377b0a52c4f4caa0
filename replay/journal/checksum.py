"""The checksum of a stored row: CRC-32 over its columns, each with its type and length.

CRC-32 (zlib's, some 1 GB/s) notices every damage that lies within 32 bits in a row, every pair of
flipped bits in a row below 256 MB, and all but one in 4 · 10⁹ of whatever else a disk, a cable or
memory does.  It guards against faults, not against people: who can write the file can write the
checksum.  64 bits would cost twice the room and make the rest rarer than other faults already are.
"""

from __future__ import annotations

import zlib
from typing import Final

import msgspec

Column = int | float | str | bytes | None

_encode: Final = msgspec.msgpack.Encoder().encode


def checksum(*columns: Column) -> int:
    """CRC-32 of the columns in their order; the same value as another type has another.

    Raises UnicodeEncodeError for text that is no Unicode: what is stored is checked before.
    """
    return zlib.crc32(_encode(columns))


def proves(stored: object, columns: tuple[Column, ...]) -> bool:
    """Whether ``stored`` is the checksum of the columns as they were read."""
    try:
        return stored == zlib.crc32(_encode(columns))
    except (UnicodeEncodeError, OverflowError, TypeError):  # no value that was ever written
        return False
