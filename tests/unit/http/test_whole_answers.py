"""An answer leaves in one piece where uvicorn sends it, and as before where it does not."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from online.http.app import App
from online.http.connection.whole_answers import written
from online.settings.limits import Limits

_LOG = logging.getLogger("online.test_whole")
_ID = (b"x-request-id", b"a-1")
_CLOSE = (b"connection", b"close")


class _Wire:
    """A transport that remembers what it was asked, in order."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the close"
        self.said.append(bytes(data))

    def writelines(self, parts: Any) -> None:
        raise AssertionError("it holds nobody back in asyncio up to Python 3.12.8")

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def _cycle(wire: _Wire, method: str, *, keep_alive: bool) -> RequestResponseCycle:
    scope: Any = {"type": "http", "method": method, "http_version": "1.1", "headers": []}
    transport: Any = wire
    return RequestResponseCycle(
        scope, transport, FlowControl(transport), _LOG, _LOG, False, [], asyncio.Event(),
        False, keep_alive, lambda: None,
    )  # fmt: skip


async def _send(
    send: Any, status: int, kind: bytes, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    app = App({}, None, Limits())  # type: ignore[arg-type]
    await app._send(send, status, kind, body, headers, "m")


def _answer(
    wire: _Wire,
    body: bytes,
    *others: tuple[bytes, bytes],
    method: str = "POST",
    keep_alive: bool = True,
) -> None:
    async def run() -> None:
        send: Any = _cycle(wire, method, keep_alive=keep_alive).send
        await _send(send, 200, b"application/json", body, [_ID, *others])

    asyncio.run(run())


@pytest.mark.parametrize(("size", "writes"), [(1, 1), (500, 1), (65_536, 1), (65_537, 2)])
def test_head_and_body_are_one_write_unless_the_body_is_large(size: int, writes: int) -> None:
    wire, body = _Wire(), b"x" * size
    _answer(wire, body)
    assert len(wire.said) == writes, [piece[:200] for piece in wire.said]
    head, _, rest = b"".join(wire.said).partition(b"\r\n\r\n")
    assert rest == body
    assert head.startswith(b"HTTP/1.1 200")
    assert b"x-request-id: a-1" in head


def test_control_without_it_they_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("online.http.app.written", lambda *_: False)
    wire = _Wire()
    _answer(wire, b"{}")
    assert len(wire.said) == 2


@pytest.mark.parametrize("status", [200, 202, 422, 503])
@pytest.mark.parametrize("headers", [[], [(b"date", b"today"), (b"server", b"it")]])
def test_what_is_written_is_what_uvicorn_would_write(
    status: int, headers: list[tuple[bytes, bytes]]
) -> None:
    def answered(way: Any) -> list[Any]:
        wire, ended = _Wire(), list[bool]()
        cycle = _cycle(wire, "POST", keep_alive=True)
        cycle.default_headers, cycle.on_response = headers, lambda: ended.append(True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("online.http.app.written", way)
            asyncio.run(_send(cycle.send, status, b"a/b", b"{}", [_ID]))
        state = [cycle.response_started, cycle.response_complete, cycle.message_event.is_set()]
        return [b"".join(wire.said), *state, ended, wire.closed]

    assert answered(written) == answered(lambda *_: False)


@pytest.mark.parametrize("what", ["disconnected", "access_log", "response_started"])
def test_an_answer_that_uvicorn_would_not_write_at_once_is_left_to_it(what: str) -> None:
    wire = _Wire()
    cycle = _cycle(wire, "POST", keep_alive=True)
    setattr(cycle, what, True)
    assert not written(cycle.send, 200, b"a/b", b"{}", b"a-1")
    assert wire.said == []


def test_connection_that_ends_is_closed_behind_the_answer() -> None:
    wire = _Wire()
    _answer(wire, b"{}", keep_alive=False)
    assert wire.closed
    assert b"".join(wire.said).endswith(b"\r\n\r\n{}")


def test_an_answer_that_ends_its_connection_is_left_to_uvicorn() -> None:
    wire = _Wire()
    _answer(wire, b"{}", _CLOSE)
    assert wire.closed
    assert b"\r\nconnection: close\r\n" in b"".join(wire.said)


@pytest.mark.parametrize("method", ["HEAD", "POST"])
@pytest.mark.parametrize("keep_alive", [True, False])
def test_answer_whose_body_is_not_sent_has_its_head(method: str, keep_alive: bool) -> None:
    wire = _Wire()
    _answer(wire, b"{}" if method == "HEAD" else b"", method=method, keep_alive=keep_alive)
    assert b"".join(wire.said).startswith(b"HTTP/1.1 200"), wire.said
    assert b"".join(wire.said).endswith(b"\r\n\r\n"), wire.said
    assert wire.closed is not keep_alive


def test_whoever_else_sends_sends_as_before() -> None:
    sent: list[str] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    asyncio.run(_send(send, 200, b"application/json", b"{}", [_ID]))
    assert sent == ["http.response.start", "http.response.body"]
