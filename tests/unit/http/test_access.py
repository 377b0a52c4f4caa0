"""Tokens: who may do what, on every path; and that nothing ever shows one."""

from __future__ import annotations

import contextlib
import hmac
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import replica_world as worlds

import online.http.app
from online.errors import RequestError
from online.http.app import App
from online.http.middleware import access
from online.http.middleware.access import Access, RequestIds, needed
from online.settings.limits import Limits
from online.settings.tokens import ROLES, Role, digest
from online.telemetry import prometheus

TOKENS: Final[dict[Role, str]] = {role: f"{role}-0123456789abcdefghijkl" for role in ROLES}
STRANGE: Final = "nobody-0123456789abcdefghijkl"
EVERYBODY: Final = frozenset({*ROLES, "no token", "strange"})
PREDICT, FEEDBACK = frozenset({"predict", "admin"}), frozenset({"feedback", "admin"})
ADMIN: Final = frozenset({"admin"})

ALLOWED: Final[dict[tuple[str, str], frozenset[str]]] = {
    **{("GET", path): EVERYBODY for path in ("/", "/livez", "/readyz", "/docs", "/openapi.json")},
    ("GET", "/v2/health/live"): EVERYBODY,
    ("GET", "/v2/health/ready"): EVERYBODY,
    ("GET", "/metrics"): PREDICT,
    ("GET", "/v1/models"): PREDICT,
    ("GET", "/v1/models/{model}"): PREDICT,
    ("GET", "/v2"): PREDICT,
    ("GET", "/v2/models/{model}"): PREDICT,
    ("GET", "/v2/models/{model}/ready"): PREDICT,
    ("GET", "/v2/models/{model}/versions/{version}"): PREDICT,
    ("GET", "/v2/models/{model}/versions/{version}/ready"): PREDICT,
    **{
        ("GET", f"/v2/models/{{model}}{version}/{what}"): PREDICT
        for version in ("", "/versions/{version}")
        for what in ("config", "stats")
    },
    ("POST", "/v2/repository/index"): PREDICT,
    ("POST", "/v1/models/{model}/predict"): PREDICT,
    ("POST", "/v1/models/{model}/choose"): PREDICT,
    ("POST", "/v1/models/{model}/scores"): PREDICT,
    ("GET", "/v1/models/{model}/scores/{key}"): PREDICT,
    **{
        ("GET", f"/v1/models/{{model}}/edge/{name}"): PREDICT
        for name in ("manifest.json", "manifest.sig", "roots.json", "files/{sha256}", "releases")
    },
    ("POST", "/v1/models/{model}/edge/reports"): PREDICT,
    ("POST", "/v1/models/{model}/edge/deltas"): FEEDBACK,
    ("GET", "/edge/demo"): EVERYBODY,
    ("GET", "/demo/choose"): EVERYBODY,
    ("GET", "/edge/client.js"): EVERYBODY,
    ("GET", "/v1/models/{model}/edge/files/a/b"): ADMIN,
    ("POST", "/v1/models/{model}/edge/manifest.json"): ADMIN,
    ("POST", "/v2/models/{model}/infer"): PREDICT,
    ("POST", "/v2/models/{model}/versions/{version}/infer"): PREDICT,
    ("POST", "/v1/models/{model}/feedback"): FEEDBACK,
    ("POST", "/v2/models/{model}/feedback"): FEEDBACK,
    ("POST", "/v1/models/{model}/reward"): FEEDBACK,
    ("POST", "/v1/models/{model}/personalizer/v1.0/events/a/b/reward"): FEEDBACK,
    ("POST", "/personalizer/v1.0/rank"): PREDICT,  # the answer says what is missing
    ("POST", "/v1/models/{model}/personalizer/multislot/events/a/activate"): FEEDBACK,
    ("GET", "/v1/models/{model}/personalizer/v1.1/configurations/service"): PREDICT,
    ("PUT", "/v1/models/{model}/personalizer/v1.1/configurations/service"): ADMIN,
    ("GET", "/v1/models/{model}/snapshots"): ADMIN,
    ("GET", "/v1/models/{model}/live"): ADMIN,
    ("GET", "/v1/models/{model}/report"): ADMIN,
    ("POST", "/v1/models/{model}/snapshots"): ADMIN,
    ("POST", "/v1/models/{model}/snapshots/withdraw"): ADMIN,
    ("POST", "/v1/models/{model}/snapshots/{name}/pin"): ADMIN,
    ("POST", "/v1/models/{model}/rollback"): ADMIN,
    ("POST", "/v1/models/{model}/promote"): ADMIN,
    ("POST", "/v1/models/{model}/upgrade"): ADMIN,
    ("POST", "/v1/models/{model}/freeze"): ADMIN,
    ("POST", "/v1/models/{model}/unfreeze"): ADMIN,
    ("GET", "/v1/models/{model}/events"): ADMIN,
    ("POST", "/v1/models/{model}/relearn"): ADMIN,
    ("GET", "/v1/models/{model}/quarantine"): ADMIN,
    ("GET", "/v1/models/{model}/quarantine/events/{event}"): ADMIN,
    ("POST", "/v1/models/{model}/forget"): ADMIN,
    ("POST", "/v1/models/{model}/backfill"): ADMIN,
    ("POST", "/v1/models/{model}/sources"): ADMIN,
    ("POST", "/v1/models/{model}/quarantine/release"): ADMIN,
    ("POST", "/v1/models/{model}/quarantine/discard"): ADMIN,
    # What is not there, or not in this way, is closed too.
    ("GET", "/v1/models/{model}/predict"): PREDICT,
    ("DELETE", "/v1/models/{model}/feedback"): FEEDBACK,
    ("GET", "/v1/models/"): ADMIN,
    ("POST", "/v1/models"): ADMIN,
    ("PUT", "/v1/models/{model}"): ADMIN,
    ("OPTIONS", "/v1/models"): ADMIN,
    ("POST", "/livez"): ADMIN,
    ("GET", "/nothing"): ADMIN,
    ("GET", "/v2/nothing"): ADMIN,
    ("GET", "/v1/models/m%2Frollback/"): ADMIN,
    ("POST", "//v1/models/m/predict"): ADMIN,
}


