"""Routes of choosing models that are not hot: activation, the Personalizer API, the demo page.

A Personalizer client uses the address of a model as its endpoint, for example
``http://host:8000/v1/models/shop``, and an access token as its key.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from online.errors import RequestError
from online.http.routes.front import UNFRAMED
from online.messages.bodies import JSON, decode
from online.serving.choices.activation import activate as activate_choice
from online.serving.choices.choosing import Choosing
from online.serving.choices.personalizer import (
    Personalizer,
    RankRequest,
    SlotRewards,
    SlotsRequest,
    Value,
)

_REQUEST_ID_MAX = 128
_RANK = msgspec.json.Decoder(RankRequest, strict=False).decode
_SLOTS = msgspec.json.Decoder(SlotsRequest, strict=False).decode
_VALUE = msgspec.json.Decoder(Value).decode
_VALUES = msgspec.json.Decoder(SlotRewards).decode


class Activation(msgspec.Struct, forbid_unknown_fields=True):
    """A deferred choice that was used."""

    id: str


_ACTIVATION = msgspec.json.Decoder(Activation).decode


def routes(choosing: Mapping[str, Choosing]) -> APIRouter:
    """Make the routes of the models that choose."""
    made = APIRouter(include_in_schema=False)
    page = resources.files("online.http").joinpath("choose.html").read_text("utf-8")

    @made.get("/demo/choose")
    def demo() -> HTMLResponse:
        if not choosing:
            hint = "Set `task: choose` for a model, and start again"
            raise RequestError(404, "no_choices", "no model here chooses", None, hint)
        names = sorted(choosing, key=lambda name: (not choosing[name].plain, name))
        return HTMLResponse(page.replace('"MODELS"', f'"{",".join(names)}"'), headers=UNFRAMED)

    @made.post("/v1/models/{model}/activate")
    async def activate(model: str, request: Request) -> Response:
        asked: Activation = decode(_ACTIVATION, await request.body())
        await activate_choice(_of(choosing, model).serving, asked.id)
        return Response(status_code=204)

    @made.post("/personalizer/{call:path}")
    async def without_model(call: str) -> Response:
        message = f"the client's endpoint names no model, as {_addresses(choosing)} would"
        hint = "Give the client the address of a model as its endpoint"
        raise RequestError(404, "unknown_path", message, "endpoint", hint)

    for version in ("", "/v1.0", "/v1.1"):
        _add_personalizer(made, choosing, f"/v1/models/{{model}}/personalizer{version}")
    return made


def _add_personalizer(made: APIRouter, choosing: Mapping[str, Choosing], at: str) -> None:
    """Add the calls of Personalizer clients under a path prefix; events' ids may have slashes."""

    def of(model: str) -> Personalizer:
        return Personalizer(_of(choosing, model))

    @made.get(f"{at}/configurations/service")
    async def configuration(model: str) -> Response:
        return _json(of(model).configuration(), 200)

    @made.get(f"{at}/configurations/policy")
    async def policy(model: str) -> Response:
        return _json(of(model).policy(), 200)

    @made.post(f"{at}/rank")
    async def rank(model: str, request: Request) -> Response:
        asked: RankRequest = decode(_RANK, await request.body())
        return _json(await of(model).rank(asked), 201)

    @made.post(f"{at}/multislot/rank")
    async def rank_slots(model: str, request: Request) -> Response:
        asked: SlotsRequest = decode(_SLOTS, await request.body())
        return _json(await of(model).rank_slots(asked), 201)

    @made.post(f"{at}/events/{{event:path}}/reward")
    async def reward(model: str, event: str, request: Request) -> Response:
        asked: Value = decode(_VALUE, await request.body())
        await of(model).reward(event, asked.value, _request_id(request))
        return Response(status_code=204)

    @made.post(f"{at}/multislot/events/{{event:path}}/reward")
    async def reward_slots(model: str, event: str, request: Request) -> Response:
        asked: SlotRewards = decode(_VALUES, await request.body())
        await of(model).reward_slots(event, asked, _request_id(request))
        return Response(status_code=204)

    @made.post(f"{at}/events/{{event:path}}/activate")
    async def activate(model: str, event: str) -> Response:
        await of(model).activate(event)
        return Response(status_code=204)

    @made.post(f"{at}/multislot/events/{{event:path}}/activate")
    async def activate_slots(model: str, event: str) -> Response:
        await of(model).activate_slots(event)
        return Response(status_code=204)


def _addresses(choosing: Mapping[str, Choosing]) -> str:
    """Name the paths of the models that choose, for an error."""
    return ", ".join(f"/v1/models/{name}" for name in sorted(choosing)) or "/v1/models/NAME"


def _json(answer: Mapping[str, Any], status: int) -> Response:
    return Response(JSON.encode(answer), status, media_type="application/json")


def _request_id(request: Request) -> str | None:
    """The client's id of the request; it sends the same one when it repeats a request."""
    given = request.headers.get("x-ms-client-request-id", "")
    return given[:_REQUEST_ID_MAX] or None


def _of(choosing: Mapping[str, Choosing], model: str) -> Choosing:
    if (chooser := choosing.get(model)) is None:
        hint = f"These do: {', '.join(sorted(choosing)) or 'none'}"
        raise RequestError(404, "no_choices", f"{model[:80]!r} does not choose", "model", hint)
    return chooser
