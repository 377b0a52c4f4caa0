"""Parses what arrives on a connection request by request, as far as requests are answered.

uvicorn parses all that a read delivers, and reads on after each answer.  A client that sends
requests without waiting for answers (pipelining) could fill the memory with parsed requests.

If a request offers another protocol (`Upgrade`), uvicorn loses a body that comes with the head, and
parses a body that comes later as the next request.  A proxy in front sees one request where two are
answered, so that one caller could receive the answer to another.  Clients such as Java's offer
HTTP/2 with ordinary requests.

uvicorn also adds the fields that end a chunked body (trailers) to the headers of the request, where
they replace what a proxy in front has checked or set.  They are ignored here.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_PIECE: Final = 4_096
"""Bytes parsed before looking whether a request waits; contains two hundred of the shortest."""
_OFFERS: Final = (b"upgrade", b"http2-settings")
_CODING: Final = b"transfer-encoding"
_ONCE: Final = (b"host", b"authorization")  # of two a proxy in front may have read the other one
IGNORED_S: Final = 10.0
"""How long the rest of a body is read whose request is answered, as one without token is at once.

Without a bound it would keep the connection for ever: what arrives puts off the end of an idle one.
"""


class _Parser:
    """A parser that declines all offers of other protocols.

    Attributes:
        plain_head: Head of a request with an offer, without it; empty: there is none.
    """

    def __init__(self, protocol: object) -> None:
        self._protocol, self.plain_head = protocol, b""
        self._begin()

    def _begin(self) -> None:
        parser = httptools.HttpRequestParser(self._protocol)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._parser = parser
        self.should_upgrade, self.should_keep_alive = (
            parser.should_upgrade,
            parser.should_keep_alive,
        )
        self.get_method, self.get_http_version = parser.get_method, parser.get_http_version

    def feed_data(self, data: bytes) -> None:
        """Parse bytes; after a head with an offer, parse the same request without it."""
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data, self.plain_head = self.plain_head + data[offer.args[0] :], b""
                self._begin()
            else:
                return


class RequestsInTurn(HttpToolsProtocol):
    """A connection whose next requests are parsed once those before them are answered."""

    ignored_s = IGNORED_S

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.parser: Any = _Parser(self)
        self._unparsed = b""
        self._has_head = False  # what follows is the body, and then trailers
        self._body_left = 0  # bytes of the body that are still to come, as its head says
        self._answering: Any = None  # the request that was started last
        self._ignoring: asyncio.TimerHandle | None = None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is being answered, which uvicorn does for the last one parsed."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        self.pipeline.clear()
        self._ignore_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes as far as no request waits for the answer to another one.

        What belongs to the body of a request is parsed in one piece: for each piece uvicorn copies
        what it has of the body.
        """
        if self._unparsed:
            self._unparsed += data
            self.flow.pause_reading()
            return
        at = 0
        while at < len(data):
            if self.transport.is_closing():
                return
            if self.pipeline:
                self._unparsed = data[at:]
                self.flow.pause_reading()
                return
            end = at + max(_PIECE, self._body_left)
            self.parse(data[at:end])
            at = end

    def parse(self, data: bytes) -> None:
        """Let uvicorn parse the bytes."""
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin the head of a request."""
        self._has_head = False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head; those behind a chunked body are ignored."""
        if not self._has_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request, unless its head is to be parsed again without an offer.

        Raises ValueError (answered 400) if it names two hosts or has two tokens, or if its body is
        encoded for the transfer in another way than in chunks.
        """
        self._has_head = True
        codings = [value.strip().lower() for name, value in self.headers if name == _CODING]
        if codings not in ([], [b"chunked"]):  # the parser would only look at the last one
            raise ValueError("a transfer coding other than chunked")
        once = [name for name, _ in self.headers if name in _ONCE]
        if len(once) != len(set(once)):
            raise ValueError("a field that may come once came twice")
        if self.parser.should_upgrade():
            self.parser.plain_head = self._head_without_offer()
        else:
            lengths = [value for name, value in self.headers if name == b"content-length"]
            self._body_left = int(lengths[0]) if lengths else 0
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on."""
        self._body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note the end of a request."""
        self._body_left = 0
        self._ignore_no_more()
        if not self.parser.plain_head:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begin the next request, if it is parsed, or parse it."""
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.cycle.response_complete and self.cycle.more_body and self._ignoring is None:
            self._ignoring = self.loop.call_later(self.ignored_s, self.transport.close)
        if self._unparsed:
            self.flow.pause_reading()
            if not self.pipeline:
                self.loop.call_soon(self._parse_rest)

    def _ignore_no_more(self) -> None:
        if self._ignoring is not None:
            self._ignoring.cancel()
            self._ignoring = None

    def _parse_rest(self) -> None:
        if self._unparsed and not self.transport.is_closing():
            data, self._unparsed = self._unparsed, b""
            self.flow.resume_reading()
            RequestsInTurn.data_received(self, data)

    def _head_without_offer(self) -> bytes:
        method = self.parser.get_method()
        if method == b"CONNECT":  # always an offer of another protocol
            raise ValueError("a tunnel was asked for")
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                value = b",".join(x for x in value.split(b",") if x.strip().lower() not in _OFFERS)
            if name not in _OFFERS:
                lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join([*lines, b"", b""])
