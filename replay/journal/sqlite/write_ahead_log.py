"""Detects damage in SQLite's write-ahead log, which SQLite itself does not report.

Each frame of the log has a checksum that continues from the previous frame's.  When SQLite opens a
log, it uses the frames up to the first mismatch and silently drops the rest.  That is right for a
commit that was torn by a power cut, and wrong for a bit that a disk has changed amid a thousand
commits.  Worse, pages that had been moved into the database would be read together with older ones
from the log.

The two cases can be distinguished: a commit is synced before the next one begins, so valid frames
after the broken commit prove that it was once complete.  In the last commit a single changed bit is
found by trying all bits.  More changed bits look like a torn commit, which was never acknowledged,
and are treated as one.

https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_HEADER: Final = struct.Struct(">8I")
_FRAME_BYTES: Final = 24  # before each page
_MAGIC: Final = 0x377F0682  # if the lowest bit is set, checksums use big-endian words
_MASK: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class _Weights:
    """Coefficients of the words and of the previous checksum in both halves of a checksum."""

    first: Words
    second: Words
    before: Words  # 2 × 2


def broken(log: Path) -> str | None:
    """Return a description of the damage in the log at this path; None if none, or no log.

    Nobody may write to the log meanwhile.
    """
    try:
        data = log.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) <= _HEADER.size or not any(data[: _HEADER.size]):
        return None  # nothing was committed
    header = _HEADER.unpack_from(data)
    magic, _, page_bytes, _, *salts, first, second = header
    if magic & ~1 != _MAGIC or page_bytes < 512 or page_bytes & (page_bytes - 1):
        return "its header is no log's"
    order = ">u4" if magic & 1 else "<u4"
    words = np.frombuffer(data, order, 6)
    if _sums(words[None, :], np.zeros((1, 2), np.uint32))[0].tolist() != [first, second]:
        return "its header does not match its checksum"
    size = _FRAME_BYTES + page_bytes
    frames = np.frombuffer(data, np.uint8)[_HEADER.size :]
    frames = frames[: len(frames) // size * size].reshape(-1, size)
    return _frames(frames, salts, (first, second), order) if len(frames) else None


def _frames(
    frames: npt.NDArray[np.uint8], salts: list[int], start: tuple[int, int], order: str
) -> str | None:
    heads = np.ascontiguousarray(frames[:, :_FRAME_BYTES]).view(">u4").astype(np.uint32)
    salted = (heads[:, 2] == salts[0]) & (heads[:, 3] == salts[1])
    off = np.bitwise_count(heads[:, 2:4] ^ np.array(salts, np.uint32)).sum(axis=1)
    live = int(np.flatnonzero(off <= 1)[-1]) + 1 if (off <= 1).any() else 0
    heads, salted, frames = heads[:live], salted[:live], frames[:live]
    if not live:
        return None
    content = np.concatenate((frames[:, :8], frames[:, _FRAME_BYTES:]), axis=1)
    words = np.ascontiguousarray(content).view(order).astype(np.uint32)
    stored = heads[:, 4:6]
    before = np.concatenate((np.array([start], np.uint32), stored[:-1]))
    fits = (_sums(words, before) == stored).all(axis=1)
    wrong = np.flatnonzero(~(fits & salted))
    if not len(wrong):
        return None
    at = int(wrong[0])
    commits = at + np.flatnonzero(heads[at:, 1])
    later = [i for i in commits if salted[i]]
    lost = f"from frame {at + 1:,} of {live:,} on; {len(commits):,} commits stand there"
    if later and later[0] + 1 < live and salted[later[0] + 1 :].any():
        return f"it can't be read {lost}"
    if _one_bit(words[at], before[at], stored[at], int(off[at])):
        return f"a bit has changed in its last commit, {lost}"
    return None


def _one_bit(words: Words, before: Words, stored: Words, off: int) -> bool:
    """Return whether one changed bit explains the mismatch of a frame."""
    computed = _sums(words[None, :], before[None, :])[0]
    wrong = int(np.bitwise_count(computed ^ stored).sum())
    if off or wrong == 1:  # in its salt, or in the checksum itself
        return wrong + off == 1
    weights, missing = _weights(len(words)), stored - computed
    with np.errstate(over="ignore"):
        for bit in range(32):
            for sign in (1, _MASK):  # bit set or cleared
                factor = np.uint32((sign << bit) & _MASK)
                same = (weights.first * factor == missing[0]) & (
                    weights.second * factor == missing[1]
                )
                if same.any():
                    return True
    return False


def _sums(words: Words, before: Words) -> Words:
    """Return both halves of the checksum of each row of words, continuing ``before``; rows × 2."""
    weights = _weights(words.shape[1])
    with np.errstate(over="ignore"):
        first = (words * weights.first).sum(axis=1, dtype=np.uint32)
        second = (words * weights.second).sum(axis=1, dtype=np.uint32)
        carried = before[:, :1] * weights.before[:, 0] + before[:, 1:] * weights.before[:, 1]
        return np.stack((first, second), axis=1) + carried


@lru_cache(maxsize=8)
def _weights(n: int) -> _Weights:
    """Return the coefficients for ``n`` words.

    Each pair of words (x, y) maps the checksum (a, b) to (a + b + x, a + 2 b + x + y) modulo 2^32,
    which is linear in all of them.
    """
    first, second = np.zeros(n, np.uint32), np.zeros(n, np.uint32)
    matrix = ((1, 0), (0, 1))
    for i in range(n - 2, -1, -2):
        (a, b), (c, d) = matrix
        first[i], first[i + 1] = (a + b) & _MASK, b
        second[i], second[i + 1] = (c + d) & _MASK, d
        matrix = (((a + b) & _MASK, (a + 2 * b) & _MASK), ((c + d) & _MASK, (c + 2 * d) & _MASK))
    return _Weights(first, second, np.array(matrix, np.uint32))
