"""File contents that are generated piece by piece while they are written.

So the snapshot of a large table need not be in memory beside the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from io import BytesIO

Piece = bytes | memoryview


class Pieces:
    """A header, a payload that is generated at each iteration, and the SHA-256 of both.

    Parameters:
        begin: The header.
        size: Size of the payload in bytes.
        payload: Generates the payload, the same bytes each time.

    Attributes:
        digest: The SHA-256, once all pieces have been generated.
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
    """Return the pieces of file contents; bytes are one piece."""
    return (data,) if isinstance(data, bytes) else data
