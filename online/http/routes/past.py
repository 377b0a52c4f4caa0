"""Routes to the past: a model's history, and a report on its quality between two times."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from online.errors import RequestError, invalid
from online.monitoring.series import POINTS_MAX, read

Reports = Callable[[str, float, float], bytes]
"""Makes the page of a report: model, since and until in POSIX seconds.  Called on a thread.

Raises RequestError if another report is being made, it takes too long, or it can't be made.
"""
Since = Annotated[float | None, Query(description="POSIX seconds; default: a day ago")]
Until = Annotated[float | None, Query(description="POSIX seconds; default: now")]

_DAY_S: Final = 86_400.0
_YEARS_S: Final = 6e10  # nineteen centuries around 1970, which all calendars can express
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
)


def _span(since: float | None, until: float | None) -> tuple[float, float]:
    """Return the begin and end with defaults filled in.  Raises RequestError for an empty span."""
    end = time.time() if until is None else until
    begin = end - _DAY_S if since is None else since
    if not begin < end:  # NaN too
        raise invalid("since", f"{begin:g} is not before {end:g}", "Give an earlier time")
    return max(begin, -_YEARS_S), min(end, _YEARS_S)


def history_routes(folder: Path) -> APIRouter:
    """Make the route to the history file that the service's process writes."""
    made = APIRouter(tags=["models"])

    @made.get("/v1/models/{model}/history", summary="History of scores, traffic and operations")
    def history(
        model: str,
        since: Since = None,
        until: Until = None,
        points: Annotated[int, Query(ge=1, le=POINTS_MAX)] = 300,
    ) -> dict[str, Any]:
        """Return columns of equal length, one entry per step, and marks of past operations."""
        begin, end = _span(since, until)
        try:
            return read(folder, model, begin, end, points)
        except sqlite3.Error as error:
            hint = "Ask again; or remove the state folder's `history`: a new one is started"
            raise RequestError(503, "history_unavailable", str(error), None, hint, 1) from None

    return made


def report_routes(reports: Reports) -> APIRouter:
    """Make the route to the page of `online report`."""
    made = APIRouter(tags=["operations"])

    @made.get(
        "/v1/models/{model}/report",
        summary="Report on a time span, as a page",
        response_class=HTMLResponse,
    )
    def report(model: str, since: Since = None, until: Until = None) -> HTMLResponse:
        """Report on the labels recorded in a span, in a process of its own; takes seconds."""
        page = reports(model, *_span(since, until))
        headers = {
            "content-security-policy": _POLICY,
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        }
        return HTMLResponse(page, headers=headers)

    return made
