"""A head is bounded in length and time where no HAProxy stands in front: real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from online.service import embedded
from online.service.parts.head_cache import CachedHeads
from online.service.parts.request_heads import HEAD_BYTES_MAX, BoundedHeads
from online.service.parts.requests_in_turn import RequestsInTurn

WAIT_S: Final = 60.0  # what hangs ends
SHORT_S: Final = 0.05
BODY: Final = 400_000  # in pieces, whose lengths together are longer than any head
ASKS: Final = b"GET / HTTP/1.1\r\nhost: x\r\n"
LONG: Final = b"GET / HTTP/1.1\r\nhost: x\r\nx: "
CHUNKED: Final = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
config = uvicorn.Config
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with how many bytes the body has."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def play(talk: Talk, kind: type[HttpToolsProtocol] = BoundedHeads) -> None:
    async def scene() -> None:
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=3600)
        config.load()
        made = lambda: kind(config, ServerState(), {})  # noqa: E731
        loop = asyncio.get_running_loop()
        async with await loop.create_server(made, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            async with asyncio.timeout(WAIT_S):
                await talk(reader, writer)
            writer.close()

    asyncio.run(scene())


async def pour(writer: asyncio.StreamWriter, piece: bytes, most: int) -> int:
    """Send the piece until the other side ends; the bytes that it took."""
    sent = 0
    try:
        while sent < most:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
            sent += len(piece)
    except ConnectionError:
        pass
    return sent


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (LONG, b"y" * 16_384),
        (ASKS, b"x-many: y\r\n" * 1_500),
        (b"GET /", b"y" * 16_384),
        (CHUNKED + b"1;", b"y" * 16_384),
        (CHUNKED + b"1\r\nz\r\n0\r\n", b"x-many: y\r\n" * 1_500),
    ],
    ids=["one value", "many lines", "the address", "of a piece of a body", "behind a body"],
)
def test_a_head_without_end_ends_the_connection(begin: bytes, piece: bytes) -> None:
    most = 200 * HEAD_BYTES_MAX  # what both sides' sockets hold is a part of it

    async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        assert await pour(writer, piece, most) < most

    async def goes_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        assert await pour(writer, piece, 4_000_000) >= 4_000_000

    play(ends)
    if begin in (ASKS, CHUNKED + b"1;"):  # without the bound: the others take long, for it copies
        play(goes_on, HttpToolsProtocol)


def test_whoever_sends_too_long_a_head_is_told_so() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(LONG + b"y" * (HEAD_BYTES_MAX + 1))
        assert b" 431 " in await reader.readline()

    play(talk)


def test_a_long_body_in_small_pieces_is_taken_and_so_are_requests_after_it() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(CHUNKED)
            await pour(writer, b"2\r\nzz\r\n" * 1_000, 7 * BODY // 2)
            writer.write(b"0\r\n\r\n")
            assert b" 200 " in await reader.readline()
            assert (await reader.readuntil(b"\r\n\r\n")).endswith(b"\r\n\r\n")
            assert int(await reader.readexactly(6)) == BODY

    play(talk)


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("said", [b"\r\n\r\n", b"GET / HT", LONG])
def test_a_head_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, said: bytes, second: bool
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if second:
            writer.write(ASKS + b"\r\n")
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n0")
        monkeypatch.setattr(BoundedHeads, "head_s", SHORT_S)
        writer.write(said)
        try:
            assert b" 408 " in await reader.read()
        except ConnectionError:
            pass  # on a slow machine it has ended before the test had said anything

    monkeypatch.setattr(BoundedHeads, "head_s", WAIT_S if second else SHORT_S)
    play(talk)


def test_the_beginning_of_another_head_costs_nobody_the_answer_that_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late = asyncio.Event()

    class Short(BoundedHeads):
        head_s = SHORT_S

        def _end_late(self) -> None:
            super()._end_late()
            late.set()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await late.wait()
        await app(scope, receive, send)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ASKS + b"\r\n" + b"GET /")
        assert b" 200 " in await reader.readline()
        assert b" 408 " in await reader.read(), "then it is waited for as any other"

    monkeypatch.setattr(uvicorn, "Config", lambda _, **given: config(slow, **given))
    play(talk, Short)


def test_a_connection_that_asks_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedHeads, "head_s", SHORT_S)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b" 408 " in await reader.read()

    play(talk)


@pytest.mark.parametrize(("files", "answer"), [(64 + 5, b" 503 "), (10_000, b" 200 ")])
def test_connections_leave_descriptors_for_the_journal_and_snapshots(
    monkeypatch: pytest.MonkeyPatch, files: int, answer: bytes
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(ASKS + b"connection: close\r\n\r\n")
        assert answer in await reader.read()

    play(talk)


async def refusing(scope: Any, receive: Any, send: Any) -> None:
    """Answer without reading the body, as a request without token is answered."""
    await send(
        {"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})


ENDLESS: Final = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n"


@pytest.mark.parametrize("kind", [CachedHeads, BoundedHeads])
@pytest.mark.parametrize("begin", [ENDLESS, CHUNKED], ids=["of a length", "in pieces"])
def test_a_body_whose_answer_was_sent_is_not_read_for_ever(
    monkeypatch: pytest.MonkeyPatch, begin: bytes, kind: type[CachedHeads]
) -> None:
    monkeypatch.setattr(uvicorn, "Config", lambda _, **given: config(refusing, **given))
    monkeypatch.setattr(RequestsInTurn, "ignored_s", SHORT_S)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        assert b" 401 " in await reader.readuntil(b"\r\n\r\n")
        piece, more = b"1\r\nz\r\n" if begin is CHUNKED else b"z", b""
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            more = await reader.read()
        assert more == b"", "one answer for one request"

    play(talk, kind)


def test_the_rest_of_a_refused_body_may_come_and_then_other_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uvicorn, "Config", lambda _, **given: config(refusing, **given))
    made = list[BoundedHeads]()

    class Noted(BoundedHeads):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            made.append(self)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(3):
            writer.write(ENDLESS.replace(b"999999999999", b"200000"))
            assert b" 401 " in await reader.readuntil(b"\r\n\r\n")
            assert made[0]._ignoring is not None
            writer.write(b"z" * 200_000)
        writer.write(ASKS + b"\r\n")
        assert b" 401 " in await reader.readuntil(b"\r\n\r\n")
        assert made[0]._ignoring is None

    play(talk, Noted)


def test_a_connection_between_two_requests_waits_as_long_as_it_is_kept() -> None:
    made = list[BoundedHeads]()

    class Noted(BoundedHeads):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            made.append(self)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            writer.write(ASKS + b"\r\n")
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n0")
            assert made[0]._timer is None
            assert made[0].timeout_keep_alive_task is not None

    play(talk, Noted)


def test_the_service_of_one_process_reads_heads_so() -> None:
    assert embedded._protocol() is BoundedHeads
