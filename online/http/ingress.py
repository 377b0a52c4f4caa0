"""Lets hot requests (predict, infer, feedback, choose, reward) bypass Ray Serve's request wrapper.

Serve allows a middleware in front of each replica's HTTP server.  What Serve does behind it for
each request (two tasks, a queue, a semaphore, a dozen context managers) costs more than an answer,
and the application has bounds of its own.  Other requests, including Serve's health checks, go on
to Serve.

Serve imports this module in each of its processes, so it imports nothing heavy.  In Serve's proxy,
which answers while no replica does, the middleware bounds the time that requests wait.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from online.http.no_replica import NoReplicaGuard, Replicas

Scope = dict[str, Any]
Application = Callable[[Any, Any, Any], Awaitable[None]]

V1: Final = re.compile(r"/v1/models/([^/]+)/(predict|feedback|choose|reward)")
"""Hot paths: model, action."""
V2: Final = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+)(?=/infer))?/(infer|feedback)")
"""Hot paths of the Open Inference Protocol: model, version, action."""
SCORES: Final = re.compile(r"/v1/models/([^/]+)/scores(?:/(.+))?")
"""Hot paths of precomputed scores: model, key (None: many keys in the body)."""

LIVE: Final = "/v1/live"
"""A long-lived stream of the models' status, which bypasses Serve's request bound, too."""

_installed: Application | None = None


def install(application: Application) -> None:
    """Send hot requests of this process to the application."""
    global _installed
    _installed = application


class Ingress:
    """The middleware that lets hot requests bypass Ray Serve's wrapper."""

    def __init__(self, behind: Application, look: Callable[[], Replicas]) -> None:
        """Wrap ``behind``; ``look`` queries Ray Serve for its replicas."""
        self._behind, self._proxied = behind, NoReplicaGuard(behind, look)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one connection event."""
        application = _installed
        if scope["type"] != "http":
            application = self._behind
        elif application is None:  # in Serve's proxy, or in a replica that is not built yet
            application = self._proxied
        elif not _is_hot(scope["path"]):
            application = self._behind
        await application(scope, receive, send)


def _is_hot(path: str) -> bool:
    if path == LIVE:
        return True
    return (V1.fullmatch(path) or V2.fullmatch(path) or SCORES.fullmatch(path)) is not None
