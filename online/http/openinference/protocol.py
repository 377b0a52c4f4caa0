"""The Open Inference Protocol, version 2 over REST: predictions and feedback by tensors.

The models take rows of named values.  As in MLServer's `pd` content type, an input tensor of shape
[n] or [n, 1] is the column of the feature that it is named after.  A tensor of shape [n, d] holds
d columns, named by its parameter ``names`` (separated by commas), or ``name.0`` to ``name.d-1``.
All rows of a request have the same features.

``binary_tensor_data``
    Tensors as bytes behind the JSON text: Triton's extension, which its clients use by default.
``online_feedback``
    ``POST /v2/models/{model}/feedback`` takes the true labels: a tensor ``label``, with ``id`` from
    an answer or with the features, and optionally ``event_id``, ``source``, ``weight`` and
    ``event_time``.  A tensor with ``names`` holds features, whatever it is called.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from online import __version__
from online.errors import RequestError, failed, invalid
from online.http.ingress import V2
from online.http.openinference import triton
from online.messages.bodies import Receive, Scope, Send, Transfers
from online.messages.structs import Event, FeedbackRequest, Predictions, PredictRequest, Receipts
from online.messages.tensors import (
    InferAnswer,
    InferError,
    InferRequest,
    Tensor,
    TensorParameters,
    column,
    count_rows,
    encode,
    parse,
    rows,
)
from online.models.adapters.linear import Linear
from online.models.structure import steps
from online.serving.serving import Serving

log = logging.getLogger(__name__)

EXTENSIONS: Final = ("online_feedback", "binary_tensor_data", *triton.EXTENSIONS)
Refused = RequestError | None
Give = Callable[[Send, int, bytes, bytes, list[tuple[bytes, bytes]], str], Awaitable[None]]
"""Sends an answer: status, content type, body, headers and the model it belongs to."""
_LENGTH: Final = b"inference-header-content-length"
_EVENT: Final = ("id", "label", "event_id", "source", "weight", "event_time")
_DATATYPES: Final = {"number": "FP64", "category": "BYTES", "text": "BYTES", "bool": "BOOL"}
_RECEIPT: Final = ("status", "event_id", "version", "seen", "first_outcome", "reason")


# -- infer and feedback ----------------------------------------------------------------------


async def infer(serving: Serving, request: InferRequest) -> InferAnswer:
    """Predict for the rows in the tensors.  Raises RequestError."""
    wanted = [output.name for output in request.outputs]
    options = request.parameters
    asked = PredictRequest(
        instances=rows(request.inputs, serving.replica.limits.rows_max),
        ids=not wanted or "id" in wanted,  # making a token costs more than an answer
        max_age_ms=options.max_age_ms,
        after=options.after,
        details=options.details,
    )
    try:
        answer = await serving.answered(asked)
    except RequestError as error:
        raise _of_rows(error, "instances") from None
    assert isinstance(answer, Predictions)
    facts = {
        "own": answer.own,
        "age_ms": answer.age_ms,
        "updates_behind": answer.updates_behind,
        "includes": None if answer.includes is msgspec.UNSET else answer.includes,
        "from_peer": answer.from_peer or None,
    }
    return InferAnswer(
        serving.name,
        answer.version,
        _chosen(wanted, _outputs(serving, answer)),
        request.id,
        {name: value for name, value in facts.items() if value is not None},
    )


def _outputs(serving: Serving, answer: Predictions) -> list[Tensor]:
    given = answer.predictions
    outputs = [column("prediction", [row.prediction for row in given])]
    several = [row.probabilities for row in given if row.probabilities is not msgspec.UNSET]
    if len(several) == len(given):
        if serving.replica.settings.task == "binary":
            positive = _positive(serving)
            outputs.append(column("probability", [p.get(positive, 0.0) for p in several]))
        labels = list(dict.fromkeys(label for p in several for label in p))
        flat = [p.get(label, 0.0) for p in several for label in labels]
        named = TensorParameters(labels=json.dumps(labels, ensure_ascii=False))
        shape = [len(given), len(labels)]
        outputs.append(Tensor("probabilities", shape, "FP64", named, flat))
    if scores := [row.score for row in given if row.score is not msgspec.UNSET]:
        outputs.append(column("score", scores))
    if ids := [row.id for row in given if row.id is not msgspec.UNSET]:
        outputs.append(column("id", ids))
    for name in ("missing", "unknown"):
        several_names: list[Any] = [getattr(row, name) for row in given]
        if msgspec.UNSET not in several_names:
            texts = [json.dumps(names, ensure_ascii=False) for names in several_names]
            outputs.append(column(name, texts))
    return outputs


def _positive(serving: Serving) -> str:
    """Key of the positive class in ``probabilities``."""
    classes = serving.replica.settings.classes
    name = True if classes is None else classes["positive"]
    return name if isinstance(name, str) else json.dumps(name)


def _chosen(wanted: Sequence[str], outputs: list[Tensor]) -> list[Tensor]:
    if not wanted:
        return outputs
    known = {output.name: output for output in outputs}
    if missing := [name for name in wanted if name not in known]:
        hint = f"There is: {', '.join(known)}"
        raise invalid("outputs", f"no output {missing[0][:80]!r}", hint)
    return [known[name] for name in dict.fromkeys(wanted)]


def _of_rows(error: RequestError, plain: str) -> RequestError:
    """Replace the error's field by the path that callers of this protocol know."""
    if error.field is None or not error.field.startswith(plain):
        return error
    place = "rows" + error.field.removeprefix(plain)
    return RequestError(
        error.status, error.code, error.message, place, error.hint, error.retry_after_s
    )


