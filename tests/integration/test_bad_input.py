"""Every bad request gets its documented status, names field and remedy, and changes nothing.

One service with one replica and four models; each test compares what a model answers to a probe
row before and after, exactly.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from online.bench.service import Running, launch, write_settings
from online.tokens import Keys, Nonces, Predicted, Tokens

pytestmark = pytest.mark.ray

_LEARNERS = '''
from river import linear_model, optim, preprocessing


class RaisesAfterItsScaler:
    """Its first step has learned the row when the second one raises."""

    def __init__(self):
        self.scaler = preprocessing.StandardScaler()
        self.model = linear_model.LogisticRegression(optim.SGD(0.1))

    def predict_proba_one(self, x):
        known = {k: v for k, v in x.items() if k in self.scaler.means}
        return self.model.predict_proba_one(self.scaler.transform_one(known) if known else {})

    def learn_one(self, x, y):
        self.scaler.learn_one(x)
        if x.get("poison") == 1.0:
            raise ValueError("the second step takes no poison")
        self.model.learn_one(self.scaler.transform_one(x), y)


def diverging():
    """River's own steps, with a learning rate that a large error multiplies beyond 1e308."""
    return preprocessing.StandardScaler() | linear_model.LinearRegression(optim.SGD(1e300))
'''

_SETTINGS: dict[str, Any] = {
    "replicas": 1,
    "models": [
        {
            "name": "clicks",
            "task": "binary",
            "learner": "logreg",
            "classes": {"negative": "no", "positive": "yes"},
        },
        {"name": "raising", "task": "binary", "learner": "learners.py:RaisesAfterItsScaler"},
        {"name": "diverging", "task": "regression", "learner": "learners.py:diverging"},
        {"name": "briefly", "task": "binary", "learner": "logreg", "token_lifetime": "1s"},
    ],
    "limits": {"body_bytes_max": 100_000, "rows_max": 50, "features_max": 100},
}
_LIMIT = 100_000
_PROBE = {"a": 1.25, "b": -0.5}


class Client:
    """Requests as strangers send them: any bytes, any header."""

    def __init__(self, running: Running) -> None:
        self.running = running
        host, port = running.url.removeprefix("http://").split(":")
        self.address = (host, int(port))

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str | None = "application/json",
    ) -> tuple[int, dict[str, Any]]:
        """Status and decoded body."""
        connection = http.client.HTTPConnection(*self.address, timeout=20)
        headers = {} if content_type is None else {"Content-Type": content_type}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        assert response.headers["content-type"].startswith("application/json"), text
        data: dict[str, Any] = json.loads(text)
        return response.status, data

    def post(self, model: str, action: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """POST of a JSON object."""
        return self.send("POST", f"/v1/models/{model}/{action}", json.dumps(body).encode())

    def answer(self, model: str) -> tuple[Any, Any, int]:
        """What the model answers to the probe row, and how many events it has learned."""
        _, answer = self.post(model, "predict", features=_PROBE)
        _, status = self.send("GET", f"/v1/models/{model}")
        return answer["prediction"], answer.get("probabilities"), status["learned"]

    def steady(self, model: str) -> tuple[Any, Any, int]:
        """The same once the server has every own row: no merge is to come any more."""
        deadline = time.monotonic() + 20
        while self.post(model, "predict", features=_PROBE)[1]["own"]:
            assert time.monotonic() < deadline, "rows are not merged"
            time.sleep(0.02)
        return self.answer(model)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with tempfile.TemporaryDirectory(prefix="online-bad-") as name:
        folder = Path(name)
        (folder / "learners.py").write_text(_LEARNERS)
        write_settings(folder, _SETTINGS)
        running = launch(folder)
        try:
            made = Client(running)
            labels: dict[str, Callable[[int], Any]] = {
                "clicks": lambda i: ("no", "yes")[i % 2],
                "raising": lambda i: i % 2 == 0,
                "diverging": lambda i: 1.0,
            }
            for model, label in labels.items():
                for i in range(1 if model == "diverging" else 4):
                    features = {"a": float(i), "b": i * i - 1.5}
                    status, _ = made.post(model, "feedback", features=features, label=label(i))
                    assert status == 200
            yield made
        finally:
            running.stop()


def check_error(status: int, body: dict[str, Any], expected: int, code: str) -> dict[str, Any]:
    """The documented error body."""
    assert status == expected, body
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"code", "message", "field", "hint"}
    assert error["code"] == code
    assert error["message"]
    assert error["hint"], "an error says what to do"
    return error


# -- the table -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A request to model ``clicks`` and the refusal that answers it."""

    name: str
    path: str
    body: bytes | None
    status: int
    code: str
    field: str | None
    says: str = ""
    method: str = "POST"
    content_type: str | None = "application/json"


_P, _F = "/v1/models/clicks/predict", "/v1/models/clicks/feedback"
_GOOD = b'{"features": {"a": 1}}'

_FEATURES = [
    ("text", b'{"a": 1, "b": "2"}', 422, ".b", "text"),
    ("null", b'{"a": null}', 422, ".a", "null"),
    ("object", b'{"a": {"b": 1}}', 422, ".a", "an object"),
    ("array", b'{"a": [1]}', 422, ".a", "an array"),
    ("huge", b'{"a": 1e999}', 422, ".a", "1e999"),
    ("minus huge", b'{"a": -1e999}', 422, ".a", "-1e999"),
    ("large", b'{"a": 1e308}', 422, ".a", "1e+308"),
    ("long integer", b'{"a": 9007199254740993}', 422, ".a", "9007199254740993"),
    ("empty", b"{}", 422, "", "no features"),
    ("nan", b'{"a": NaN}', 400, None, "NaN"),
    ("infinity", b'{"a": Infinity}', 400, None, "Infinity"),
    ("minus infinity", b'{"a": -Infinity}', 400, None, "-Infinity"),
    ("too many", json.dumps({f"f{i}": 1 for i in range(101)}).encode(), 422, "", "at most 100"),
    ("long name", json.dumps({"n" * 1025: 1}).encode(), 422, "", "1025"),
]


def _feature_cases() -> Iterator[Case]:
    places = [
        ("predict", _P, b'{"features": %s}', "features"),
        ("many", _P, b'{"instances": [{"a": 1}, %s]}', "instances[1]"),
        ("feedback", _F, b'{"label": "yes", "features": %s}', "features"),
    ]
    for place, path, template, at in places:
        for name, features, status, field, says in _FEATURES:
            code = "malformed" if status == 400 else "invalid_value"
            where = "a" if field is None else at + field
            yield Case(f"{place}: {name}", path, template % features, status, code, where, says)


_WITH = '"features": {"a": 1}'


def _feedback(name: str, rest: str, field: str, says: str = "", status: int = 422) -> Case:
    code = {400: "malformed", 404: "unknown_id", 422: "invalid_value"}[status]
    return Case(f"feedback: {name}", _F, f"{{{rest}}}".encode(), status, code, field, says)


def _weight(text: str, status: int = 422) -> Case:
    rest = f'{_WITH}, "label": "yes", "weight": {text}'
    return _feedback(f"weight {text}", rest, "weight", text, status)


def _label(text: str, says: str) -> Case:
    return _feedback(f"label {text}", f'{_WITH}, "label": {text}', "label", says)


_CASES = [
    *_feature_cases(),
    Case("no body", _P, None, 400, "no_body", None),
    Case("empty body", _F, b"", 400, "no_body", None),
    Case("cut off", _P, b'{"features": {"a": 1', 400, "malformed", None),
    Case("not JSON", _F, b"a=1&label=yes", 400, "malformed", None),
    Case("two objects", _P, _GOOD + _GOOD, 400, "malformed", None),
    Case("not UTF-8", _P, b'{"features": {"\xff": 1}}', 400, "malformed", None),
    Case("half a surrogate pair", _P, b'{"features": {"\\ud800": 1}}', 400, "malformed", None),
    Case("array", _P, b"[]", 422, "invalid_value", None, "array"),
    Case("number", _F, b"3", 422, "invalid_value", None, "int"),
    Case("null", _P, b"null", 422, "invalid_value", None, "null"),
    Case("text", _F, b'"yes"', 422, "invalid_value", None, "str"),
    Case("features is an array", _P, b'{"features": [1]}', 422, "invalid_value", "features"),
    Case("features is text", _F, b'{"features": "a"}', 422, "invalid_value", "features"),
    Case("nothing", _P, b"{}", 422, "invalid_value", "features"),
    Case("both", _P, b'{"features":{"a":1},"instances":[{"a":1}]}', 422, "invalid_value",
         "features"),
    Case("no rows", _P, b'{"instances": []}', 422, "invalid_value", "instances", "0 rows"),
    Case("too many rows", _P, json.dumps({"instances": [{"a": 1}] * 51}).encode(), 422,
         "invalid_value", "instances", "51 rows"),
    Case("a row is a number", _P, b'{"instances": [{"a": 1}, 3]}', 422, "invalid_value",
         "instances[1]"),
    Case("unknown field", _P, b'{"feature": {"a": 1}}', 422, "invalid_value", "feature"),
    Case("unknown field in an event", _F, b'{"events": [{"labl": 1}]}', 422, "invalid_value",
         "events[0].labl"),
    Case("ids is text", _P, b'{"instances": [{"a": 1}], "ids": "yes"}', 422, "invalid_value",
         "ids"),
    Case("too old", _P, b'{"features": {"a": 1}, "max_age_ms": 0}', 503, "too_old", "max_age_ms"),
    Case("age is text", _P, b'{"features": {"a": 1}, "max_age_ms": "1"}', 422, "invalid_value",
         "max_age_ms"),
    Case("age below 0", _P, b'{"features": {"a": 1}, "max_age_ms": -1}', 422, "invalid_value",
         "max_age_ms"),
    *(Case(f"after {text}", _P, f'{{{_WITH}, "after": "{text}"}}'.encode(), 422, "invalid_value",
           "after", text[:20]) for text in ("x", "1", "1:2:3", "1:b", "", "1.5:2")),
    Case("after is a number", _P, b'{"features": {"a": 1}, "after": 1}', 422, "invalid_value",
         "after"),
    *(Case(f"content type {kind}", path, _GOOD, 415, "media_type", None, kind.partition(";")[0],
           content_type=kind) for kind in ("text/xml", "application/cbor", "image/png",
           "multipart/form-data; boundary=x") for path in (_P, _F)),
    Case("GET", _P, None, 405, "method", None, method="GET"),
    Case("PUT", _F, _GOOD, 405, "method", None, method="PUT"),
    Case("DELETE", "/v1/models", None, 405, "method", None, "DELETE", method="DELETE"),
    Case("POST to a model", "/v1/models/clicks", b"{}", 405, "method", None, "POST"),
    Case("unknown path", "/v1/model/clicks", None, 404, "unknown_path", None, method="GET"),
    Case("slash at the end", _P + "/", _GOOD, 404, "unknown_path", None),
    Case("unknown model", "/v1/models/click/predict", _GOOD, 404, "unknown_model", "model",
         "click"),
    Case("unknown model, feedback", "/v1/models/click/feedback", _GOOD, 404, "unknown_model",
         "model"),
    Case("unknown model, status", "/v1/models/click", None, 404, "unknown_model", "model",
         method="GET"),
    Case("pin is no truth", "/v1/models/clicks/snapshots?pin=perhaps", None, 422, "invalid_value",
         "pin", "perhaps"),
    Case("unknown snapshot", "/v1/models/clicks/snapshots/none/pin", None, 404, "unknown_snapshot",
         "name", "'none'"),
    _feedback("no label", _WITH, "label", "no label"),
    _feedback("neither id nor features", '"label": "yes"', "id"),
    *(_label(text, text) for text in ('"maybe"', "true", "1", "null", '["yes"]', '"YES"')),
    *(_weight(text) for text in ("0", "-1", "1000001", "true", "null", '"2"', "[1]")),
    _weight("NaN", 400), _weight("Infinity", 400),
    _feedback("weight 1e999", f'{_WITH}, "label": "yes", "weight": 1e999', "weight", "1e999"),
    _feedback("time is text", f'{_WITH}, "label": "yes", "event_time": "now"', "event_time"),
    _feedback("source is a number", f'{_WITH}, "label": "yes", "source": 3', "source"),
    _feedback("event_id is a number", f'{_WITH}, "label": "yes", "event_id": 3', "event_id"),
    _feedback("event_id is long", f'{_WITH}, "label": "yes", "event_id": "{"x" * 257}"',
              "event_id", "256"),
    _feedback("id is a number", '"label": "yes", "id": 3', "id"),
    _feedback("id is empty", '"label": "yes", "id": ""', "id", status=404),
    _feedback("id is a long word", f'"label": "yes", "id": "{"a" * 65}"', "id", status=404),
    _feedback("id is not ASCII", '"label": "yes", "id": "é"', "id", status=404),
    _feedback("no events", '"events": []', "events"),
    _feedback("one and many", f'"events": [{{{_WITH}, "label": "yes"}}], "label": "yes"', "events"),
    _feedback("events is an object", '"events": {"label": "yes"}', "events"),
    Case("too many events", _F, json.dumps(
        {"events": [{"features": {"a": 1}, "label": "yes"}] * 51}).encode(), 422,
        "invalid_value", "events", "51"),
]  # fmt: skip


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_refused_and_unchanged(client: Client, case: Case) -> None:
    before = client.steady("clicks")
    answered = client.send(case.method, case.path, case.body, case.content_type)
    error = check_error(*answered, case.status, case.code)
    assert error["field"] == case.field
    assert case.says in error["message"]
    assert client.answer("clicks") == before


def test_the_comparison_sees_one_event(client: Client) -> None:
    """Control: an accepted event makes the fingerprint another one."""
    before = client.steady("clicks")
    status, receipt = client.post("clicks", "feedback", features={"a": 2, "b": 1}, label="yes")
    assert (status, receipt["status"]) == (200, "learned")
    after = client.steady("clicks")
    assert after[1] != before[1]
    assert after[2] == before[2] + 1


def test_hints_name_the_remedy(client: Client) -> None:
    feedback = {"features": {"a": 1.0}}
    assert client.post("clicks", "feedback", **feedback, label="maybe")[1]["error"]["hint"] == (
        'Send "no" or "yes"'
    )
    _, unknown = client.post("click", "predict", features={"a": 1})
    assert unknown["error"]["hint"] == "Served here: briefly, clicks, diverging, raising"
    _, many = client.post("clicks", "predict", instances=[{"a": 1}] * 51)
    assert "limits.rows_max" in many["error"]["hint"]


def test_the_body_decides_where_curl_names_a_form(client: Client) -> None:
    for kind in ("application/x-www-form-urlencoded", None, "application/json; charset=utf-8"):
        assert client.send("POST", _P, _GOOD, kind)[0] == 200
    assert client.post("clicks", "predict", features={"a": True})[0] == 200


# -- size ------------------------------------------------------------------------------------


def _raw(client: Client, head: str, parts: Iterator[bytes]) -> tuple[int, dict[str, Any]]:
    """Write a request by hand until it is answered."""
    with socket.create_connection(client.address, timeout=20) as connection:
        try:
            connection.sendall(head.encode())
            for part in parts:
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered and closed before all was sent
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        return response.status, json.loads(response.read())


@pytest.mark.parametrize("path", [_P, _F])
def test_oversize_with_a_length(client: Client, path: str) -> None:
    before = client.steady("clicks")
    size = _LIMIT + 1
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    )
    body = b'{"features":{"a":1}' + b" " * (size - 20) + b"}"
    error = check_error(*_raw(client, head, iter([body])), 413, "too_large")
    assert str(_LIMIT) in error["message"]
    assert "limits.body_bytes_max" in error["hint"]
    assert client.answer("clicks") == before


@pytest.mark.parametrize("path", [_P, _F])
def test_oversize_in_chunks_without_a_length(client: Client, path: str) -> None:
    before = client.steady("clicks")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    parts = iter([chunk] * (_LIMIT // 0x4000 + 2) + [b"0\r\n\r\n"])
    check_error(*_raw(client, head, parts), 413, "too_large")
    assert client.answer("clicks") == before


def test_a_body_of_the_very_limit_is_taken(client: Client) -> None:
    body = _GOOD + b" " * (_LIMIT - len(_GOOD))
    assert client.send("POST", _P, body)[0] == 200


# -- tokens ----------------------------------------------------------------------------------

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def _token(client: Client, model: str = "clicks", remainder: int = 2) -> str:
    """A token whose length modulo 4 leaves bits in its last character that say nothing."""
    for n in range(1, 9):
        _, answer = client.post(model, "predict", features={"a" * n: 1.0})
        token: str = answer["id"]
        if len(token) % 4 == remainder:
            return token
    raise AssertionError("no token of that length")


def _other(character: str) -> str:
    return "A" if character != "A" else "B"


def _refuse_token(client: Client, token: str, model: str = "clicks", label: Any = "yes") -> None:
    before = client.steady(model)
    answered = client.post(model, "feedback", id=token, label=label)
    error = check_error(*answered, 404, "unknown_id")
    assert error["field"] == "id"
    assert client.answer(model) == before


@pytest.mark.parametrize("place", [0, 3, 5, 6, 13, 20, 21, 22, 40, -23, -22, -2])
def test_a_token_with_one_character_changed(client: Client, place: int) -> None:
    token = _token(client)
    at = place % len(token)
    _refuse_token(client, token[:at] + _other(token[at]) + token[at + 1 :])


@pytest.mark.parametrize("remainder", [2, 3])
def test_other_spellings_of_a_token(client: Client, remainder: int) -> None:
    token = _token(client, remainder=remainder)
    spare = {2: 4, 3: 2}[remainder]
    last = _ALPHABET.index(token[-1])
    assert last % 2**spare == 0
    for i in range(1, 2**spare):  # the same bytes to an ordinary decoder
        _refuse_token(client, token[:-1] + _ALPHABET[last + i])
    for spelling in (
        token + "=" * (4 - remainder), token + "=", token + "\n", " " + token, token + "A",
        token[:-1], token + token, token[:4] + "!" + token[4:], token[:4] + "\n" + token[4:],
    ):  # fmt: skip
        _refuse_token(client, spelling)
    status, receipt = client.post("clicks", "feedback", id=token, label="yes")
    assert (status, receipt["status"]) == (200, "learned"), "the token itself is good"


def test_a_token_of_another_model(client: Client) -> None:
    _, answer = client.post("briefly", "predict", features={"a": 1.0})
    _refuse_token(client, answer["id"])


def test_a_token_of_another_service(client: Client) -> None:
    keys = Keys([os.urandom(32)])
    _refuse_token(client, _made(keys, "clicks", os.urandom(6), time.time()))


def test_a_token_with_more_than_a_label(client: Client) -> None:
    before = client.steady("clicks")
    token = _token(client)
    for extra in ({"event_id": "mine"}, {"features": {"a": 2.0}}):
        answered = client.post("clicks", "feedback", id=token, label="yes", **extra)
        assert check_error(*answered, 422, "invalid_value")["field"] == "id"
    assert client.answer("clicks") == before


def _made(keys: Keys, model: str, prefix: bytes, at: float) -> str:
    """A token as a replica gives it out."""
    return Tokens(keys, model, Nonces(prefix)).issue(
        Predicted(1, {"a": 1.0}, {"true": 0.5, "false": 0.5}, (1, 0, 0), at, None, "x" * 16)
    )


def test_an_expired_token(client: Client) -> None:
    keys = Keys.from_file(client.running.state_dir / "key")
    before = client.steady("briefly")
    old = _made(keys, "briefly", os.urandom(6), time.time() - 7200)
    status, receipt = client.post("briefly", "feedback", id=old, label=True)
    assert (status, receipt["status"]) == (410, "expired")
    assert "2.0 h old" in receipt["reason"]
    future = _made(keys, "briefly", os.urandom(6), time.time() + 7200)
    answered = client.post("briefly", "feedback", id=future, label=True)
    assert "future" in check_error(*answered, 422, "invalid_value")["message"]
    assert client.answer("briefly") == before


def test_a_repeat_that_comes_after_the_lifetime_is_still_a_repeat(client: Client) -> None:
    keys = Keys.from_file(client.running.state_dir / "key")
    prefix = os.urandom(6)
    token = _made(keys, "briefly", prefix, time.time() + 30)
    assert client.post("briefly", "feedback", id=token, label=True)[1]["status"] == "learned"
    before = client.steady("briefly")
    late = _made(keys, "briefly", prefix, time.time() - 100)  # the same event, long ago
    status, receipt = client.post("briefly", "feedback", id=late, label=True)
    assert (status, receipt["status"], receipt["first_outcome"]) == (200, "duplicate", "learned")
    status, receipt = client.post("briefly", "feedback", id=late, label=False)
    assert (status, receipt["status"]) == (409, "conflict")
    assert client.answer("briefly") == before


# -- repeats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["token", "event_id"])
def test_repeated_and_conflicting_labels(client: Client, kind: str) -> None:
    event: dict[str, Any] = {"id": _token(client)}
    if kind == "event_id":
        event = {"features": {"a": 3.0}, "event_id": "order 17", "source": "shop"}
    status, first = client.post("clicks", "feedback", **event, label="yes")
    assert (status, first["status"]) == (200, "learned")
    before = client.steady("clicks")
    for _ in range(2):
        status, again = client.post("clicks", "feedback", **event, label="yes")
        assert (status, again["status"], again["first_outcome"]) == (200, "duplicate", "learned")
        assert again["duplicate"] is True
        assert again["seen"] == first["seen"]
        status, other = client.post("clicks", "feedback", **event, label="no")
        assert (status, other["status"], other["first_outcome"]) == (409, "conflict", "learned")
        assert other["reason"] == 'the label recorded first is "yes"'
    assert client.answer("clicks") == before


def test_an_event_id_belongs_to_its_source(client: Client) -> None:
    event = {"features": {"a": 3.0}, "event_id": "order 18", "label": "yes"}
    for source in ("shop", "store"):
        _, receipt = client.post("clicks", "feedback", **event, source=source)
        assert receipt["status"] == "learned"


def test_many_events_with_bad_ones_between(client: Client) -> None:
    token = _token(client)
    _, _, learned = client.steady("clicks")
    events = [
        {"features": {"a": 1.0}, "label": "yes"},
        {"features": {"a": "1"}, "label": "yes"},
        {"id": token, "label": "no"},
        {"features": {"a": 1.0}, "label": "maybe"},
        {"id": token, "label": "no"},
        {"id": "forged" * 11, "label": "no"},
        {"id": token, "label": "yes"},
        {"features": {"a": 1.0}, "label": "no", "weight": 0},
        {"features": {"a": 2.0}, "label": "no", "event_id": "last", "source": "many"},
    ]
    status, body = client.post("clicks", "feedback", events=events)
    assert status == 200
    got = body["events"]
    assert [receipt["status"] for receipt in got] == [
        "learned", "refused", "learned", "refused", "duplicate", "refused", "conflict", "refused",
        "learned",
    ]  # fmt: skip
    fields = {i: got[i]["error"]["field"] for i in (1, 3, 5, 7)}
    assert fields == {
        1: "events[1].features.a",
        3: "events[3].label",
        5: "events[5].id",
        7: "events[7].weight",
    }
    assert all(got[i]["error"].keys() == {"code", "message", "field", "hint"} for i in fields)
    assert client.steady("clicks")[2] == learned + 3


# -- rows that the model can't learn ---------------------------------------------------------


def test_a_second_step_that_raises_leaves_the_first_as_it_was(client: Client) -> None:
    before = client.answer("raising")
    event = {"features": {"a": 1000.0, "b": 3.0, "poison": 1.0}, "event_id": "p"}
    status, receipt = client.post("raising", "feedback", **event, label=True)
    assert (status, receipt["status"]) == (422, "failed")
    assert receipt["reason"] == "ValueError: the second step takes no poison"
    assert client.answer("raising") == before
    status, again = client.post("raising", "feedback", **event, label=True)
    assert (status, again["status"], again["first_outcome"]) == (422, "duplicate", "failed")
    status, other = client.post("raising", "feedback", **event, label=False)
    assert (status, other["status"], other["first_outcome"]) == (409, "conflict", "failed")
    assert client.answer("raising") == before
    # Had the scaler kept the row, the next ones would be scaled otherwise; and poison is learned
    # where the second step takes it.
    status, _ = client.post("raising", "feedback", features={"a": 1.0, "poison": 0.0}, label=True)
    assert status == 200
    assert client.answer("raising")[2] == before[2] + 1


def test_rivers_own_steps_are_put_back(client: Client) -> None:
    before = client.steady("diverging")
    features = {"a": 50.0, "b": 7.0}
    status, receipt = client.post("diverging", "feedback", features=features, label=1e99)
    assert (status, receipt["status"]) == (422, "failed")
    assert "StateNotFinite" in receipt["reason"]
    assert "lower learning rate" in receipt["reason"]
    assert client.answer("diverging") == before


def test_nothing_of_this_was_an_incident(client: Client) -> None:
    """Last: no request of this file has upset a loop, the server or the log."""
    for model in ("clicks", "raising", "diverging", "briefly"):
        _, status = client.send("GET", f"/v1/models/{model}")
        assert status["incident"] is None
        report = status["replicas"][status["answered_by"]]
        assert report.get("internal_errors", 0) == 0
        assert status["server"]["state"] == "serving"
    assert "Traceback" not in (client.running.folder / "serve.log").read_text()
