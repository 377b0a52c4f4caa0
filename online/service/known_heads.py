"""A connection knows the head of its last request again, and does not read it a second time.

A caller that keeps its connection sends the same head before each body, but for the body's length.
To read it takes a dozen calls of Python, and a prediction or an event not many times that.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

_BYTES_MAX: Final = 65_536  # of a request; behind as much of a body uvicorn holds the caller back
_HEAD_BYTES_MAX: Final = 4_096  # of a head that is kept
_DIGITS_MAX: Final = 9
_TRIES: Final = 8  # heads in a row that did not come again: then the caller's are not kept
_LENGTH: Final = b"content-length"
_ODD: Final = frozenset({b"transfer-encoding", b"upgrade", b"expect"})


@dataclass(frozen=True, slots=True)
class _Head:
    """A head as it came and as it was read.

    Attributes:
        before, behind: What stands before the digits of the body's length, and behind them.
        scope, headers: What uvicorn has made of it; ``place`` is that of the length.
    """

    before: bytes
    behind: bytes
    scope: dict[str, Any]
    headers: list[tuple[bytes, bytes]]
    place: int


class Known(HttpToolsProtocol):
    """A connection whose last head is kept: a request that is here as a whole needs no parser."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._head: _Head | None = None
        self._between = True  # no part of a request has come
        self._begun, self._tries = 0, 0

    def data_received(self, data: bytes) -> None:
        """Take the next request, or read on."""
        if not self.takes(data):
            self.reads(data)

    def on_message_begin(self) -> None:
        """Begin to read a request."""
        super().on_message_begin()
        self._between = False
        self._begun += 1

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        super().on_message_complete()
        self._between = True

    def takes(self, data: bytes) -> bool:
        """Whether the bytes were one request with the head that is known: then it is under way."""
        head = self._head
        if head is None or not self._between or not data.startswith(head.before):
            return False
        at, cycle = len(head.before), self.cycle
        end = data.find(b"\r", at, at + _DIGITS_MAX + 1)
        digits, begin = data[at:end], end + len(head.behind)
        if (
            not digits.isdigit()
            or not data.startswith(head.behind, end)
            or int(digits) != len(data) - begin
            or len(data) > _BYTES_MAX
            or not cycle.response_complete
            or not cycle.keep_alive
        ):
            return False
        self._begin(head, digits, data[begin:])
        self._tries = 0
        return True

    def _begin(self, head: _Head, digits: bytes, body: bytes) -> None:
        """Do what uvicorn does for a request that it has read."""
        self._unset_keepalive_if_required()
        self.headers = headers = head.headers.copy()
        headers[head.place] = (_LENGTH, digits)
        scope: Any = {**head.scope, "headers": headers, "state": self.app_state.copy()}
        self.scope, self.expect_100_continue = scope, False
        self.cycle = cycle = RequestResponseCycle(
            scope=scope, transport=self.transport, flow=self.flow, logger=self.logger,
            access_logger=self.access_logger, access_log=self.access_log,
            default_headers=self.server_state.default_headers, message_event=asyncio.Event(),
            expect_100_continue=False, keep_alive=True, on_response=self.on_response_complete,
        )  # fmt: skip
        cycle.body += body
        cycle.more_body = False
        cycle.message_event.set()
        self._start_asgi_task(cycle, self.app)

    def reads(self, data: bytes) -> None:
        """Have uvicorn read on; the head of a request that is here as a whole is kept."""
        whole = self._between and self._tries < _TRIES
        begun = self._begun
        super().data_received(data)
        if whole and self._between and self._begun == begun + 1:
            self._tries += 1
            self._head = self._kept(data)

    def _kept(self, data: bytes) -> _Head | None:
        """The head of the request that was just read; None: it has something to be looked at."""
        head = data[: data.find(b"\r\n\r\n") + 4]
        names = [name for name, _ in self.headers]
        if (
            len(head) > _HEAD_BYTES_MAX
            or not self.cycle.keep_alive
            or self.limit_concurrency is not None
            or names.count(_LENGTH) != 1
            or not _ODD.isdisjoint(names)
        ):
            return None
        mark = b"\r\n" + _LENGTH + b":"
        at = head.lower().find(mark) + len(mark)
        while head[at : at + 1] in (b" ", b"\t"):
            at += 1
        end = at
        while head[end : end + 1].isdigit():
            end += 1
        scope: dict[str, Any] = {**self.scope}
        return _Head(
            head[:at], head[end:], scope, self.headers.copy(), names.index(_LENGTH)
        )  # fmt: skip