async def feedback(serving: Serving, request: InferRequest) -> InferAnswer:
    """Learn the labels in the tensors; return the receipts as tensors.  Raises RequestError."""
    own: dict[str, list[Any]] = {}
    features: list[Tensor] = []
    for tensor in request.inputs:
        if tensor.name not in _EVENT or tensor.names is not None:
            features.append(tensor)
            continue
        if tensor.width != 1 or tensor.name in own:
            message = f"shape {tensor.shape}" if tensor.width != 1 else "sent twice"
            raise invalid(f"inputs.{tensor.name}", message, "Send one tensor of shape [n]")
        own[tensor.name] = tensor.values
    if "label" not in own:
        raise invalid("inputs.label", "no labels", "Send the true labels as a tensor `label`")
    most = serving.replica.limits.rows_max
    count_rows(request.inputs, most, "events")
    if features:
        own["features"] = rows(features, most)
    events = [dict(zip(own, event, strict=True)) for event in zip(*own.values(), strict=True)]
    try:
        checked = msgspec.convert(events, list[Event])
    except msgspec.ValidationError as error:
        raise invalid("inputs", str(error), "See /docs for the tensors and their types") from None
    try:
        _, answer = await serving.feedback(FeedbackRequest(events=checked))
    except RequestError as error:
        raise _of_rows(error, "events") from None
    assert isinstance(answer, Receipts)
    wanted = [output.name for output in request.outputs]
    version = serving.replica.version
    return InferAnswer(serving.name, version, _chosen(wanted, _fates(answer)), request.id)


def _fates(answer: Receipts) -> list[Tensor]:
    """Convert receipts into tensors; empty fields become ``""``."""
    texts: dict[str, list[str]] = {name: [] for name in _RECEIPT}
    named = [receipt.unknown for receipt in answer.events]
    unknown = [[] if names is msgspec.UNSET else names for names in named]
    for receipt in answer.events:
        for name, out in texts.items():
            value = getattr(receipt, name)
            out.append("" if value is msgspec.UNSET else value)
        if receipt.error is not msgspec.UNSET:
            refused = _of_rows(RequestError(422, **receipt.error), "events")
            texts["reason"][-1] = f"{refused.code}: {text_of(refused)}"
    repeats = column("duplicate", [receipt.duplicate for receipt in answer.events])
    outputs = [*(column(name, values) for name, values in texts.items()), repeats]
    if any(unknown):
        lists = [json.dumps(names, ensure_ascii=False) for names in unknown]
        outputs.append(column("unknown", lists))
    return outputs


