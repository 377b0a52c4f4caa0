"""Whoever takes no answers, sends lines that are wrong or names without end stops nobody else."""

from __future__ import annotations

import asyncio
import difflib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.http.app import App
from online.http.routes import upload
from online.messages import bodies
from online.messages.bodies import JSON, Transfers, UnreadEvent, decode, decode_events
from online.settings.limits import Limits
from online.tables.nested import features_of

PATHS: Final = ("/v1/models/m/predict", "/v2/models/m/infer", "/v1/models/m/scores/k")
PLACES: Final = 3
LIMITS: Final = Limits(ongoing_max=PLACES, body_wait_s=3600)
Scene = Callable[[App, Any], Awaitable[None]]


def play(tmp_path: Path, scene: Scene, limits: Limits = LIMITS) -> None:
    async def inside(world: Any) -> None:
        replica = await world.replica()
        await scene(App({"m": world.serving(replica)}, None, limits), replica)  # type: ignore[arg-type]
        await replica.stop(1)

    worlds.play(tmp_path, inside)


class Caller:
    """One request; ``takes`` is set while its caller takes what comes."""

    def __init__(self, app: App, path: str = PATHS[0], *, takes: bool = True) -> None:
        self.takes, self.waits, self.status = asyncio.Event(), asyncio.Event(), 0
        if takes:
            self.takes.set()
        scope = {"type": "http", "method": "GET" if "scores" in path else "POST", "path": path}
        self.task = asyncio.ensure_future(app({**scope, "headers": []}, self._body, self._take))

    async def _body(self) -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"features": {"a": 1.0}}'}

    async def _take(self, message: dict[str, Any]) -> None:
        self.waits.set()
        await self.takes.wait()
        self.status = message.get("status", self.status)

    async def answered(self) -> int:
        await self.task
        return self.status


async def crowd(app: App, path: str) -> list[Caller]:
    callers = [Caller(app, path, takes=False) for _ in range(PLACES)]
    for one in callers:
        await one.waits.wait()
    return callers


async def _until_its_time_is_over() -> None:
    """A waiter without any time: one turn to begin to wait, one in which its timer fires."""
    for _ in range(2):
        await asyncio.sleep(0)


def test_a_body_whose_time_is_just_over_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        transfers, never = Transfers(100, 0.0), asyncio.Event()

        async def nothing() -> dict[str, Any]:
            await never.wait()
            return {}

        late = asyncio.ensure_future(transfers.read({"headers": []}, nothing))
        await _until_its_time_is_over()
        assert not late.done()
        assert transfers.push_out()
        assert not transfers.push_out(), "it makes room for one only"
        with pytest.raises(RequestError) as refused:
            await late
        assert refused.value.code == "body_late"

    monkeypatch.setattr(bodies, "_PATIENCE_S", 0.0)
    asyncio.run(scene())


def test_an_upload_whose_time_is_just_over_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        uploads = upload.Uploads(1, 1.0, 0.0)
        with uploads.slot(None) as slot:
            idle = asyncio.ensure_future(slot.within(asyncio.Event().wait()))
            await _until_its_time_is_over()
            assert not idle.done()
            with uploads.slot(None):
                pass
            with pytest.raises(RequestError) as refused:
                await idle
            assert refused.value.code == "upload_idle"

    monkeypatch.setattr(upload, "_PATIENCE_S", 0.0)
    asyncio.run(scene())


@pytest.mark.parametrize("path", PATHS)
def test_whoever_takes_no_answer_gives_way_to_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async def scene(app: App, replica: Any) -> None:
        monkeypatch.setattr(bodies, "_PATIENCE_S", 3000.0)
        callers = await crowd(app, path)
        assert await Caller(app).answered() == 429, "none of them is slow yet"
        monkeypatch.setattr(bodies, "_PATIENCE_S", 0.0)
        assert await Caller(app).answered() == 200
        assert await callers[0].answered() == 0, "the oldest went"
        assert replica.counts["answers_not_taken"] == 1
        for one in callers[1:]:
            one.takes.set()
            assert await one.answered() != 0

    play(tmp_path, scene)


def test_an_answer_that_nobody_takes_is_given_up(tmp_path: Path) -> None:
    async def scene(app: App, replica: Any) -> None:
        for one in await crowd(app, PATHS[0]):
            assert await one.answered() == 0
        assert await Caller(app).answered() == 200
        assert replica.counts["answers_not_taken"] == PLACES

    play(tmp_path, scene, LIMITS.model_copy(update={"body_wait_s": 0.5}))


