"""Triton's own HTTP client against a real service: it knows nothing of this one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from benchmarks.fixtures.service import Running, service, settle

tritonclient = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")

_SETTINGS = {
    "cluster": "embedded",
    "models": [
        {
            "name": "clicks",
            "task": "binary",
            "learner": "logreg",
            "classes": {"negative": "no", "positive": "yes"},
        },
        {"name": "prices", "task": "regression", "learner": "linreg"},
    ],
    "limits": {"rows_max": 50, "body_bytes_max": 100_000},
}
_LENGTH = "Inference-Header-Content-Length"
_N = 40
_A = np.arange(_N, dtype=np.float32) % 7
_B = (np.arange(_N, dtype=np.float64) % 5) - 1.5
_LABELS = np.array([("no", "yes")[i % 3 == 0] for i in range(_N)], dtype=object)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with service(_SETTINGS) as running:
        yield running


@pytest.fixture
def client(running: Running) -> Iterator[Any]:
    client = tritonclient.InferenceServerClient(running.url.removeprefix("http://"))
    yield client
    client.close()


def tensor(name: str, values: Any, datatype: str, *, binary: bool) -> Any:
    made = tritonclient.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def columns(*, binary: bool) -> list[Any]:
    return [tensor("a", _A, "FP32", binary=binary), tensor("b", _B, "FP64", binary=binary)]


def learned(running: Running, model: str) -> int:
    return int(httpx.get(f"{running.url}/v1/models/{model}", timeout=120).json()["learned"])


def post_feedback(running: Running, model: str, inputs: list[Any]) -> dict[str, list[Any]]:
    """The extension: the client has no call for it, but makes the body and reads the answer."""
    body, json_bytes = tritonclient.InferenceServerClient.generate_request_body(inputs)
    headers = {} if json_bytes is None else {_LENGTH: str(json_bytes)}
    url = f"{running.url}/v2/models/{model}/feedback"
    response = httpx.post(url, content=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    result = tritonclient.InferenceServerClient.parse_response_body(
        response.content, header_length=int(response.headers[_LENGTH])
    )
    return {
        o["name"]: result.as_numpy(o["name"]).tolist() for o in result.get_response()["outputs"]
    }


def test_server_and_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    server = client.get_server_metadata()
    assert {"online_feedback", "binary_tensor_data"} <= set(server["extensions"])
    assert client.is_model_ready("clicks")
    assert not client.is_model_ready("nobody")
    version = client.get_model_metadata("clicks")["versions"][0]
    assert client.is_model_ready("clicks", version)
    assert not client.is_model_ready("clicks", "0.12345")
    outputs = {o["name"]: o["datatype"] for o in client.get_model_metadata("clicks")["outputs"]}
    assert outputs == {
        "prediction": "BYTES", "probability": "FP64", "probabilities": "FP64", "id": "BYTES",
    }  # fmt: skip


def test_the_client_in_bytes_and_in_json_teaches_what_v1_answers(
    running: Running, client: Any
) -> None:
    before = learned(running, "clicks")
    answers = []
    for binary in (True, False):
        outputs = None
        if not binary:
            names = ("prediction", "probability", "probabilities", "id")
            outputs = [tritonclient.InferRequestedOutput(n, binary_data=False) for n in names]
        result = client.infer(
            "clicks", columns(binary=binary), request_id="forty-two", outputs=outputs
        )
        response = result.get_response()
        assert response["id"] == "forty-two"
        assert response["model_name"] == "clicks"
        assert response["model_version"]
        assert result.as_numpy("prediction").shape == (_N,)
        assert result.as_numpy("probabilities").shape == (_N, 2)
        labels = json.loads(result.get_output("probabilities")["parameters"]["labels"])
        assert sorted(labels) == ["no", "yes"]
        positive = result.as_numpy("probabilities")[:, labels.index("yes")]
        assert positive.tolist() == result.as_numpy("probability").tolist()
        ids = result.as_numpy("id")
        inputs = [
            tensor("id", ids.astype(object), "BYTES", binary=binary),
            tensor("label", _LABELS, "BYTES", binary=binary),
        ]
        fates = post_feedback(running, "clicks", inputs)
        assert fates["status"] == [b"learned"] * _N
        again = post_feedback(running, "clicks", inputs)
        assert again["duplicate"] == [True] * _N
        settle(running, "clicks", before := before + _N)
        instances = [{"a": float(a), "b": float(b)} for a, b in zip(_A, _B, strict=True)]
        url = f"{running.url}/v1/models/clicks/predict"
        plain = httpx.post(url, json={"instances": instances}, timeout=120).json()
        v1 = [row["probabilities"]["yes"] for row in plain["predictions"]]
        v2 = client.infer("clicks", columns(binary=binary)).as_numpy("probability")
        assert v2 == pytest.approx(v1, abs=1e-12)
        answers.append(v1)
    assert answers[0] != answers[1], "the second round has taught it nothing"
    met = [tensor["name"] for tensor in client.get_model_metadata("clicks")["inputs"]]
    assert met == ["a", "b"]


def test_one_tensor_of_columns_and_a_label_that_comes_with_it(
    running: Running, client: Any
) -> None:
    before = learned(running, "prices")
    table = tensor("x", np.arange(6, dtype=np.int16).reshape(3, 2), "INT16", binary=True)
    targets = tensor("label", np.array([0.5, 1.0, 2.0]), "FP64", binary=True)
    events = tensor("event_id", np.array(["p", "q", "p"], dtype=object), "BYTES", binary=True)
    fates = post_feedback(running, "prices", [table, targets, events])
    assert fates["status"] == [b"learned", b"learned", b"conflict"]
    settle(running, "prices", before + 2)
    met = [tensor["name"] for tensor in client.get_model_metadata("prices")["inputs"]]
    assert met == ["x.0", "x.1"]
    wanted = [tritonclient.InferRequestedOutput("prediction")]
    result = client.infer("prices", [table], outputs=wanted)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["prediction"]
    assert result.as_numpy("prediction").dtype == np.float64


@pytest.mark.parametrize("binary", [True, False])
def test_the_client_shows_what_was_refused(client: Any, *, binary: bool) -> None:
    def refused(model: str, inputs: list[Any], version: str = "") -> tuple[str, str]:
        with pytest.raises(tritonclient.InferenceServerException) as caught:
            client.infer(model, inputs, version)
        return caught.value.status(), caught.value.message()

    assert refused("nobody", columns(binary=binary))[0] == "404"
    assert refused("clicks", columns(binary=binary), "0.12345")[0] == "404"
    status, message = refused("clicks", [tensor("a", np.zeros(51), "FP64", binary=binary)])
    assert status == "422"
    assert "rows_max" in message
    texts = np.array(["blue"], dtype=object)
    status, message = refused("clicks", [tensor("a", texts, "BYTES", binary=binary)])
    assert (status, "a number is needed" in message) == ("422", True)
    status, message = refused("clicks", [tensor("a", np.zeros(30_000), "FP64", binary=binary)])
    assert status == "413"
    assert "body_bytes_max" in message
    if binary:
        status, message = refused("clicks", [tensor("a", np.array([np.nan]), "FP64", binary=True)])
        assert status == "422"
        assert "rows[0].a" in message
