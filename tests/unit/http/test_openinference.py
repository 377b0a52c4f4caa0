"""The Open Inference Protocol: its routes, its answers and what they refuse."""

from __future__ import annotations

import asyncio
import json
import math
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import replica_world as worlds
from fastapi import FastAPI
from river import linear_model

from online.http.app import App, build_rest
from online.http.openinference.protocol import EXTENSIONS
from online.learning.merged import Learner
from online.models.adapters.linear import Linear
from online.replica.replica import ModelReplica
from online.replica.surroundings import Identity, Services
from online.rows.prediction_ids import Keys, Nonces, Tokens
from online.rows.validator import Validator
from online.serving.serving import Serving
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from replay.example import Features

_LENGTH = "Inference-Header-Content-Length"


def tensor(name: str, shape: list[int], datatype: str, data: Any, **parameters: Any) -> Any:
    made = {"name": name, "shape": shape, "datatype": datatype, "data": data}
    return made | ({"parameters": parameters} if parameters else {})


class NoCluster:
    """Nothing here asks for other replicas."""


LIMITS = Limits(body_bytes_max=20_000, rows_max=8, features_max=4)


@pytest.fixture
def nonces() -> Nonces:
    """One for all tokens of a test: it knows how many there are."""
    return Nonces(b"tokens")


def serving(folder: Path, nonces: Nonces, estimator: Any, task: str, **settings: Any) -> Serving:
    """A model that has not met any other replica."""
    data = {"name": task, "task": task, "learner": "logreg", **settings}
    model = ModelSettings.model_validate(data)
    learner = Learner(
        lambda: Linear(estimator), task=model.task, spec=worlds.SPEC, retain_bytes=1, rows_max=64
    )
    journal = worlds.SqliteJournal(folder / f"{task}.db", disk_low_mb=0)
    replica = ModelReplica(
        model, LIMITS, learner, Identity("r", worlds.SPEC), Services(journal, None)  # type: ignore[arg-type]
    )  # fmt: skip
    validator = Validator(model, LIMITS, numeric_only=True)
    tokens = Tokens(Keys([bytes(32)]), task, nonces)
    return Serving(replica, validator, tokens, LIMITS, worlds.SPEC)


@pytest.fixture
def servings(tmp_path: Path, nonces: Nonces) -> dict[str, Serving]:
    classes = {"negative": "no", "positive": "yes"}
    made = [
        serving(tmp_path, nonces, linear_model.LogisticRegression(), "binary", classes=classes),
        serving(tmp_path, nonces, linear_model.SoftmaxRegression(), "multiclass"),
        serving(tmp_path, nonces, linear_model.LinearRegression(), "regression"),
    ]
    return {one.name: one for one in made}


