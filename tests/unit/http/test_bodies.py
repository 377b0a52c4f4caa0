"""Bodies in JSON, msgpack and lines, through the application itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import replica_world as worlds

from online.http import ingress
from online.http.app import App
from online.messages import bodies
from online.service.serve_middleware import middlewares
from online.settings.limits import Limits

LIMITS = Limits(body_bytes_max=4096, rows_max=8, ongoing_max=4)
PREDICT, FEEDBACK = "/v1/models/m/predict", "/v1/models/m/feedback"
MSGPACK = {"content-type": "application/msgpack"}
LINES = {"content-type": "application/x-ndjson; charset=utf-8"}


class NoCluster:
    """Nothing here asks for other replicas."""


Scene = Callable[[httpx.AsyncClient, Any], Awaitable[None]]


def play(tmp_path: Path, scene: Scene, *, through: Any = None, limits: Limits = LIMITS) -> None:
    """A scene with the application of one replica that learns, durably."""

    async def inside(world: Any) -> None:
        replica = await world.replica()
        app: Any = App({"m": world.serving(replica)}, NoCluster(), limits)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(through(app) if through else app)
        async with httpx.AsyncClient(transport=transport, base_url="http://m") as client:
            await scene(client, replica)
        await replica.stop(1)

    worlds.play(tmp_path, inside)


def event(name: str, label: float = 1.0) -> dict[str, Any]:
    return {"features": {name: 1.0}, "label": label, "event_id": name}


def test_msgpack_in_msgpack_out(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        for kind in ("application/msgpack", "application/x-msgpack", "Application/MsgPack; v=1"):
            body = msgspec.msgpack.encode({"instances": [{"a": 1.0}, {"a": 2}]})
            answer = await client.post(PREDICT, content=body, headers={"content-type": kind})
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "application/msgpack"
            assert len(msgspec.msgpack.decode(answer.content)["predictions"]) == 2
        answer = await client.post(
            FEEDBACK, content=msgspec.msgpack.encode(event("e1")), headers=MSGPACK
        )
        assert msgspec.msgpack.decode(answer.content)["status"] == "learned"
        assert (await client.post(FEEDBACK, json=event("e1"))).json()["status"] == "duplicate"

    play(tmp_path, scene)


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"features": {"a": float("nan")}}, 422, "features.a"),
        ({"features": {"a": float("inf")}}, 422, "features.a"),
        ({"features": {"a": b"bytes"}}, 422, "features.a"),
        ({"features": {"a": msgspec.msgpack.Ext(7, b"x")}}, 422, "features.a"),
        ({"features": {1: 1.0}}, 422, "features"),
        ({"feature": {"a": 1.0}}, 422, "feature"),
        (b"\xc1", 400, None),
        (b"", 400, None),
    ],
)
def test_msgpack_that_is_refused(tmp_path: Path, body: Any, status: int, field: str | None) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        content = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
        answer = await client.post(PREDICT, content=content, headers=MSGPACK)
        error = msgspec.msgpack.decode(answer.content)["error"]
        assert answer.status_code == status, error
        assert field is None or error["field"] == field
        labelled = {"features": {"a": 1.0}, "label": b"x"}
        content = msgspec.msgpack.encode(labelled)
        answer = await client.post(FEEDBACK, content=content, headers=MSGPACK)
        assert msgspec.msgpack.decode(answer.content)["error"]["field"] == "label"

    play(tmp_path, scene)


def test_an_event_of_msgpack_with_numbers_as_names_is_refused_by_itself(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        wrong = {"features": {1: 1.0}, "label": 1.0, "event_id": "e2"}
        content = msgspec.msgpack.encode({"events": [event("e1"), wrong, event("e3")]})
        answer = await client.post(FEEDBACK, content=content, headers=MSGPACK)
        receipts = msgspec.msgpack.decode(answer.content)["events"]
        assert [one["status"] for one in receipts] == ["learned", "refused", "learned"]
        assert receipts[1]["error"]["field"] == "events[1].features"

    play(tmp_path, scene)


def test_a_type_that_nobody_reads(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        headers = {"content-type": "text/csv"}
        for path in (PREDICT, FEEDBACK):
            answer = await client.post(path, content=b"a,b", headers=headers)
            assert answer.status_code == 415
        answer = await client.post(PREDICT, content=b"{}\n", headers=LINES)
        assert answer.status_code in (415, 422), "lines are for feedback"

    play(tmp_path, scene)


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
def test_what_is_compressed_is_refused_as_that(tmp_path: Path, kind: str) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        content = b'{"features":{"a":1.0},"label":1.0}'
        for coding, status in (("gzip", 415), ("br", 415), ("identity", 200)):
            headers = {"content-type": kind, "content-encoding": coding}
            answer = await client.post(FEEDBACK, content=content, headers=headers)
            assert answer.status_code == status, answer.text
            assert (coding in answer.text) == (status == 415), answer.text

    play(tmp_path, scene)


def test_an_empty_id_of_an_event_is_none(tmp_path: Path) -> None:
    """A program that fills in nothing would have all but its first event taken for repeats."""

    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        event = {"features": {"a": 1.0}, "label": 1.0, "event_id": ""}
        answer = await client.post(FEEDBACK, json=event)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "event_id")

    play(tmp_path, scene)


def lines_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.text.splitlines()]


def test_an_upload_of_any_length_is_answered_line_by_line(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        text = b"".join(json.dumps(event(f"e{i}")).encode() + b"\n" for i in range(300))
        assert len(text) > 3 * LIMITS.body_bytes_max

        async def in_pieces() -> AsyncIterator[bytes]:  # cut anywhere, also within a line
            for i in range(0, len(text), 777):
                yield text[i : i + 777]

        receipts = lines_of(await client.post(FEEDBACK, content=in_pieces(), headers=LINES))
        assert [r["event_id"] for r in receipts] == [f"e{i}" for i in range(300)]
        assert {r["status"] for r in receipts} == {"learned"}
        again = lines_of(await client.post(FEEDBACK, content=text[:-1], headers=LINES))
        assert [r["status"] for r in again] == ["duplicate"] * 300, "the last line needs no end"
        assert replica.learner.tally.digest[0] == 300

    play(tmp_path, scene)


def test_a_line_that_is_refused_stops_no_other(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        lines = [json.dumps(event("a")), "{", json.dumps(event("b") | {"label": "x"}), "", "  "]
        text = "\n".join([*lines, json.dumps(event("c"))])
        receipts = lines_of(await client.post(FEEDBACK, content=text.encode(), headers=LINES))
        assert [r["status"] for r in receipts] == ["learned", "refused", "refused", "learned"]
        assert receipts[1]["error"]["code"] == "malformed"
        assert receipts[2]["error"]["field"].endswith("label")

    play(tmp_path, scene)


def test_a_line_above_the_bound_ends_the_upload(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        text = json.dumps(event("a")).encode() + b"\n" + b"x" * (LIMITS.body_bytes_max + 1)
        whole = lines_of(await client.post(FEEDBACK, content=text, headers=LINES))
        assert whole[-1]["error"]["code"] == "too_large"

        async def endless() -> AsyncIterator[bytes]:
            yield json.dumps(event("b")).encode() + b"\n"
            for _ in range(1000):
                yield b"x" * 100

        receipts = lines_of(await client.post(FEEDBACK, content=endless(), headers=LINES))
        assert [r.get("status") for r in receipts] == ["learned", None]

    play(tmp_path, scene)


def test_more_requests_than_the_bound_are_sent_back(tmp_path: Path) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        gate = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            await gate.wait()
            yield json.dumps({"features": {"a": 1.0}}).encode()

        held = [asyncio.create_task(client.post(PREDICT, content=slow())) for _ in range(4)]
        await asyncio.sleep(0)
        refused = await client.post(PREDICT, json={"features": {"a": 1.0}})
        while refused.status_code == 200:  # until all four are inside
            refused = await client.post(PREDICT, json={"features": {"a": 1.0}})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        gate.set()
        assert [a.status_code for a in await asyncio.gather(*held)] == [200] * 4
        assert (await client.post(PREDICT, json={"features": {"a": 1.0}})).status_code == 200

    play(tmp_path, scene)


def test_hot_requests_go_past_serve_and_the_rest_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def through(app: Any) -> Any:
        (middleware,) = middlewares()
        made = middleware.cls(serve, *middleware.args, **middleware.kwargs)
        monkeypatch.setattr(ingress, "_installed", None)
        assert made is not None
        return made

    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        body = {"features": {"a": 1.0}}
        assert (await client.post(PREDICT, json=body)).status_code == 503, "not ready yet"
        ingress.install(App({}, NoCluster(), LIMITS))  # type: ignore[arg-type]
        assert (await client.post(PREDICT, json=body)).status_code == 404
        assert (await client.get("/-/healthz")).status_code == 503
        assert seen == [PREDICT, "/-/healthz"]

    play(tmp_path, scene, through=through)


@pytest.mark.parametrize("depth", [2_000, 100_000])
@pytest.mark.parametrize("kind", ["application/json", "application/msgpack", "lines"])
def test_a_body_that_is_nested_without_end(tmp_path: Path, depth: int, kind: str) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        text = b'{"features":{"a":' + b"[" * depth + b"]" * depth + b"}}"
        if kind == "application/msgpack":
            text = b"\x81\xa8features\x81\xa1a" + b"\x91" * depth + b"\x01"
        if kind == "lines":
            lines = text + b"\n" + json.dumps(event("e")).encode()
            found = lines_of(await client.post(FEEDBACK, content=lines, headers=LINES))
            assert [receipt["status"] for receipt in found] == ["refused", "learned"]
            assert found[0]["error"]["code"] == "malformed"
            return
        for path in (PREDICT, FEEDBACK):
            answer = await client.post(path, content=text, headers={"content-type": kind})
            assert answer.status_code == 400
            assert b"nested too deeply" in answer.content

    play(tmp_path, scene, limits=LIMITS.model_copy(update={"body_bytes_max": 1_000_000}))


def test_an_upload_that_fails_says_so_in_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*given: Any) -> None:
        raise ZeroDivisionError("secret")

    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        monkeypatch.setattr("online.serving.serving.Serving.record", fail)
        text = json.dumps(event("e")).encode()
        (line,) = lines_of(await client.post(FEEDBACK, content=text, headers=LINES))
        assert line["error"]["code"] == "internal"
        assert "secret" not in str(line)

    play(tmp_path, scene)


class Slow:
    """A body of which a part has come, and the rest waits for :meth:`finish`."""

    def __init__(self, text: bytes = b'{"features": {"a": 1.0}}') -> None:
        self._text, self._rest = text, asyncio.Event()
        self.begun = asyncio.Event()

    def finish(self) -> None:
        self._rest.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._text[:5]
        self.begun.set()
        await self._rest.wait()
        yield self._text[5:]


PATHS = (PREDICT, FEEDBACK, "/v2/models/m/infer", "/v2/models/m/feedback", "/v1/models/m/rollback")


@pytest.mark.parametrize("path", PATHS)
def test_a_body_that_does_not_come_is_given_up(tmp_path: Path, path: str) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        answer = await client.post(path, content=Slow())
        assert answer.status_code == 408
        assert answer.headers["connection"] == "close", "the rest of it may still come"
        assert "limits.body_wait_s" in answer.text

    play(tmp_path, scene, limits=LIMITS.model_copy(update={"body_wait_s": 0.05}))


def test_the_slowest_body_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(client: httpx.AsyncClient, replica: Any) -> None:
        monkeypatch.setattr(bodies, "_PATIENCE_S", 3600.0)
        slow = [Slow() for _ in range(LIMITS.ongoing_max)]
        waiting = []
        for body in slow:
            waiting.append(asyncio.ensure_future(client.post(PREDICT, content=body)))
            await body.begun.wait()
        answer = await client.post(PREDICT, json={"features": {"a": 1.0}})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1"), "none is slow"
        monkeypatch.setattr(bodies, "_PATIENCE_S", 0.0)
        for path, given in (
            (PREDICT, {"features": {"a": 1.0}}), (FEEDBACK, event("e")),
        ):  # fmt: skip
            assert (await client.post(path, json=given)).status_code == 200
        for body in slow:
            body.finish()
        statuses = [answer.status_code for answer in await asyncio.gather(*waiting)]
        assert statuses == [408, 408, 200, 200], "the oldest went first, and only as needed"

    play(tmp_path, scene)
