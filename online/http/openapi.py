"""Completes the OpenAPI document: routes outside FastAPI, every error, and the access tokens.

FastAPI documents its own routes.  This module adds predict, feedback, choices and scores, the error
answers, and which roles each route requires.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from fastapi import FastAPI
from fastapi.responses import Response

from online.http.middleware.access import needed
from online.http.openinference.protocol import example_label
from online.messages.bodies import JSON
from online.messages.choices import ChooseRequest, Chosen, ChosenSlots, RewardRequest
from online.messages.structs import (
    ErrorAnswer,
    FeedbackRequest,
    Prediction,
    Predictions,
    PredictRequest,
    Receipt,
    Receipts,
)
from online.messages.tensors import InferError
from online.serving.scores import GivenMany, GivenOne, ScoresRequest
from online.serving.serving import Serving

_REFS: Final = "#/components/schemas/{name}"
_BINARY: Final = ("application/msgpack", {"type": "string", "format": "binary"})
_LINES: Final = ("application/x-ndjson", {"type": "string", "description": "one event a line"})
_ROW_OF: Final = "RowOf."  # prefix of the schema names of models' rows
_ROW: Final = {"a": 1.0, "b": -2.0}
_ASK: Final = {"features": _ROW}
_TEACH: Final = {"features": _ROW, "label": True, "event_id": "order-17"}
_CHOOSE: Final = {
    "context": {"daytime": "evening"},
    "actions": [{"id": "news"}, {"id": "sport", "features": {"length": 4.5}}],
}
_REWARD: Final = {"id": "order-17", "reward": 1.0}
_GIVEN: Final[dict[str, dict[str, Any]]] = {
    "features": {"type": "object"},
    "instances": {"type": "array", "minItems": 1},
    "events": {"type": "array", "minItems": 1},
    "rewards": {"type": "array", "minItems": 1},
    "reward": {"type": ["boolean", "number", "object"]},
    "id": {"type": "string"},
    "label": {"type": ["boolean", "number", "string"]},
}
_REFUSED: Final = "Refused: code, field, value and remedy; see errors.md"
_GENERATED: Final = ("HTTPValidationError", "ValidationError")  # FastAPI's own errors: not ours


def document(app: FastAPI, servings: Mapping[str, Serving], *, guarded: bool) -> None:
    """Complete the app's document with the served models and their declared features.

    ``guarded``: access tokens are configured.
    """
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = plain()
            _add_hot(made, unlabelled=any(_unlabelled(one) for one in servings.values()))
            _add_refusals(made, guarded=guarded)
            _name_models(made, servings)
            _add_declared(made, servings)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    written = list[bytes]()
    address = app.openapi_url
    assert address is not None
    routes = app.router.routes
    routes[:] = [one for one in routes if getattr(one, "path", None) != address]

    @app.get(address, include_in_schema=False)
    async def schema() -> Response:
        """Answer with the document, which is built once, because that takes milliseconds."""
        if not written:
            written.append(JSON.encode(openapi()))
        return Response(written[0], media_type="application/json")


def _unlabelled(serving: Serving) -> bool:
    """Whether the model's rows may come without a label."""
    return serving.replica.settings.anomaly is not None


