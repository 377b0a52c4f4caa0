"""Route to a replica's latest answers and labels, for operators only: it shows others' data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query

from online.http.ring import Ring


def routes(rings: Mapping[str, Ring], replica: str) -> APIRouter:
    """Make the route, for every model that is served."""
    made = APIRouter(tags=["operations"])

    @made.get(
        "/v1/models/{model}/live", summary="Latest answers and labels of the answering replica"
    )
    async def live(
        model: str,
        after: Annotated[
            list[str],
            Query(
                max_length=256,
                description="NUMBER@REPLICA: `cursor` and `replica` of the previous answer",
            ),
        ] = [],  # noqa: B006
    ) -> dict[str, Any]:
        """Return what came since `after`; requests are recorded for some seconds after each call.

        Each replica reports its own requests: call often enough to reach each of them.
        """
        cursors = dict(reversed(one.partition("@")[::2]) for one in after)
        mine = cursors.get(replica, "")
        number = int(mine) if mine.isdecimal() and len(mine) < 16 else None
        return {"replica": replica, **rings[model].look(number)}

    return made