class Caller:
    """Requests to the whole application, without a network."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, method: str, path: str, **content: Any) -> tuple[int, Any]:
        return asyncio.run(self.send(method, path, **content))

    async def send(self, method: str, path: str, **content: Any) -> tuple[int, Any]:
        self.response = await self.raw(method, path, **content)
        return self.response.status_code, self.response.json()

    async def raw(self, method: str, path: str, **content: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **content)

    def infer(self, model: str, *inputs: Any, **more: Any) -> tuple[int, Any]:
        return self("POST", f"/v2/models/{model}/infer", json={"inputs": inputs, **more})


@pytest.fixture
def call(servings: dict[str, Serving]) -> Caller:
    return Caller(App(servings, NoCluster(), LIMITS))  # type: ignore[arg-type]


A = tensor("a", [2], "FP64", [1.0, -2.0])


def outputs_of(answer: dict[str, Any]) -> dict[str, Any]:
    return {output["name"]: output for output in answer["outputs"]}


def test_a_binary_answer(call: Caller, servings: dict[str, Serving]) -> None:
    servings["binary"].replica.learner.serving.learn({"a": 1.0}, True, 5.0)
    status, answer = call.infer("binary", A, id="7", parameters={"priority": 1})
    assert status == 200
    found = outputs_of(answer)
    assert {name: answer[name] for name in ("model_name", "model_version", "id")} == {
        "model_name": "binary", "model_version": "0.0", "id": "7",
    }  # fmt: skip
    assert list(found) == ["prediction", "probability", "probabilities", "id"]
    assert found["prediction"]["data"] == ["yes", "no"]
    labels = json.loads(found["probabilities"]["parameters"]["labels"])
    assert found["probabilities"]["shape"] == [2, 2]
    flat = found["probabilities"]["data"]
    assert flat[labels.index("yes") :: 2] == found["probability"]["data"]
    assert flat[0] + flat[1] == pytest.approx(1.0)
    assert found["probability"]["data"][0] > 0.5 > found["probability"]["data"][1]
    assert [len(token) > 64 for token in found["id"]["data"]] == [True, True]
    rows = [{"a": 1.0}, {"a": -2.0}]
    _, plain = call("POST", "/v1/models/binary/predict", json={"instances": rows})
    assert [row["probabilities"]["yes"] for row in plain["predictions"]] == flat[1::2]


def test_a_multiclass_answer(call: Caller, servings: dict[str, Serving]) -> None:
    assert outputs_of(call.infer("multiclass", A)[1])["prediction"]["data"] == ["", ""]
    model = servings["multiclass"].replica.learner.serving
    for label in (3, 5):
        model.learn({"a": float(label - 4)}, label, 1.0)
    found = outputs_of(call.infer("multiclass", A)[1])
    assert (found["prediction"]["datatype"], found["prediction"]["data"]) == ("INT64", [5, 3])
    assert sorted(json.loads(found["probabilities"]["parameters"]["labels"])) == ["3", "5"]
    assert "probability" not in found


def test_outputs_are_chosen(call: Caller, nonces: Nonces) -> None:
    status, answer = call.infer("regression", A, outputs=[{"name": "prediction"}])
    assert (status, [o["name"] for o in answer["outputs"]]) == (200, ["prediction"])
    assert nonces().endswith(b"\x01"), "a token was made that nobody wants"
    status, answer = call.infer("regression", A, outputs=[{"name": "probabilities"}])
    assert status == 422
    assert "prediction" in answer["error"]


def test_an_output_is_in_bytes_as_it_asks(call: Caller) -> None:
    outputs = [
        {"name": "prediction", "parameters": {"binary_data": True}},
        {"name": "id", "parameters": {"binary_data": False}},
    ]
    for parameters in ({}, {"binary_data_output": True}):
        body = {"inputs": [A], "outputs": outputs, "parameters": parameters}
        response = asyncio.run(call.raw("POST", "/v2/models/regression/infer", json=body))
        length = int(response.headers[_LENGTH])
        found = outputs_of(json.loads(response.content[:length]))
        assert "data" not in found["prediction"]
        assert len(found["id"]["data"]) == 2
        assert response.content[length:] == struct.pack("<2d", 0.0, 0.0)
        assert response.headers["content-type"] == "application/octet-stream"


# -- what there is ---------------------------------------------------------------------------


def test_metadata(call: Caller, servings: dict[str, Serving]) -> None:
    assert call("GET", "/v2")[1]["extensions"] == list(EXTENSIONS)
    assert call("GET", "/v2/health/live") == (200, {"live": True})
    assert call("GET", "/v2/health/ready")[1]["ready"] is True
    general = {"name": "features", "datatype": "FP64", "shape": [-1, -1]}
    shown = {name: call("GET", f"/v2/models/{name}")[1] for name in servings}
    assert [about["inputs"] for about in shown.values()] == [[general]] * 3
    assert shown["binary"]["outputs"][0]["datatype"] == "BYTES"
    assert shown["regression"]["outputs"][0]["datatype"] == "FP64"
    for name, label in (("binary", True), ("multiclass", 3), ("regression", 0.5)):
        servings[name].replica.learner.serving.learn({"a": 1.0, "b": 2.0}, label, 1.0)
        about = call("GET", f"/v2/models/{name}/versions/0.0")[1]
        assert [tensor["name"] for tensor in about["inputs"]] == ["a", "b"]
        answered = call.infer(name, A)[1]["outputs"]
        assert [o["name"] for o in about["outputs"]] == [o["name"] for o in answered]
    many: Features = {f"f{i}": 1.0 for i in range(LIMITS.features_max)}
    servings["regression"].replica.learner.serving.learn(many, 1.0, 1.0)
    assert call("GET", "/v2/models/regression")[1]["inputs"] == [general], "too many to name"


def test_the_repository_has_an_index_and_models_a_configuration_and_statistics(
    call: Caller, servings: dict[str, Serving]
) -> None:
    assert call("POST", "/v2/repository/index") == (
        200,
        [
            {"name": name, "version": "0.0", "state": "READY", "reason": ""}
            for name in ("binary", "multiclass", "regression")
        ],
    )
    found = call("GET", "/v2/models/binary/config")[1]
    assert (found["name"], found["max_batch_size"]) == ("binary", 0)
    assert found["input"] == [{"name": "features", "data_type": "TYPE_FP64", "dims": [-1, -1]}]
    assert found["output"][0]["data_type"] == "TYPE_STRING"
    assert call("GET", "/v2/models/binary/versions/0.0/config")[1] == found
    assert call("GET", "/v2/models/binary/versions/9.9/config")[0] == 404
    replica = servings["binary"].replica
    replica.answered("predict", 0.25)
    replica.answered("predict", 0.25)
    replica.counts["predictions"] += 1
    replica.counts["predict_refused_invalid_value"] += 1
    (told,) = call("GET", "/v2/models/binary/stats")[1]["model_stats"]
    assert told["inference_count"] == 1
    assert told["inference_stats"] == {
        "success": {"count": 1, "ns": 500_000_000}, "fail": {"count": 1, "ns": 0},
    }  # fmt: skip
    assert call("GET", "/v2/models/nobody/stats")[0] == 404


def test_there_is_one_version(call: Caller) -> None:
    for path in ("", "/ready"):
        assert call("GET", f"/v2/models/binary/versions/0.0{path}")[0] == 200
        assert call("GET", f"/v2/models/binary/versions/0.1{path}")[0] == 404
    body = {"inputs": [A]}
    assert call("POST", "/v2/models/binary/versions/0.0/infer", json=body)[0] == 200
    status, answer = call("POST", "/v2/models/binary/versions/7/infer", json=body)
    assert status == 404
    assert "the newest is 0.0" in answer["error"]


# -- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/models/nobody/feedback", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models/binary/infer", 405),
        ("GET", "/v2/models/binary/feedback", 405),
        ("DELETE", "/v2", 405),
        ("POST", "/v2/models/binary/infer", 400),
    ],
)
def test_errors_are_text(call: Caller, method: str, path: str, status: int) -> None:
    found, body = call(method, path)
    assert found == status
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    assert body["error"]
    if status == 405:
        assert call.response.headers["allow"] == ("GET" if path == "/v2" else "POST")


def test_other_paths_keep_their_errors(call: Caller) -> None:
    for path in ("/v1/models/nobody", "/v2nothing", "/nothing"):
        status, body = call("GET", path)
        assert status == 404
        assert body["error"]["code"] in ("unknown_model", "unknown_path")


def test_a_path_with_a_typing_error_is_answered_with_the_one_that_is_meant(call: Caller) -> None:
    for action, odd in (("predict", "predict/"), ("predict", "predct"), ("feedback", "feedbac")):
        _, body = call("POST", f"/v1/models/m/{odd}")
        assert body["error"]["hint"].startswith(f"Did you mean `/v1/models/m/{action}`?")


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([], "0 rows"),
        ([tensor("a", [0], "FP64", [])], "0 rows"),
        ([tensor("a", [9], "FP64", [1.0] * 9)], "limits.rows_max"),
        ([tensor("a", [1, 5], "FP64", [1.0] * 5)], "limits.features_max"),
        ([tensor("a", [2], "FP64", [1.0, 1e101])], "rows[1].a"),
        ([tensor("a", [1], "INT64", [2**53 + 1])], "rows[0].a"),
        ([tensor("a", [1], "BYTES", ["x"])], "rows[0].a"),
        ([tensor("a" * 2000, [1], "FP64", [1.0])], "a name of 2000 characters"),
    ],
)
def test_the_bounds_of_the_service_hold(
    call: Caller, servings: dict[str, Serving], inputs: list[Any], says: str
) -> None:
    status, answer = call.infer("binary", *inputs)
    assert (status, says in answer["error"]) == (422, True), answer
    assert servings["binary"].replica.counts["predict_refused_invalid_value"] == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_bytes_bring_no_number_past_the_door(call: Caller, value: float) -> None:
    made = tensor("a", [2], "FP32", None, binary_data_size=8)
    del made["data"]
    text = json.dumps({"inputs": [made]}).encode()
    status, answer = call(
        "POST", "/v2/models/binary/infer",
        content=text + struct.pack("<2f", 1.0, value), headers={_LENGTH: str(len(text))},
    )  # fmt: skip
    assert status == 422
    assert "rows[1].a" in answer["error"]


def test_the_body_is_counted_as_it_comes(call: Caller) -> None:
    sent = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1_000_000:
            sent += 1000
            yield b" " * 1000

    path = "/v2/models/binary/infer"
    status, answer = call("POST", path, content=stream())
    assert (status, "body_bytes_max" in answer["error"]) == (413, True)
    assert sent < 1.2 * LIMITS.body_bytes_max + 1000, "it was read to its end"
    assert call("POST", path, content=b" " * (LIMITS.body_bytes_max + 1))[0] == 413
    text = json.dumps({"inputs": [A]}).encode().ljust(LIMITS.body_bytes_max)
    assert call("POST", path, content=text)[0] == 200, "at the bound it is taken"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-encoding": "gzip"}, 415),
        ({_LENGTH: "x"}, 400),
        ({_LENGTH: "-1"}, 400),
        ({_LENGTH: "9" * 400}, 400),
        ({_LENGTH: "99"}, 400),
        ({"content-type": "text/plain"}, 200),
    ],
)
def test_headers(call: Caller, headers: dict[str, str], status: int) -> None:
    body = json.dumps({"inputs": [A], "outputs": [{"name": "prediction"}]}).encode()
    assert call("POST", "/v2/models/binary/infer", content=body, headers=headers)[0] == status


def test_an_old_model_says_when_to_ask_again(call: Caller) -> None:
    status, answer = call.infer("binary", A, parameters={"max_age_ms": 5})
    assert (status, call.response.headers["retry-after"]) == (503, "1")
    assert "never synchronised" in answer["error"]


def test_a_failure_of_the_service_is_no_stack_trace(
    call: Caller, servings: dict[str, Serving], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(servings["binary"], "predict", fail)
    status, answer = call.infer("binary", A)
    assert status == 500
    assert "secret" not in answer["error"]


# -- feedback --------------------------------------------------------------------------------


def feedback(tmp_path: Path, scene: Callable[[Caller, ModelReplica], Awaitable[None]]) -> None:
    """A scene with a replica that learns, durably."""

    async def play(world: Any) -> None:
        replica = await world.replica()
        app = App({"m": world.serving(replica)}, NoCluster(), Limits())  # type: ignore[arg-type]
        caller = Caller(app)
        await scene(caller, replica)
        await replica.stop(1)

    worlds.play(tmp_path, play)


async def teach(call: Caller, *inputs: Any, **more: Any) -> tuple[int, Any]:
    body = {"inputs": inputs, **more}
    status, answer = await call.send("POST", "/v2/models/m/feedback", json=body)
    return status, {o["name"]: o["data"] for o in answer["outputs"]} if status == 200 else answer


def texts(name: str, *values: str) -> Any:
    return tensor(name, [len(values)], "BYTES", list(values))


def numbers(name: str, *values: float) -> Any:
    return tensor(name, [len(values)], "FP64", list(values))


def test_labels_by_id(tmp_path: Path) -> None:
    async def scene(call: Caller, replica: ModelReplica) -> None:
        body: dict[str, Any] = {"inputs": [numbers("a", 1, 2)]}
        _, answer = await call.send("POST", "/v2/models/m/infer", json=body)
        ids = outputs_of(answer)["id"]["data"]
        status, found = await teach(call, texts("id", *ids, "x" * 65), numbers("label", 1, 2, 3))
        assert status == 200
        assert found["status"] == ["learned", "learned", "refused"]
        assert found["reason"][0] == ""
        assert found["reason"][2].startswith("unknown_id: rows[2].id: ")
        assert found["duplicate"] == [False] * 3
        assert [":" in seen for seen in found["seen"]] == [True, True, False]
        _, again = await teach(call, texts("id", ids[0], ids[1]), numbers("label", 1, 7))
        assert again["status"] == ["duplicate", "conflict"]
        assert again["first_outcome"] == ["learned", "learned"]
        assert again["duplicate"] == [True, True]
        assert replica.learner.tally.digest[0] == 2
        assert replica.counts["feedback_learned"] == 2
        parameters = {"after": found["seen"][0]}
        body = {"inputs": [numbers("a", 1)], "parameters": parameters}
        _, answer = await call.send("POST", "/v2/models/m/infer", json=body)
        assert answer["parameters"]["includes"] is True

    feedback(tmp_path, scene)


def test_labels_with_features(tmp_path: Path) -> None:
    async def scene(call: Caller, replica: ModelReplica) -> None:
        table = tensor("label", [2, 2], "FP64", [1.0, 2.0, 3.0, 4.0], names="weight,label")
        inputs = [
            table, numbers("a", 1, 1), numbers("label", 5, 6), numbers("weight", 2, 1),
            texts("event_id", "p", "q"), texts("source", "shop", "shop"),
        ]  # fmt: skip
        _, found = await teach(call, *inputs)
        assert found["status"] == ["learned", "learned"]
        assert found["event_id"] == ["p", "q"]
        about = (await call.send("GET", "/v2/models/m"))[1]
        assert {tensor["name"] for tensor in about["inputs"]} == {"weight", "label", "a"}
        assert (await teach(call, *inputs))[1]["status"] == ["duplicate", "duplicate"]
        # Another source is another event; no event_id is never a repeat.
        inputs[-1] = texts("source", "shop", "kiosk")
        assert (await teach(call, *inputs))[1]["status"] == ["duplicate", "learned"]
        outputs = [{"name": "status"}]
        for _ in range(2):
            _, found = await teach(call, numbers("a", 1), numbers("label", 1), outputs=outputs)
            assert found == {"status": ["learned"]}
        assert replica.learner.tally.digest[0] == 5

    feedback(tmp_path, scene)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ([numbers("a", 1)], "no labels"),
        ([texts("id", "x"), numbers("label", 1, 2)], "[1, 2] rows"),
        ([numbers("a", 1, 2), numbers("label", 1)], "[1, 2] rows"),
        ([numbers("label")], "0 events"),
        ([numbers("id", 1), numbers("label", 1)], "$[0].id"),
        ([texts("id", "x"), numbers("label", 1), numbers("label", 2)], "sent twice"),
        ([tensor("label", [1, 2], "FP64", [1.0, 2.0])], "shape [1, 2]"),
        ([numbers("a", 1), numbers("label", 1), texts("source", "s" * 257)], "source"),
        ([numbers("a", 1), numbers("label", 1), texts("event_id", "s" * 257)], "event_id"),
    ],
)
def test_feedback_that_is_refused_whole(tmp_path: Path, inputs: list[Any], says: str) -> None:
    async def scene(call: Caller, replica: ModelReplica) -> None:
        status, answer = await teach(call, *inputs)
        assert (status, says in answer["error"]) == (422, True), answer
        assert replica.learner.tally.digest[0] == 0

    feedback(tmp_path, scene)


def test_events_that_are_refused_one_by_one(tmp_path: Path) -> None:
    async def scene(call: Caller, replica: ModelReplica) -> None:
        _, found = await teach(call, numbers("a", 1e101, 1), numbers("label", 1, 2))
        assert found["status"] == ["refused", "learned"]
        assert "rows[0].features.a" in found["reason"][0]
        _, found = await teach(call, numbers("a", 1), numbers("label", 1), numbers("weight", 0))
        assert found["status"] == ["refused"]
        _, found = await teach(call, numbers("a", 1), numbers("label", 1), texts("id", "x"))
        assert found["status"] == ["refused"]
        assert replica.learner.tally.digest[0] == 1

    feedback(tmp_path, scene)


# -- the document ----------------------------------------------------------------------------


def test_the_document_knows_every_path(servings: dict[str, Serving]) -> None:
    app: FastAPI = build_rest(servings, NoCluster())  # type: ignore[arg-type]
    document = app.openapi()
    paths = {path for path in document["paths"] if path.startswith("/v2")}
    assert paths == {
        "/v2", "/v2/health/live", "/v2/health/ready",
        "/v2/models/{model}", "/v2/models/{model}/versions/{version}",
        "/v2/models/{model}/ready", "/v2/models/{model}/versions/{version}/ready",
        "/v2/models/{model}/config", "/v2/models/{model}/versions/{version}/config",
        "/v2/models/{model}/stats", "/v2/models/{model}/versions/{version}/stats",
        "/v2/repository/index",
        "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer",
        "/v2/models/{model}/feedback",
    }  # fmt: skip
    text = json.dumps(document)
    for name in set(re.findall(r"#/components/schemas/([^\"]+)", text)):
        assert name in document["components"]["schemas"]
    assert "/v1/models/{model}/predict" in document["paths"]