def _add_hot(made: dict[str, Any], *, unlabelled: bool) -> None:
    (predict, one, many, feedback, receipt, receipts, keys, score, scores, *_), components = (
        msgspec.json.schema_components(
            [
                PredictRequest,
                Prediction,
                Predictions,
                FeedbackRequest,
                Receipt,
                Receipts,
                ScoresRequest,
                GivenOne,
                GivenMany,
                ErrorAnswer,
                ChooseRequest,
                Chosen,
                ChosenSlots,
                RewardRequest,
            ],
            ref_template=_REFS,
        )
    )
    components["PredictRequest"]["oneOf"] = _one_of(["features"], ["instances"])
    needed_label = [] if unlabelled else ["label"]
    one_event = (["id", *needed_label], ["features", *needed_label])
    components["FeedbackRequest"]["oneOf"] = _one_of(*one_event, ["events"])
    _schemas(made).update(components)
    refused = {"$ref": _REFS.format(name="ErrorAnswer")}
    made["paths"]["/v1/models/{model}/predict"] = {
        "post": _operation(
            "Predict one row or many",
            _content("Rows", predict, _BINARY, example=_ASK),
            {"200": _content("The answer", {"anyOf": [one, many]})},
        )
    }
    late = "An invalid value, or the model could not learn the row"
    statuses = {
        "200": _content("Durable and learned (or a repeat of it)", {"anyOf": [receipt, receipts]}),
        "202": _content(
            "Kept, not learned yet: queued, frozen, or a label before its prediction", receipt
        ),
        "409": _content("Another label was recorded first", receipt),
        "410": _content("Older than its id is known for", receipt),
        "422": _content(late, {"anyOf": [receipt, refused]}),
    }
    made["paths"]["/v1/models/{model}/feedback"] = {
        "post": _operation(
            "Send the true label: it is learned",
            _content("Labels", feedback, _BINARY, _LINES, example=_TEACH),
            statuses,
        )
    }

    _add_choices(made, components, statuses)
    made["paths"]["/v1/models/{model}/scores"] = {
        "post": _operation(
            "Scores computed ahead of time, of many keys",
            _content("Keys", keys, example={"keys": ["order-17"]}),
            {"200": _content("The scores, in the order of the keys", scores)},
        )
    }
    key = {"name": "key", "in": "path", "required": True, "schema": {"type": "string"}}
    by_key = _operation("The score of a key", {}, {"200": _content("The score", score)})
    del by_key["requestBody"]
    by_key["parameters"].append(key)
    made["paths"]["/v1/models/{model}/scores/{key}"] = {"get": by_key}


def _add_choices(
    made: dict[str, Any], components: dict[str, Any], statuses: dict[str, Any]
) -> None:
    """Add choices and their rewards, whose outcomes are those of feedback (``statuses``)."""
    components["RewardRequest"]["oneOf"] = _one_of(["id", "reward"], ["rewards"])
    ask, chosen, reward = (
        {"$ref": _REFS.format(name=name)} for name in ("ChooseRequest", "Chosen", "RewardRequest")
    )
    made["paths"]["/v1/models/{model}/choose"] = {
        "post": _operation(
            "Choose one of some actions (`task: choose`)",
            _content("A moment, and the actions", ask, _BINARY, example=_CHOOSE),
            {
                "200": _content(
                    "The chosen action, followed by the others; or the chosen one of each slot",
                    {"anyOf": [chosen, {"$ref": _REFS.format(name="ChosenSlots")}]},
                ),
                "409": _content("Another question was asked under the id", {}),
            },
        )
    }
    made["paths"]["/v1/models/{model}/reward"] = {
        "post": _operation(
            "Send what came of a choice: it is learned",
            _content("Rewards", reward, _BINARY, example=_REWARD),
            dict(statuses),
        )
    }


def _add_refusals(made: dict[str, Any], *, guarded: bool) -> None:
    """Add the errors and the required roles of each operation."""
    for name in _GENERATED:
        _schemas(made).pop(name, None)
    if guarded:
        description = "A token of the settings, for predict, feedback or admin"
        scheme = {"type": "http", "scheme": "bearer", "description": description}
        made["components"]["securitySchemes"] = {"token": scheme}
    for path, operations in made["paths"].items():
        schema = {"$ref": _REFS.format(name=_error_of(path))}
        for method, operation in operations.items():
            answers = operation["responses"]
            for status, text in _refusals(path, method, operation).items():
                answers.setdefault(status, _content(text, schema))
            for status, answer in answers.items():
                if not status.startswith("2") and "Receipt" not in str(answer):
                    answers[status] = _content(answer["description"], schema)
            roles = needed(method.upper(), path)
            if guarded and roles is not None:
                who = " or ".join(sorted(roles))
                answers["401"] = _content("No token, or an unknown one", schema)
                answers["403"] = _content(f"The token is not for {who}", schema)
                operation["security"] = [{"token": []}]


