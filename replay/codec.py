"""Encodes examples for the journal: one format byte, then msgpack.

Journals before format 4 stored a joined row as its two encoded halves, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from replay.errors import PayloadFormat, PayloadInvalid
from replay.example import Example, LabelHalf, PredictionHalf, WaitingLabel

FORMAT = 1
"""First byte of an encoded example or half.  Adding fields with defaults does not change it."""

JOINED = 2
"""First byte of a joined payload: length of the prediction (4 bytes, big-endian), both halves."""

LABELS = 3
"""First byte of a list of labels that wait for one prediction."""

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
    """Encode ``example``; integers, floats, booleans, text and None keep value and type.

    Raises:
        PayloadInvalid: An integer is outside of −2^63 … 2^64 − 1, text is not valid Unicode, or a
            type is not supported.
    """
    return _encode(example)


def encode_prediction(half: PredictionHalf) -> bytes:
    """Encode a prediction that waits for its label; errors as :func:`encode`."""
    return _encode(half)


def encode_labels(labels: Sequence[WaitingLabel]) -> bytes:
    """Encode labels that wait for one prediction; errors as :func:`encode`."""
    try:
        return _LABELS_PREFIX + _encoder.encode(labels)
    except (OverflowError, UnicodeEncodeError, TypeError) as error:
        raise PayloadInvalid(str(error)) from error


def decode_labels(payload: bytes) -> list[WaitingLabel]:
    """Decode the result of :func:`encode_labels`, one label or more; errors as :func:`decode`."""
    labels = _decode(_labels, payload, _LABELS_PREFIX)
    if not labels:
        raise PayloadInvalid("no label waits in it")
    return labels


def decode_prediction(payload: bytes) -> PredictionHalf:
    """Decode the result of :func:`encode_prediction`; errors as :func:`decode`."""
    return _decode(_prediction, payload)


def decode(payload: bytes) -> Example:
    """Decode the result of :func:`encode`, or a joined payload of an older journal.

    Raises:
        PayloadFormat: The format byte is unknown: another version has written it.
        PayloadInvalid: The rest is not an example.
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
    """Decode a waiting label of an older journal; errors as :func:`decode`."""
    return _decode(_label, payload)


def _encode(value: Example | PredictionHalf) -> bytes:
    try:
        return _PREFIX + _encoder.encode(value)
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
"""The payload of a row whose content was erased: an example without features, which is not learned.

It is a constant, because it must not change when examples get more fields.
"""


def is_erased(payload: bytes) -> bool:
    """Return whether the row's content was erased."""
    return payload == ERASED
