"""Chromium shows a foreign page that tries to teach the service, and pages that may use it.

The application of one replica answers behind a server of its own, and whatever stands before it in
practice does here too: a forwarded port, a proxy that puts its own name in, a link.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import replica_world as worlds
import uvicorn

from online.http.app import App
from online.http.middleware.browsers import Browsers
from online.settings.limits import Limits

CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

FLAGS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--no-first-run", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_S: Final = 240.0
EVENT: Final = '{"features":{"a":1},"label":1,"event_id":"%s"}'
ATTACK: Final = """<!doctype html><title>A page</title><form id=f method=post enctype=text/plain
 target=frame action="URL/v1/models/m/freeze"><input name=a></form><iframe name=frame></iframe>
<script>
const send = (path, body, type) =>
  fetch("URL" + path, { method: "POST", mode: "no-cors", body, headers: { "Content-Type": type } })
    .catch(() => 0);
(async () => {
  await send("/v1/models/m/feedback", 'EVENT', "text/plain");
  await send("/v1/models/m/predict", '{"features":{"a":1}}', "text/plain");
  await send("/v2/models/m/infer", "{}", "text/plain");
  await send("/v1/models/m/snapshots/1-0/pin", "", "text/plain");
  await send("/v1/models/m/unfreeze", "", "text/plain");
  await new Promise((done) => {
    const image = new Image();
    image.onload = image.onerror = done;
    image.src = "URL/v1/models";
  });
  document.querySelector("iframe").onload = () => fetch("/done");
  document.getElementById("f").submit();
})();
</script>"""
LINK: Final = '<!doctype html><a href="URL/">go</a><script>document.links[0].click()</script>'
OWN: Final = """<!doctype html><script>
const headers = { "Content-Type": "application/json" };
fetch("/v1/models/m/feedback", { method: "POST", body: 'EVENT', headers })
  .then((answer) => fetch("/own-page-saw/" + answer.status));
</script>"""


class Cluster:
    """One model, and operators' actions that are counted by the requests that reach them."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def answer(*given: Any, **more: Any) -> dict[str, Any]:
            return {"model": "m", "task": "regression"}

        return answer


