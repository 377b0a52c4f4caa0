"""Prevents FastAPI from reading source files and building routes while requests are served.

At an operation's first request FastAPI looks up where its function is written, for the error
message in case an answer does not fit its schema.  That reads and parses a file in one turn of the
event loop: 7 to 17 ms in which no prediction is answered, for information that a traceback has,
too.  The first request to an included router also builds all of its routes, which takes as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, routing


def read_no_sources(app: FastAPI) -> None:
    """Fill FastAPI's cache of source locations with empty entries for all operations."""
    known = routing._endpoint_context_cache
    known.update({id(endpoint): {} for endpoint in endpoints(app)})


def build_routes(routes: Any) -> None:
    """Build the routes of all included routers now."""
    for route in routes:
        if (included := getattr(route, "effective_candidates", None)) is not None:
            build_routes(included())


def endpoints(routes: Any) -> Iterator[Any]:
    """Yield the functions of an application's or a router's routes, and of included routers."""
    for route in routes.routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from endpoints(included)
        elif isinstance(route, routing.APIRoute):
            yield route.endpoint
