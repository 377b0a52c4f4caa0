"""The head of a request has an end where no HAProxy stands in front: so long, and in so much time.

uvicorn keeps what comes until a head is whole, and copies a header's value at each piece of it: one
caller without a token could fill the memory, and hold the loop meanwhile.  A connection that never
asks anything would stay for ever, until no file is left for another one.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from online.service.parts.head_cache import Known

HEAD_BYTES_MAX: Final = 65_536
"""Of a head, and of what stands between two pieces of a body; one read more may come."""
HEAD_S: Final = 10.0
"""For a whole head, from the connection's begin, or from its first byte on a later one."""


class Heads(Known):
    """A connection whose heads are bounded."""

    head_s = HEAD_S

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._came = 0  # bytes since the last head, piece of a body or request was whole
        self._heading = False  # a head has begun
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer for a head."""
        self._whole()
        super().connection_lost(exc)

    def reads(self, data: bytes) -> None:
        """Read on; a head that is too long ends the connection."""
        self._came += len(data)
        super().reads(data)
        if self._came > HEAD_BYTES_MAX:
            self._refuse(b"431 Request Header Fields Too Large", b"the head is too long\n")
        elif self._late is None and (self._heading or (self._came and self._answered)):
            self._wait()  # empty lines before a request begin none, and are no silence either

    def begins(self, *given: Any) -> None:
        """Begin a request whose head is known: it is whole."""
        self._whole()
        super().begins(*given)

    def on_message_begin(self) -> None:
        """Begin the head of another request."""
        super().on_message_begin()
        self._heading = True

    def on_headers_complete(self) -> None:
        """Take the head: it is whole."""
        self._heading = False
        self._whole()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body, which whoever reads it counts."""
        self._came = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of one request."""
        self._came = 0
        super().on_message_complete()

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._late = self.loop.call_later(self.head_s, self._end_late)

    def _end_late(self) -> None:
        """End the connection, but not while an answer is due: nothing is read meanwhile."""
        if self._answered:
            self._refuse(b"408 Request Timeout", b"the head did not arrive in time\n")
        else:
            self._wait()

    def _whole(self) -> None:
        self._came = 0
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, status: bytes, said: bytes) -> None:
        """End the connection; it is told why, unless an answer is on its way."""
        self._whole()
        if self.transport.is_closing():
            return
        if self._answered:
            length = str(len(said)).encode()
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-type: text/plain\r\ncontent-length: "
                + length + b"\r\nconnection: close\r\n\r\n" + said
            )  # fmt: skip
        self.transport.close()
