"""Gives every error of FastAPI's routes the service's error body, whoever raised it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from online.errors import RequestError, failed, invalid
from online.messages.bodies import Format, Scope, error_body
from refusals import meant

log = logging.getLogger(__name__)

_EVERY_S: Final = 1.0


class Warnings:
    """Logs refusals for which the service or its model is to blame: of each kind one a second.

    While the journal is away there is one for each event, and the log may be on the same disk.

    Parameters:
        monotonic_s: A clock in seconds.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._logged: dict[str, tuple[float, int]] = {}  # when, and how many were left out since

    def log(self, what: str, error: RequestError) -> None:
        """Log a refusal with a status from 500 on, or because a model raises.

        ``what`` is the request.
        """
        if error.status < 500 and error.code != "not_answered":
            return
        now_s, (logged_s, left_out) = self._monotonic_s(), self._logged.get(error.code, (0.0, 0))
        if error.code in self._logged and now_s < logged_s + _EVERY_S:
            self._logged[error.code] = logged_s, left_out + 1
            return
        self._logged[error.code] = now_s, 0
        more = f" ({left_out} more `{error.code}` since the last line)" if left_out else ""
        log.warning("%s: %s%s", what, error, more)


_warnings = Warnings()


def answer_of(
    error: Exception, what: str, form: Format
) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Return status, body and headers of the answer to a request that ended with an error.

    ``what``: the request, as the log names it.
    """
    if isinstance(error, RequestError):
        _warnings.log(what, error)
        return error.status, form.encode(error_body(error)), headers_of(error)
    log.error("%s", what, exc_info=error)
    return 500, form.encode(error_body(failed())), []


def headers_of(error: RequestError) -> list[tuple[bytes, bytes]]:
    """Return the headers that go with an error, as ASGI has them."""
    return [(name.encode(), value.encode()) for name, value in error.headers.items()]


def _methods(app: FastAPI, scope: Scope) -> str:
    """Return the methods that the path takes, over all routes that match it.

    The framework reports those of the first route only.
    """
    taken = (
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        for route in app.routes
        if route.matches({**scope, "method": method})[0] is Match.FULL
    )
    return ", ".join(dict.fromkeys(taken))


_UNROUTED: Final = tuple(
    f"/v1/models/{{model}}/{action}"
    for action in ("predict", "feedback", "choose", "reward", "scores")
)
"""Paths that are answered before the framework's routes."""


def _like(app: FastAPI, path: str) -> list[str]:
    """Return route paths with as many segments as this one, its parameters filled in."""
    parts = path.rstrip("/").split("/")
    paths = [*(str(getattr(route, "path", "")) for route in app.routes), *_UNROUTED]
    routes = (path.split("/") for path in paths)
    return [
        "/".join(theirs if ours.startswith("{") else ours for ours, theirs in named)
        for route in routes
        if len(route) == len(parts) and (named := zip(route, parts, strict=True))
    ]


def answer_errors(app: FastAPI) -> None:
    """Add the exception handlers that answer with the error body."""

    @app.exception_handler(RequestError)
    async def on_error(request: Request, error: RequestError) -> JSONResponse:
        name = request.headers.get("x-request-id")
        _warnings.log(f"{request.method} {request.url.path}, request {name}", error)
        return JSONResponse(error_body(error), error.status, error.headers)

    @app.exception_handler(Exception)
    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        name = request.headers.get("x-request-id")
        log.error("%s %s, request %s: %r", request.method, request.url.path, name, error)
        return JSONResponse(error_body(failed()), 500)

    @app.exception_handler(HTTPException)
    async def on_route(request: Request, error: HTTPException) -> JSONResponse:
        status, path, headers = error.status_code, request.url.path, dict(error.headers or {})
        if status == 404:
            hint = meant(path, _like(app, path), "See /docs")
            body = RequestError(404, "unknown_path", f"no {path}", None, hint)
        elif status == 405:
            message = f"{request.method}: {error.detail}"
            body = RequestError(405, "method", message, None, "See /docs")
            headers["Allow"] = _methods(app, dict(request.scope))
        else:
            body = RequestError(400, "malformed", str(error.detail), None, "See /docs")
        return JSONResponse(error_body(body), body.status, headers)

    @app.exception_handler(RequestValidationError)
    async def on_value(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if isinstance(first.get("input"), bytes):  # the body was not decoded
            kind = request.headers.get("content-type", "")[:80]
            hint = "Send it as Content-Type: application/json"
            unread = RequestError(415, "media_type", f"content type {kind}", None, hint)
            return JSONResponse(error_body(unread), unread.status)
        field, hint = str(first["loc"][-1]), "See /docs"
        got = f"{first['msg']}, got {str(first.get('input'))[:80]!r}"
        if first["type"] == "extra_forbidden" and (known := _known_fields(request)):
            got = f"unknown field `{field[:80]}`"
            hint = meant(field, known) or f"Known here: {', '.join(known)}"
        return JSONResponse(error_body(invalid(field, got, hint)), 422)


def _known_fields(request: Request) -> list[str]:
    """Names of the fields that the body of this route may have; empty if it takes none."""
    body = getattr(request.scope.get("route"), "body_field", None)
    kind = getattr(getattr(body, "field_info", None), "annotation", None)
    return list(getattr(kind, "model_fields", ()))