def speaks(path: str) -> bool:
    """Whether a path belongs to this protocol."""
    return path == "/v2" or path.startswith("/v2/")


def text_of(error: RequestError) -> str:
    """Format the error as one line of text, all that the protocol provides for."""
    place = "" if error.field is None else f"{error.field}: "
    return f"{place}{error.message}" + ("" if error.hint is None else f". {error.hint}")


# -- what there is ---------------------------------------------------------------------------


def metadata(serving: Serving) -> dict[str, Any]:
    """Return the model's input and output tensors.

    Declared features are listed with their types.  Without a declaration a linear model lists the
    features that it has learned, up to ``limits.features_max`` of them.  Otherwise the only input
    is the general form: a tensor whose ``names`` name its columns.
    """
    inputs = [{"name": n, "datatype": t, "shape": [-1]} for n, t in _inputs(serving).items()]
    many = {"name": "features", "datatype": "FP64", "shape": [-1, -1]}
    settings = serving.replica.settings
    label: Any = 0.0
    if settings.task == "binary":
        label = True if settings.classes is None else settings.classes["positive"]
    elif settings.task == "multiclass":
        label = serving.replica.newest_label
    outputs = [{"name": "prediction", "datatype": column("", [label]).datatype, "shape": [-1]}]
    for name in settings.purpose.columns:
        shape = [-1, -1] if name == "probabilities" else [-1]
        outputs.append({"name": name, "datatype": "FP64", "shape": shape})
    return {
        "name": serving.name,
        "versions": [serving.replica.version],
        "platform": "online_river",
        "inputs": inputs or [many],
        "outputs": [*outputs, {"name": "id", "datatype": "BYTES", "shape": [-1]}],
    }


def _inputs(serving: Serving) -> dict[str, str]:
    """Datatypes of the features that the model is known to take, by their names."""
    if (schema := serving.schema) is None:
        return dict.fromkeys(_met(serving), "FP64")
    return {name: _DATATYPES[kind] for name, kind in schema.types().items()}


def _met(serving: Serving) -> list[str]:
    """Features that the model has weights for; empty if unknown, or too many."""
    model = serving.replica.learner.serving
    if not isinstance(model, Linear):
        return []
    weights = steps(model.estimator)[-1].weights
    if serving.replica.settings.task == "multiclass":  # weights by class, then by feature
        weights = {name: None for held in list(weights.values()) for name in held}
    return [] if len(weights) > serving.replica.limits.features_max else list(weights)


def _find(servings: Mapping[str, Serving], model: str, version: str | None) -> Serving:
    serving = servings.get(model)
    if serving is None:
        hint = f"Served here: {', '.join(sorted(servings))}"
        raise RequestError(404, "unknown_model", f"no model {model[:80]!r}", None, hint)
    if version is not None and version != serving.replica.version:
        message = f"no version {version[:80]!r}: the newest is {serving.replica.version}"
        hint = "A model that learns has one version, the newest; leave the version out"
        raise RequestError(404, "unknown_version", message, None, hint)
    return serving


# -- HTTP ------------------------------------------------------------------------------------


