"""Routes that need no model: the pages at `/` and `/docs`, and the health probes."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse

from evaluation.report import lacking
from refusals import installing

UNFRAMED: Final = {"content-security-policy": "frame-ancestors 'none'", "x-frame-options": "DENY"}
"""Headers of a page that no other page may show in a frame.

A foreign page could cover it, and have the user click on what is below.  :class:`Browsers` refuses
frames only where browsers say that it is one: not over plain HTTP beyond loopback.
"""

_NEVER: Final = re.compile(r"\s*q\s*=\s*0(\.0*)?\s*")  # a quality value of 0: not acceptable


def add_front(app: FastAPI, models: Sequence[str]) -> None:
    """Add the pages and the health probes to the app."""
    plain = page(lacking()).encode()
    requests = resources.files("online.http").joinpath("docs.html").read_text("utf-8")
    packed = gzip.compress(plain, mtime=0)

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> HTMLResponse:
        vary = {"vary": "accept-encoding", **UNFRAMED}
        if takes_gzip(request):
            return HTMLResponse(packed, headers={**vary, "content-encoding": "gzip"})
        return HTMLResponse(plain, headers=vary)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(requests, headers=UNFRAMED)

    @app.get("/livez", tags=["health"], summary="The process answers")
    async def livez() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", tags=["health"], summary="Every model can answer")
    async def readyz() -> dict[str, Any]:
        return {"ready": True, "models": models}


def takes_gzip(request: Request) -> bool:
    """Whether the request's Accept-Encoding allows gzip (a quality value of 0 forbids it)."""
    accepted = ",".join(request.headers.getlist("accept-encoding"))
    for one in accepted.lower().split(","):
        name, _, weight = one.partition(";")
        if name.strip() == "gzip":
            return _NEVER.fullmatch(weight) is None
    return False


def page(lacks: str | None = None) -> str:
    """Return the service's page: one file, with its chart library included.

    Parameters:
        lacks: A missing package without which no report can be made here; None: none is missing.
    """
    folder = resources.files("online.http")
    text = folder.joinpath("page.html").read_text("utf-8")
    for name in ("uPlot.min.css", "uPlot.iife.min.js"):
        library = folder.joinpath("third_party", name).read_text("utf-8")
        text = text.replace(f"/* {name} */", library)
    wanted = f"{lacks}. Install it where it runs: {installing('report')}" if lacks else ""
    return text.replace('LACKS = ""', f'LACKS = "{wanted}"')
