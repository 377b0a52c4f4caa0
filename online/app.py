"""HTTP: routes, bodies and the error table.  Pure ASGI for the hot routes, FastAPI for the rest."""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from online import __version__, openinference, telemetry
from online.errors import RequestError, invalid
from online.messages import (
    ErrorAnswer,
    FeedbackRequest,
    Prediction,
    Predictions,
    PredictRequest,
    Receipt,
    Receipts,
)
from online.operations import operations
from online.serving import Serving
from online.status import Cluster

log = logging.getLogger("online.app")

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_HOT = re.compile(r"/v1/models/([^/]+)/(predict|feedback)")
# Only to say what was wrong in a body that the decoder has refused: the name before the value.
_NO_NUMBER = re.compile(rb'"([^"]*)"\s*:\s*(-?(?:NaN|Infinity|inf|nan)\b)')
_NUMBER = re.compile(rb'"([^"]*)"\s*:\s*(-?\d+(?:\.\d+)?[eE]\+?\d+)')
_encode = msgspec.json.Encoder().encode
_PREDICT = msgspec.json.Decoder(PredictRequest)
_FEEDBACK = msgspec.json.Decoder(FeedbackRequest)


def error_body(error: RequestError) -> dict[str, Any]:
    """Body of an error answer."""
    body = {"code": error.code, "message": error.message, "field": error.field, "hint": error.hint}
    return {"error": body}