class Actions:
    """The ASGI handler of infer and feedback; FastAPI's routing would cost more than the answer."""

    def __init__(self, servings: Mapping[str, Serving], transfers: Transfers, give: Give) -> None:
        self._servings, self._transfers, self._give = servings, transfers, give

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, request_id: bytes, refused: Refused
    ) -> None:
        """Answer a request to a path of ``ingress.V2``; with ``refused``, if that is given."""
        headers = [(b"x-request-id", request_id)]
        try:
            body, length = await self._answer(scope, receive, request_id, refused)
            status, kind = 200, b"application/json"
            if length is not None:
                kind = b"application/octet-stream"
                headers.append((_LENGTH, b"%d" % length))
        except RequestError as error:
            status, kind, body = error.status, b"application/json", error_body(error)
            headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
        match = V2.fullmatch(scope["path"])
        assert match is not None
        await self._give(send, status, kind, body, headers, match[1])

    async def _answer(
        self, scope: Scope, receive: Receive, request_id: bytes, refused: Refused
    ) -> tuple[bytes, int | None]:
        match = V2.fullmatch(scope["path"])
        assert match is not None
        model, version, action = match.groups()
        counted, answer = ("predict", infer) if action == "infer" else ("feedback", feedback)
        begun_s = perf_counter()
        try:
            if refused is not None:
                raise refused
            serving = _find(self._servings, model, version)
            if scope["method"] != "POST":
                raise RequestError(405, "method", "this path takes POST", None, "Send a POST")
            length = _json_bytes(scope)
            request = parse(await self._transfers.read(scope, receive), length)
            return encode(await answer(serving, request), request)
        except RequestError as error:
            if model in self._servings:
                self._servings[model].replica.counts[f"{counted}_refused_{error.code}"] += 1
            if error.status >= 500:
                log.warning("%s %s, request %s: %s", action, model, request_id.decode(), error)
            raise
        except Exception:
            log.exception("%s %s, request %s", action, model, request_id.decode())
            raise failed() from None
        finally:
            if model in self._servings:
                self._servings[model].replica.answered(counted, perf_counter() - begun_s)


def _json_bytes(scope: Scope) -> int | None:
    """Length of the JSON part of the body according to its headers; None: all of it."""
    headers = dict(scope["headers"])
    if coding := headers.get(b"content-encoding", b"").decode("latin-1"):
        message = f"content encoding {coding[:80]!r}"
        raise RequestError(415, "media_type", message, None, "Send it without compression")
    length = headers.get(_LENGTH, b"").decode("latin-1")
    if not length:
        return None
    if not re.fullmatch(r"[0-9]{1,15}", length):
        message = f"{_LENGTH.decode()} {length[:80]!r}"
        raise RequestError(400, "malformed", message, None, "Send the bytes of the JSON text")
    return int(length)


def error_body(error: RequestError) -> bytes:
    """Make the body of an error answer in this protocol."""
    return msgspec.json.encode(InferError(text_of(error)))


_COLUMN: Final = {"name": "a", "shape": [2], "datatype": "FP64", "data": [1.0, -2.0]}
_LABEL: Final = {"name": "label", "shape": [2], "datatype": "FP64", "data": [0.0, 1.0]}
_SUMMARIES: Final = {
    "/v2/models/{model}/infer": "Predict",
    "/v2/models/{model}/versions/{version}/infer": "Predict by a version",
    "/v2/models/{model}/feedback": "Learn the true labels",
}


