"""Lines of an upload that are read together say what each says by itself."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from online.errors import RequestError
from online.messages import bodies
from online.messages.bodies import decode, decode_events
from online.messages.structs import Event

GOOD = b'{"features":{"a":1.5},"label":true,"event_id":"e"}'
LINES = (
    GOOD,
    GOOD,
    GOOD,
    b"{}",
    b"{}{}",
    b"{} {}",
    b'{"features":{}',
    b"}",
    b'{"label":',
    b"true}",
    b'{"label":"}',
    b'{"label":{"a":[]}}',
    b'{"label":true}}',
    b'{"lable":true}',
    b'{"features":{"a":1e400}}',
    b'{"event_id":7}',
    b"[]",
    b"null",
    b'{"label":NaN}',
    b"\xff{}",
    b'{"label":' + b"[" * 5000 + b"]" * 5000 + b"}",
)


def alone(line: bytes) -> object:
    try:
        return decode(msgspec.json.Decoder(Event).decode, line)
    except RequestError as error:
        return str(error), error.field, error.code


def told(found: Event | RequestError) -> object:
    return found if isinstance(found, Event) else (str(found), found.field, found.code)


def compare(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(400):
        good = rng.random() < 0.3
        lines = [GOOD if good else rng.choice(LINES) for _ in range(rng.randint(1, 6))]
        events = asyncio.run(decode_events(lines))
        assert [told(one) for one in events] == [alone(line) for line in lines]


def test_lines_say_together_what_each_says_alone() -> None:
    compare(1)


def test_two_objects_of_one_line_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "len", lambda some: 0, raising=False)
    with pytest.raises(AssertionError):
        compare(1)
