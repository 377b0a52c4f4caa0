"""Whoever reads none of its answers keeps no connection: real sockets, and uvicorn's protocol."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import replica_world as worlds
import uvicorn
import uvloop
from replica_world import until
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from online.http.app import App
from online.http.connection.unread_answers import UnreadAnswers
from online.http.middleware.access_log import AccessLog
from online.messages import bodies
from online.service.parts.head_cache import CachedHeads
from online.settings.limits import Limits

ROWS: Final = 1000
WAIT_S: Final = 3.0  # a body has no longer, on a slow machine either
NEVER_S: Final = 3600.0
LIMITS: Final = Limits(body_wait_s=WAIT_S)
LOOPS: Final = pytest.mark.parametrize(
    "loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


def request(rows: int) -> bytes:
    body = json.dumps({"instances": [{"a": 1.0}] * rows, "ids": True}).encode()
    head = f"POST /v1/models/m/predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Service:
    """A replica's application behind uvicorn's protocol, with little room for what is unread."""

    protocol: type[HttpToolsProtocol] = HttpToolsProtocol

    def __init__(self, app: App, replica: Any) -> None:
        self.app, self.replica, self.state = app, replica, ServerState()
        self._config = uvicorn.Config(
            AccessLog(app, 0.0, print),  # type: ignore[arg-type]
            http="httptools", lifespan="off", log_config=None, timeout_keep_alive=1,
        )  # fmt: skip
        self._config.load()
        self._server: Any = None
        self._callers: list[socket.socket] = []

    def keeps_alive(self) -> None:
        """Close no connection on which nothing is asked."""
        self._config.timeout_keep_alive = int(NEVER_S)

    def sends_itself(self) -> None:
        """Have nothing between the application and uvicorn, as in one process."""
        self._config.loaded_app = self.app  # type: ignore[assignment]

    async def caller(self) -> socket.socket:
        """A connection on which nobody reads."""
        loop = asyncio.get_running_loop()
        if self._server is None:
            listens = socket.create_server(("127.0.0.1", 0))
            listens.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            self._server = await loop.create_server(
                lambda: self.protocol(self._config, self.state, {}), sock=listens
            )
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.setblocking(False)
        await loop.sock_connect(made, self._server.sockets[0].getsockname())
        self._callers.append(made)
        return made

    async def asks(self, caller: socket.socket, *rows: int) -> None:
        for one in rows:
            await asyncio.get_running_loop().sock_sendall(caller, request(one))

    @property
    def connections(self) -> list[Any]:
        return list(self.state.connections)

    async def ended(self) -> None:
        await until(lambda: not self.state.connections and not self.state.tasks)

    async def close(self) -> None:
        for caller in self._callers:
            caller.close()
        await self.ended()
        self._server.close()
        await self._server.wait_closed()


def play(
    tmp_path: Path,
    loop: Callable[[], asyncio.AbstractEventLoop],
    scene: Callable[[Service], Awaitable[None]],
    limits: Limits = LIMITS,
) -> None:
    async def inside() -> None:
        world = worlds.World(tmp_path)
        replica = await world.replica()
        app = App({"m": world.serving(replica)}, None, limits)  # type: ignore[arg-type]
        service = Service(app, replica)
        await scene(service)
        await service.close()
        await replica.stop(1)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(inside())


@pytest.fixture
def nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody looked at what is left."""
    monkeypatch.setattr(UnreadAnswers, "ends", lambda *_: None)


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.ERROR, "uvicorn.error"):
        yield lambda: [r.message for r in caplog.records if r.name == "uvicorn.error"]


async def stuck(service: Service) -> None:
    """One answer fills what there is, the next one waits to be sent."""
    await service.asks(await service.caller(), ROWS, 1)
    await until(lambda: any(c.flow._is_writable_event._waiters for c in service.connections))


