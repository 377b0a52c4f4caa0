"""A head that is known is not read again, and nobody can tell by what the application sees."""

from __future__ import annotations

from typing import Any, Final

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from seen_requests import HEAD, request, seen
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from online.service import serve_middleware
from online.service.parts.head_cache import CachedHeads
from online.service.parts.request_heads import BoundedHeads

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
MALFORMED: Final = [
    request(b"{}").replace(b"Length: 2", b"Length: +2"),
    request(b"{}").replace(b"Length: 2", b"Length: "),
    request(b"{}", "Content-Length: 2\r\n"),
    b"nonsense\r\n\r\n",
]
LAST: Final = st.sampled_from(
    [
        request(b"{}", "Connection: close\r\n"),
        request(b"{}", head=HEAD.replace("1.1", "1.0")),
        request(b"{}", length=5),
        *MALFORMED,
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
    for kind in (CachedHeads, BoundedHeads):
        asked, said, closed, _ = seen(kind, pieces, slow=slow)
        if last in MALFORMED and len(asked) > len(plain[0]):
            # It was parsed after more of the requests before it had been answered.
            apart = seen(HttpToolsProtocol, [*many, last])[0]
            assert (asked, closed) == (apart[: len(asked)], plain[2])
            assert said.count(b"HTTP/1.1 400") == 1
        else:
            assert (asked, said, closed) == plain


@pytest.mark.parametrize("kind", [CachedHeads, BoundedHeads])
def test_only_the_first_of_requests_that_are_alike_is_read(kind: type[CachedHeads]) -> None:
    asked, _, _, begun = seen(kind, [request(b"x" * size) for size in (1, 12, 0, 5_000)])
    assert [len(body) for _, body in asked] == [1, 12, 0, 5_000]
    assert begun == 1


GET: Final = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
FEEDBACK: Final = HEAD.replace("predict", "feedback")


@pytest.mark.parametrize("kind", [CachedHeads, BoundedHeads])
@pytest.mark.parametrize(
    ("pieces", "read"),
    [
        ([request(b"{}"), request(b"{1}", head=FEEDBACK)] * 9, 2),
        ([request(b"{}"), GET] * 20, 21),
        ([request(b"{}", f"x-trace: {i}\r\n") for i in range(20)] + [request(b"{}")] * 9, 21),
        ([p for i in range(9) for p in (request(b"{}"), request(b"{}", f"a: {i}\r\n"))], 10),
    ],
    ids=["two in turn", "others between", "after heads that never come again", "and among them"],
)
def test_what_else_is_asked_makes_a_connection_forget_nothing(
    kind: type[CachedHeads], pieces: list[bytes], read: int
) -> None:
    asked, _, _, begun = seen(kind, pieces)
    assert (len(asked), begun) == (len(pieces), read)


@pytest.mark.parametrize(
    "first",
    [
        b"\r\n\r\n" + request(b"{}"),
        b"\n" + request(b"{}"),
        request(b"{}") + request(b"{}"),
        request(b"{}")[:-1],
        request(b"{}", "Expect: 100-continue\r\n"),
        request(b"{}", "Transfer-Encoding: chunked\r\n"),
        request(b"{}", "Content-Length: 2\r\n"),
        request(b"{}", "Connection: close\r\n"),
        request(b"{}").replace(b" 2\r", b" 2 \r"),
        request(b"{}").replace(b"Host: x\r\n", b"Host: x\n"),
        request(b"{}").replace(b"Host: x\r\n", b"Host: x\r\n Content-Length: 1\r\n"),
        request(b"{}", "a: " + "b" * 4_096 + "\r\n"),
        request(b"{}").replace(b"Content-Length: 2", b"Content-Length: 0000000002"),
        request(request(b"{}")),
    ],
)
@pytest.mark.parametrize(
    "second",
    [
        b"\r\n\r\n3\r{}",
        b"\r\n\r\n7X",
        request(b"{}"),
        request(b"{}") + b"x",
        request(b"{}")[:-1],
        request(b"{}").replace(b" 2\r", b" +2\r"),
    ],
)
def test_after_an_odd_request_the_application_sees_the_same(first: bytes, second: bytes) -> None:
    pieces = [first, second, request(b"{3}")]
    plain = seen(HttpToolsProtocol, pieces)[:3]
    assert seen(CachedHeads, pieces)[:3] == plain
    assert seen(BoundedHeads, pieces)[:3] == plain
    assert (
        seen(CachedHeads, [request(b"{}"), *pieces])[:3]
        == seen(HttpToolsProtocol, [request(b"{}"), *pieces])[:3]
    )


def test_control_a_head_of_which_only_the_beginning_is_compared_is_noticed() -> None:
    class Hasty(CachedHeads):
        def _start_cached(self, data: bytes) -> bool:
            for head in self._heads:
                if data.startswith(head.before):
                    at = len(head.before)
                    digits = data[at : data.find(b"\r", at)]
                    self.begin(head, digits, data[data.find(b"{") :])
                    return True
            return False

    pieces = [request(b"{}"), request(b"{}", "x-request-id: a\r\n")]
    assert seen(Hasty, pieces)[0] != seen(HttpToolsProtocol, pieces)[0]


def test_an_uvicorn_that_starts_requests_otherwise_reads_all_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Older(CachedHeads):
        _start_asgi_task = HttpToolsProtocol._start_asgi_task  # the newer one's reading needs it

        def begins(self, *_: Any) -> None:
            raise AssertionError("by what this uvicorn has not")

    monkeypatch.delattr(HttpToolsProtocol, "_start_asgi_task")
    asked, _, _, begun = seen(Older, [request(b"{}")] * 3)
    assert len(asked) == begun == 3


def test_behind_known_requests_a_head_that_does_not_come_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(BoundedHeads, "head_s", 0.0)
    *_, said, closed, begun = seen(
        BoundedHeads, [request(b"{}"), request(b"{}"), request(b"{}")[:30]]
    )
    assert (b" 408 " in said, closed, begun) == (True, True, 2)


def test_replicas_of_ray_serve_read_requests_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    serve_middleware.middlewares()
    config = uvicorn.Config(lambda: None, factory=True, log_config=None)
    config.load()
    assert config.http_protocol_class is CachedHeads
