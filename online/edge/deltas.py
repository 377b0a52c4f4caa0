"""From the pack that a client has to the next one: exactly, or to eight bits with feedback.

=========== ================================================================================
``EPD0``    every byte exclusive-or'ed with the old one, byte planes of four, raw deflate
``EPD8``    float32 tensors as steps of a scale each, the other bytes as above, raw deflate
=========== ================================================================================

Steps are closed-loop: the server works out the very bytes that the client will hold, describes
those, and takes the next difference from them, so errors do not add up.  Both need packs of one
structure; trees that have grown, or a table with new keys, travel whole.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from online.edge.errors import PackCorrupt, TemplateUnfit
from online.edge.pack import tensors_of

_EXACT: Final = b"EPD0"
_STEPS: Final = b"EPD8"
_PLANES: Final = 4
_STEPS_MAX: Final = 127

Bytes = npt.NDArray[np.uint8]


def exact(old: bytes, new: bytes) -> bytes:
    """What makes ``new`` of ``old``.  Raises TemplateUnfit if they are of different length."""
    a, b = _pair(old, new)
    planes = [(a ^ b)[k::_PLANES] for k in range(_PLANES)]
    return _EXACT + _deflate(np.concatenate(planes).tobytes())


def steps(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    """A small difference, and the pack that it makes of ``old``: near ``new``, not equal to it.

    Raises TemplateUnfit unless both are packs of one structure.
    """
    a, b = _pair(old, new)
    if tensors_of(old) != tensors_of(new):
        raise TemplateUnfit("edgepack", "the structures differ")
    scales, taken = [], []
    made = bytearray(new)
    for at, count in _float32(old):
        here = np.frombuffer(old, "<f4", count, at).astype(np.float64)
        there = np.frombuffer(new, "<f4", count, at).astype(np.float64)
        far = float(np.abs(there - here).max(initial=0.0))
        scale = np.float32(far / _STEPS_MAX)
        q = np.zeros(count) if scale == 0 else np.rint((there - here) / float(scale))
        q = np.clip(q, -_STEPS_MAX, _STEPS_MAX)
        made[at : at + 4 * count] = (here + q * float(scale)).astype("<f4").tobytes()
        scales.append(scale)
        taken.append(q.astype(np.int8))
    rest = (a ^ b)[_others(old)]
    payload = [np.array(scales, "<f4").tobytes(), *(q.tobytes() for q in taken), rest.tobytes()]
    return _STEPS + _deflate(b"".join(payload)), bytes(made)


def apply(old: bytes, delta: bytes) -> bytes:
    """The pack that a difference makes of ``old``; its hash says if it is the one meant.

    Raises PackCorrupt for bytes that are no difference to ``old``.
    """
    a = np.frombuffer(old, np.uint8)
    if delta[:4] == _EXACT:
        planes = np.frombuffer(_inflate(delta[4:], len(old)), np.uint8)
        out, at = a.copy(), 0
        for k in range(_PLANES):
            count = len(out[k::_PLANES])
            out[k::_PLANES] ^= planes[at : at + count]
            at += count
        return out.tobytes()
    if delta[:4] != _STEPS:
        raise PackCorrupt("it is no difference")
    places = _float32(old)
    others = _others(old)
    counts = [count for _, count in places]
    raw = _inflate(delta[4:], 4 * len(places) + sum(counts) + int(others.sum()))
    scales = np.frombuffer(raw, "<f4", len(places))
    at = 4 * len(places)
    made = a.copy()
    for (begin, count), scale in zip(places, scales, strict=True):
        here = np.frombuffer(old, "<f4", count, begin).astype(np.float64)
        q = np.frombuffer(raw, np.int8, count, at).astype(np.float64)
        moved = (here + q * float(scale)).astype("<f4")
        made[begin : begin + 4 * count] = moved.view(np.uint8)
        at += count
    made[others] ^= np.frombuffer(raw, np.uint8, offset=at)
    return made.tobytes()


def _pair(old: bytes, new: bytes) -> tuple[Bytes, Bytes]:
    if len(old) != len(new):
        raise TemplateUnfit("edgepack", f"{len(old)} bytes became {len(new)}: send it whole")
    return np.frombuffer(old, np.uint8), np.frombuffer(new, np.uint8)


def _float32(pack: bytes) -> list[tuple[int, int]]:
    """Offset and numbers of each float32 tensor, in the file's order."""
    return [
        (at, int(np.prod(shape, dtype=np.int64)))
        for _, kind, shape, at in tensors_of(pack)
        if kind == "f4"
    ]


def _others(pack: bytes) -> Any:
    """Which bytes are in no float32 tensor."""
    mask = np.ones(len(pack), dtype=bool)
    for at, count in _float32(pack):
        mask[at : at + 4 * count] = False
    return mask


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def _inflate(data: bytes, size: int) -> bytes:
    """Exactly ``size`` bytes: nothing endless is read."""
    reader = zlib.decompressobj(-15)
    try:
        out = reader.decompress(data, size + 1)
    except zlib.error as error:
        raise PackCorrupt(f"the difference can't be read: {error}") from None
    if len(out) != size or not reader.eof or reader.unused_data:
        raise PackCorrupt(f"the difference is of another pack than this one of {size} bytes")
    return out
