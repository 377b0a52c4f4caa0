"""FastAPI reads no source file, and builds no routes, while requests are answered.

At the first request for an operation it looks where that is written, to say so if an answer does
not fit what the operation promises.  That is a file read and taken apart in one turn of the loop:
7 to 17 ms in which no prediction is answered, for a place that a traceback tells, too.  And the
first request that asks a router which is included has all of its routes built, which takes as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, routing


def read_no_sources(app: FastAPI) -> None:
    """Have it know all operations of the application already, and nothing about them."""
    known = routing._endpoint_context_cache
    known.update({id(endpoint): {} for endpoint in endpoints(app)})


def build_routes(routes: Any) -> None:
    """Have the routes of the routers that an application includes built now."""
    for route in routes:
        if (included := getattr(route, "effective_candidates", None)) is not None:
            build_routes(included())


def endpoints(routes: Any) -> Iterator[Any]:
    """Yield the functions of an application or a router, and of the routers that it includes."""
    for route in routes.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from endpoints(included)
        elif isinstance(route, routing.APIRoute):
            yield route.endpoint
