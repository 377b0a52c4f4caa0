"""HTTP of the history: how a model did, from the file that the process of the service writes."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from online.errors import RequestError, invalid
from online.history.series import POINTS_MAX, read

_DAY_S: Final = 86_400.0


def routes(folder: Path) -> APIRouter:
    """Routes of every model that is served."""
    made = APIRouter(tags=["models"])

    @made.get("/v1/models/{model}/history", summary="How it did: scores, traffic, what happened")
    def history(
        model: str,
        since: Annotated[float | None, Query(description="POSIX seconds; a day ago")] = None,
        until: Annotated[float | None, Query(description="POSIX seconds; now")] = None,
        points: Annotated[int, Query(ge=1, le=POINTS_MAX)] = 300,
    ) -> dict[str, Any]:
        """Columns of one length, a step an entry, and the marks of what happened."""
        end = time.time() if until is None else until
        begin = end - _DAY_S if since is None else since
        if not begin < end:  # NaN too
            raise invalid("since", f"{begin:g} is not before {end:g}", "Give an earlier time")
        try:
            return read(folder, model, begin, end, points)
        except sqlite3.Error as error:
            hint = "Ask again; or remove the folder `history` of the state folder: it begins anew"
            raise RequestError(503, "history_unavailable", str(error), None, hint, 1) from None

    return made
