"""HTTP of the report: how good a model was between two times, as the page of `online report`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from online.errors import invalid

Reports = Callable[[str, float, float], bytes]
"""Makes the page of a report: model, since and until in POSIX seconds.  Called on a thread.

Raises RequestError: another one is being made, it takes too long, or it can't be made.
"""

_DAY_S: Final = 86_400.0
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def routes(reports: Reports) -> APIRouter:
    """Routes of every model that is served."""
    made = APIRouter(tags=["operations"])

    @made.get(
        "/v1/models/{model}/report",
        summary="The report on a span of time, as a page",
        response_class=HTMLResponse,
    )
    def report(
        model: str,
        since: Annotated[float | None, Query(description="POSIX seconds; a day ago")] = None,
        until: Annotated[float | None, Query(description="POSIX seconds; now")] = None,
    ) -> HTMLResponse:
        """Judge the labels that were recorded in it, in a process of its own; it takes seconds."""
        end = time.time() if until is None else until
        begin = end - _DAY_S if since is None else since
        if not begin < end:  # NaN too
            raise invalid("since", f"{begin:g} is not before {end:g}", "Give an earlier time")
        page = reports(model, begin, end)
        headers = {
            "content-security-policy": _POLICY,
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        }
        return HTMLResponse(page, headers=headers)

    return made
