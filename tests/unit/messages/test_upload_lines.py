"""Lines of an upload that are read together say what each says by itself."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest

from online.errors import RequestError
from online.messages import bodies
from online.messages.bodies import (
    JSON,
    MSGPACK,
    Format,
    UnreadEvent,
    decode,
    decode_events,
    decode_feedback,
)
from online.messages.structs import Event, FeedbackRequest

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


def told(found: Event) -> object:
    if not isinstance(found, UnreadEvent):
        return found
    return str(found.error), found.error.field, found.error.code


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


@pytest.mark.parametrize("form", [JSON, MSGPACK], ids=["json", "msgpack"])
def test_an_event_that_cannot_be_decoded_is_refused_in_its_place(form: Format) -> None:
    good = {"features": {"a": 1.0}, "label": True}
    events = [good, None, {**good, "event_id": 7}, {**good, "lable": 1}, good]
    body = form.encode({"events": events})
    request = asyncio.run(decode_feedback(form, body, 5))
    assert request == FeedbackRequest(events=request.events)
    fields = [one.error.field if isinstance(one, UnreadEvent) else one.label
              for one in request.events or ()]  # fmt: skip
    assert fields == [True, "events[1]", "events[2].event_id", "events[3].lable", True]
    with pytest.raises(RequestError):
        decode(form.feedback, body)  # control: together they are all refused
    with pytest.raises(RequestError):  # more than may come at once are not looked at one by one
        asyncio.run(decode_feedback(form, body, 4))
    for other in ({"events": [None], "lable": 1}, {"events": {}}, {"events": 3}, None):
        with pytest.raises(RequestError) as caught:
            asyncio.run(decode_feedback(form, form.encode(other), 5))
        assert caught.value.status == 422