def test_without_a_clock_they_would_hold_all_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def plainly(_: Transfers, send: Any, message: Any) -> bool:
        await send(message)
        return True

    async def scene(app: App, _: Any) -> None:
        callers = await crowd(app, PATHS[0])
        monkeypatch.setattr(bodies, "_PATIENCE_S", 0.0)
        assert await Caller(app).answered() == 429
        for one in callers:
            one.takes.set()
            assert await one.answered() == 200

    monkeypatch.setattr(Transfers, "give", plainly)
    play(tmp_path, scene)


@pytest.mark.parametrize("line", [b"1", b"{}", b"{", b'{"x": 1}'])
def test_others_have_turns_while_lines_that_are_wrong_are_read(line: bytes) -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def scene() -> None:
        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        events = await decode_events([line] * 1_000)
        assert turns >= 1_000 // bodies._LINES
        assert all(isinstance(one, UnreadEvent) for one in events) or line == b"{}"
        before = turns
        await decode_events([line])
        assert turns > before, "one alone, too: nothing else would wait for anything"
        task.cancel()

    asyncio.run(scene())


def test_of_an_unknown_name_without_end_little_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []

    def close(name: str, _: Any, **__: Any) -> list[str]:
        looked.append(len(name))
        return []

    monkeypatch.setattr(difflib, "get_close_matches", close)
    with pytest.raises(RequestError) as caught:
        decode(JSON.predict, b'{"' + b"featurs" * 100_000 + b'": 1}')
    assert looked == [80]
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("inner", [1, None, {}, []])
def test_names_on_the_way_to_values_are_not_made_without_end(inner: Any) -> None:
    sent = [{"x" * 30_000: {str(i): inner for i in range(20_000)}}]  # 600 MB of names in 260 kB
    with pytest.raises(RequestError, match="a name of 30000 characters") as caught:
        features_of(sent, 4_096, 1_024)
    assert caught.value.status == 422
    nested: Any = 1
    for _ in range(7):
        nested = {"y" * 200: nested}
    with pytest.raises(RequestError, match="a name of 1205 characters"):
        features_of([nested], 4_096, 1_024)


@pytest.mark.parametrize("inner", [1, None, {}, [], "word"])
def test_no_more_values_are_named_than_a_row_may_have(inner: Any) -> None:
    with pytest.raises(RequestError, match="more than 100 values"):
        features_of([{"x": [inner] * 101}], 100, 1_024)
    assert features_of([{"x": [1.0] * 100}], 100, 1_024).keys() == {f"x.{i}" for i in range(100)}
    longest = "n" * 1_024
    assert features_of([{longest: 1}], 100, 1_024) == {longest: 1}


def test_lines_without_end_in_one_part_of_a_body_come_some_at_a_time() -> None:
    parts = [b"1\n" * 10_000 + b"a", b"b\n\nc"]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def scene() -> None:
        got = [lines async for lines in bodies.read_lines(receive, 1_000)]
        assert max(map(len, got)) <= bodies._SPLIT
        assert [line for lines in got for line in lines] == [b"1"] * 10_000 + [b"ab", b"c"]
        parts[:] = [b"x\n" * bodies._SPLIT]
        assert sum([len(lines) async for lines in bodies.read_lines(receive, 9)]) == bodies._SPLIT

    asyncio.run(scene())


def test_json_of_a_thousand_wrong_lines_is_answered_line_by_line(tmp_path: Path) -> None:
    async def scene(app: App, _: Any) -> None:
        given: list[dict[str, Any]] = []

        async def body() -> dict[str, Any]:
            return {"type": "http.request", "body": b"1\n" * 1_000}

        async def take(message: dict[str, Any]) -> None:
            given.append(message)

        headers = [(b"content-type", b"application/x-ndjson")]
        scope = {"type": "http", "method": "POST", "path": "/v1/models/m/feedback"}
        await app({**scope, "headers": headers}, body, take)
        receipts = [json.loads(x) for x in b"".join(m.get("body", b"") for m in given).splitlines()]
        assert [x["status"] for x in receipts] == ["refused"] * 1_000

    play(tmp_path, scene)
