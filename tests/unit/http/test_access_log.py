"""The log of requests says who asked what and how it ended, and nothing of what was said."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import replica_world as worlds
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from online.http.app import App
from online.http.middleware import access_log
from online.http.middleware.access import Access
from online.http.middleware.access_log import AccessLog, public_path
from online.http.middleware.traced import Traced
from online.settings.limits import Limits
from online.settings.telemetry import Telemetry
from online.telemetry.spans import Tracing

TOKEN: Final = "feedback-0123456789abcdefghijkl"
SECRET: Final = "marked-feature"


def lines_of(tmp_path: Path, share: float, *, draw: float = 0.0) -> list[dict[str, Any]]:
    """Lines of one event that is learned, one that is refused, and a page that is not there."""
    written: list[str] = []

    async def scene(world: worlds.World) -> None:
        replica = await world.replica()
        access = Access({"predict": [TOKEN], "feedback": [TOKEN], "admin": [TOKEN]})
        app = App({"m": world.serving(replica)}, None, Limits(), access)  # type: ignore[arg-type]
        seconds = iter([1.0, 1.25, 2.0, 2.5, 3.0, 3.5])
        behind = Traced(
            app, Tracing(Telemetry(sample=0), "r", SimpleSpanProcessor(InMemorySpanExporter()))
        )
        logged = AccessLog(
            behind, share, written.append,
            draw=lambda: draw, now_s=lambda: 1e9, timer_s=lambda: next(seconds),
        )  # fmt: skip
        transport = httpx.ASGITransport(logged)  # type: ignore[arg-type]
        headers = {"authorization": f"Bearer {TOKEN}", "user-agent": "shop/1\x01"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://it", headers=headers
        ) as client:
            body = {"features": {SECRET: 1.0}, "label": 1.0, "event_id": "e"}
            path = "/v1/models/m/feedback"
            traced = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
            await client.post(f"{path}?{SECRET}={SECRET}", json=body, headers=traced)
            await client.post(path, json={SECRET: 1})
            await client.get(f"/v1/models/m/sources/{SECRET}")
        await replica.stop(1.0)

    worlds.play(tmp_path, scene)
    return [json.loads(line) for line in written]


def test_a_line_says_when_who_what_and_how_it_ended(tmp_path: Path) -> None:
    learned, refused, absent = lines_of(tmp_path, 1.0)
    assert learned["time"] == "2001-09-09T01:46:40+00:00"
    assert (learned["client"], learned["method"]) == ("127.0.0.1", "POST")
    assert (learned["path"], learned["status"], learned["ms"]) == (
        "/v1/models/m/feedback", 200, 250.0,
    )  # fmt: skip
    assert learned["sent_bytes"] > 50
    assert learned["request_id"]
    assert learned["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert learned["agent"] == "shop/1\\x01"
    assert (refused["status"], refused["trace_id"]) == (422, None)
    assert (absent["path"], absent["status"]) == ("/v1/models/m/sources/*", 404)


def test_neither_tokens_nor_features_stand_in_a_line(tmp_path: Path) -> None:
    text = json.dumps(lines_of(tmp_path, 1.0))
    assert TOKEN not in text
    assert SECRET not in text


def test_a_share_of_the_requests_is_logged(tmp_path: Path) -> None:
    assert len(lines_of(tmp_path / "a", 0.5, draw=0.49)) == 3
    assert lines_of(tmp_path / "b", 0.5, draw=0.5) == []


@pytest.mark.parametrize("answered", [503, None])
def test_what_failed_is_logged_whatever_the_lot_says(answered: int | None) -> None:
    written: list[str] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        if answered is None:
            raise RuntimeError("gone")
        await send({"type": "http.response.start", "status": answered, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def send(message: Any) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/livez", "headers": []}
    logged = AccessLog(behind, 0.1, written.append, draw=lambda: 0.9)
    if answered is None:
        with pytest.raises(RuntimeError):
            asyncio.run(logged(scope, None, send))  # type: ignore[arg-type]
    else:
        asyncio.run(logged(scope, None, send))  # type: ignore[arg-type]
    assert [json.loads(line)["status"] for line in written] == [answered]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "/"),
        ("/v2/models/m/infer", "/v2/models/m/infer"),
        ("/v1/models/m/scores/ann@example.com", "/v1/models/m/scores/*"),
        ("/ann@example.com/x\ny", "/*/*"),
        ("/v1/models/" + "x" * 65, "/v1/models/*"),
    ],
)
def test_a_path_has_what_the_service_knows(path: str, expected: str) -> None:
    assert public_path(path) == expected


def test_lines_go_bare_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("online.access")
    before = log.handlers, log.propagate
    log.handlers = []
    try:
        access_log._bare().info('{"a": 1}')
        assert capfd.readouterr().err == '{"a": 1}\n'
        assert len(access_log._bare().handlers) == 1
    finally:
        log.handlers, log.propagate = before
