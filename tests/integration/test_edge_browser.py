"""A device's life in headless Chromium, against the routes of the service and a model that is fake.

Published, updated by a difference, tampered with, replayed, expired, offline after a reload, and an
acknowledgement that is lost: every piece of feedback counts once.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import edge_world as worlds
import pytest
import uvicorn
from fastapi import FastAPI, Request

from online.edge import manifest
from online.edge.targets import pack, runners
from online.http.routes.edge import routes

BROWSER: Final = Path(__file__).parent.parent / "browser"
CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")


def _missing() -> str | None:
    if shutil.which("node") is None:
        return "node is not installed"
    if CHROMIUM is None:
        return "chromium is not installed"
    place = os.environ.get("PLAYWRIGHT", str(BROWSER / "story"))
    if not (Path(place).parent / "node_modules" / "playwright-core").exists():
        return "playwright-core is missing: npm install --prefix tests/browser"
    return None


pytestmark = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


class Service:
    """The routes for devices, as they are, and a model that counts its feedback."""

    def __init__(self, place: Path) -> None:
        self.world, self.seed, self.mute, self.lose = worlds.World(place), 0, False, 0
        self.tamper = ""
        self.posts, self.applied, self.duplicates = 0, dict[str, Any](), 0
        self.heads: list[bytes] = []
        self.deltas: list[dict[str, Any]] = []
        self.app = FastAPI()
        self.app.post("/v1/models/m/edge/deltas")(self.delta)
        self.app.include_router(routes(lambda model: None, place, guarded=False))
        self.app.get("/v1/models")(lambda: {"models": [{"model": "m"}]})
        self.app.post("/v1/models/m/predict")(self.predict)
        self.app.post("/v1/models/m/feedback")(self.feedback)
        self.app.post("/control")(self.control)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As the service, with what an attacker on the way does."""

        async def tampered(message: Any) -> None:
            if message["type"] == "http.response.body" and message["body"]:
                message = {**message, "body": bytes([message["body"][0] ^ 1, *message["body"][1:]])}
            await send(message)

        path = scope.get("path", "")
        if path.endswith(("/feedback", "/deltas")) and self.lose:
            self.lose -= 1

            async def nothing(message: Any) -> None:
                receive.__self__.transport.abort()

            await self.app(scope, receive, nothing)
        else:
            if tampers := bool(self.tamper) and self.tamper in path:
                plain = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
                scope = {**scope, "headers": plain}  # gzip has a checksum of its own
            await self.app(scope, receive, tampered if tampers else send)

    async def predict(self, request: Request) -> Any:
        features = (await request.json())["features"]
        while self.mute:
            if await request.is_disconnected():
                return None
            await asyncio_sleep()
        (shares,) = runners.run_pack(pack.encode(worlds.network(self.seed)), [features]).tolist()
        label = "xyz"[shares.index(max(shares))]
        return {
            "id": f"token-{time.monotonic_ns()}", "prediction": label, "model": "m",
            "probabilities": dict(zip("xyz", shares, strict=True)), "version": "1.1", "own": 0,
            "age_ms": 1.0, "updates_behind": 0,
        }  # fmt: skip

    async def feedback(self, request: Request) -> Any:
        self.posts += 1
        receipts = []
        for event in (await request.json())["events"]:
            again = event["event_id"] in self.applied
            self.duplicates += again
            self.applied.setdefault(event["event_id"], event)
            receipts.append({"status": "duplicate" if again else "learned"})
        return {"events": receipts, "model": "m"}

    async def delta(self, request: Request) -> Any:
        self.deltas.append(await request.json())
        known = [push["event"] for push in self.deltas[:-1]]
        return {"status": "duplicate" if self.deltas[-1]["event"] in known else "learned"}

    async def control(self, request: Request) -> Any:
        asked = json.loads(await request.body())
        for name in ("mute", "lose", "tamper"):
            setattr(self, name, asked.get(name, getattr(self, name)))
        if "publish" in asked:
            self.seed = asked["publish"]
            self.world.publish(self.seed, time.time())
            self.heads.append(self._head.read_bytes())
        if "replay" in asked:
            self._head.write_bytes(self.heads[0] if asked["replay"] else self.heads[-1])
        if "expired" in asked:
            made = json.loads(self.heads[-1][64:])
            late = {**made, "expires": time.time() - 1, "revision": made["revision"] + 1}
            data, signature = manifest.sign(late, self.world.signing)
            self._head.write_bytes(signature + data if asked["expired"] else self.heads[-1])
        return {
            "reports": self.world.folder.reports(3).used,
            "posts": self.posts, "duplicates": self.duplicates, "deltas": self.deltas,
            "applied": [[e["label"], e["features"]] for e in self.applied.values()],
        }  # fmt: skip

    @property
    def _head(self) -> Path:
        path: Path = self.world.folder.path / "head"
        return path


async def asyncio_sleep() -> None:
    """A turn of the loop; the caller waits for a condition."""
    import asyncio

    await asyncio.sleep(0.02)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(Service(tmp_path / "edge"), log_level="error", http="h11")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join(240)


def test_the_life_of_a_device(served: str, tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node is not None
    assert CHROMIUM is not None
    done = subprocess.run(
        [node, BROWSER / "edge_story.mjs", served, CHROMIUM, tmp_path / "profile"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["errors"] == []
    assert seen["first"].startswith("whole file")
    assert seen["service"]["via"] == "by the service"
    assert seen["muted"]["via"] == "by this device", "the service took too long"
    assert seen["muted"]["bars"] == seen["service"]["bars"], "both answer alike"
    assert seen["second"].startswith("difference")
    release, why = seen["tampered"]
    assert (release, "another file than the one named" in why) == ("2", True), why
    release, why = seen["replayed"]
    assert (release, "is older than the one known" in why) == ("3", True), why
    release, why = seen["expired"]
    assert (release, "has expired" in why) == ("3", True), why
    assert seen["offline"]["via"] == "by this device"
    assert seen["offline"]["how"].startswith("release 3")
    assert seen["offline"]["label"] == "x"
    assert seen["waiting"]["applied"] == [], "nothing can have been sent"
    after = seen["after"]
    assert after["reports"] == 1, "it has told that it uses the release"
    features = {"a": 1, "b": -2}
    assert after["applied"] == [["y", features], ["z", features]]
    assert after["posts"] >= 2, "the first answer was lost"
    assert after["duplicates"] == 2, "both came again and counted once"
    assert seen["pushed"][-1] == "duplicate", "of what was lost on its way back, under its number"
    first, *again, other = seen["deltas"]
    assert again
    assert all(push == first for push in again)
    assert (first["event"], other["event"], other["n"], other["sequence"]) == (1, 2, 2, 3)
    assert first["device"] == other["device"]
    assert seen["state"]["trained_through"] == {"event": "1:3", "at": 5}
