"""What an application sees of the bytes on a connection, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from online.http.app import _send
from online.http.connection.whole_answers import written

WAIT_S: Final = 60.0  # what hangs ends
HEAD: Final = "POST /v1/models/m/predict?a=%20 HTTP/1.1\r\nHost: x\r\n"


def request(body: bytes, more: str = "", head: str = HEAD, length: int | None = None) -> bytes:
    """Return a request with a body of a stated length, and further lines behind that."""
    size = len(body) if length is None else length
    return f"{head}Content-Length: {size}\r\n{more}\r\n".encode() + body


class Wire:
    """A transport that remembers what was written, without a socket."""

    def __init__(self) -> None:
        self.said = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.said += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> Any:
        return {"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)}.get(name)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_protocol(self, protocol: object) -> None: ...


def seen(
    kind: type[HttpToolsProtocol], pieces: Sequence[bytes], *, slow: bool = False
) -> tuple[list[Any], bytes, bool, int]:
    """What the application sees of the pieces, what is answered, the end, and requests read."""
    asked: list[Any] = []
    begun = 0

    class Noted(kind):  # type: ignore[misc, valid-type]
        def on_message_begin(self) -> None:
            nonlocal begun
            begun += 1
            super().on_message_begin()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept = {**scope, "headers": list(scope["headers"])}
        scope["state"]["changed"], scope["path_params"] = True, {}  # as frameworks do
        scope["headers"].append((b"x-changed", b"1"))
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        asked.append((kept, body))
        if slow:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        said, number = body[:3], b"%d" % len(asked)
        if not written(send, 200, b"text/plain", said, number):
            await _send(send, 200, b"text/plain", said, [(b"x-request-id", number)])

    async def scene() -> tuple[list[Any], bytes, bool, int]:
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=3600)
        config.load()
        state, wire = ServerState(), Wire()
        state.default_headers = [(b"date", b"today"), (b"server", b"it")]
        protocol = Noted(config, state, {"given": 1})
        protocol.access_log = False  # as the service has it
        protocol.connection_made(wire)  # type: ignore[arg-type]
        async with asyncio.timeout(WAIT_S):
            for piece in pieces:
                if not wire.closed:
                    protocol.data_received(piece)
                for _ in range(0 if slow else 8):
                    await asyncio.sleep(0)
            for _ in range(40):
                await asyncio.sleep(0)
        closed = wire.closed
        protocol.connection_lost(None)
        return asked, wire.said, closed, begun

    return asyncio.run(scene())
