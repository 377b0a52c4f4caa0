"""Requests on one connection are parsed as they are answered, and offers to switch are declined."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httptools
import pytest
import uvicorn
from seen_requests import HEAD, WAIT_S, Wire, request, seen
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from online.http.app import _send
from online.service.parts.head_cache import CachedHeads
from online.service.parts.request_heads import BoundedHeads

GET: Final = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
SENT: Final = 5_000  # requests in one read of the event loop
KINDS: Final = pytest.mark.parametrize("kind", [CachedHeads, BoundedHeads])
OFFERS: Final = [
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAA\r\n",
    "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "Upgrade: other\r\nConnection: Upgrade\r\n",
]


class _Paused(Wire):
    """A wire that knows whether it is read."""

    reads = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


async def flood(kind: type[HttpToolsProtocol]) -> tuple[int, ...]:
    """Deliver thousands of requests in one read, and take their answers.

    Returns how many requests were parsed before any was answered, after five answers and at last,
    and whether more was read while thousands waited.
    """
    turn, parsed, paths = asyncio.Semaphore(0), 0, list[str]()

    class Counted(kind):  # type: ignore[misc, valid-type]
        def on_headers_complete(self) -> None:
            nonlocal parsed
            parsed += 1
            super().on_headers_complete()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await turn.acquire()
        paths.append(scope["path"])
        await _send(send, 200, b"text/plain", b"", [])

    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=3600)
    config.load()
    wire, counts = _Paused(), list[int]()
    protocol: Any = Counted(config, ServerState(), {})
    protocol.access_log = False
    protocol.connection_made(wire)
    protocol.data_received(
        b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % i for i in range(SENT))
    )
    for answers in (0, 5):
        for _ in range(answers):
            turn.release()
        for _ in range(50):
            await asyncio.sleep(0)
        counts.append(parsed)
        read_on = wire.reads
    protocol.data_received(b"GET /last HTTP/1.1\r\nhost: x\r\n\r\n")  # it was under way
    read_on = read_on or wire.reads
    for _ in range(SENT):
        turn.release()
    async with asyncio.timeout(WAIT_S):
        while len(paths) <= SENT:
            await asyncio.sleep(0)
    assert wire.reads, "and so is what comes next"
    protocol.connection_lost(None)
    assert paths == [*(f"/{i}" for i in range(SENT)), "/last"], "in their order, none lost"
    return (*counts, parsed, read_on)


@KINDS
def test_requests_that_nobody_waits_for_are_parsed_as_others_are_answered(
    kind: type[HttpToolsProtocol],
) -> None:
    before, later, at_last, read_on = asyncio.run(flood(kind))
    assert before < 200
    assert later < 200
    assert (at_last, read_on) == (SENT + 1, False)
    plain, *_, read_on = asyncio.run(flood(HttpToolsProtocol))
    assert (plain, read_on) == (SENT, True), "control: uvicorn parses them all, and reads on"


@KINDS
def test_a_body_is_parsed_in_one_piece_and_what_follows_it_in_small_ones(
    kind: type[HttpToolsProtocol],
) -> None:
    async def scene() -> None:
        pieces, parsed = list[int](), 0

        class Counted(kind):  # type: ignore[misc, valid-type]
            def on_headers_complete(self) -> None:
                nonlocal parsed
                parsed += 1
                super().on_headers_complete()

            def on_body(self, body: bytes) -> None:
                pieces.append(len(body))
                super().on_body(body)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.Event().wait()

        config = uvicorn.Config(app, lifespan="off", log_config=None)
        config.load()
        protocol: Any = Counted(config, ServerState(), {})
        protocol.connection_made(_Paused())
        post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 200000\r\n\r\n"
        protocol.data_received(post + b"b" * 200_000 + GET * SENT)
        assert (len(pieces), sum(pieces)) == (2, 200_000)
        assert parsed < 200
        protocol.connection_lost(None)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(scene())


@KINDS
@pytest.mark.parametrize("offer", OFFERS, ids=["h2c", "websocket", "other"])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "body later"])
def test_a_request_that_offers_another_protocol_is_answered_as_without_the_offer(
    kind: type[HttpToolsProtocol], offer: str, *, apart: bool
) -> None:
    inner = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"  # a body that looks like a request
    whole = request(inner, offer + "x-last: 1\r\n")
    cut = len(whole) - len(inner)
    pieces = [whole[:cut], whole[cut:]] if apart else [whole]
    asked, said, closed, _ = seen(kind, [*pieces, GET, whole])
    assert [(scope["method"], body) for scope, body in asked] == [
        ("POST", inner), ("GET", b""), ("POST", inner)
    ]  # fmt: skip
    assert not closed
    assert said.count(b"HTTP/1.1 200") == 3
    names = {name for name, _ in asked[0][0]["headers"]}
    assert b"x-last" in names
    assert not names & {b"upgrade", b"http2-settings"}
    plain, *_ = seen(HttpToolsProtocol, pieces)
    assert [body for _, body in plain] != [inner], "control: uvicorn loses or parses the body"


@KINDS
def test_what_the_offer_stands_beside_still_holds(kind: type[HttpToolsProtocol]) -> None:
    ends = "Connection: close, Upgrade\r\nUpgrade: h2c\r\n"
    asked, said, closed, _ = seen(kind, [request(b"{}", ends), request(b"{2}")])
    assert ([body for _, body in asked], closed) == ([b"{}"], True)
    assert b"connection: close" in said
    old = HEAD.replace("1.1", "1.0")
    asked, _, closed, _ = seen(kind, [request(b"{}", OFFERS[0], head=old)])
    assert ([scope["http_version"] for scope, _ in asked], closed) == (["1.0"], True)
    many = [request(b"{%d}" % i, OFFERS[i % 3]) for i in range(30)]
    asked, *_ = seen(kind, [b"".join(many)])
    assert [body for _, body in asked] == [b"{%d}" % i for i in range(30)]


@KINDS
@pytest.mark.parametrize("target", [b"localhost:1", b"/v1/models"])
def test_nobody_is_given_a_tunnel(kind: type[HttpToolsProtocol], target: bytes) -> None:
    asked, said, closed, _ = seen(kind, [b"CONNECT %b HTTP/1.1\r\nhost: x\r\n\r\n" % target, GET])
    assert (asked, closed) == ([], True)
    assert said.startswith(b"HTTP/1.1 400")


def test_the_parser_says_where_an_offer_ends() -> None:
    """The rest of the bytes begins there, which a later version of httptools might change."""
    head = b"POST / HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
    parser = httptools.HttpRequestParser(object())
    with pytest.raises(httptools.HttpParserUpgrade) as offer:
        parser.feed_data(head + b"ab")
    assert offer.value.args == (len(head),)


@KINDS
def test_nothing_is_written_for_a_caller_that_left_with_more_requests_under_way(
    kind: type[HttpToolsProtocol],
) -> None:
    async def left(kind: type[HttpToolsProtocol]) -> tuple[bytes, list[str]]:
        begun, gone, paths = asyncio.Event(), asyncio.Event(), list[str]()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            paths.append(scope["path"])
            begun.set()
            await gone.wait()
            await _send(send, 200, b"text/plain", b"late", [])

        config = uvicorn.Config(app, lifespan="off", log_config=None)
        config.load()
        wire, state = Wire(), ServerState()
        protocol: Any = kind(config, state, {})
        protocol.access_log = False
        protocol.connection_made(wire)
        protocol.data_received(3 * GET)
        await begun.wait()
        wire.closed = True
        protocol.connection_lost(ConnectionResetError())
        gone.set()
        while state.tasks:
            await asyncio.sleep(0)
        return wire.said, paths

    assert asyncio.run(left(kind)) == (b"", ["/"])
    assert asyncio.run(left(HttpToolsProtocol))[0] != b"", "control: uvicorn writes"


@KINDS
def test_fields_behind_a_chunked_body_are_no_headers(kind: type[HttpToolsProtocol]) -> None:
    head = f"{HEAD}Authorization: mine\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n"
    whole = f"{head}Authorization: other\r\nHost: y\r\nX-Late: 1\r\n\r\n".encode()
    for offer in ("", OFFERS[0]):
        pieces = [whole.replace(b"\r\n", f"\r\n{offer}".encode(), 1), GET, whole]
        asked, said, *_ = seen(kind, pieces)
        assert [body for _, body in asked] == [b"{}", b"", b"{}"]
        assert said.count(b"HTTP/1.1 200") == 3
        for scope in (asked[0][0], asked[2][0]):
            values = [v for n, v in scope["headers"] if n in (b"authorization", b"host", b"x-late")]
            assert values == [b"x", b"mine"]
    plain, *_ = seen(HttpToolsProtocol, [whole])
    assert (b"authorization", b"other") in plain[0][0]["headers"], "control: uvicorn adds them"


@KINDS
@pytest.mark.parametrize("field", ["Host: y", "Authorization: a\r\nAuthorization: b"])
def test_two_hosts_or_two_tokens_are_refused(kind: type[HttpToolsProtocol], field: str) -> None:
    asked, said, closed, _ = seen(kind, [request(b"{}", f"{field}\r\n"), GET])
    assert (asked, closed) == ([], True)
    assert said.startswith(b"HTTP/1.1 400")


@KINDS
@pytest.mark.parametrize("coding", ["gzip, chunked", "chunked, chunked", "gzip"])
def test_a_body_with_another_transfer_coding_than_chunked_is_refused(
    kind: type[HttpToolsProtocol], coding: str
) -> None:
    def sent(value: str) -> bytes:
        return f"{HEAD}Transfer-Encoding: {value}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode()

    for value in (coding, coding.replace(", ", "\r\nTransfer-Encoding: ")):
        asked, said, closed, _ = seen(kind, [sent(value)])
        assert (asked, closed) == ([], True)
        assert said.startswith(b"HTTP/1.1 400")
    asked, *_ = seen(kind, [sent("Chunked")])
    assert [body for _, body in asked] == [b"{}"]
