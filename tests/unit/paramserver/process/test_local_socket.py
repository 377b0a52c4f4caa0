"""The kept connection: who may use it, how much goes over it, and that nobody is kept waiting."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from paramserver.clients import ray_client
from paramserver.clients.ray_client import ParameterClient
from paramserver.errors import ServerUnavailable
from paramserver.process import local_socket
from paramserver.process.local_socket import LocalConnection, LocalSocketServer

WAIT_S = 240.0  # only a test that hangs waits so long


@pytest.fixture(autouse=True)
def _however_slow_the_machine_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_client, "_NEAR_S", WAIT_S)


class Asked:
    """A server's answer: the request turned round, and what was asked."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def __call__(self, request: bytes) -> bytes:
        self.requests.append(request)
        if request == b"fail":
            raise ValueError("it does")
        return request[::-1]


def played(play: Callable[[], Awaitable[None]]) -> None:
    """Run it, with the bound that only a test that hangs reaches."""

    async def bounded() -> None:
        async with asyncio.timeout(WAIT_S):
            await play()

    asyncio.run(bounded())


@contextmanager
def connected(way: tuple[bytes, bytes]) -> Iterator[socket.socket]:
    """A plain socket of somebody who has found the address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.settimeout(WAIT_S)
        end.connect(way[0])
        yield end


NONCE = b"12345678"


def send(end: socket.socket, data: bytes) -> None:
    """Send it; whoever does not want it may have closed the connection already."""
    with suppress(ConnectionError):
        end.sendall(data)


def greet(end: socket.socket, key: bytes, more: bytes = b"") -> bytes:
    """Ask for the proof, then send a key and more; the proof, empty if there came none."""
    send(end, NONCE)
    try:
        heard = end.recv(32, socket.MSG_WAITALL)
    except ConnectionError:
        heard = b""
    send(end, key + more)
    return heard


def said(end: socket.socket) -> bytes:
    """What comes next; empty: the connection was closed."""
    try:
        return end.recv(4)
    except ConnectionError:
        return b""


def test_questions_are_answered_one_after_the_other_however_long_the_answer() -> None:
    asked = Asked()
    server = LocalSocketServer(asked)

    async def play() -> None:
        line = await LocalConnection.to(*server.way())
        for request in (b"abc", b"x" * local_socket.MESSAGE_MAX, b"d"):
            assert await line.ask(request) == request[::-1]
        line.close()

    played(play)
    assert [len(request) for request in asked.requests] == [3, local_socket.MESSAGE_MAX, 1]


def test_what_fails_has_an_empty_answer_and_the_connection_goes_on() -> None:
    server = LocalSocketServer(Asked())

    async def play() -> None:
        line = await LocalConnection.to(*server.way())
        assert await line.ask(b"fail") == b""
        assert await line.ask(b"ab") == b"ba"
        line.close()

    played(play)


@pytest.mark.parametrize("key", [b"\0" * 32, b"short"])
def test_without_the_key_nothing_is_asked(key: bytes) -> None:
    asked = Asked()
    with connected(LocalSocketServer(asked).way()) as end:
        greet(end, key, b"\0\0\0\1a")
        with suppress(OSError):  # closed already
            end.shutdown(socket.SHUT_WR)
        assert said(end) == b""
    assert asked.requests == []


def test_with_the_key_the_same_bytes_are_answered() -> None:
    """The control of the test above, and of those below."""
    server = LocalSocketServer(Asked())
    with connected(server.way()) as end:
        key = server.way()[1]
        assert (
            greet(end, key, b"\0\0\0\1a")
            == local_socket.proof(key, NONCE)
            != local_socket.proof(key, b"")
        )
        assert said(end) == b"\0\0\0\1"


def test_another_user_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked()
    server = LocalSocketServer(asked)
    monkeypatch.setattr(os, "getuid", lambda: 12_345)
    with connected(server.way()) as end:
        assert greet(end, server.way()[1], b"\0\0\0\1a") == b""
        assert said(end) == b""
    assert asked.requests == []


def test_the_key_is_not_sent_to_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    server = LocalSocketServer(Asked())
    monkeypatch.setattr(os, "getuid", lambda: 12_345)

    async def play() -> None:
        with pytest.raises(PermissionError, match="another user"):
            await LocalConnection.to(*server.way())

    played(play)


def test_a_request_beyond_the_bound_is_not_read() -> None:
    asked = Asked()
    server = LocalSocketServer(asked)
    with connected(server.way()) as end:
        greet(end, server.way()[1], (local_socket.MESSAGE_MAX + 1).to_bytes(4, "big"))
        assert said(end) == b""
    assert asked.requests == []


def test_connections_are_bounded_and_a_closed_one_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local_socket, "CONNECTIONS_MAX", 1)
    server = LocalSocketServer(Asked())
    question = server.way()[1], b"\0\0\0\1a"
    with connected(server.way()) as first:
        greet(first, *question)
        assert said(first) == b"\0\0\0\1"
        with connected(server.way()) as second:
            assert said(second) == b""
    answer = b""
    while not answer:  # the server sees the end of the first one in its own time
        with connected(server.way()) as third:
            greet(third, *question)
            answer = said(third)
    assert answer == b"\0\0\0\1"


def test_an_answer_that_nobody_has_waited_for_is_not_the_next_ones() -> None:
    asks, go = threading.Event(), threading.Event()

    def answer(request: bytes) -> bytes:
        asks.set()
        assert go.wait(WAIT_S)
        return request

    server = LocalSocketServer(answer)

    async def play() -> None:
        line = await LocalConnection.to(*server.way())
        waits = asyncio.ensure_future(line.ask(b"late"))
        await asyncio.to_thread(asks.wait, WAIT_S)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        line.close()
        go.set()
        other = await LocalConnection.to(*server.way())
        assert await other.ask(b"new") == b"new"
        other.close()

    played(play)


@contextmanager
def listening() -> Iterator[tuple[socket.socket, bytes]]:
    """A socket of whoever is no server of ours, and its address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.settimeout(WAIT_S)
        listener.bind(f"\0online-test-{os.getpid()}")
        listener.listen(1)
        yield listener, listener.getsockname()


