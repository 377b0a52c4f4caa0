"""Every bad request gets its documented status, names field and remedy, and changes nothing.

One service in one process with four models; each test compares what a model answers to a probe
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
from pathlib import Path
from typing import Any

import pytest
from bad_requests import CASES, FEEDBACK, GOOD, PREDICT, Case

from benchmarks.fixtures.service import Running, launch, write_settings
from online.rows.prediction_ids import Keys, Nonces, Predicted, Tokens

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
    "cluster": "embedded",
    "models": [
        {
            "name": "clicks",
            "task": "binary",
            "learner": "logreg",
            "classes": {"negative": "no", "positive": "yes"},
        },
        {"name": "raising", "task": "binary", "learner": "learners.py:RaisesAfterItsScaler"},
        {
            "name": "diverging",
            "task": "regression",
            "learner": "learners.py:diverging",
            "filters": "none",  # a label far beyond all others is bounded elsewhere
        },
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
        deadline = time.monotonic() + 240
        while self.post(model, "predict", features=_PROBE)[1]["own"]:
            assert time.monotonic() < deadline, "rows are not merged"
            time.sleep(0.1)
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


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
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
    said = "Did you mean `clicks`? Served here: briefly, clicks, diverging, raising"
    assert unknown["error"]["hint"] == said
    _, many = client.post("clicks", "predict", instances=[{"a": 1}] * 51)
    assert "limits.rows_max" in many["error"]["hint"]


def test_the_body_decides_where_curl_names_a_form(client: Client) -> None:
    for kind in ("application/x-www-form-urlencoded", None, "application/json; charset=utf-8"):
        assert client.send("POST", PREDICT, GOOD, kind)[0] == 200
    assert client.post("clicks", "predict", features={"a": True})[0] == 200


# -- size ------------------------------------------------------------------------------------


def _raw(client: Client, head: str, parts: Iterator[bytes]) -> tuple[int, dict[str, Any]]:
    """Write a request by hand until it is answered."""
    with socket.create_connection(client.address, timeout=120) as connection:
        try:
            connection.sendall(head.encode())
            for part in parts:
                connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered and closed before all was sent
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        return response.status, json.loads(response.read())


@pytest.mark.parametrize("path", [PREDICT, FEEDBACK])
def test_oversize_with_a_length(client: Client, path: str) -> None:
    before = client.steady("clicks")
    size = _LIMIT + 1
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {size}\r\n\r\n"
    )
    body = b'{"features":{"a":1}' + b" " * (size - 20) + b"}"
    error = check_error(*_raw(client, head, iter([body])), 413, "too_large")
    assert str(_LIMIT) in error["message"]
    assert "limits.body_bytes_max" in error["hint"]
    assert client.answer("clicks") == before


@pytest.mark.parametrize("path", [PREDICT, FEEDBACK])
def test_oversize_in_chunks_without_a_length(client: Client, path: str) -> None:
    before = client.steady("clicks")
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    parts = iter([chunk] * (_LIMIT // 0x4000 + 2) + [b"0\r\n\r\n"])
    check_error(*_raw(client, head, parts), 413, "too_large")
    assert client.answer("clicks") == before


def test_a_body_of_the_very_limit_is_taken(client: Client) -> None:
    body = GOOD + b" " * (_LIMIT - len(GOOD))
    assert client.send("POST", PREDICT, body)[0] == 200


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
        None,
        {"features": {"a": 1.0}, "labl": "yes"},
        {"features": {"a": 2.0}, "label": "no", "event_id": "last", "source": "many"},
    ]
    status, body = client.post("clicks", "feedback", events=events)
    assert status == 200
    got = body["events"]
    assert [receipt["status"] for receipt in got] == [
        "learned", "refused", "learned", "refused", "duplicate", "refused", "conflict", "refused",
        "refused", "refused", "learned",
    ]  # fmt: skip
    fields = {i: got[i]["error"]["field"] for i in (1, 3, 5, 7, 8, 9)}
    assert fields == {
        1: "events[1].features.a",
        3: "events[3].label",
        5: "events[5].id",
        7: "events[7].weight",
        8: "events[8]",
        9: "events[9].labl",
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
