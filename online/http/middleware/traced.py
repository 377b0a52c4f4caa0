"""A middleware that traces requests; installed where tracing is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from online.http.ingress import V1, V2, Application
from online.messages.bodies import Receive, Scope, Send
from online.telemetry.trace import current

if TYPE_CHECKING:
    from online.telemetry.spans import Tracing


_ACTIONS: Final = ("/predict", "/feedback", "/choose", "/reward", "/infer")


class Traced:
    """Traces predictions, choices, inference and feedback; other requests pass unchanged."""

    def __init__(self, behind: Application, tracing: Tracing) -> None:
        self._behind, self._tracing = behind, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        trace = None
        path: str = scope.get("path", "")
        if path.endswith(_ACTIONS) and (V1.fullmatch(path) or V2.fullmatch(path)):
            # a request that was read behind a cached head may have been drawn already
            decided = getattr(getattr(send, "__self__", None), "traced", None)
            trace = self._tracing.begin(scope["headers"], scope["method"], path, decided)
        if trace is None:
            await self._behind(scope, receive, send)
            return
        status = 500  # if nothing is answered: it failed, or the client disconnected

        async def noted(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        token = current.set(trace)
        try:
            await self._behind(scope, receive, noted)
        finally:
            current.reset(token)
            trace.end(status)