def test_the_key_is_not_sent_to_who_does_not_know_it() -> None:
    heard: list[bytes] = []

    def answer(listener: socket.socket) -> None:
        end, _ = listener.accept()
        with end:
            end.settimeout(WAIT_S)
            heard.append(end.recv(8, socket.MSG_WAITALL))
            end.sendall(local_socket.proof(b"another", heard[0]))
            with suppress(ConnectionError):  # it may be given up at once
                heard.append(end.recv(64))

    async def play() -> None:
        with listening() as (listener, address):
            answers = asyncio.create_task(asyncio.to_thread(answer, listener))
            with pytest.raises(PermissionError, match="not the server's"):
                await LocalConnection.to(address, b"key")
            await answers

    played(play)
    assert (len(heard[0]), heard[1:]) in [(8, []), (8, [b""])]


def test_a_server_that_ends_is_an_error_at_once() -> None:
    def answer(listener: socket.socket) -> None:
        end, _ = listener.accept()
        with end:
            end.settimeout(WAIT_S)
            end.sendall(local_socket.proof(b"key", end.recv(8, socket.MSG_WAITALL)))
            assert end.recv(3, socket.MSG_WAITALL) == b"key"

    async def play() -> None:
        with listening() as (listener, address):
            answers = asyncio.create_task(asyncio.to_thread(answer, listener))
            line = await LocalConnection.to(address, b"key")
            await answers
            with pytest.raises((OSError, EOFError)):
                await line.ask(b"a")
            line.close()
        with pytest.raises(OSError, match="refused"):
            await LocalConnection.to(address, b"key")

    played(play)


class Client(ParameterClient):
    """A replica's client, whose server answers here instead of in an actor of Ray."""

    def __init__(self, server: LocalSocketServer) -> None:
        super().__init__("m")
        self.server = server
        self.asked: list[str] = []

    async def _by_ray(self, method: str, args: tuple[object, ...]) -> Any:
        self.asked.append(method)
        return self.server.way() if method == "near" else b"by ray"


