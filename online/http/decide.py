"""The page on which a model that chooses learns from clicks."""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from online.errors import RequestError


def routes(models: Collection[str]) -> APIRouter:
    """Routes of the models that choose."""
    made = APIRouter()
    named = ",".join(sorted(models))
    text = resources.files("online.http").joinpath("choose.html").read_text("utf-8")
    page = text.replace('"MODELS"', f'"{named}"')

    @made.get("/demo/choose", include_in_schema=False)
    def demo() -> HTMLResponse:
        if not models:
            hint = "Set `task: choose` for a model, and start again"
            raise RequestError(404, "no_choices", "no model here chooses", None, hint)
        return HTMLResponse(page)

    return made
