"""Long uploads: one event a line in, one receipt a line out, as long as the caller likes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from online.bodies import NDJSON, Receive, Send, decode_event, error_body, read_lines
from online.config import Limits
from online.errors import RequestError, failed
from online.messages import Event, Receipt
from online.serving import Serving, refused

log = logging.getLogger("online.app")
_encode = msgspec.json.Encoder().encode_lines


async def upload(
    serving: Serving,
    receive: Receive,
    send: Send,
    limits: Limits,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Record events as their lines arrive; the receipts go out in the same order.

    Rows that arrive together are one commit, of at most ``limits.rows_max`` events; the next ones
    are read when they are answered, so a sender that is too fast is held back by its connection.
    A line that can't be taken gets a receipt that says so, and the rest goes on.  What ends the
    upload (the journal is full, a line above ``limits.body_bytes_max``) is the last line, as an
    error body.
    """
    head = [(b"content-type", NDJSON), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    last = b""
    try:
        async for lines in read_lines(receive, limits.body_bytes_max):
            for i in range(0, len(lines), limits.rows_max):
                receipts = await _record(serving, lines[i : i + limits.rows_max])
                body = _encode(receipts)
                await send({"type": "http.response.body", "body": body, "more_body": True})
    except RequestError as error:
        serving.replica.counts[f"feedback_refused_{error.code}"] += 1
        last = _encode([error_body(error)])
    except Exception:  # the status is sent already: only the last line can say it
        log.exception("an upload of feedback, %s", serving.name)
        last = _encode([error_body(failed())])
    await send({"type": "http.response.body", "body": last})


async def _record(serving: Serving, lines: list[bytes]) -> list[Receipt]:
    events: list[Event | RequestError] = []
    for line in lines:
        try:
            events.append(decode_event(line))
        except RequestError as error:
            events.append(error)
    good = [event for event in events if isinstance(event, Event)]
    receipts = iter(await serving.record(good) if good else [])
    return [refused(e) if isinstance(e, RequestError) else next(receipts) for e in events]