class App:
    """The ASGI application of one replica."""

    def __init__(
        self, servings: Mapping[str, Serving], cluster: Cluster, body_bytes_max: int
    ) -> None:
        self._servings = servings
        self._body_bytes_max = body_bytes_max
        self._rest = build_rest(servings, cluster)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] == "http" and (match := _HOT.fullmatch(scope["path"])):
            if scope["method"] == "POST":
                status, body, headers = await self._hot(match[1], match[2], scope, receive)
            else:
                error = RequestError(405, "method", "this path takes POST", None, "Send a POST")
                status, body, headers = 405, _encode(error_body(error)), [(b"allow", b"POST")]
            await _send(send, status, body, headers)
        else:
            await self._rest(scope, receive, send)  # type: ignore[arg-type]

    async def _hot(
        self, model: str, action: str, scope: Scope, receive: Receive
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        serving = self._servings.get(model)
        try:
            if serving is None:
                raise _unknown(model, self._servings)
            body = await read_body(scope, receive, self._body_bytes_max)
            if action == "predict":
                return 200, _encode(serving.predict(_decode(_PREDICT, body))), []
            status, receipt = await serving.feedback(_decode(_FEEDBACK, body))
            return status, _encode(receipt), []
        except RequestError as error:
            if serving is not None:
                serving.replica.counts[f"{action}_refused_{error.code}"] += 1
            headers = []
            if error.retry_after_s is not None:
                headers.append((b"retry-after", str(error.retry_after_s).encode()))
            return error.status, _encode(error_body(error)), headers
        except Exception:
            log.exception("%s %s", action, model)
            hint = "It is in the service's log; an id makes a repeat safe"
            failed = RequestError(500, "internal", "the service failed at this request", None, hint)
            return 500, _encode(error_body(failed)), []


def _unknown(model: str, known: Mapping[str, Any]) -> RequestError:
    hint = f"Served here: {', '.join(sorted(known))}"
    return RequestError(404, "unknown_model", f"no model {model[:80]!r}", "model", hint)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body; 413 as soon as it is known to be longer than ``limit`` bytes."""
    length = None
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = int(value)
        elif name == b"content-type" and b"json" not in value and value != b"":
            _check_type(value)
    if length is not None and length > limit:
        raise _too_large(length, limit)
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(400, "disconnected", "the body did not arrive")
        part = message.get("body", b"")
        size += len(part)
        if size > limit:  # counted: a chunked body states no length
            raise _too_large(size, limit)
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _check_type(value: bytes) -> None:
    # curl --data sends a form's type when none is given: the body decides then.
    if not value.startswith((b"application/x-www-form-urlencoded", b"text/plain")):
        message = f"content type {value[:80].decode('latin-1')}"
        raise RequestError(415, "media_type", message, None, "Send application/json")


def _too_large(size: int, limit: int) -> RequestError:
    message = f"a body of {size} bytes or more, at most {limit}"
    return RequestError(
        413, "too_large", message, None, "Send fewer rows, or raise limits.body_bytes_max"
    )


def _decode(decoder: msgspec.json.Decoder[Any], body: bytes) -> Any:
    if not body:
        raise RequestError(400, "no_body", "the body is missing", None, "Send a JSON object")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_value(str(error), body) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        field, message = None, str(error)
        if match := _NO_NUMBER.search(body):
            field, message = match[1].decode(errors="replace")[:80], f"{match[2].decode()}: {error}"
        hint = "Send JSON; NaN and Infinity are no JSON numbers: leave missing values out"
        raise RequestError(400, "malformed", message, field, hint) from None


def _wrong_value(text: str, body: bytes) -> RequestError:
    """422 from the decoder's message, which names neither an unknown field nor a huge number."""
    message, _, path = text.partition(" - at `$")
    field, hint = path.rstrip("`").lstrip("."), "See /docs for the fields and their types"
    if match := re.search(r"unknown field `(.*)`", message):
        field = f"{field}.{match[1]}".lstrip(".")
        hint = "Leave it out; see /docs for the fields"
    elif message == "Number out of range":
        huge = [m for m in _NUMBER.finditer(body) if math.isinf(float(m[2]))]
        if huge:
            field = field.replace("[...]", "." + huge[0][1].decode(errors="replace")[:80])
            message, hint = f"{huge[0][2].decode()[:80]} is out of range", "Send at most 1e100"
    return RequestError(422, "invalid_value", message, field or None, hint)


async def _send(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    head = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


def build_rest(servings: Mapping[str, Serving], cluster: Cluster) -> FastAPI:
    """Everything but predict and feedback."""
    app: FastAPI = FastAPIOffline(
        title="Online learning service",
        version=__version__,
        description="Models that answer over HTTP and learn from every piece of feedback.",
    )
    page = resources.files("online").joinpath("page.html").read_text()

    _answer_errors(app)

    def known(model: str) -> None:
        if model not in servings:
            raise _unknown(model, servings)

    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/livez", tags=["health"], summary="The process answers")
    async def livez() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", tags=["health"], summary="Every model can answer")
    async def readyz() -> dict[str, Any]:
        return {"ready": True, "models": sorted(servings)}

    @app.get("/metrics", tags=["health"], summary="Prometheus, for all replicas")
    async def metrics() -> Response:
        statuses = await asyncio.gather(*map(cluster.model, sorted(servings)))
        text = telemetry.exposition(statuses)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", tags=["models"], summary="What is served")
    async def models() -> dict[str, Any]:
        return {"models": await asyncio.gather(*map(cluster.model, sorted(servings)))}

    @app.get("/v1/models/{model}", tags=["models"], summary="Version, freshness, quality, replicas")
    async def model(model: str) -> dict[str, Any]:
        known(model)
        return await cluster.model(model)

    app.include_router(operations(known, cluster))
    openinference.add_routes(app, servings)
    _document(app)
    return app


def _answer_errors(app: FastAPI) -> None:
    """Every error has the error body, whoever raised it."""

    @app.exception_handler(RequestError)
    async def on_error(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error_body(error), error.status)

    @app.exception_handler(HTTPException)
    async def on_route(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            body = RequestError(404, "unknown_path", f"no {request.url.path}", None, "See /docs")
        else:
            message = f"{request.method}: {error.detail}"
            body = RequestError(error.status_code, "method", message, None, "See /docs")
        return JSONResponse(error_body(body), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_value(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        got = f"{first['msg']}, got {str(first.get('input'))[:80]!r}"
        return JSONResponse(error_body(invalid(str(first["loc"][-1]), got, "See /docs")), 422)


def _document(app: FastAPI) -> None:
    """Put predict and feedback, which FastAPI does not route, into the OpenAPI document."""
    structs = [
        PredictRequest,
        Prediction,
        Predictions,
        FeedbackRequest,
        Receipt,
        Receipts,
        ErrorAnswer,
    ]
    (schemas, components) = msgspec.json.schema_components(
        structs, ref_template="#/components/schemas/{name}"
    )
    predict, one, many, feedback, receipt, receipts, error = schemas
    errors = {
        str(status): _content("Refused: code, field, value and remedy", error)
        for status in (400, 404, 413, 415, 422, 429, 503)
    }
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    statuses = {
        "200": _content("Durable and learned (or a repeat of it)", {"anyOf": [receipt, receipts]}),
        "202": _content("Kept, not learned: frozen, or a label before its prediction", receipt),
        "409": _content("Another label was recorded first", receipt),
        "410": _content("Older than its id is known for", receipt),
        **errors,
        "422": _content("An invalid value, or the model could not learn the row", receipt),
    }
    answers = {"200": _content("The answer", {"anyOf": [one, many]}), **errors}
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            document["paths"]["/v1/models/{model}/predict"] = {
                "post": _operation("Predict one row or many", name, predict, answers)
            }
            document["paths"]["/v1/models/{model}/feedback"] = {
                "post": _operation("Send the true label: it is learned", name, feedback, statuses)
            }
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _operation(
    summary: str, name: dict[str, Any], body: dict[str, Any], responses: dict[str, Any]
) -> dict[str, Any]:
    return {
        "tags": ["serving"],
        "summary": summary,
        "parameters": [name],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": responses,
    }