def test_exchanges_go_over_the_connection_once_ray_has_answered_one() -> None:
    async def play() -> None:
        client = Client(LocalSocketServer(Asked()))
        assert not client.near
        assert await client.call("sync", WAIT_S, b"abc") == b"by ray"
        assert await client.call("sync", WAIT_S, b"abc") == b"cba"
        assert client.near
        assert await client.call("sync", WAIT_S, b"de") == b"ed"
        assert client.asked == ["sync", "near"]
        await client.call("status", WAIT_S)
        await client.call("sync", WAIT_S, b"x" * (local_socket.MESSAGE_MAX + 1))
        assert client.asked == ["sync", "near", "status", "sync"]

    played(play)


def test_what_the_connection_fails_is_asked_by_ray() -> None:
    async def play() -> None:
        client = Client(LocalSocketServer(Asked()))
        for _ in range(2):
            await client.call("sync", WAIT_S, b"abc")
        assert await client.call("sync", WAIT_S, b"fail") == b"by ray"  # which tells the error
        assert client.near

    played(play)


def test_a_server_on_another_machine_is_looked_for_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        client = Client(LocalSocketServer(Asked()))

        async def refused(address: bytes, key: bytes) -> LocalConnection:
            raise ConnectionRefusedError(address)

        monkeypatch.setattr(LocalConnection, "to", refused)
        for _ in range(5):
            assert await client.call("sync", WAIT_S, b"abc") == b"by ray"
        assert client.asked == ["sync", "near", "sync", "sync", "sync", "sync"]

    played(play)


def test_two_exchanges_at_once_leave_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_client, "_NEAR_AGAIN_S", 0.0)
    asks, go = threading.Event(), threading.Event()
    closed: list[LocalConnection] = []
    close = LocalConnection.close

    def noted(line: LocalConnection) -> None:
        closed.append(line)
        close(line)

    monkeypatch.setattr(LocalConnection, "close", noted)

    def answer(request: bytes) -> bytes:
        if request == b"slow":
            asks.set()
            assert go.wait(WAIT_S)
        return request

    async def play() -> None:
        client = Client(LocalSocketServer(answer))
        for _ in range(2):
            await client.call("sync", WAIT_S, b"a")
        first = client._connection
        slow = asyncio.create_task(client.call("sync", WAIT_S, b"slow"))
        await asyncio.to_thread(asks.wait, WAIT_S)
        assert await client.call("sync", WAIT_S, b"b") == b"b"
        second = client._connection
        assert second is not None
        go.set()
        assert await slow == b"slow"
        assert (client._connection, closed) == (first, [second])

    played(play)


def test_a_thread_that_can_not_be_started_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_socket, "CONNECTIONS_MAX", 1)
    server, start, failed = LocalSocketServer(Asked()), threading.Thread.start, list[str]()

    def fails_once(thread: threading.Thread) -> None:
        if not failed and "_serve" in thread.name:
            failed.append(thread.name)
            raise RuntimeError("can't start new thread")
        start(thread)

    key = server.way()[1]
    monkeypatch.setattr(threading.Thread, "start", fails_once)
    with connected(server.way()) as first:
        assert said(first) == b""
    with connected(server.way()) as second:
        greet(second, key, b"\0\0\0\1a")
        assert said(second) == b"\0\0\0\1"
    assert len(failed) == 1


def test_a_question_that_is_no_longer_waited_for_ends_the_connection() -> None:
    go = threading.Event()

    def answer(request: bytes) -> bytes:
        if request == b"slow":
            assert go.wait(WAIT_S)
        return request

    async def play() -> None:
        client = Client(LocalSocketServer(answer))
        for _ in range(2):
            await client.call("sync", WAIT_S, b"a")
        assert client.near
        with pytest.raises(ServerUnavailable, match="none within"):
            await client.call("sync", 0.01, b"slow")
        assert not client.near
        go.set()
        assert await client.call("sync", WAIT_S, b"b") == b"by ray"

    played(play)
