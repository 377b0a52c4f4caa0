"""Sends head and body of an answer in one write, where the server is uvicorn.

uvicorn writes head and body separately, and uvloop sends each at once: two system calls, two
packets and two wake-ups of the reader, for an answer of a few hundred bytes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from online.messages.bodies import Send

try:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
except ModuleNotFoundError:  # without httptools uvicorn uses h11, and sends as usual
    RequestResponseCycle = None  # type: ignore[assignment, misc]

_JOINED_BYTES: Final = 65_536  # largest body that is copied to follow its head
_STATUS: Final[dict[int, bytes]] = {
    s: b"HTTP/1.1 %d %b" % (s, s.phrase.encode()) for s in HTTPStatus
}


def written(send: Send, status: int, kind: bytes, body: bytes, request_id: bytes) -> bool:
    """Write a whole answer if uvicorn would write it at once; otherwise return False.

    Its only extra header is the request's id.  ``connection: close`` is left to uvicorn.
    """
    cycle: Any = getattr(send, "__self__", None)
    if type(cycle) is not RequestResponseCycle or len(body) > _JOINED_BYTES:
        return False
    if (
        cycle.response_started
        or cycle.disconnected
        or cycle.flow.write_paused
        or cycle.access_log
        or not cycle.keep_alive
        or cycle.scope["method"] != "POST"
        or status not in _STATUS
    ):
        return False
    head = _STATUS[status]
    for name, value in cycle.default_headers:
        head += b"\r\n%b: %b" % (name, value)
    cycle.waiting_for_100_continue, cycle.chunked_encoding = False, False
    cycle.response_started = cycle.response_complete = True
    cycle.transport.write(
        b"%b\r\ncontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n\r\n%b"
        % (head, kind, len(body), request_id, body)
    )
    cycle.message_event.set()
    cycle.on_response()
    return True
