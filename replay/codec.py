"""Examples as the bytes that the journal keeps: one format byte, then msgpack.

A stored join's payload is the two halves as they were given, one behind the other, so that a
store can write it without knowing what is in them.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import Example, LabelHalf, PredictionHalf

FORMAT = 1
"""First byte of an encoded example or half.  Fields appended with a default keep it."""

JOINED = 2
"""First byte of a joined payload: the prediction's length in 4 bytes, big-endian, and both."""

_PREFIX = bytes([FORMAT])
_JOINED_PREFIX = bytes([JOINED])
_LENGTH_BYTES = 4
_Kept = TypeVar("_Kept", Example, PredictionHalf, LabelHalf)
_encoder = msgspec.msgpack.Encoder()
_example = msgspec.msgpack.Decoder(Example)
_prediction = msgspec.msgpack.Decoder(PredictionHalf)
_label = msgspec.msgpack.Decoder(LabelHalf)


def encode(example: Example) -> bytes:
    """Bytes of ``example``; integers, floats, booleans, text and None keep value and type.

    Raises
    ------
    PayloadInvalid
        An integer outside of −2^63 … 2^64 − 1, text that is no Unicode, or a foreign type.
    """
    return _encode(example)


def encode_prediction(half: PredictionHalf) -> bytes:
    """Bytes of a stored join's prediction; errors as of :func:`encode`."""
    return _encode(half)


def encode_label(half: LabelHalf) -> bytes:
    """Bytes of a stored join's label; errors as of :func:`encode`."""
    return _encode(half)


def join(prediction: bytes, label: bytes) -> bytes:
    """Payload of the joined row from the bytes of its halves (prediction: below 4 GiB)."""
    return _JOINED_PREFIX + len(prediction).to_bytes(_LENGTH_BYTES, "big") + prediction + label


def decode(payload: bytes) -> Example:
    """The example that :func:`encode` was given, or that the halves of a join make together.

    Raises
    ------
    PayloadFormat
        Written by a version with another format.
    PayloadInvalid
        Right format byte, but the rest is no example.
    """
    if payload[:1] != _JOINED_PREFIX:
        return _decode(_example, payload)
    start = 1 + _LENGTH_BYTES
    stop = start + int.from_bytes(payload[1:start], "big")
    if stop > len(payload):
        raise PayloadInvalid(f"a joined payload of {len(payload)} bytes, {stop} were announced")
    prediction, label = _decode(_prediction, payload[start:stop]), decode_label(payload[stop:])
    return Example(
        features=prediction.features,
        label=label.label,
        weight=label.weight,
        score=prediction.score,
        version=prediction.version,
        predicted_at=prediction.predicted_at,
        event_time=label.event_time,
        no_change=prediction.no_change,
        notes=prediction.notes,
        known=prediction.known,
    )


def decode_label(payload: bytes) -> LabelHalf:
    """The label that :func:`encode_label` was given; errors as of :func:`decode`."""
    return _decode(_label, payload)


def _encode(kept: Example | PredictionHalf | LabelHalf) -> bytes:
    try:
        return _PREFIX + _encoder.encode(kept)
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise PayloadInvalid(str(error)) from error


def _decode(decoder: msgspec.msgpack.Decoder[_Kept], payload: bytes) -> _Kept:
    if payload[:1] != _PREFIX:
        raise PayloadFormat(payload[0] if payload else None, JOINED)
    try:
        return decoder.decode(memoryview(payload)[1:])
    except msgspec.MsgspecError as error:
        raise PayloadInvalid(str(error)) from error
