"""Pages are told how the models do: one look for all of them, in bounds, and never in the way."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

import online
from online.errors import RequestError
from online.http.ingress import LIVE, _is_hot
from online.http.middleware.access import ADMIN, READ, needed
from online.http.routes import stream
from online.http.routes.stream import Streams

NEVER_S: Final = 3600.0


class Page:
    """One that listens by hand: what it was sent, and when it goes."""

    def __init__(self, streams: Streams, *, slow: bool = False) -> None:
        self.got: list[dict[str, Any]] = []
        self.ended = False
        self.left = asyncio.Event()
        self.taken = asyncio.Event()
        if not slow:
            self.taken.set()
        self.came = asyncio.Event()
        self.task = asyncio.create_task(streams(self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
            assert dict(message["headers"])[b"content-type"].startswith(b"text/event-stream")
            return
        await self.taken.wait()
        if not message.get("more_body"):
            self.ended = True
            return
        kind, data, *_ = message["body"].decode().split("\n")
        assert kind == "event: models"
        self.got.append(json.loads(data.removeprefix("data: ")))
        self.came.set()

    async def hear(self) -> dict[str, Any]:
        await self.came.wait()
        return self.got[-1]


class Models:
    """Counts how often somebody looks."""

    def __init__(self) -> None:
        self.looks = 0

    async def look(self) -> dict[str, Any]:
        self.looks += 1
        return {"looks": self.looks}


def play(scene: Callable[[Models], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(Models()), 240))


def test_twenty_pages_are_one_look() -> None:
    async def scene(models: Models) -> None:
        streams = Streams(models.look, 64, every_s=NEVER_S)
        pages = [Page(streams) for _ in range(20)]
        for page in pages:
            assert await page.hear() == {"looks": 1}
        assert len(streams) == 20
        late = Page(streams)
        assert await late.hear() == {"looks": 1}, "at once, without another look"
        for page in (*pages, late):
            page.left.set()
            await page.task
        assert len(streams) == 0

    play(scene)


def test_nobody_looks_when_nobody_listens() -> None:
    async def scene(models: Models) -> None:
        streams = Streams(models.look, 64, every_s=0.0)
        page = Page(streams)
        await page.hear()
        page.left.set()
        await page.task
        looks = models.looks
        for _ in range(100):
            await asyncio.sleep(0)
        assert models.looks == looks
        again = Page(streams)
        assert (await again.hear())["looks"] > looks
        again.left.set()
        await again.task

    play(scene)


def test_who_is_slow_skips_to_the_newest() -> None:
    async def scene(models: Models) -> None:
        streams = Streams(models.look, 64, every_s=0.0)
        slow = Page(streams, slow=True)
        while models.looks < 10:
            await asyncio.sleep(0)
        slow.taken.set()
        while len(slow.got) < 2:
            await asyncio.sleep(0)
        first, second = (one["looks"] for one in slow.got[:2])
        assert second - first > 5, "what came between was never kept"
        slow.left.set()
        await slow.task

    play(scene)


def test_at_the_bound_a_page_is_told_to_ask() -> None:
    async def scene(models: Models) -> None:
        streams = Streams(models.look, 2, every_s=NEVER_S)
        pages = [Page(streams) for _ in range(2)]
        for page in pages:
            await page.hear()
        with pytest.raises(RequestError, match="2 pages") as refused:
            await Page(streams).task
        assert (refused.value.status, refused.value.code) == (429, "busy")
        assert "limits.listeners_max" in str(refused.value.hint)
        pages[0].left.set()
        await pages[0].task
        another = Page(streams)
        await another.hear()
        for page in (pages[1], another):
            page.left.set()
            await page.task

    play(scene)


def test_a_stream_has_an_end() -> None:
    async def scene(models: Models) -> None:
        page = Page(Streams(models.look, 2, every_s=NEVER_S, life_s=0.0))
        await page.task
        assert page.ended

    play(scene)


def test_a_page_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_STUCK_S", 0.0)

    async def scene(models: Models) -> None:
        streams = Streams(models.look, 2, every_s=NEVER_S)
        page = Page(streams, slow=True)  # neither an event nor the end of the stream
        await page.task
        assert not page.ended
        assert len(streams) == 0

    play(scene)


def test_when_the_models_can_not_be_looked_at_the_stream_ends() -> None:
    async def scene(models: Models) -> None:
        async def broken() -> Any:
            if models.looks:
                raise RuntimeError("the store is away")
            return await models.look()

        streams = Streams(broken, 2, every_s=0.0)
        page = Page(streams)
        await page.task
        assert page.ended
        assert len(streams) == 0

    play(scene)


def test_it_is_for_those_who_may_read_and_past_the_slots_of_requests() -> None:
    assert needed("GET", LIVE) == READ
    assert needed("POST", LIVE) == ADMIN, "which is answered 405"
    assert _is_hot(LIVE)
    assert not _is_hot(f"{LIVE}/x")


TOKEN: Final = "ask-0123456789abcdefghijklmn"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    settings = {
        "tokens": {"predict": [TOKEN], "feedback": [TOKEN], "admin": [TOKEN]},
        "limits": {"listeners_max": 1, "ongoing_max": 2},
    }
    with online.serve(
        "logreg", task="binary", name="m", state_dir=tmp_path_factory.mktemp("stream"),
        settings=settings, say=lambda _: None,
    ) as service:  # fmt: skip
        yield service


def ask(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=120)


def models_of(lines: Iterator[str]) -> list[dict[str, Any]]:
    """The next event of a stream."""
    data = next(line for line in lines if line.startswith("data: "))
    found: list[dict[str, Any]] = json.loads(data.removeprefix("data: "))["models"]
    return found


def test_a_page_hears_of_what_is_learned(served: Any) -> None:
    with ask(served.url) as client, client.stream("GET", LIVE) as page:
        lines = page.iter_lines()
        assert [model["model"] for model in models_of(lines)] == ["m"]
        with ask(served.url) as other:  # the one stream takes no place of the two requests
            body = {"features": {"a": 1.0}, "label": True, "event_id": "one"}
            assert other.post("/v1/models/m/feedback", json=body).status_code == 200
            refused = other.get(LIVE)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
            assert other.post(LIVE).status_code == 405
            told = other.get("/v1/models").json()["models"][0]
        while not (found := models_of(lines)[0])["learned"]:
            pass
        assert found.keys() == told.keys(), "the same as who asks is told"


def test_a_service_that_stops_does_not_wait_for_its_pages(tmp_path: Path) -> None:
    said: list[str] = []
    service = online.serve("logreg", task="binary", name="n", state_dir=tmp_path, say=said.append)
    with httpx.stream("GET", f"{service.url}{LIVE}", timeout=240) as page:
        lines = page.iter_lines()
        models_of(lines)
        stopping = threading.Thread(target=service.stop)
        stopping.start()
        assert not [line for line in lines if line.startswith("event")], "it ends as it should"
        stopping.join()
    assert page.status_code == 200


def test_without_a_token_nobody_is_told(served: Any) -> None:
    assert httpx.get(f"{served.url}{LIVE}", timeout=120).status_code == 401
