"""Payloads keep value and type, and refuse what they can't read."""

from __future__ import annotations

import math
import pickle

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay import errors
from replay.codec import (
    FORMAT,
    JOINED,
    LABELS,
    decode,
    decode_label,
    decode_labels,
    decode_prediction,
    encode,
    encode_labels,
    encode_prediction,
)
from replay.example import Example, LabelHalf, PredictionHalf, WaitingLabel


def encode_label(half: LabelHalf) -> bytes:
    """As journals before format 4 have a label that waits."""
    return bytes([FORMAT]) + msgspec.msgpack.encode(half)


def join(prediction: bytes, label: bytes) -> bytes:
    """As they have a row of two halves."""
    return bytes([JOINED]) + len(prediction).to_bytes(4, "big") + prediction + label


integers = st.integers(-(2**63), 2**64 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]))
labels = st.one_of(st.booleans(), integers, numbers, text)
values = st.one_of(labels, st.none())
examples = st.builds(
    Example,
    features=st.dictionaries(text, values, max_size=6),
    label=labels,
    weight=st.floats(min_value=1e-9, max_value=1e9),
    score=st.none() | st.dictionaries(text, numbers, max_size=3),
    version=st.none() | st.tuples(st.integers(0, 2**40), st.integers(0), st.integers(0, 99)),
    predicted_at=st.none() | numbers,
    event_time=st.none() | numbers,
    no_change=st.none() | labels,
    notes=st.none() | st.binary(max_size=40),
).filter(lambda e: e.version is None or e.version[1] < 2**63)


def typed(example: Example) -> list[object]:
    """Values with their types and signs: True == 1 == 1.0 and 0.0 == -0.0 otherwise."""
    parts = [example.label, example.no_change, *example.features.values()]
    signs = [math.copysign(1, p) for p in parts if isinstance(p, float)]
    return [example, [type(p) for p in parts], list(example.features), signs]


@settings(max_examples=150, deadline=None)
@given(examples)
def test_an_example_comes_back_exactly(example: Example) -> None:
    assert typed(decode(encode(example))) == typed(example)


@settings(max_examples=100, deadline=None)
@given(examples)
def test_two_halves_make_the_example(example: Example) -> None:
    prediction = PredictionHalf(
        example.features,
        example.score,
        example.version,
        example.predicted_at,
        example.no_change,
        example.notes,
    )
    label = LabelHalf(example.label, example.weight, example.event_time)
    halves = encode_prediction(prediction), encode_label(label)
    assert typed(decode(join(*halves))) == typed(example)
    assert decode_label(halves[1]) == label
    assert type(decode_label(halves[1]).label) is type(label.label)


def test_rows_from_before_there_were_notes_are_read() -> None:
    before: list[object] = [{"a": 1}, True, 1.0, {"true": 0.5}, (1, 2, 3), 4.0, None, False]
    example = decode(bytes([FORMAT]) + msgspec.msgpack.encode(before))
    assert example == Example({"a": 1}, True, 1.0, {"true": 0.5}, (1, 2, 3), 4.0, None, False)
    half = bytes([FORMAT]) + msgspec.msgpack.encode([{"a": 1}, None, None, 4.0, False])
    joined = decode(join(half, encode_label(LabelHalf(True))))
    assert joined == Example({"a": 1}, True, predicted_at=4.0, no_change=False)


def test_a_joined_payload_is_its_halves_behind_each_other() -> None:
    assert join(b"\x01ab", b"\x01c") == b"\x02\x00\x00\x00\x03\x01ab\x01c"
    halves = encode_prediction(PredictionHalf({"a": 1})), encode_label(LabelHalf(True))
    assert decode(join(*halves)) == Example({"a": 1}, True)
    for cut in range(1, len(join(*halves))):
        with pytest.raises((errors.PayloadInvalid, errors.PayloadFormat)):
            decode(join(*halves)[:cut])
    for wrong in (halves[::-1], (halves[0], halves[0]), (halves[1], halves[1])):
        with pytest.raises(errors.PayloadInvalid):
            decode(join(*wrong))
    for half in halves:
        with pytest.raises(errors.PayloadInvalid):
            decode(half)
    with pytest.raises(errors.PayloadInvalid):
        decode_label(halves[0])
    with pytest.raises(errors.PayloadFormat):
        decode_label(join(*halves))


@given(example=examples)
def test_labels_that_wait_read_back(example: Example) -> None:
    label = (example.label, example.weight, example.event_time)
    several = [WaitingLabel(*label, source, "a", 2.5, (b"k" * 16,)) for source in ("s", "t")]
    payload = encode_labels(several)
    assert payload[0] == LABELS
    assert decode_labels(payload) == several
    assert type(decode_labels(payload)[0].label) is type(example.label)
    assert encode_labels(decode_labels(payload)) == payload, "it is compared by its bytes"
    for wrong in (encode_labels([]), payload[:-1]):
        with pytest.raises(errors.PayloadInvalid):
            decode_labels(wrong)
    for reads in (decode, decode_label, decode_prediction):
        with pytest.raises(errors.PayloadFormat):
            reads(payload)
    with pytest.raises(errors.PayloadFormat):
        decode_labels(encode(example))


def test_the_first_byte_is_the_format() -> None:
    payload = encode(Example({"a": 1}, True))
    assert payload[0] == FORMAT
    for found, other in ((LABELS + 1, bytes([LABELS + 1]) + payload[1:]), (None, b"")):
        with pytest.raises(errors.PayloadFormat, match="format") as refusal:
            decode(other)
        assert refusal.value.found == found


@pytest.mark.parametrize("tail", [b"", b"\x01", b"\x92\x80", b"\xc1", b"\x92\x01\xc3"])
def test_bytes_that_are_no_example_are_refused(tail: bytes) -> None:
    with pytest.raises(errors.PayloadInvalid):
        decode(bytes([FORMAT]) + tail)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800", object()])
def test_values_without_an_exact_form_are_refused(value: object) -> None:
    with pytest.raises(errors.PayloadInvalid):
        encode(Example({"a": value}, True))  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.PartitionUnknown(3), "partition 3"),
        (errors.PartitionSealed(3, 17), "sealed at offset 17"),
        (errors.JournalBehind(3, 95, 100), "offset 95"),
        (errors.EpochBehind("m", 0, 3), "of epoch 3"),
        (errors.JournalFull(12.4, 256), "12 MB"),
        (errors.SizeFull(64.25, 64.0), "uses 64.2 MB, its bound is 64 MB"),
        (errors.JournalUnavailable("disk I/O error"), "disk I/O error"),
        (errors.JournalFormat(7, 1), "format 7"),
        (errors.JournalFormat(None, 1), "another program"),
        (errors.EpochLost("m", 3, 5), "epoch 3"),
        (errors.BatchSize(0, 8), "1 to 8 rows"),
        (errors.RowInvalid("at", "nan", "give POSIX seconds"), "at = nan"),
        (errors.PayloadFormat(9, 1), "format 9"),
        (errors.PayloadFormat(None, 1), "no format byte"),
        (errors.PayloadInvalid("x"), "x"),
    ],
)
def test_errors_say_value_and_survive_pickling(error: errors.ReplayError, words: str) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert words in str(error)
    assert (type(again), again.args, str(again)) == (type(error), error.args, str(error))
    assert vars(again) == vars(error)
    assert error.definite is not isinstance(error, errors.JournalUnavailable)
