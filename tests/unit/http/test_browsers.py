"""A page in a browser is not the operator: foreign origins and names, on every kind of route."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import replica_world as worlds

from online.errors import ConfigError, RequestError
from online.http.app import App
from online.http.middleware.access import Access
from online.http.middleware.browsers import Browsers
from online.settings import config
from online.settings.limits import Limits
from online.settings.tokens import ROLES, Role
from online.telemetry import prometheus

LOCAL: Final = "http://127.0.0.1:8000"
TOKENS: Final[dict[Role, str]] = {role: f"{role}-0123456789abcdefghijkl" for role in ROLES}

EVENT: Final = '{"features":{"a":1},"label":1,"event_id":"%s"}'
TENSOR: Final = {"name": "a", "shape": [1], "datatype": "FP64", "data": [1]}
ROUTES: Final[list[tuple[str, str, Any, str]]] = [
    ("POST", "/v1/models/m/predict", '{"features":{"a":1}}', "text/plain"),
    ("POST", "/v1/models/m/feedback", EVENT % "one", "text/plain"),
    ("POST", "/v1/models/m/feedback", EVENT % "two" + "\n", "application/x-ndjson"),
    ("POST", "/v2/models/m/infer", {"inputs": [TENSOR]}, ""),
    ("POST", "/v2/models/m/feedback", {"inputs": [TENSOR, {**TENSOR, "name": "label"}]}, ""),
    ("POST", "/v1/models/m/scores", {"keys": ["a"]}, ""),
    ("GET", "/v1/models/m/scores/a", None, ""),
    ("POST", "/v1/models/m/freeze", "", "text/plain"),
    ("POST", "/v1/models/m/unfreeze", "", "text/plain"),
    ("POST", "/v1/models/m/snapshots/1-0/pin", "", "text/plain"),
    ("POST", "/v1/models/m/forget", {"source": "a"}, ""),
    ("POST", "/v1/models/m/edge/reports", {"sequence": 1, "device": "a", "outcome": "used"}, ""),
    ("POST", "/v1/models/m/edge/deltas", {}, ""),
    ("GET", "/v1/models/m/edge/manifest.json", None, ""),
    ("GET", "/v1/models", None, ""),
    ("GET", "/metrics", None, ""),
    ("GET", "/openapi.json", None, ""),
    ("OPTIONS", "/v1/models/m/predict", None, ""),
    ("GET", "/v1/models/m/quarantine", None, ""),
    ("GET", "/no/such/path", None, ""),
]
PAGES: Final = ("/", "/docs", "/edge/demo")
PROBES: Final = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
FOREIGN: Final[dict[str, dict[str, str]]] = {
    "another site": {"origin": "http://evil.example", "sec-fetch-site": "cross-site"},
    "an old browser": {"origin": "http://evil.example"},
    "without an origin": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    "a frame in a sandbox": {"origin": "null"},
    "another port": {"origin": "http://127.0.0.1:3000", "sec-fetch-site": "same-site"},
}
OURS: Final[dict[str, dict[str, str]]] = {
    "a program": {},
    "the page itself": {"origin": LOCAL, "sec-fetch-site": "same-origin"},
    "the page in an old browser": {"origin": LOCAL},
    "the address bar": {"sec-fetch-site": "none"},
    "behind a proxy": {"origin": "https://models.example", "sec-fetch-site": "same-origin"},
}
LINK: Final = {
    "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document",
}  # fmt: skip


class Cluster:
    """Answers whatever is asked of other replicas."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def answer(*given: Any, **more: Any) -> dict[str, Any]:
            return {}

        return answer


@pytest.fixture(autouse=True)
def plain_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "exposition", lambda statuses: "")


def browsers(
    *origins: str, hosts: tuple[str, ...] = (), guarded: bool = False, own: str = "127.0.0.1"
) -> Browsers:
    return Browsers(origins, hosts, guarded=guarded, own=own)


def scene(
    tmp_path: Path,
    play: Callable[[httpx.AsyncClient, Any], Any],
    guard: Browsers | None,
    access: Access | None = None,
) -> None:
    """Requests to the application of one replica that answers and learns."""

    async def inside(world: Any) -> None:
        replica = await world.replica()
        app: Any = App(
            {"m": world.serving(replica)}, Cluster(), Limits(), access, browsers=guard  # type: ignore[arg-type]
        )  # fmt: skip
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=LOCAL) as client:
            await play(client, replica)
        await replica.stop(1)

    worlds.play(tmp_path, inside)


async def ask(
    client: httpx.AsyncClient, route: tuple[str, str, Any, str], headers: dict[str, str]
) -> httpx.Response:
    method, path, body, kind = route
    if isinstance(body, dict):
        return await client.request(method, path, json=body, headers=headers)
    headers = headers | ({"content-type": kind} if kind else {})
    return await client.request(method, path, content=body, headers=headers)


