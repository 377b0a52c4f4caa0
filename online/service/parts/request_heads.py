"""Bounds the size and the duration of a request's head where no HAProxy stands in front.

uvicorn buffers bytes until a head is complete, and copies a header's value for each piece of it: a
single caller without a token could fill the memory and block the event loop.  Connections that
never send a request would stay open until the process has no file descriptors left, which the
journal and snapshots need as well.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, Final

from online.service.parts.head_cache import CachedHeads

HEAD_BYTES_MAX: Final = 65_536
"""For a head, and between two pieces of a body; one more read may exceed it."""
HEAD_S: Final = 10.0
"""For a complete head: from the start of a connection, or from the first byte of a later head."""


_FILES_LEFT: Final = 8  # an eighth of the descriptors, or 64, are left for journal and snapshots


class BoundedHeads(CachedHeads):
    """A connection whose request heads are bounded in size and time, in bounded number."""

    head_s = HEAD_S

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._pending_bytes = 0  # bytes since the last complete head, body piece or request
        self._in_head = False  # a head has begun and is not complete
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first head; end the connection if too many are open."""
        super().connection_made(transport)
        socket = transport.get_extra_info("socket")
        if socket is not None and _are_few_left(socket.fileno()):
            self._refuse(b"503 Service Unavailable", b"too many connections are open\n")
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel this connection's timer."""
        self._whole()
        super().connection_lost(exc)

    def parse(self, data: bytes) -> None:
        """Parse the bytes; a head that is too long ends the connection."""
        self._pending_bytes += len(data)
        super().parse(data)
        if self._pending_bytes > HEAD_BYTES_MAX:
            self._refuse(b"431 Request Header Fields Too Large", b"the head is too long\n")
        elif self._timer is None and (self._in_head or (self._pending_bytes and self._answered)):
            self._wait()  # empty lines do not begin a request, but they do not reset the timer

    def begin(self, *given: Any) -> None:
        """Start a request with a cached head, which is complete."""
        self._whole()
        super().begin(*given)

    def on_message_begin(self) -> None:
        """Note that the head of another request has begun."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """Note that the head is complete."""
        self._in_head = False
        self._whole()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on; its size is bounded by the reader of the body."""
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of one request."""
        self._pending_bytes = 0
        super().on_message_complete()

    @property
    def _answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait(self) -> None:
        self._timer = self.loop.call_later(self.head_s, self._end_late)

    def _end_late(self) -> None:
        """End the connection, unless an answer is pending: nothing is read meanwhile."""
        if self._answered:
            self._refuse(b"408 Request Timeout", b"the head did not arrive in time\n")
        else:
            self._wait()

    def _whole(self) -> None:
        self._pending_bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: bytes, said: bytes) -> None:
        """End the connection, with a response that says why unless an answer is in progress."""
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


def _are_few_left(descriptor: int) -> bool:
    """Whether few descriptors are free, given a new one: the kernel assigns the lowest first."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return most != resource.RLIM_INFINITY and descriptor >= most - max(64, most // _FILES_LEFT)
