"""An answer leaves in one piece where uvicorn sends it, and as before where it does not."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from online.http.app import _send

_LOG = logging.getLogger("online.test_whole")


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


def _answer(wire: _Wire, body: bytes, *, method: str = "POST", keep_alive: bool = True) -> None:
    async def run() -> None:
        send: Any = _cycle(wire, method, keep_alive=keep_alive).send
        await _send(send, 200, b"application/json", body, [(b"x-request-id", b"a-1")])

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
    async def apart(send: Any, head: dict[str, Any], body: dict[str, Any]) -> None:
        await send(head)
        await send(body)

    monkeypatch.setattr("online.http.app.in_one_piece", apart)
    wire = _Wire()
    _answer(wire, b"{}")
    assert len(wire.said) == 2


def test_connection_that_ends_is_closed_behind_the_answer() -> None:
    wire = _Wire()
    _answer(wire, b"{}", keep_alive=False)
    assert wire.closed
    assert b"".join(wire.said).endswith(b"\r\n\r\n{}")


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

    asyncio.run(_send(send, 200, b"application/json", b"{}", []))
    assert sent == ["http.response.start", "http.response.body"]
