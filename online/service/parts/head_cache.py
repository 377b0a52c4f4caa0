"""Caches the parsed heads of a connection's last two requests, so that repeated heads skip parsing.

A caller that keeps its connection sends the same head before each body, except for the body's
length; one that alternates predictions and feedback sends two different heads.  Parsing a head
takes a dozen Python calls, which is much compared with the rest of a prediction.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from online.service.parts.requests_in_turn import RequestsInTurn

if TYPE_CHECKING:
    from online.http.connection.direct import HeadHandler

_BYTES_MAX: Final = 65_536  # per request; uvicorn pauses reading when this much body is pending
_HEAD_BYTES_MAX: Final = 4_096  # per cached head
_DIGITS_MAX: Final = 9
_LENGTH: Final = b"content-length"
_LINES: Final = rb"(?:(?!content-length|transfer-encoding|upgrade|expect)[^\s:]+:[^\r\n]*\r\n)*"
_HEAD: Final = re.compile(
    rb"(POST [^\r\n]+\r\n%bcontent-length:[ \t]*)([0-9]{1,%d})(\r\n%b\r\n)"
    % (_LINES, _DIGITS_MAX, _LINES),
    re.IGNORECASE,
)
"""A head that can be cached: it gives the body's length once, and nothing else about the body."""


@dataclass(slots=True, eq=False)
class _Head:
    """A cached head: its bytes and the result of parsing it.

    Attributes:
        before, behind: The bytes before and after the digits of the body's length.
        scope, headers: The ASGI scope and headers that uvicorn made.
        length_index: Index of the content-length header.
        handler: Answers later requests with this head without the application, if that attached it.
    """

    before: bytes
    behind: bytes
    scope: dict[str, Any]
    headers: list[tuple[bytes, bytes]]
    length_index: int
    handler: HeadHandler | None = None


class CachedHeads(RequestsInTurn):
    """A connection that caches two heads; a complete request with one of them skips the parser.

    If this version of uvicorn starts requests differently, nothing is cached.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._heads: list[_Head] = []  # most recent first
        self._caches = self.limit_concurrency is None and hasattr(
            HttpToolsProtocol, "_start_asgi_task"
        )

    def data_received(self, data: bytes) -> None:
        """Start the next request from the cache, or parse it and cache its head."""
        before = self.cycle
        free = self._caches and len(data) <= _BYTES_MAX and self._free()
        if free and self._start_cached(data):
            return
        super().data_received(data)
        if free and self.cycle is not before and not self.cycle.more_body and self.cycle.keep_alive:
            self._cache_head(data)

    def _free(self) -> bool:
        """Whether the last request is read and answered, and no byte of the next has arrived."""
        cycle: Any = self.cycle
        if self._unparsed:
            return False
        if cycle is None:
            return self.scope is None
        ended: bool = cycle.response_complete and not cycle.more_body and cycle.keep_alive
        return ended and cycle.scope is self.scope  # uvicorn makes a new scope for each head

    def _start_cached(self, data: bytes) -> bool:
        """Start the request if the bytes are one complete request with a cached head."""
        for head in self._heads:
            if not data.startswith(head.before):
                continue
            at = len(head.before)
            end = data.find(b"\r", at, at + _DIGITS_MAX + 1)
            digits, body = data[at:end], end + len(head.behind)
            if (
                digits.isdigit()
                and data.startswith(head.behind, end)
                and int(digits) == len(data) - body
            ):
                if head is not self._heads[0]:
                    self._heads.reverse()
                self.begin(head, digits, data[body:])
                return True
        return False

    def begin(self, head: _Head, digits: bytes, body: bytes) -> None:
        """Start a request as uvicorn does after parsing it, or pass it to the head's handler."""
        self._unset_keepalive_if_required()
        self.expect_100_continue = False
        self.scope = scope = cast(Any, head.scope)
        self.cycle: Any = RequestResponseCycle(
            scope=scope, transport=self.transport, flow=self.flow, logger=self.logger,
            access_logger=self.access_logger, access_log=self.access_log,
            default_headers=self.server_state.default_headers, message_event=asyncio.Event(),
            expect_100_continue=False, keep_alive=True, on_response=self.on_response_complete,
        )  # fmt: skip
        self.cycle.more_body = False
        if head.handler is None or not head.handler.accept(self.cycle, body):
            head.handler = None  # the application attaches another one to a later request
            self._run_app(self.cycle, head, digits, body)

    def _run_app(self, cycle: Any, head: _Head, digits: bytes, body: bytes) -> None:
        """Pass a request to the application, which may change its scope and headers."""
        headers = head.headers.copy()
        headers[head.length_index] = (_LENGTH, digits)
        scope: Any = {**head.scope, "headers": headers, "state": self.app_state.copy()}
        self.scope, self.headers = scope, headers
        cycle.scope, cycle.head = scope, head
        cycle.body += body
        cycle.message_event.set()
        self._start_asgi_task(cycle, self.app)

    def _cache_head(self, data: bytes) -> None:
        """Cache the head that was just parsed, if the bytes were exactly one request."""
        match = _HEAD.match(data, 0, _HEAD_BYTES_MAX)
        if match is None or int(match[2]) != len(data) - match.end():
            return
        length_index = [name for name, _ in self.headers].index(_LENGTH)
        scope: dict[str, Any] = {**self.scope}
        head = _Head(match[1], match[3], scope, self.headers.copy(), length_index)
        self.cycle.head = head
        self._heads = [head, *self._heads[:1]]
