"""Extensions of the Open Inference Protocol: the models' index, configuration and statistics.

These are Triton's extensions.  Requests cannot load or unload models here, so only the index of the
model repository is supported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import FastAPI

from online.serving.serving import Serving

EXTENSIONS: Final = ("model_repository(index)", "model_configuration", "statistics")

_SUM: Final = "predict_sum_s"
_NAMES: Final = {"BYTES": "STRING"}


def add_routes(
    app: FastAPI,
    servings: Mapping[str, Serving],
    find: Callable[[str, str | None], Serving],
    about: Callable[[Serving], Mapping[str, Any]],
    tags: list[Any],
) -> None:
    """Add them to an app; ``find`` raises for an unknown model, ``about`` is the metadata."""

    @app.post("/v2/repository/index", tags=tags, summary="Index of the models")
    async def index() -> list[dict[str, str]]:
        return [
            {"name": name, "version": version, "state": "READY", "reason": ""}
            for name, serving in sorted(servings.items())
            for version in about(serving)["versions"]
        ]

    @app.get("/v2/models/{model}/config", tags=tags, summary="Configuration of a model")
    @app.get(
        "/v2/models/{model}/versions/{version}/config",
        tags=tags,
        summary="Configuration of a version",
    )
    async def config(model: str, version: str | None = None) -> dict[str, Any]:
        shown = about(find(model, version))
        return {
            "name": shown["name"],
            "platform": shown["platform"],
            "backend": "online",
            "max_batch_size": 0,
            "input": [_tensor(one) for one in shown["inputs"]],
            "output": [_tensor(one) for one in shown["outputs"]],
        }

    @app.get("/v2/models/{model}/stats", tags=tags, summary="Statistics of the answering replica")
    @app.get(
        "/v2/models/{model}/versions/{version}/stats", tags=tags, summary="Statistics of a version"
    )
    async def stats(model: str, version: str | None = None) -> dict[str, Any]:
        serving = find(model, version)
        return {"model_stats": [statistics(serving, about(serving)["versions"][0])]}


def statistics(serving: Serving, version: str) -> dict[str, Any]:
    """Count this replica's answered and refused prediction requests, and their total time."""
    report = serving.replica.report()
    answered = sum(n for name, n in report.items() if name.startswith("predict_at_"))
    refused = sum(n for name, n in report.items() if name.startswith("predict_refused_"))
    whole = {"count": int(answered - refused), "ns": int(report.get(_SUM, 0.0) * 1e9)}
    return {
        "name": serving.name,
        "version": version,
        "inference_count": int(report.get("predictions", 0)),
        "execution_count": int(answered - refused),
        "inference_stats": {"success": whole, "fail": {"count": int(refused), "ns": 0}},
    }


def _tensor(one: Mapping[str, Any]) -> dict[str, Any]:
    kind = _NAMES.get(one["datatype"], one["datatype"])
    return {"name": one["name"], "data_type": f"TYPE_{kind}", "dims": one["shape"]}