@LOOPS
def test_an_answer_that_can_not_be_sent_ends_its_connection(
    tmp_path: Path, loop: Any, errors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(service: Service) -> None:
        await stuck(service)
        monkeypatch.setattr(bodies, "_PATIENCE_S", -1.0)  # uvloop counts milliseconds
        assert service.app._transfers.push_out()
        await service.ended()
        assert service.replica.counts["answers_not_taken"] == 1
        assert errors() == []

    play(tmp_path, loop, scene, Limits(body_wait_s=NEVER_S))


@pytest.mark.usefixtures("nothing_is_done")
def test_control_without_it_uvicorn_waits_to_say_that_it_failed(
    tmp_path: Path, errors: Any
) -> None:
    async def scene(service: Service) -> None:
        await service.asks(await service.caller(), ROWS, 1)
        await until(lambda: errors() != [])
        assert errors() == ["ASGI callable returned without starting response."]
        assert service.replica.counts["answers_not_taken"] == 1
        assert len(service.state.connections) == len(service.state.tasks) == 1

    play(tmp_path, asyncio.new_event_loop, scene)


@LOOPS
def test_a_large_answer_that_nobody_takes_ends_its_connection(tmp_path: Path, loop: Any) -> None:
    async def scene(service: Service) -> None:
        await service.asks(await service.caller(), ROWS)
        await until(lambda: service.replica.counts["answers_not_taken"] == 1)
        await service.ended()

    play(tmp_path, loop, scene)


@pytest.mark.usefixtures("nothing_is_done")
def test_control_without_it_the_close_waits_to_be_read(tmp_path: Path) -> None:
    async def scene(service: Service) -> None:
        await service.asks(await service.caller(), ROWS)
        await until(lambda: any(c.transport.is_closing() for c in service.connections))
        (left,) = service.connections
        assert left.transport.get_write_buffer_size() > 0

    play(tmp_path, asyncio.new_event_loop, scene)


PAGES: Final = ["/", "/openapi.json", "/static-offline-docs/swagger-ui-bundle.js"]


async def asks_for(service: Service, path: str) -> None:
    """Ask for more than there is room for, with requests that nothing but the answer ends."""
    get = f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
    service.keeps_alive()
    service.sends_itself()
    service.protocol = CachedHeads  # as the service has it
    await asyncio.get_running_loop().sock_sendall(await service.caller(), 40 * get)


@LOOPS
@pytest.mark.parametrize("path", PAGES)
def test_a_page_that_nobody_takes_ends_its_connection(
    tmp_path: Path, loop: Any, errors: Any, path: str
) -> None:
    async def scene(service: Service) -> None:
        await asks_for(service, path)
        await service.ended()
        assert errors() == []

    play(tmp_path, loop, scene, Limits(body_wait_s=0.5))


def test_control_without_a_bound_a_page_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def given(app: App, receive: Any, send: Any, path: str, part: Any) -> None:
        await send(part)

    monkeypatch.setattr(App, "_give", given)

    async def scene(service: Service) -> None:
        await asks_for(service, PAGES[2])
        await until(lambda: any(c.flow._is_writable_event._waiters for c in service.connections))
        assert not service.app._transfers._clocks, "nothing ends this wait"
        for one in service.connections:
            one.transport.abort()

    play(tmp_path, asyncio.new_event_loop, scene)


@LOOPS
def test_whoever_takes_its_answers_keeps_its_connection(tmp_path: Path, loop: Any) -> None:
    async def scene(service: Service) -> None:
        service.keeps_alive()
        caller = await service.caller()
        await service.asks(caller, ROWS)
        await until(lambda: service.app._unread._left != {})
        got, size = b"", len(request(ROWS))
        while len(got) < size:
            got += await asyncio.get_running_loop().sock_recv(caller, 1 << 20)
            if found := re.match(rb".*?content-length: (\d+)\r\n.*?\r\n\r\n", got, re.S):
                size = found.end() + int(found[1])
        await until(lambda: service.app._unread._left == {})
        assert len(service.state.connections) == 1
        assert service.replica.counts["answers_not_taken"] == 0

    play(tmp_path, loop, scene, Limits(body_wait_s=60.0))


@LOOPS
def test_a_body_that_does_not_come_ends_its_connection(
    tmp_path: Path, loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", False)  # pytest listens

    async def scene(service: Service) -> None:
        service.keeps_alive()
        service.sends_itself()
        caller, running = await service.caller(), asyncio.get_running_loop()
        head = b"POST /v1/models/m/snapshots HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{"
        await running.sock_sendall(caller, head)
        got = b""
        async with asyncio.timeout(20):
            while piece := await running.sock_recv(caller, 1 << 20):
                got += piece
        assert got.startswith(b"HTTP/1.1 408 ")
        assert got.count(b"connection: close") == 1

    play(tmp_path, loop, scene, Limits(body_wait_s=0.1))


class _Wire:
    """A transport with so much left in it."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True


class _Cycle:
    """A request of uvicorn whose answer was sent."""

    def __init__(self, transport: _Wire) -> None:
        self.transport, self.response_complete = transport, True

    async def receive(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(("taken", "again"), [(True, 1), (False, 0)])
def test_the_time_begins_anew_with_an_answer_after_those_that_were_taken(
    taken: bool, again: int
) -> None:
    async def scene() -> None:
        untaken = UnreadAnswers(NEVER_S, 100, lambda _: None)
        wire = _Wire(250)
        receive = _Cycle(wire).receive
        untaken.ends(receive, "/")
        (before,) = untaken._left.values()
        assert before[0] == pytest.approx(asyncio.get_running_loop().time() + 3 * NEVER_S, abs=900)
        wire.left = 0 if taken else 250
        untaken.begins(receive)
        wire.left = 50
        untaken.ends(receive, "/")
        (after,) = untaken._left.values()
        assert (after[0] < before[0]) == again, "less is left now, so there is less time for it"

    asyncio.run(scene())
