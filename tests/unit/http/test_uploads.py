"""Uploads hold places: who sends nothing loses it, and no token holds them all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import replica_world as worlds

from online.errors import RequestError
from online.http.app import App
from online.http.middleware.access import Access
from online.http.routes import upload
from online.http.routes.upload import Uploads
from online.settings.limits import Limits
from online.settings.tokens import Role

FEEDBACK: Final = "/v1/models/m/feedback"
LINES: Final = {"content-type": "application/x-ndjson"}
TOKENS: Final[dict[Role, list[str]]] = {
    "predict": ["predict-0123456789abcdefghijkl"],
    "feedback": ["shop-0123456789abcdefghijkl", "bank-0123456789abcdefghijkl"],
    "admin": ["admin-0123456789abcdefghijkl"],
}
PLACES: Final = 8
FOR_EVER: Final = 3600.0


def line(name: str) -> bytes:
    return json.dumps({"features": {name: 1.0}, "label": 1.0, "event_id": name}).encode() + b"\n"


class Caller:
    """Uploads by hand: what is sent when, and what has come back."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.uploads: list[Upload] = []

    def begin(self, token: str | None = None) -> Upload:
        made = Upload(self.app, token)
        self.uploads.append(made)
        return made

    async def end(self) -> None:
        for one in self.uploads:
            one.send(b"", more=False)
        await asyncio.gather(*(one.task for one in self.uploads))


class Upload:
    """One upload; ``taken`` is set while its caller reads the receipts."""

    def __init__(self, app: Any, token: str | None) -> None:
        self._parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.taken = asyncio.Event()
        self.taken.set()
        self.status = 0
        self.body = b""
        headers = [(name.encode(), value.encode()) for name, value in LINES.items()]
        if token is not None:
            headers.append((b"authorization", f"Bearer {token}".encode()))
        scope = {"type": "http", "method": "POST", "path": FEEDBACK, "headers": headers}
        self.task = asyncio.create_task(app(scope, self._parts.get, self._take))

    def send(self, body: bytes, *, more: bool = True) -> None:
        self._parts.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        await self.taken.wait()
        self.body += message["body"]

    @property
    def last(self) -> Any:
        return json.loads(self.body.splitlines()[-1])

    async def begun(self) -> int:
        await worlds.until(lambda: self.status != 0)
        return self.status


def scene(
    tmp_path: Path, play: Callable[[Caller], Any], *, guarded: bool = False, **more: Any
) -> None:
    limits = Limits(ongoing_max=2 * PLACES, **{"upload_idle_s": FOR_EVER} | more)

    async def inside(world: Any) -> None:
        replica = await world.replica()
        access = Access(TOKENS) if guarded else None
        app: Any = App({"m": world.serving(replica)}, None, limits, access)  # type: ignore[arg-type]
        caller = Caller(app)
        try:
            await play(caller)
        finally:
            await caller.end()
            await replica.stop(1)

    worlds.play(tmp_path, inside)


def test_an_upload_that_says_nothing_ends_and_says_why(tmp_path: Path) -> None:
    async def play(caller: Caller) -> None:
        silent, trickle = caller.begin(), caller.begin()
        trickle.send(line("a"))
        await worlds.until(lambda: b"learned" in trickle.body)

        async def letters() -> None:  # it sends, but no whole line: neither does it end one
            while not trickle.task.done():
                trickle.send(b" \n")
                await asyncio.sleep(0.001)

        trickling = asyncio.create_task(letters())
        for one in (silent, trickle):
            await asyncio.wait_for(one.task, 240)
            assert one.last["error"]["code"] == "upload_idle"
            assert "limits.upload_idle_s" in one.last["error"]["hint"]
        await trickling

    scene(tmp_path, play, upload_idle_s=1.0)


def test_one_that_goes_on_lasts_however_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For three times its bound; half of one passes, for the loop, after each row's receipt."""

    async def play(caller: Caller) -> None:
        loop, later_s = asyncio.get_running_loop(), [0.0]
        now_s = loop.time
        monkeypatch.setattr(loop, "time", lambda: now_s() + later_s[0])
        one = caller.begin()
        for sent in range(7):
            one.send(line(f"e{sent}"))
            await worlds.until(lambda so_far=sent + 1: one.body.count(b"learned") == so_far)
            later_s[0] += 1800.0
        one.send(b"", more=False)
        await one.task
        assert {json.loads(text)["status"] for text in one.body.splitlines()} == {"learned"}

    scene(tmp_path, play, upload_idle_s=3600.0)


def test_whoever_takes_no_receipts_loses_its_place_too(tmp_path: Path) -> None:
    async def play(caller: Caller) -> None:
        one = caller.begin()
        one.taken.clear()
        one.send(line("a"))
        await asyncio.wait_for(one.task, 240)
        assert one.body == b""

    scene(tmp_path, play, upload_idle_s=0.05)


def test_three_hundred_idle_uploads_leave_room_for_one_that_sends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_PATIENCE_S", 0.0)

    async def play(caller: Caller) -> None:
        idle = [caller.begin() for _ in range(300)]
        for one in idle:
            await one.begun()
        good = caller.begin()
        good.send(line("a"))
        await worlds.until(lambda: b"learned" in good.body)
        ended = [one for one in idle if one.status == 200 and one.task.done()]
        assert ended
        assert all(one.last["error"]["code"] == "upload_idle" for one in ended)
        assert idle[0] in ended, "the longest first"

    scene(tmp_path, play)


def test_before_its_patience_is_over_nobody_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_PATIENCE_S", 3600.0)

    async def play(caller: Caller) -> None:
        held = [caller.begin() for _ in range(PLACES)]
        assert [await one.begun() for one in held] == [200] * PLACES
        more = caller.begin()
        assert await more.begun() == 429
        assert more.last["error"]["code"] == "busy"

    scene(tmp_path, play)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_token_has_its_share_and_leaves_the_others_theirs(tmp_path: Path, share: float) -> None:
    shop, bank = TOKENS["feedback"]

    async def play(caller: Caller) -> None:
        most = int(PLACES * share)
        held = [caller.begin(shop) for _ in range(most)]
        assert [await one.begun() for one in held] == [200] * most
        more = caller.begin(shop)
        assert await more.begun() == 429
        assert "this token" in more.last["error"]["message"]
        other = caller.begin(bank)
        assert await other.begun() == (200 if share < 1 else 429)
        held[0].send(b"", more=False)
        await held[0].task
        again = caller.begin(shop)
        assert await again.begun() == 200

    scene(tmp_path, play, guarded=True, uploads_share=share)


def test_a_token_pushes_out_its_own_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_PATIENCE_S", 0.0)
    shop, bank = TOKENS["feedback"]

    async def play(caller: Caller) -> None:
        theirs = caller.begin(bank)
        await theirs.begun()
        own = [caller.begin(shop) for _ in range(3)]
        for one in own:
            await one.begun()
        await asyncio.wait_for(own[0].task, 240)
        assert not theirs.task.done()

    scene(tmp_path, play, guarded=True)


def test_places_are_given_back_whatever_happens() -> None:
    async def inside() -> None:
        uploads = Uploads(2, 1.0, FOR_EVER)
        for _ in range(5):
            with pytest.raises(ZeroDivisionError), uploads.slot(b"a"), uploads.slot(b"b"):
                raise ZeroDivisionError
        assert not uploads._held, "no memory of tokens that have gone"
        with (
            uploads.slot(b"a"), uploads.slot(b"a"),
            pytest.raises(RequestError, match="2 uploads are under way"), uploads.slot(b"b"),
        ):  # fmt: skip
            pass

    asyncio.run(inside())
