"""The HTTP application: plain ASGI for the hot routes, FastAPI for the others."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from fastapi_offline import FastAPIOffline

from online import __version__
from online.errors import RequestError, failed
from online.http import openapi
from online.http.connection.direct import AppParts, Direct
from online.http.connection.unread_answers import UnreadAnswers
from online.http.connection.whole_answers import written
from online.http.fastapi_warmup import build_routes, read_no_sources
from online.http.ingress import LIVE, SCORES, V1, V2
from online.http.middleware.access import (
    FEEDBACK,
    PREDICT,
    READ,
    Access,
    RequestIds,
    needed,
    origin,
)
from online.http.middleware.browsers import Browsers
from online.http.middleware.refusing import answer_errors, answer_of, headers_of
from online.http.middleware.turns import Turns
from online.http.openinference import protocol as openinference
from online.http.ring import Ring
from online.http.routes.decide import routes as decide_routes
from online.http.routes.edge import routes as edge_routes
from online.http.routes.front import add_front
from online.http.routes.live import routes as live_routes
from online.http.routes.operations import operations
from online.http.routes.past import Reports, history_routes, report_routes
from online.http.routes.stream import Streams
from online.http.routes.upload import Uploads, upload
from online.messages.bodies import (
    JSON,
    NDJSON,
    Receive,
    Scope,
    Send,
    Transfers,
    content_type,
    decode,
    decode_feedback,
    error_body,
    format_of,
)
from online.messages.sender import sender
from online.monitoring.series import FOLDER
from online.serving import scores as batch
from online.serving.choices.choosing import Choosing
from online.serving.choices.slots import answer_choice
from online.serving.device_pushes import Pushes
from online.serving.operating.status import Cluster
from online.serving.serving import Serving
from online.settings.limits import Limits
from online.telemetry import prometheus
from paramserver.process.acting import acting
from refusals import meant

log = logging.getLogger(__name__)

_ROLES = {
    "predict": PREDICT, "choose": PREDICT, "infer": PREDICT, "scores": PREDICT,
    "feedback": FEEDBACK, "reward": FEEDBACK,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelExtras:
    """Features that only some models have.

    Attributes:
        scores: By model, the reader of precomputed scores.
        pushes: By model, the receiver of deltas that devices have learned.
        choosing: By model, the handler of choices among actions.
        reports: Makes reports of a model's journal; None: not available.
    """

    scores: Mapping[str, batch.Reader] = field(default_factory=dict)
    pushes: Mapping[str, Pushes] = field(default_factory=dict)
    choosing: Mapping[str, Choosing] = field(default_factory=dict)
    reports: Reports | None = None


class App:
    """The ASGI application of one replica.

    It bounds the number of concurrent requests itself, because predict and feedback bypass Serve's
    own bound (:mod:`online.http.ingress`).

    Parameters:
        access: Access control; None: everybody may do everything.
        some: Features that only some models have.
        state: The state folder with edge releases and histories; None: there are none.
        browsers: Checks the origins and host names of browsers' requests; None: no checks.
        draws_trace: Decides at random whether a request is traced; None: tracing is off.
    """

    def __init__(
        self,
        servings: Mapping[str, Serving],
        cluster: Cluster,
        limits: Limits,
        access: Access | None = None,
        some: ModelExtras | None = None,
        state: Path | None = None,
        browsers: Browsers | None = None,
        draws_trace: Callable[[], bool] | None = None,
    ) -> None:
        some = ModelExtras() if some is None else some
        self._scores, self._choosing = some.scores, some.choosing
        self._servings, self._limits, self._access = servings, limits, access
        self._browsers = browsers
        self._under_way = 0
        self._uploads = Uploads(  # long uploads may use half of the slots
            limits.ongoing_max // 2, limits.uploads_share, limits.upload_idle_s
        )
        self._transfers = Transfers(limits.body_bytes_max, limits.body_wait_s)
        self._unread = UnreadAnswers(limits.body_wait_s, limits.body_bytes_max, self._count_unread)
        self._ids = RequestIds(secrets.token_hex(4))
        self._actions = openinference.Actions(servings, self._transfers, self._send)
        self._live = {name: Ring() for name in servings}
        self._direct = Direct(
            AppParts(
                servings, self._live, self._choosing, self._ids, self._unread, self._send,
                lambda direct: direct + self._under_way < limits.ongoing_max, draws_trace,
                limits.body_bytes_max, access,
            )
        )  # fmt: skip
        self._streams = Streams(lambda: _statuses(servings, cluster), limits.listeners_max)
        self._rest = build_rest(
            servings,
            cluster,
            state,
            guarded=access is not None,
            pushes=some.pushes,
            live=self._live,
            choosing=some.choosing,
            reports=some.reports,
        )
        self._turns = Turns(self._rest)  # type: ignore[arg-type]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._rest(scope, receive, send)  # type: ignore[arg-type]
            return
        self._unread.begins(receive)
        try:
            await self._answer(scope, receive, send)
        finally:
            self._unread.ends(receive, scope["path"])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if match := V1.fullmatch(scope["path"]) or V2.fullmatch(scope["path"]):
            self._under_way += 1
            try:
                if match.re is V1:
                    await self._answer_hot(match[1], match[2], scope, receive, send)
                else:
                    await self._answer_tensors(match[3], scope, receive, send)
            finally:
                self._under_way -= 1
        elif match := SCORES.fullmatch(scope["path"]):
            self._under_way += 1
            try:
                await self._answer_scores(match[1], match[2], scope, receive, send)
            finally:
                self._under_way -= 1
        elif scope["path"] == LIVE:
            await self._stream_status(scope, receive, send)
        else:
            await self._forward(scope, receive, send)

    def _admit(self, scope: Scope, headers_in: dict[bytes, bytes], action: str) -> bytes | None:
        """Return the digest of the caller's token; None: access tokens are not configured.

        Raises RequestError for a foreign page, a missing or wrong token, or too many requests.
        """
        if self._browsers is not None:
            self._browsers.check(scope["method"], scope["path"], headers_in)
        token = None if self._access is None else self._access.check(headers_in, _ROLES[action])
        under_way = self._under_way + self._direct.under_way
        if under_way > self._limits.ongoing_max and not self._transfers.push_out():
            raise _busy(self._limits.ongoing_max)
        return token

    async def _answer_tensors(
        self, action: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers_in = dict(scope["headers"])
        refused = None
        try:
            self._admit(scope, headers_in, action)
        except RequestError as error:
            refused = error
        await self._actions(scope, receive, send, self._ids.of(headers_in), refused)

    async def _stream_status(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream the models' status to a page; the stream does not count as a request."""
        try:
            headers_in = dict(scope["headers"])
            if self._browsers is not None:
                self._browsers.check(scope["method"], scope["path"], headers_in)
            if self._access is not None:
                self._access.check(headers_in, READ)
            if scope["method"] != "GET":
                raise RequestError(405, "method", "this path takes GET", None, "Send a GET")
            await self._streams(receive, partial(self._give, receive, send, scope["path"]))
        except RequestError as error:
            body = JSON.encode(error_body(error))
            await _send(send, error.status, JSON.content_type, body, headers_of(error))

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request that is not on a hot path by the same rules, then pass it to FastAPI."""
        method, path = scope["method"], scope["path"]
        give = partial(self._give, receive, send, path)
        try:
            headers_in, roles = dict(scope["headers"]), needed(method, path)
            if self._browsers is not None:
                self._browsers.check(method, path, headers_in)
            who = "anybody"
            if self._access is not None and roles is not None:
                who = self._access.name_of(self._access.check(headers_in, roles))
            if method not in ("GET", "HEAD"):
                acting.set(f"{who}\n{origin(scope.get('client'), headers_in)}")
                receive = _replaying(await self._transfers.read(scope, receive), receive)
        except RequestError as error:
            result = {"error": openinference.text_of(error)}
            body = JSON.encode(result if openinference.speaks(path) else error_body(error))
            await _send(send, error.status, JSON.content_type, body, headers_of(error))
            return
        await self._turns(scope, receive, give)

    async def _give(self, receive: Receive, send: Send, path: str, part: dict[str, Any]) -> None:
        """Send a part of an answer; a caller that does not take it loses its connection."""
        if not await self._transfers.give(send, part):
            self._unread.ends(receive, path)

    async def _answer_hot(
        self, model: str, action: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        begun_s = perf_counter()
        headers_in = dict(scope["headers"])
        request_id = self._ids.of(headers_in)
        headers = [(b"x-request-id", request_id)]
        serving = self._servings.get(model)
        form = JSON
        try:
            token = self._admit(scope, headers_in, action)
            if serving is None:
                raise _unknown_model(model, self._servings)
            if scope["method"] != "POST":
                raise RequestError(405, "method", "this path takes POST", None, "Send a POST")
            kind = content_type(scope)
            if kind == NDJSON and action == "feedback":
                with self._uploads.slot(token) as slot:
                    await upload(serving, receive, send, self._limits, slot, headers)
                return
            form = format_of(kind)
            body = await self._transfers.read(scope, receive)
            result: Any
            request: Any
            if action == "predict":
                request = decode(form.predict, body)
                if request.nearest and self._access is not None and not sender.get().trusted:
                    raise _nearest_forbidden()
                status = 200
                self._direct.offer(send, request, model, form, headers_in)
                explain = request.explain
                result = await (
                    serving.explained(request) if explain else serving.answered(request)
                )
            elif action == "feedback":
                request = await decode_feedback(form, body, self._limits.rows_max)
                self._direct.offer(send, request, model, form, headers_in)
                status, result = await serving.feedback(request)
            else:
                choosing = self._chooser(model)
                request = decode(form.choose if action == "choose" else form.reward, body)
                self._direct.offer(send, request, model, form, headers_in)
                status, result = await answer_choice(choosing, request)
            answer = form.encode(result)
            if (live := self._live[model]).watched:
                live.take(request, result, len(body))
        except Exception as error:
            if serving is not None and isinstance(error, RequestError):
                serving.replica.counts[f"{action}_refused_{error.code}"] += 1
            what = f"{action} {model}, request {request_id.decode()}"
            status, answer, more = answer_of(error, what, form)
            headers += more
        if serving is not None:
            serving.replica.answered(action, perf_counter() - begun_s)
        await self._send(send, status, form.content_type, answer, headers, model)

    def _chooser(self, model: str) -> Choosing:
        if (choosing := self._choosing.get(model)) is None:
            hint = "Set `task: choose` for it, or ask it with predict and feedback"
            raise RequestError(404, "no_choices", f"{model} does not choose", "model", hint)
        return choosing

    async def _answer_scores(
        self, model: str, key: str | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer with the scores of one key (GET) or many (POST)."""
        headers_in = dict(scope["headers"])
        headers = [(b"x-request-id", self._ids.of(headers_in))]
        takes = "POST" if key is None else "GET"
        try:
            self._admit(scope, headers_in, "scores")
            if (serving := self._servings.get(model)) is None:
                raise _unknown_model(model, self._servings)
            if scope["method"] != takes:
                raise RequestError(405, "method", f"this path takes {takes}", None, f"Send {takes}")
            reader, answer = self._scores.get(model), None
            if key is not None:
                answer = JSON.encode(await batch.one(reader, serving, key))
            else:
                request = decode(batch.Decode, await self._transfers.read(scope, receive))
                most = self._limits.rows_max
                answer = JSON.encode(await batch.many(reader, serving, request, most))
            status = 200
        except RequestError as error:
            fields = {**error.headers, **({"allow": takes} if error.status == 405 else {})}
            headers += [(name.encode(), value.encode()) for name, value in fields.items()]
            status, answer = error.status, JSON.encode(error_body(error))
        except Exception:
            log.exception("scores %s, request %s", model, headers[0][1].decode())
            status, answer = 500, JSON.encode(error_body(failed()))
        await self._send(send, status, JSON.content_type, answer, headers, model)

    async def _send(
        self,
        send: Send,
        status: int,
        kind: bytes,
        body: bytes,
        headers: list[tuple[bytes, bytes]],
        model: str,
    ) -> None:
        """Send an answer; a caller that does not take it loses its slot after the body timeout.

        The first header is the request's id.
        """
        (_, request_id), *others = headers
        if not others and written(send, status, kind, body, request_id):
            return
        head, rest = _messages(status, kind, body, headers)
        taken = await self._transfers.give(partial(_send_parts, send, head), rest)
        if not taken:
            self._not_taken(model)

    def _count_unread(self, path: str) -> None:
        """Count an answer that was sent but never taken, if its path is a model's."""
        if match := V1.fullmatch(path) or V2.fullmatch(path) or SCORES.fullmatch(path):
            self._not_taken(match[1])

    def _not_taken(self, model: str) -> None:
        if (serving := self._servings.get(model)) is not None:
            serving.replica.counts["answers_not_taken"] += 1


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read already, and then what comes after it."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> dict[str, Any]:
        return left.pop() if left else await receive()

    return receive_again


