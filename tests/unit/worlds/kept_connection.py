"""A kept connection to an application, without a socket, and what is answered on it."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, Final

import pytest
import replica_world as worlds
import uvicorn
from uvicorn.server import ServerState

from online.http.app import App
from online.http.connection.direct import HeadHandler
from online.messages.bodies import JSON
from online.messages.structs import Event
from online.service.parts.head_cache import CachedHeads
from online.service.parts.request_heads import BoundedHeads
from online.settings.limits import Limits

TOKEN: Final = "a-token-0123456789abcdefghijkl"
LIMITS: Final = Limits(feedback_wait_s=60)
QUESTIONS: Final = [
    b'{"features": {"a": 0.5, "b": 1}}',
    b'{"features": {"a": 0.5, "new": 1.0}, "details": true}',
    b'{"features": {"a": 0.5}, "explain": true}',
    b'{"features": {"a": 0.5}, "max_age_ms": 0}',
    b'{"features": {"a": 0.5}, "after": "nonsense"}',
    b'{"features": {"a": "text"}}',
    b'{"features": {"a": 0.5}, "id": "own-1"}',
    b'{"instances": [{"a": 0.5}, {"a": 1.5}]}',
    b'{"instances": [], "features": {}}',
    b'{"features": {"a": 0.5}, "nearest": 1}',
    b"{",
]


class _Wire:
    """A transport that remembers what was written, without a socket."""

    def __init__(self) -> None:
        self.said = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after the close"
        self.said += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str) -> Any:
        return {"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)}.get(name)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


def _rounded(number: str) -> float:
    """Between two lives of a service a model merges what it has learned."""
    return round(float(number), 9)


class Caller:
    """A connection to the application, and what was answered on it."""

    def __init__(
        self, app: App, kind: type[CachedHeads] = BoundedHeads, token: str = TOKEN
    ) -> None:
        config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_keep_alive=3600)
        config.load()
        self.state, self.wire, self._token = ServerState(), _Wire(), token
        self.protocol: Any = kind(config, self.state, {})
        self.protocol.access_log = False
        self.protocol.connection_made(self.wire)
        self.asked = 0

    def request(self, one: Event | bytes, action: str = "feedback") -> bytes:
        body = one if isinstance(one, bytes) else JSON.encode(one)
        lines = (
            f"POST /v1/models/m/{action} HTTP/1.1", "host: localhost",
            f"authorization: Bearer {self._token}", f"content-length: {len(body)}",
        )  # fmt: skip
        return "\r\n".join([*lines, "", ""]).encode() + body

    def sends(self, *events: Event | bytes, action: str = "feedback") -> None:
        for one in events:
            self.asked += 1
            self.protocol.data_received(self.request(one, action))

    @property
    def answers(self) -> list[tuple[int, dict[str, Any]]]:
        out, left = [], self.wire.said
        while found := re.match(
            rb"HTTP/1.1 (\d+).*?content-length: (\d+)\r\n.*?\r\n\r\n", left, re.S
        ):
            end = found.end() + int(found[2])
            said = json.loads(left[found.end() : end], parse_float=_rounded)
            out.append((int(found[1]), said))
            left = left[end:]
        assert not left
        return out

    async def answered(self) -> tuple[int, dict[str, Any]]:
        await worlds.until(lambda: len(self.answers) == self.asked or self.wire.closed)
        return self.answers[-1]


def ways(monkeypatch: pytest.MonkeyPatch) -> Counter[bool]:
    """Whether requests behind a known head were taken past the application, from now on."""
    taken: Counter[bool] = Counter()
    accept = HeadHandler.accept

    def counted(self: HeadHandler, *given: Any) -> bool:
        went = accept(self, *given)
        taken[went] += 1
        return went

    monkeypatch.setattr(HeadHandler, "accept", counted)
    return taken
