"""A file's bytes in pieces that are made while they are written.

A large table's snapshot would else stand in memory beside the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from io import BytesIO

Piece = bytes | memoryview


class Pieces:
    """A beginning, a payload that is made anew whenever it is asked for, and the SHA-256 of both.

    Parameters:
        begin: What comes before the payload.
        size: Bytes of the payload.
        payload: Makes it, each time the same.

    Attributes:
        digest: The SHA-256, once all pieces were made.
    """

    def __init__(self, begin: bytes, size: int, payload: Callable[[], Iterable[Piece]]) -> None:
        self.begin, self._size, self._payload = begin, size, payload
        self.digest = b""

    def __len__(self) -> int:
        return len(self.begin) + self._size + sha256().digest_size

    def __iter__(self) -> Iterator[Piece]:
        digest = sha256(self.begin)
        yield self.begin
        for piece in self._payload():
            digest.update(piece)
            yield piece
        self.digest = digest.digest()
        yield self.digest

    def __bytes__(self) -> bytes:
        out = BytesIO()
        for piece in self:
            out.write(piece)
        return out.getvalue()


def pieces_of(data: bytes | Pieces) -> Iterable[Piece]:
    """The pieces of what is to be written."""
    return (data,) if isinstance(data, bytes) else data
