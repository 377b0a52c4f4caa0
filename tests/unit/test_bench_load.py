"""The load generator against a server of the test's own."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from online.bench import load

_SEEN: Counter[int] = Counter()
_REFUSED = b"refuse"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        _SEEN[int(self.connection.getsockname()[1])] += 1
        self.send_response(503 if body == _REFUSED else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def ports() -> Iterator[list[int]]:
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield [int(server.server_address[1]) for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_connections_go_to_each_port_in_turn(ports: list[int]) -> None:
    _SEEN.clear()
    found = load.run("127.0.0.1", ports, "/", lambda i: b"x", connections=4, seconds=0.2)
    assert found.errors == 0
    assert found.requests == sum(_SEEN.values()) > 10
    assert set(_SEEN) == set(ports)
    ordered = [found.p50_ms, found.p99_ms, found.p999_ms, found.max_ms]
    assert ordered == sorted(ordered)


def test_refusals_are_errors(ports: list[int]) -> None:
    def body(i: int) -> bytes:
        return _REFUSED if i % 2 else b"x"

    found = load.run("127.0.0.1", ports[0], "/", body, connections=1, seconds=0.1)
    assert found.errors == found.requests // 2
