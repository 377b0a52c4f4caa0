"""What a body with a wrong field is answered."""

from __future__ import annotations

import msgspec
import pytest

from online.errors import RequestError
from online.messages.bodies import decode
from online.messages.structs import FeedbackRequest


def test_a_date_for_a_time_is_told_what_a_time_is() -> None:
    decoder = msgspec.json.Decoder(FeedbackRequest)
    with pytest.raises(RequestError) as refused:
        decode(decoder.decode, b'{"label": 1, "event_time": "2026-01-01T00:00:00Z"}')
    error = refused.value
    assert (error.status, error.field) == (422, "event_time")
    assert error.hint == "Send seconds since 1970 in UTC, such as 1767225600"
