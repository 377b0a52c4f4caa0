"""The document of the interface is written once: it takes milliseconds that everybody shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.http import openapi
from online.http.app import App
from online.messages.bodies import JSON


async def nothing() -> dict[str, Any]:
    return {"type": "http.request"}


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
        assert found["tags"][0]["name"] == "serving", "what callers need stands first"
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
