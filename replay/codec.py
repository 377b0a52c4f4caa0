"""Examples as the bytes that the journal keeps: one format byte, then msgpack.

Rows that a stored join has written before journals had format 4 are the two halves as they were
given, one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import Example, LabelHalf, PredictionHalf, WaitingLabel

FORMAT = 1
"""First byte of an encoded example or half.  Fields appended with a default keep it."""

JOINED = 2
"""First byte of a joined payload: the prediction's length in 4 bytes, big-endian, and both."""

LABELS = 3
"""First byte of labels that wait for one prediction."""

_PREFIX = bytes([FORMAT])
_LABELS_PREFIX = bytes([LABELS])
_JOINED_PREFIX = bytes([JOINED])
_LENGTH_BYTES = 4
_Kept = TypeVar("_Kept", Example, PredictionHalf, LabelHalf, list[WaitingLabel])
_encoder = msgspec.msgpack.Encoder()
_example = msgspec.msgpack.Decoder(Example)
_prediction = msgspec.msgpack.Decoder(PredictionHalf)
_label = msgspec.msgpack.Decoder(LabelHalf)
_labels = msgspec.msgpack.Decoder(list[WaitingLabel])


def encode(example: Example) -> bytes:
    """Bytes of ``example``; integers, floats, booleans, text and None keep value and type.

    Raises:
        PayloadInvalid: An integer outside of −2^63 … 2^64 − 1, text that is no Unicode, or a
            foreign type.
    """
    return _encode(example)


def encode_prediction(half: PredictionHalf) -> bytes:
    """Bytes of a stored join's prediction; errors as of :func:`encode`."""
    return _encode(half)


def encode_labels(labels: Sequence[WaitingLabel]) -> bytes:
    """Bytes of the labels that wait for one prediction; errors as of :func:`encode`."""
    try:
        return _LABELS_PREFIX + _encoder.encode(labels)
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise PayloadInvalid(str(error)) from error


def decode_labels(payload: bytes) -> list[WaitingLabel]:
    """The labels that :func:`encode_labels` was given, one or more; errors as of :func:`decode`."""
    labels = _decode(_labels, payload, _LABELS_PREFIX)
    if not labels:
        raise PayloadInvalid("no label waits in it")
    return labels


def decode_prediction(payload: bytes) -> PredictionHalf:
    """The prediction that :func:`encode_prediction` was given; errors as of :func:`decode`."""
    return _decode(_prediction, payload)


def decode(payload: bytes) -> Example:
    """The example that :func:`encode` was given, or that the halves of a join make together.

    Raises:
        PayloadFormat: Written by a version with another format.
        PayloadInvalid: Right format byte, but the rest is no example.
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
        raw=prediction.raw,
        known=prediction.known,
        sure=prediction.sure,
    )


def decode_label(payload: bytes) -> LabelHalf:
    """A label that waits alone in a journal of before; errors as of :func:`decode`."""
    return _decode(_label, payload)


def _encode(kept: Example | PredictionHalf) -> bytes:
    try:
        return _PREFIX + _encoder.encode(kept)
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise PayloadInvalid(str(error)) from error


def _decode(
    decoder: msgspec.msgpack.Decoder[_Kept], payload: bytes, prefix: bytes = _PREFIX
) -> _Kept:
    if payload[:1] != prefix:
        raise PayloadFormat(payload[0] if payload else None, LABELS)
    try:
        return decoder.decode(memoryview(payload)[1:])
    except msgspec.MsgspecError as error:
        raise PayloadInvalid(str(error)) from error


ERASED = bytes.fromhex("01 99 80a0 cb3ff0000000000000 c0c0c0c0c0 c406") + b"erased"
"""The payload of a row whose content was erased: an example of no features, which nobody learns.

Written out, as it must stay what it is when examples get more fields.
"""


def is_erased(payload: bytes) -> bool:
    """Whether what the row taught was erased."""
    return payload == ERASED
