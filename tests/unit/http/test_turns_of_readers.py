"""Hundreds that ask for a status at once hold up no feedback; a slow reader holds up nobody."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.http import openapi
from online.http.app import App
from online.http.turns import AT_ONCE, Turns
from online.messages.bodies import JSON

MANY = 50


class Working:
    """An application that takes some turns of the loop for each request."""

    def __init__(self) -> None:
        self.now = self.most = self.done = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(3):
            await asyncio.sleep(0)
        self.now -= 1
        if scope["path"] == "/fails":
            raise ValueError
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        self.done += 1


async def nothing() -> dict[str, Any]:
    return {"type": "http.request"}


async def taken(message: dict[str, Any]) -> None:
    """Take a part of an answer."""


def asks(turns: Any, path: str, method: str = "GET", send: Any = taken) -> Any:
    return turns({"type": "http", "method": method, "path": path}, nothing, send)


@pytest.mark.parametrize(
    ("path", "method", "most"),
    [
        ("/metrics", "GET", AT_ONCE),
        ("/v1/models", "HEAD", AT_ONCE),
        ("/openapi.json", "GET", AT_ONCE),
        ("/fails", "GET", AT_ONCE),
        ("/livez", "GET", MANY),
        ("/v2/health/ready", "GET", MANY),
        ("/v1/models/m/report", "GET", MANY),
        ("/v1/models/m/rollback", "POST", MANY),
    ],
)
def test_so_many_are_worked_out_at_once(path: str, method: str, most: int) -> None:
    async def scene() -> None:
        inner = Working()
        turns = Turns(inner)
        asked = [asks(turns, path, method) for _ in range(MANY)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert inner.most == most
        assert inner.done == (0 if path == "/fails" else MANY) == sum(x is None for x in told)

    asyncio.run(scene())


def test_whoever_takes_no_answer_keeps_no_turn() -> None:
    async def scene() -> None:
        inner, takes = Working(), asyncio.Event()
        turns = Turns(inner)

        async def later(message: dict[str, Any]) -> None:
            await takes.wait()

        slow = [asyncio.ensure_future(asks(turns, "/metrics", send=later)) for _ in range(MANY)]
        await asks(turns, "/metrics")
        assert inner.done == 1
        takes.set()
        await asyncio.gather(*slow)
        assert inner.done == MANY + 1

    asyncio.run(scene())


def test_the_document_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[bytes]()

    class Writing:
        def encode(self, made: Any) -> bytes:
            written.append(JSON.encode(made))
            return written[-1]

    async def scene(world: Any) -> None:
        monkeypatch.setattr(openapi, "JSON", Writing())
        replica = await world.replica()
        app = App({"m": world.serving(replica)}, None, replica.limits)  # type: ignore[arg-type]
        told = [await document(app) for _ in range(3)]
        assert written == [told[0]]
        assert told[0] == told[1] == told[2]
        found = json.loads(told[0])
        assert found == json.loads(json.dumps(app._rest.openapi()))
        assert "/v1/models/{model}/predict" in found["paths"]
        await replica.stop(1)

    worlds.play(tmp_path, scene)


async def document(app: App) -> bytes:
    said = list[bytes]()

    async def send(message: dict[str, Any]) -> None:
        said.append(message.get("body", b""))

    scope = {
        "type": "http", "method": "GET", "path": "/openapi.json", "raw_path": b"/openapi.json",
        "headers": [], "query_string": b"", "root_path": "", "scheme": "http",
        "server": ("x", 80), "client": ("x", 1), "http_version": "1.1",
    }  # fmt: skip
    await app(scope, nothing, send)
    return b"".join(said)
