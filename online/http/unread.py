"""FastAPI reads no source file while requests are answered.

At the first request for an operation it looks where that is written, to say so if an answer does
not fit what the operation promises.  That is a file read and taken apart in one turn of the loop:
7 to 17 ms in which no prediction is answered, for a place that a traceback tells, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, routing


def read_no_sources(app: FastAPI) -> None:
    """Have it know all operations of the application already, and nothing about them."""
    known = routing._endpoint_context_cache
    known.update({id(endpoint): {} for endpoint in endpoints(app)})


def endpoints(routes: Any) -> Iterator[Any]:
    """Yield the functions of an application or a router, and of the routers that it includes."""
    for route in routes.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from endpoints(included)
        elif isinstance(route, routing.APIRoute):
            yield route.endpoint