def _name_models(made: dict[str, Any], servings: Mapping[str, Serving]) -> None:
    schema = {"type": "string", "enum": sorted(servings)}
    for operations in made["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "model":
                    parameter["schema"] = schema


def _add_declared(made: dict[str, Any], servings: Mapping[str, Serving]) -> None:
    """Add the declared features: a schema of the rows of each model with a declaration.

    All models share the same paths, so a row may match any of these schemas.
    """
    declared = {n: s.schema for n, s in sorted(servings.items()) if s.schema is not None}
    if not declared:
        return
    rows: list[dict[str, Any]] = []
    for name, schema in declared.items():
        title = f"Row of {name}"
        _schemas(made)[f"{_ROW_OF}{name}"] = {"title": title, **schema.json_schema()}
        rows.append({"$ref": _REFS.format(name=f"{_ROW_OF}{name}")})
    if len(declared) < len(servings):
        rows.append({"type": "object"})  # of a model that declares nothing
    for of in ("PredictRequest", "Event", "FeedbackRequest"):
        properties = _schemas(made)[of]["properties"]
        properties["features"] = {"anyOf": [*rows, {"type": "null"}], "default": None}
        if "instances" in properties:
            many = {"type": "array", "items": {"anyOf": rows}}
            properties["instances"] = {"anyOf": [many, {"type": "null"}], "default": None}
    for action, more in (("predict", False), ("feedback", True)):
        body = made["paths"][f"/v1/models/{{model}}/{action}"]["post"]["requestBody"]
        given = body["content"]["application/json"]
        given.pop("example")
        given["examples"] = {
            name: {"summary": f"For {name}", "value": _example(servings[name], labelled=more)}
            for name in declared
        }


def _example(serving: Serving, *, labelled: bool) -> dict[str, Any]:
    """Make an example body for a model that declares its features."""
    assert serving.schema is not None
    body: dict[str, Any] = {"features": serving.schema.example()}
    if labelled:
        body |= {"label": example_label(serving), "event_id": "order-17"}
    return body


def _refusals(path: str, method: str, operation: dict[str, Any]) -> dict[str, str]:
    out = {"400": "The request can't be read"} if "requestBody" in operation else {}
    if "{" in path:
        out["404"] = "No such model, or nothing of that name"
    if method != "get":
        out |= {"408": "The body did not arrive in time", "413": "The body is too large"}
    if "requestBody" in operation:
        out["422"] = "An invalid value"
    if path.endswith(("/predict", "/feedback", "/choose", "/reward", "/infer")):
        out["415"] = "A content type that is not read here"
        out["429"] = "Too much is under way or waits; Retry-After says when to send it again"
    if "{" in path:
        out["503"] = "Something that is needed does not answer, or the model is too old"
    return out | {"default": _REFUSED}


def _error_of(path: str) -> str:
    """Return the schema name of the errors under a path."""
    return InferError.__name__ if path.startswith("/v2") else ErrorAnswer.__name__


def _schemas(made: dict[str, Any]) -> dict[str, Any]:
    schemas: dict[str, Any] = made.setdefault("components", {}).setdefault("schemas", {})
    return schemas


def _one_of(*choices: list[str]) -> list[dict[str, Any]]:
    """Make alternatives: each requires the fields of one choice."""
    return [{"required": c, "properties": {name: _GIVEN[name] for name in c}} for c in choices]


def _content(
    description: str,
    schema: dict[str, Any],
    *others: tuple[str, dict[str, Any]],
    example: dict[str, Any] | None = None,
) -> dict[str, Any]:
    kinds = {kind: {"schema": of} for kind, of in [("application/json", schema), *others]}
    if example is not None:
        kinds["application/json"]["example"] = example
    return {"description": description, "content": kinds}


def _operation(summary: str, body: dict[str, Any], responses: dict[str, Any]) -> dict[str, Any]:
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return {
        "tags": ["serving"],
        "summary": summary,
        "parameters": [name],
        "requestBody": {"required": True, **body},
        "responses": responses,
    }