def refused(answer: httpx.Response, code: str) -> bool:
    """By this code; under /v2 an error is nothing but text."""
    if answer.status_code != 403 or "www-authenticate" in answer.headers:
        return False
    error = answer.json()["error"]
    words = {"foreign_origin": "`origins`", "foreign_host": "`hosts`"}
    if isinstance(error, str):
        return words[code] in error
    return error["code"] == code and words[code] in error["hint"]


def recorded(replica: Any) -> list[Any]:
    """All rows in the journal."""
    journal = replica.store.journal
    return [row for part in journal.partitions("m") for row in journal.read(part.id, 1, 99)]


async def check_foreign_pages(client: httpx.AsyncClient, replica: Any) -> None:
    for who, headers in FOREIGN.items():
        for route in ROUTES:
            answer = await ask(client, route, headers)
            assert refused(answer, "foreign_origin"), (who, route, answer.text)
        for page in PAGES if "sec-fetch-site" in headers else ():
            if not page.startswith("/edge/"):
                assert refused(await client.get(page, headers=headers), "foreign_origin"), page
    assert not recorded(replica)


def test_a_foreign_page_changes_nothing_and_reads_nothing(tmp_path: Path) -> None:
    scene(tmp_path, check_foreign_pages, browsers())


@pytest.mark.parametrize("off", ["all", "hot", "rest"])
def test_a_guard_that_is_off_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    """The test above, with each of the guards taken out."""
    if off != "all":
        check, hot = Browsers.check, "_admit" if off == "hot" else "_forward"

        def checked(self: Browsers, method: str, path: str, headers: Any) -> None:
            frame = inspect.currentframe()
            assert frame is not None
            assert frame.f_back is not None
            if frame.f_back.f_code.co_name != hot:
                check(self, method, path, headers)

        monkeypatch.setattr(Browsers, "check", checked)
    with pytest.raises(AssertionError):
        scene(tmp_path, check_foreign_pages, None if off == "all" else browsers())


def test_who_is_no_foreign_page_comes_through(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient, replica: Any) -> None:
        for who, headers in OURS.items():
            for route in ROUTES:
                answer = await ask(client, route, headers)
                assert answer.status_code != 403, (who, route, answer.text)

        assert recorded(replica), "the test above would have seen it"

    scene(tmp_path, play, browsers())


def test_a_link_leads_to_a_page_and_to_nothing_else(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient, replica: Any) -> None:
        for page in PAGES:
            assert (await client.get(page, headers=LINK)).status_code == 200, page
            assert refused(await client.post(page, headers=LINK), "foreign_origin"), page
            framed = {**LINK, "sec-fetch-dest": "iframe"}
            if not page.startswith("/edge/"):
                assert refused(await client.get(page, headers=framed), "foreign_origin"), page
        for route in ROUTES:
            assert refused(await ask(client, route, LINK), "foreign_origin"), route
        answer = await client.get("/edge/client.js", headers=FOREIGN["without an origin"])
        assert answer.status_code == 200, "the same file in every service"

    scene(tmp_path, play, browsers())


def test_no_page_may_be_shown_in_a_frame_by_a_browser_that_does_not_say_so(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient, replica: Any) -> None:
        for page in PAGES:
            answer = await client.get(page)
            assert answer.status_code == 200
            assert answer.headers["x-frame-options"] == "DENY", page
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], page

    scene(tmp_path, play, browsers())


def test_a_body_that_is_refused_is_not_read(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient, replica: Any) -> None:
        async def endless() -> Any:
            for _ in range(3):
                yield b"x"
            raise AssertionError("the body was read")

        for path in ("/v1/models/m/feedback", "/v2/models/m/feedback", "/v1/models/m/rollback"):
            headers = {"origin": "http://evil.example"}
            answer = await client.post(path, content=endless(), headers=headers)
            assert refused(answer, "foreign_origin")

    scene(tmp_path, play, browsers())


def test_a_refusal_is_counted_by_its_reason(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient, replica: Any) -> None:
        await ask(client, ROUTES[1], {"origin": "http://evil.example"})
        await ask(client, ROUTES[0], {"host": "evil.example"})
        assert replica.counts["feedback_refused_foreign_origin"] == 1
        assert replica.counts["predict_refused_foreign_host"] == 1

    scene(tmp_path, play, browsers())


def test_a_page_whose_name_was_made_to_point_here(tmp_path: Path) -> None:
    """It is of the same origin for the browser: only the name tells."""

    async def play(client: httpx.AsyncClient, replica: Any) -> None:
        for name in (
            "evil.example:8000",
            "evil.example",
            "10.0.0.1:8000",
            "localhost.evil.example",
        ):
            headers = {
                "host": name, "origin": f"http://{name}", "sec-fetch-site": "same-origin",
            }  # fmt: skip
            for route in ROUTES:
                assert refused(await ask(client, route, headers), "foreign_host"), (name, route)
            for page in PAGES:
                assert refused(await client.get(page, headers=headers | LINK), "foreign_host")
        assert not recorded(replica)

    scene(tmp_path, play, browsers())


