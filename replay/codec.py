"""Examples as the bytes that the journal keeps: one format byte, then msgpack."""

from __future__ import annotations

import msgspec

from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import Example

FORMAT = 1
"""First byte of every payload.  Fields appended to ``Example`` with a default keep it."""

_PREFIX = bytes([FORMAT])
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Example)


def encode(example: Example) -> bytes:
    """Bytes of ``example``; integers, floats, booleans, text and None keep value and type.

    Raises
    ------
    PayloadInvalid
        An integer outside of −2^63 … 2^64 − 1, text that is no Unicode, or a foreign type.
    """
    try:
        return _PREFIX + _encoder.encode(example)
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise PayloadInvalid(str(error)) from error


def decode(payload: bytes) -> Example:
    """The example that :func:`encode` was given.

    Raises
    ------
    PayloadFormat
        Written by a version with another format.
    PayloadInvalid
        Right format byte, but the rest is no example.
    """
    if payload[:1] != _PREFIX:
        raise PayloadFormat(payload[0] if payload else None, FORMAT)
    try:
        return _decoder.decode(memoryview(payload)[1:])
    except msgspec.MsgspecError as error:
        raise PayloadInvalid(str(error)) from error