def _busy(limit: int) -> RequestError:
    hint = "Send it again after Retry-After; nothing was recorded"
    return RequestError(429, "busy", f"{limit} requests are under way here", None, hint, 1)


def _nearest_forbidden() -> RequestError:
    message = "learned rows are others' data: nearest needs a token for admin"
    return RequestError(403, "forbidden", message, "nearest", "Send such a token, or no nearest")


def _unknown_model(model: str, known: Mapping[str, Any]) -> RequestError:
    hint = meant(model, known, f"Served here: {', '.join(sorted(known))}")
    return RequestError(404, "unknown_model", f"no model {model[:80]!r}", "model", hint)


async def _send(
    send: Send, status: int, kind: bytes, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    await _send_parts(send, *_messages(status, kind, body, headers))


async def _send_parts(send: Send, head: dict[str, Any], body: dict[str, Any]) -> None:
    await send(head)
    await send(body)


def _messages(
    status: int, kind: bytes, body: bytes, headers: list[tuple[bytes, bytes]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two ASGI messages of an answer."""
    head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
    return (
        {"type": "http.response.start", "status": status, "headers": head},
        {"type": "http.response.body", "body": body},
    )


def build_rest(
    servings: Mapping[str, Serving],
    cluster: Cluster,
    state: Path | None = None,
    *,
    guarded: bool = False,
    pushes: Mapping[str, Pushes] | None = None,
    live: Mapping[str, Ring] | None = None,
    choosing: Mapping[str, Choosing] | None = None,
    reports: Reports | None = None,
) -> FastAPI:
    """Build the routes other than predict and feedback; ``guarded``: document the tokens."""
    app: FastAPI = FastAPIOffline(
        title="Online learning service",
        version=__version__,
        description="Models that answer over HTTP and learn from every piece of feedback.",
        docs_url=None,
        redoc_url=None,
        openapi_tags=[{"name": name} for name in ("serving", "models", "operations", "health")],
    )
    answer_errors(app)

    def known(model: str) -> None:
        if model not in servings:
            raise _unknown_model(model, servings)

    add_front(app, sorted(servings))
    text = PlainTextResponse

    @app.get("/metrics", tags=["health"], summary="Metrics for Prometheus", response_class=text)
    async def metrics(request: Request) -> Response:
        statuses = await asyncio.gather(*map(cluster.model, sorted(servings)))
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            shown = prometheus.exposition(statuses, openmetrics=True)
            return Response(shown, media_type=prometheus.OPENMETRICS)
        shown = prometheus.exposition(statuses)
        return PlainTextResponse(shown, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", tags=["models"], summary="List the served models")
    async def models() -> dict[str, Any]:
        return await _statuses(servings, cluster)

    @app.get("/v1/models/{model}", tags=["models"], summary="Version, freshness, quality, replicas")
    async def model(model: str) -> dict[str, Any]:
        known(model)
        return await cluster.model(model)

    async def served(model: str) -> None:
        known(model)

    of_served = partial(app.include_router, dependencies=[Depends(served)])
    of_served(operations(cluster))
    published = None if state is None else state / "edge"
    app.include_router(edge_routes(known, published, guarded=guarded, pushes=pushes))
    if state is not None:
        of_served(history_routes(state / FOLDER))
    if live:
        replica = next(iter(servings.values())).replica.replica
        of_served(live_routes(live, replica))
    if reports is not None:
        of_served(report_routes(reports))
    app.include_router(decide_routes({} if choosing is None else choosing))
    openinference.add_routes(app, servings)
    openapi.document(app, servings, guarded=guarded)
    read_no_sources(app)
    build_routes(app.routes)
    return app


async def _statuses(servings: Mapping[str, Serving], cluster: Cluster) -> dict[str, Any]:
    """Return the status of all models."""
    return {"models": await asyncio.gather(*map(cluster.model, sorted(servings)))}