def test_probes_by_the_address_of_a_pod_are_never_refused(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient, replica: Any) -> None:
        for path in PROBES:
            for headers in ({"host": "10.244.1.7:8000"}, {"host": "pod"}, *FOREIGN.values()):
                assert (await client.get(path, headers=headers)).status_code == 200, path

    scene(tmp_path, play, browsers(hosts=("models.example",)))


def test_with_tokens_names_are_checked_only_if_some_are_given(tmp_path: Path) -> None:
    access = Access({role: [token] for role, token in TOKENS.items()})
    bearer = {"authorization": f"Bearer {TOKENS['admin']}"}

    async def by_any(client: httpx.AsyncClient, replica: Any) -> None:
        for name in ("10.244.1.7:8000", "models", "models.example"):
            answer = await client.get("/v1/models", headers={"host": name, **bearer})
            assert answer.status_code == 200
        foreign = {"origin": "http://evil.example", **bearer}
        assert refused(await client.get("/v1/models", headers=foreign), "foreign_origin")

    async def by_some(client: httpx.AsyncClient, replica: Any) -> None:
        for name in (
            "Models.Example",
            "models.example.:8000",
            "localhost:1",
            "[::1]:8000",
            "0.0.0.0",
        ):
            answer = await client.get("/v1/models", headers={"host": name, **bearer})
            assert answer.status_code == 200, name
        answer = await client.get("/v1/models", headers={"host": "10.244.1.7", **bearer})
        assert refused(answer, "foreign_host")

    scene(tmp_path / "any", by_any, browsers(guarded=True), access)
    some = browsers(hosts=("models.example",), guarded=True, own="0.0.0.0")
    scene(tmp_path / "some", by_some, some, access)


def passes(guard: Browsers, **headers: str) -> bool:
    given = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    try:
        guard.check("POST", "/v1/models/m/feedback", given)
    except RequestError:
        return False
    return True


@pytest.mark.parametrize("host", [
    "127.0.0.1", "127.0.0.1:8000", "127.8.9.1:1", "localhost", "LOCALHOST:9000", "localhost.",
    "[::1]", "[::1]:8000",
])  # fmt: skip
def test_loopback_by_any_port(host: str) -> None:
    assert passes(browsers(), host=host)


@pytest.mark.parametrize("host", [
    "", ":8000", "evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "localhost:a",
    "evil.example:80:80", "[::1].evil.example", "[::2]", "8.8.8.8", "0.0.0.0", "localhost,evil",
    "x" * 5000,
])  # fmt: skip
def test_names_that_are_not_ours(host: str) -> None:
    assert not passes(browsers(), host=host)


def test_a_program_that_names_no_host() -> None:
    assert passes(browsers()), "no browser leaves it out"


@pytest.mark.parametrize(("origin", "host"), [
    ("http://localhost:9000", "localhost:9000"), ("https://models.example", "models.example:443"),
    ("http://models.example", "Models.Example:80"), ("http://[::1]:8000", "[::1]:8000"),
])  # fmt: skip
def test_the_own_origin_in_a_browser_that_does_not_name_the_site(origin: str, host: str) -> None:
    assert passes(browsers(hosts=("models.example",)), host=host, origin=origin)


def test_origins_of_the_settings() -> None:
    guard = browsers("https://App.example:443/", "http://[::1]:3000")
    for origin in ("https://app.example", "http://[::1]:3000"):
        assert passes(guard, host="localhost", origin=origin, sec_fetch_site="cross-site")
    for origin in (
        "http://app.example",
        "https://app.example:8443",
        "https://app.example.evil",
        "",
    ):
        assert not passes(guard, host="localhost", origin=origin, sec_fetch_site="cross-site")


@pytest.mark.parametrize(("field", "value"), [
    ("origins", "*"), ("origins", "null"), ("origins", "app.example"), ("origins", "ftp://a"),
    ("origins", "https://a/path"), ("origins", "https://u@a"), ("origins", "https://a:99999"),
    ("origins", "https://"), ("hosts", "*"), ("hosts", "models.example:x"), ("hosts", ""),
    ("hosts", "http://models.example"), ("hosts", "a b"), ("hosts", "a" * 64),
])  # fmt: skip
def test_settings_that_name_no_origin_or_host(field: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field}"):
        config.load(None, {field: [value]}, {})


def test_settings_are_written_as_browsers_do() -> None:
    given = {
        "origins": ["HTTPS://App.Example:443/"],
        "hosts": ["Models.Example.:80", "::1", "10.0.0.1"],
    }
    settings = config.load(None, given, {})
    assert settings.origins == ("https://app.example",)
    assert settings.hosts == ("models.example", "::1", "10.0.0.1")


def test_a_refusal_shows_nothing_that_a_terminal_would_obey() -> None:
    for headers in ({b"origin": b"http://\x1b[31m\x9b"}, {b"host": b"\x1b[31m\r\nx\x07"}):
        with pytest.raises(RequestError) as caught:
            browsers().check("POST", "/v1/models/m/freeze", headers)
        assert str(caught.value).isprintable()
        assert str(caught.value).isascii()