class Cluster:
    """Answers whatever is asked of other replicas."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def answer(*given: Any, **more: Any) -> dict[str, Any]:
            return {}

        return answer


def path_of(template: str) -> str:
    return template.replace("{model}", "m").replace("{version}", "0.0").replace("{name}", "1-1")


def headers_of(who: str) -> dict[str, str]:
    if who == "no token":
        return {}
    token = STRANGE if who == "strange" else TOKENS[who]  # type: ignore[index]
    return {"authorization": f"Bearer {token}"}


def scene(tmp_path: Path, guard: Access | None, play: Callable[[httpx.AsyncClient], Any]) -> None:
    """Requests to the application of one replica that answers and learns."""

    async def inside(world: Any) -> None:
        replica = await world.replica()
        app: Any = App({"m": world.serving(replica)}, Cluster(), Limits(), guard)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://m") as client:
            await play(client)
        await replica.stop(1)

    worlds.play(tmp_path, inside)


def guarded() -> Access:
    return Access({role: [token] for role, token in TOKENS.items()})


async def check_matrix(client: httpx.AsyncClient) -> None:
    """Everybody at every path: 401, 403, or through."""
    for (method, template), allowed in ALLOWED.items():
        for who in sorted(EVERYBODY):
            answer = await client.request(method, path_of(template), headers=headers_of(who))
            place = (method, template, who, answer.status_code)
            if who in allowed:
                assert answer.status_code not in (401, 403), place
                continue
            assert answer.status_code == (403 if who in ROLES else 401), place
            challenge = answer.headers["www-authenticate"]
            assert challenge.startswith('Bearer realm="online"'), place
            says = {"no token": 'online"', "strange": "invalid_token"}.get(who, "insufficient")
            assert says in challenge, place
            error = answer.json()["error"]
            if template.startswith("/v2"):
                assert "Authorization: Bearer" in error or "token for" in error, place
            else:
                assert error["code"] in ("no_token", "unknown_token", "forbidden"), place
                assert error["hint"], place


@pytest.fixture(autouse=True)
def plain_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prometheus, "exposition", lambda statuses: "")


def test_each_role_at_each_path(tmp_path: Path) -> None:
    scene(tmp_path, guarded(), check_matrix)


@pytest.mark.parametrize("off", ["all", "hot", "rest", "roles"])
def test_a_check_that_is_off_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off: str
) -> None:
    """The test above, with each of the guards taken out."""
    if off == "hot":
        monkeypatch.setattr(App, "_admit", lambda *given: None)
    elif off == "rest":
        monkeypatch.setattr(online.http.app, "needed", lambda method, path: None)
    elif off == "roles":
        held = Access._held
        monkeypatch.setattr(Access, "_held", lambda *g: held(*g) and frozenset(ROLES))
    with pytest.raises(AssertionError):
        scene(tmp_path, None if off == "all" else guarded(), check_matrix)


def test_every_path_of_the_document_is_in_the_table(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient) -> None:
        document = (await client.get("/openapi.json")).json()
        found = {(m.upper(), path) for path, of in document["paths"].items() for m in of}
        assert found <= ALLOWED.keys()
        assert len(found) > 15

    scene(tmp_path, guarded(), play)


@pytest.mark.parametrize("guard", [None, guarded()])
def test_the_document_says_who_may_ask_and_what_is_refused(
    tmp_path: Path, guard: Access | None
) -> None:
    async def play(client: httpx.AsyncClient) -> None:
        document = (await client.get("/openapi.json")).json()
        assert ("securitySchemes" in document["components"]) == (guard is not None)
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                closed = guard is not None and ALLOWED[method.upper(), path] != EVERYBODY
                place, answers = (method, path), operation["responses"]
                assert ("security" in operation) == closed, place
                assert ("401" in answers) == ("403" in answers) == closed, place
                assert ("408" in answers) == ("413" in answers) == (method != "get"), place
                for status, answer in answers.items():
                    name = "InferError" if path.startswith("/v2") else "ErrorAnswer"
                    if not status.startswith("2") and "Receipt" not in str(answer):
                        assert name in str(answer["content"]["application/json"]), (place, status)

    scene(tmp_path, guard, play)


def test_without_tokens_everybody_may_do_everything(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient) -> None:
        for method, template in ALLOWED:
            answer = await client.request(method, path_of(template))
            assert answer.status_code not in (401, 403), (method, template)

    scene(tmp_path, None, play)


def test_a_refused_request_changes_nothing_and_its_body_is_not_read(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient) -> None:
        async def endless() -> Any:
            for _ in range(3):
                yield b"x"
            raise AssertionError("the body was read")

        for path in ("/v1/models/m/feedback", "/v2/models/m/feedback", "/v1/models/m/rollback"):
            answer = await client.post(path, content=endless(), headers=headers_of("predict"))
            assert answer.status_code == 403
        answer = await client.post("/v2/models/nobody/infer")
        assert answer.status_code == 401, "which models there are is nobody's business"
        answer = await client.post("/v1/models/nobody/predict")
        assert answer.status_code == 401

    scene(tmp_path, guarded(), play)


def test_allow_names_all_methods_of_a_path(tmp_path: Path) -> None:
    async def play(client: httpx.AsyncClient) -> None:
        allowed = {"/v1/models/m/snapshots": "GET, POST", "/v1/models/m/predict": "POST"}
        for path, methods in {**allowed, "/v2/models/m": "GET", "/v1/models": "GET"}.items():
            answer = await client.request("PATCH", path)
            assert (answer.status_code, answer.headers["allow"]) == (405, methods), path

    scene(tmp_path, None, play)


# -- tokens ----------------------------------------------------------------------------------


def held(guard: Access, header: str | None) -> set[str]:
    """Roles that the header has, by asking for each."""
    out: set[str] = set()
    for role in ROLES:
        headers = {} if header is None else {b"authorization": header.encode("latin-1")}
        with contextlib.suppress(RequestError):
            guard.check(headers, frozenset({role}))
            out.add(role)
    return out


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", "Bearer  ", TOKENS["admin"], f"Basic {TOKENS['admin']}",
        f"Bearer {TOKENS['admin']}x", f"Bearer {TOKENS['admin'][:-1]}", "Bearer é" * 9,
        f"Bearer {TOKENS['admin'].upper()}", f"Bearer {TOKENS['admin']}, Bearer x",
        f"Bearer {digest(TOKENS['admin'])}", f"Bearer {'x' * 100_000}",
    ],
)  # fmt: skip
def test_what_is_no_token_of_the_settings(header: str | None) -> None:
    assert held(guarded(), header) == set()


def test_one_token_for_two_roles_and_two_for_one() -> None:
    shared, old = TOKENS["predict"], STRANGE
    tokens = {"predict": [shared, old], "feedback": [shared], "admin": [TOKENS["admin"]]}
    guard = Access(tokens)  # type: ignore[arg-type]
    assert held(guard, f"Bearer {shared}") == {"predict", "feedback"}
    assert held(guard, f"bearer  {old} ") == {"predict"}
    assert held(guard, f"BEARER {TOKENS['admin']}") == {"admin"}


def test_digests_stand_for_tokens() -> None:
    guard = Access({role: [digest(token)] for role, token in TOKENS.items()})
    for role, token in TOKENS.items():
        assert held(guard, f"Bearer {token}") == {role}
    assert digest(digest(STRANGE)) == digest(STRANGE)


@pytest.mark.parametrize("sent", [*TOKENS.values(), STRANGE])
def test_every_token_is_compared_whichever_is_sent(
    monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    compared = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    class Counted:
        compare_digest = staticmethod(compare)

    guard = guarded()
    monkeypatch.setattr(access, "hmac", Counted)
    with pytest.raises(RequestError):
        guard.check({b"authorization": f"Bearer {sent}".encode()}, frozenset())
    assert compared == [(32, 32)] * len(ROLES), "of equal length, and all of them"


def test_a_path_that_nobody_has_listed_needs_admin() -> None:
    for method, path in itertools.product(("GET", "POST", "PUT"), ("/new", "/v3/models/m/infer")):
        assert needed(method, path) == frozenset[Role]({"admin"})


# -- request ids -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models/m/predict", "/v2/models/m/infer"])
@pytest.mark.parametrize("sent", ["a", "order-17:3_x.y", "x" * 128])
def test_a_request_id_is_echoed_whatever_the_answer(tmp_path: Path, path: str, sent: str) -> None:
    async def play(client: httpx.AsyncClient) -> None:
        for who, status in (("predict", 400), ("feedback", 403), ("no token", 401)):
            headers = {"x-request-id": sent, **headers_of(who)}
            answer = await client.post(path, headers=headers)
            assert (answer.status_code, answer.headers["x-request-id"]) == (status, sent)

    scene(tmp_path, guarded(), play)


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"a b", b"a\tb", b"\xe9", b"<b>", None])
def test_an_id_that_could_break_a_log_is_replaced(sent: bytes | None) -> None:
    ids = RequestIds("p")
    headers = {} if sent is None else {b"x-request-id": sent}
    assert [ids.of(headers), ids.of(headers)] == [b"p-1", b"p-2"]


def test_a_failure_is_found_in_the_log_by_its_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise ZeroDivisionError("secret")

    async def play(client: httpx.AsyncClient) -> None:
        for i, path in enumerate(("/v1/models/m/predict", "/v2/models/m/infer")):
            inputs = [{"name": "a", "shape": [1], "datatype": "FP64", "data": [1]}]
            body: Any = {"inputs": inputs} if i else {"features": {"a": 1}}
            headers = {"x-request-id": f"lost-{i}", **headers_of("admin")}
            answer = await client.post(path, json=body, headers=headers)
            assert answer.status_code == 500
            assert "secret" not in answer.text
            assert f"lost-{i}" in caplog.text
        assert TOKENS["admin"] not in caplog.text

    monkeypatch.setattr("online.serving.serving.Serving.predict", fail)
    with caplog.at_level(logging.INFO):
        scene(tmp_path, guarded(), play)
