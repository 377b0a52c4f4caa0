"""A head that is known is not read again, and nobody can tell by what the application sees."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from online.http.app import _send
from online.service import serve_middleware
from online.service.known_heads import Known
from online.service.request_heads import Heads

WAIT_S: Final = 60.0  # what hangs ends
HEAD: Final = "POST /v1/models/m/predict?a=%20 HTTP/1.1\r\nHost: x\r\n"


def request(body: bytes, more: str = "", head: str = HEAD, length: int | None = None) -> bytes:
    """Return a request with a body of a stated length, and further lines behind that."""
    size = len(body) if length is None else length
    return f"{head}Content-Length: {size}\r\n{more}\r\n".encode() + body


class _Wire:
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
        await _send(send, 200, b"text/plain", body[:3], [(b"x-request-id", b"%d" % len(asked))])

    async def scene() -> tuple[list[Any], bytes, bool, int]:
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=3600)
        config.load()
        state, wire = ServerState(), _Wire()
        state.default_headers = [(b"date", b"today"), (b"server", b"it")]
        protocol = Noted(config, state, {"given": 1})
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


BODIES: Final = st.binary(max_size=12).map(lambda body: b"{" + body)
REQUESTS: Final = st.one_of(
    BODIES.map(request),
    BODIES.map(lambda body: request(body, "x-request-id: a\r\n")),
    BODIES.map(lambda body: request(body, "Connection: keep-alive\r\n")),
    BODIES.map(lambda body: request(body, head=HEAD.replace("predict", "feedback"))),
    BODIES.map(lambda body: request(body, "Expect: 100-continue\r\n")),
    BODIES.map(lambda body: b"\r\n" + request(body)),
    st.just(f"{HEAD}transfer-encoding: chunked\r\n\r\n2\r\nzz\r\n0\r\n\r\n".encode()),
    st.just(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"),
    st.just(b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length:  0\r\n\r\n"),
)
LAST: Final = st.sampled_from(
    [
        request(b"{}", "Connection: close\r\n"),
        request(b"{}", head=HEAD.replace("1.1", "1.0")),
        request(b"{}").replace(b"Length: 2", b"Length: +2"),
        request(b"{}").replace(b"Length: 2", b"Length: "),
        request(b"{}", "Content-Length: 2\r\n"),
        request(b"{}", length=5),
        b"nonsense\r\n\r\n",
    ]
)


@given(st.lists(REQUESTS, min_size=1, max_size=6), st.none() | LAST, st.data())
def test_the_application_sees_the_same_however_requests_come(
    requests: list[bytes], last: bytes | None, data: st.DataObject
) -> None:
    many = [one for one in requests for _ in range(data.draw(st.integers(1, 3)))]
    stream = b"".join(many if last is None else [*many, last])
    if data.draw(st.booleans()):  # as most come
        pieces = many if last is None else [*many, last]
    else:
        cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
        pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        pieces = [piece for piece in pieces if piece]
    slow = data.draw(st.booleans())
    plain = seen(HttpToolsProtocol, pieces, slow=slow)[:3]
    assert seen(Known, pieces, slow=slow)[:3] == plain
    assert seen(Heads, pieces, slow=slow)[:3] == plain


@pytest.mark.parametrize("kind", [Known, Heads])
def test_only_the_first_of_requests_that_are_alike_is_read(kind: type[Known]) -> None:
    asked, _, _, begun = seen(kind, [request(b"x" * size) for size in (1, 12, 0, 5_000)])
    assert [len(body) for _, body in asked] == [1, 12, 0, 5_000]
    assert begun == 1


def test_heads_that_never_come_again_are_not_kept_for_ever() -> None:
    others = [request(b"{}", f"x-request-id: {i}\r\n") for i in range(20)]
    asked, _, _, begun = seen(Known, [*others, others[-1], others[-1]])
    assert len(asked) == begun == 22


def test_control_a_head_of_which_only_the_beginning_is_compared_is_noticed() -> None:
    class Hasty(Known):
        def takes(self, data: bytes) -> bool:
            head = self._head
            if head is None or not data.startswith(head.before):
                return False
            at = len(head.before)
            self._begin(head, data[at : data.find(b"\r", at)], data[data.find(b"{") :])
            return True

    pieces = [request(b"{}"), request(b"{}", "x-request-id: a\r\n")]
    assert seen(Hasty, pieces)[0] != seen(HttpToolsProtocol, pieces)[0]


def test_behind_known_requests_a_head_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Heads, "head_s", 0.0)
    *_, said, closed, begun = seen(Heads, [request(b"{}"), request(b"{}"), request(b"{}")[:30]])
    assert (b" 408 " in said, closed, begun) == (True, True, 2)


def test_replicas_of_ray_serve_read_requests_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    serve_middleware.middlewares()
    config = uvicorn.Config(lambda: None, factory=True, log_config=None)
    config.load()
    assert config.http_protocol_class is Known
