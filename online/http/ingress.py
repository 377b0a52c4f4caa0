"""Predict, infer and feedback on a way of their own through Ray Serve's server, past its wrapper.

Serve lets a middleware in front of each replica's HTTP server.  What it does behind it for every
request (two tasks, a queue, a semaphore, a dozen context managers) costs more than an answer; the
application has its own bounds.  Whatever is not hot goes on to Serve, its health checks too.

Serve imports this module in each of its processes, so it imports nothing heavy.  In its proxy,
which answers while no replica does, the middleware sees to it that waiting has an end.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from online.http.absent import Bounded, Replicas

Scope = dict[str, Any]
Application = Callable[[Any, Any, Any], Awaitable[None]]

V1: Final = re.compile(r"/v1/models/([^/]+)/(predict|feedback|choose|reward)")
"""Hot paths: model, action."""
V2: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+)(?=/infer))?/(infer|feedback)")
"""Hot paths of the Open Inference Protocol: model, version, action."""
SCORES: Final = re.compile(r"/v1/models/([^/]+)/scores(?:/(.+))?")
"""Hot paths of scores that were computed ahead of time: model, key (none: many in the body)."""

LIVE: Final = "/v1/live"
"""A stream of how the models do, which may last: it is no request of Serve's, either."""

_installed: Application | None = None


def install(application: Application) -> None:
    """Let hot requests of this process go to the application."""
    global _installed
    _installed = application


class Ingress:
    """The middleware that lets hot requests past the wrapper of Ray Serve."""

    def __init__(self, behind: Application, look: Callable[[], Replicas]) -> None:
        """Stand in front of ``behind``; ``look`` asks Ray Serve for its replicas."""
        self._behind, self._proxied = behind, Bounded(behind, look)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection event."""
        application = _installed
        if scope["type"] != "http":
            application = self._behind
        elif application is None:  # this is Serve's proxy, or a replica that is not built yet
            application = self._proxied
        elif not _is_hot(scope["path"]):
            application = self._behind
        await application(scope, receive, send)


def _is_hot(path: str) -> bool:
    if path == LIVE:
        return True
    return (V1.fullmatch(path) or V2.fullmatch(path) or SCORES.fullmatch(path)) is not None