def add_routes(app: FastAPI, servings: Mapping[str, Serving]) -> None:
    """Add all routes but the actions to an app; errors under /v2 become text."""
    tags: list[Any] = ["Open Inference Protocol"]

    @app.get("/v2", tags=tags, summary="The server and its extensions")
    async def server() -> dict[str, Any]:
        return {"name": "online", "version": __version__, "extensions": EXTENSIONS}

    @app.get("/v2/health/live", tags=tags, summary="The process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    # A replica answers no request before all of its models are ready.
    @app.get("/v2/health/ready", tags=tags, summary="Every model can answer")
    async def ready() -> dict[str, bool]:
        return {"ready": True, "live": True}

    @app.get("/v2/models/{model}/ready", tags=tags, summary="The model can answer")
    @app.get("/v2/models/{model}/versions/{version}/ready", tags=tags, summary="So can a version")
    async def model_ready(model: str, version: str | None = None) -> dict[str, Any]:
        return {"name": _find(servings, model, version).name, "ready": True}

    @app.get("/v2/models/{model}", tags=tags, summary="Tensors that it takes and gives")
    @app.get("/v2/models/{model}/versions/{version}", tags=tags, summary="Those of a version")
    async def model_metadata(model: str, version: str | None = None) -> dict[str, Any]:
        return metadata(_find(servings, model, version))

    find = partial(_find, servings)
    triton.add_routes(app, servings, find, metadata, tags)
    for kind in (RequestError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _as_text(app.exception_handlers[kind]))
    _document(app, servings, tags)


def _as_text(plain: Any) -> Any:
    async def handler(request: Request, error: Any) -> Response:
        response: Response = await plain(request, error)
        if not speaks(request.url.path):
            return response
        error_v2 = RequestError(response.status_code, **json.loads(bytes(response.body))["error"])
        headers = {k: v for k, v in response.headers.items() if not k.startswith("content-")}
        return Response(
            error_body(error_v2), error_v2.status, headers, "application/json"
        )  # such as Allow

    return handler


def example_label(serving: Serving) -> Any:
    """Return a label that the model accepts, for examples in the document."""
    settings = serving.replica.settings
    classes = settings.classes or {"positive": True}
    return {"binary": classes["positive"], "regression": 3.5}.get(settings.task, "a class")


def _examples(servings: Mapping[str, Serving], *, labelled: bool) -> dict[str, Any]:
    """Make example bodies for the models that declare their features."""
    made: dict[str, Any] = {}
    for name, serving in sorted(servings.items()):
        if serving.schema is None:
            continue
        types = _inputs(serving)
        row = {n: (types[n], value) for n, value in serving.schema.example().items()}
        if labelled:
            label = example_label(serving)
            row["label"] = (column("", [label]).datatype, label)
        tensors = [
            {"name": n, "shape": [1], "datatype": kind, "data": [value]}
            for n, (kind, value) in row.items()
        ]
        made[name] = {"summary": f"For {name}", "value": {"inputs": tensors}}
    return made


def _document(app: FastAPI, servings: Mapping[str, Serving], tags: list[str]) -> None:
    """Add the actions, which FastAPI does not route, to the OpenAPI document."""
    (request, answer, _), components = msgspec.json.schema_components(
        [InferRequest, InferAnswer, InferError], ref_template="#/components/schemas/{name}"
    )
    plain = app.openapi

    def content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"description": description, "content": {"application/json": {"schema": schema}}}

    def operation(path: str, summary: str) -> dict[str, Any]:
        names = re.findall(r"{(\w+)}", path)
        body = content("Tensors", request)
        given = content("Tensors; of feedback, `status` says it for each event", answer)
        binary = {"type": "string", "format": "binary", "description": "JSON, then the bytes"}
        given["content"]["application/octet-stream"] = {"schema": binary}
        labelled = path.endswith("/feedback")
        shown = body["content"]["application/json"]
        if declared := _examples(servings, labelled=labelled):
            shown["examples"] = declared
        else:
            shown["example"] = {"inputs": [_COLUMN, *([_LABEL] if labelled else [])]}
        return {
            "tags": tags,
            "summary": summary,
            "parameters": [
                {"name": n, "in": "path", "required": True, "schema": {"type": "string"}}
                for n in names
            ],
            "requestBody": {"required": True, **body},
            "responses": {"200": given},
        }

    def openapi() -> dict[str, Any]:
        document = plain()
        document.setdefault("components", {}).setdefault("schemas", {}).update(components)
        for path, summary in _SUMMARIES.items():
            document["paths"][path] = {"post": operation(path, summary)}
        return document

    app.openapi = openapi  # type: ignore[method-assign]