class Seen:
    """The requests that came in, with what was answered: path to statuses."""

    def __init__(self, app: Callable[..., Awaitable[None]], pages: dict[str, str]) -> None:
        self._app, self._pages = app, pages
        self.statuses: dict[str, list[int]] = {}
        self.headers: dict[str, dict[bytes, bytes]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.headers[path] = dict(scope["headers"])
        if path in self._pages:
            await _page(send, self._pages[path])
            self.statuses.setdefault(path, []).append(200)
            return

        async def noted(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                self.statuses.setdefault(path, []).append(message["status"])

        await self._app(scope, receive, noted)

    async def reached(self, path: str) -> list[int]:
        await worlds.until(lambda: path in self.statuses, PATIENCE_S)
        return self.statuses[path]


async def _page(send: Any, text: str, status: int = 200) -> None:
    head = [(b"content-type", b"text/html; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": text.encode()})


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    await _page(send, "", 404)


@contextlib.asynccontextmanager
async def listening(app: Any) -> AsyncIterator[int]:
    """Serve on a free port of loopback; the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await running


@contextlib.asynccontextmanager
async def chromium(url: str, profile: Path) -> AsyncIterator[None]:
    """A browser that shows a page; every name leads to this machine."""
    assert CHROMIUM is not None
    rules = "--host-resolver-rules=MAP *.test 127.0.0.1"
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *FLAGS, rules, f"--user-data-dir={profile}", "--remote-debugging-port=0", url,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


Scene = Callable[[Seen, int, Any], Awaitable[None]]


def play(tmp_path: Path, guard: Browsers | None, pages: dict[str, str], scene: Scene) -> None:
    async def inside(world: Any) -> None:
        replica = await world.replica()
        app: Any = App({"m": world.serving(replica)}, Cluster(), Limits(), browsers=guard)  # type: ignore[arg-type]
        seen = Seen(app, pages)
        async with listening(seen) as port:
            await scene(seen, port, replica)
        await replica.stop(1)

    worlds.play(tmp_path, inside)


def browsers(*origins: str) -> Browsers:
    return Browsers(origins, (), guarded=False, own="127.0.0.1")


def learned(replica: Any) -> int:
    journal = replica.store.journal
    return sum(len(journal.read(part.id, 1, 99)) for part in journal.partitions("m"))


@pytest.mark.parametrize("guarded", [True, False])
def test_a_foreign_page_tries_to_teach(tmp_path: Path, guarded: bool) -> None:
    """Without the guard the same page does teach: the control of this test."""

    async def scene(seen: Seen, port: int, replica: Any) -> None:
        page = ATTACK.replace("URL", f"http://127.0.0.1:{port}").replace("EVENT", EVENT % "evil")
        foreign = Seen(nothing, {"/": page, "/done": ""})
        async with (
            listening(foreign) as other,
            chromium(f"http://evil.test:{other}/", tmp_path / "profile"),
        ):
            await foreign.reached("/done")
        tried = {
            path: set(statuses) for path, statuses in seen.statuses.items() if "/models/m/" in path
        }
        assert len(tried) == 6, "they did come in"
        if guarded:
            assert set().union(*tried.values()) == {403}, tried
            assert seen.statuses["/v1/models"] == [403]
        else:
            assert tried["/v1/models/m/feedback"] == {200}
            assert tried["/v1/models/m/freeze"] == {200}
        assert learned(replica) == (0 if guarded else 1)
        assert seen.headers["/v1/models/m/feedback"][b"origin"].startswith(b"http://evil.test:")

    play(tmp_path, browsers() if guarded else None, {}, scene)


@pytest.mark.parametrize("guarded", [True, False])
def test_a_page_whose_name_was_made_to_point_here(tmp_path: Path, guarded: bool) -> None:
    """DNS rebinding: to the browser the service is the page's own origin."""
    own = OWN.replace("EVENT", EVENT % "evil")

    async def scene(seen: Seen, port: int, replica: Any) -> None:
        async with chromium(f"http://evil.test:{port}/their-page", tmp_path / "profile"):
            assert await seen.reached("/v1/models/m/feedback") == [403 if guarded else 200]
        assert learned(replica) == (0 if guarded else 1)
        assert seen.headers["/v1/models/m/feedback"][b"host"] == f"evil.test:{port}".encode()

    play(tmp_path, browsers() if guarded else None, {"/their-page": own}, scene)


def test_a_link_leads_to_the_page_which_then_reads(tmp_path: Path) -> None:
    async def scene(seen: Seen, port: int, replica: Any) -> None:
        foreign = Seen(nothing, {"/": LINK.replace("URL", f"http://127.0.0.1:{port}")})
        async with (
            listening(foreign) as other,
            chromium(f"http://evil.test:{other}/", tmp_path / "profile"),
        ):
            assert (await seen.reached("/v1/models"))[0] == 200
        assert seen.statuses["/"] == [200]
        assert seen.headers["/"][b"sec-fetch-site"] == b"cross-site"

    play(tmp_path, browsers(), {}, scene)


def test_the_page_through_a_forwarded_port(tmp_path: Path) -> None:
    """As `ssh -L 9000:127.0.0.1:8000` and `kubectl port-forward`: another port, the same bytes."""
    own = OWN.replace("EVENT", EVENT % "mine")

    async def scene(seen: Seen, port: int, replica: Any) -> None:
        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, here = await asyncio.open_connection("127.0.0.1", port)

            async def copy(of: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
                with contextlib.suppress(OSError):
                    while data := await of.read(65536):
                        to.write(data)
                        await to.drain()
                to.close()

            await asyncio.gather(copy(reader, here), copy(there, writer))

        forwarded = await asyncio.start_server(forward, "127.0.0.1", 0)
        url = f"http://localhost:{forwarded.sockets[0].getsockname()[1]}"
        async with chromium(f"{url}/own", tmp_path / "profile"):
            await seen.reached("/own-page-saw/200")
        async with httpx.AsyncClient(timeout=120) as client:
            assert (await client.get(f"{url}/v1/models")).status_code == 200
            foreign = {"origin": f"http://127.0.0.1:{port}"}  # of the port behind: not this one
            answer = await client.get(f"{url}/v1/models", headers=foreign)
            assert answer.json()["error"]["code"] == "foreign_origin"
        forwarded.close()
        assert learned(replica) == 1

    play(tmp_path, browsers(), {"/own": own}, scene)


@pytest.mark.parametrize("named", [True, False])
def test_the_page_behind_a_proxy_that_puts_its_own_name_in(tmp_path: Path, named: bool) -> None:
    """Over plain HTTP a browser does not say whose page asks, and the proxy hides its name."""
    own = OWN.replace("EVENT", EVENT % "mine")

    async def scene(seen: Seen, port: int, replica: Any) -> None:
        async def proxy(scope: Any, receive: Any, send: Any) -> None:
            headers = [pair for pair in scope["headers"] if pair[0] != b"host"]
            upstream = (b"host", f"127.0.0.1:{port}".encode())
            await seen({**scope, "headers": [upstream, *headers]}, receive, send)

        async with listening(proxy) as front:
            guard = seen._app._browsers  # type: ignore[attr-defined]
            if named:
                seen._app._browsers = browsers(f"http://models.test:{front}")  # type: ignore[attr-defined]
            assert guard is not None
            async with chromium(f"http://models.test:{front}/own", tmp_path / "profile"):
                status = 200 if named else 403
                await seen.reached(f"/own-page-saw/{status}")
            async with httpx.AsyncClient(timeout=120) as client:
                url = f"http://127.0.0.1:{front}/v1/models"
                assert (await client.get(url, headers={"host": "models.test"})).status_code == 200
        assert b"sec-fetch-site" not in seen.headers["/v1/models/m/feedback"]
        assert learned(replica) == int(named)

    play(tmp_path, browsers(), {"/own": own}, scene)
