"""An optional access log: a JSON line per request with time, client, path, status and duration.

Tokens, features, labels, query strings, and names of events, sources and keys are never logged.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from online.http.ingress import Application
from online.http.middleware.access import origin
from online.messages.bodies import JSON, Receive, Scope, Send
from online.telemetry.trace import current
from replay.plain import plain

log = logging.getLogger("online.access")

_AGENT_MAX: Final = 120
_PART: Final = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_PARTS: Final = 4  # /v1/models/NAME/predict; further parts name an event, a source or a key


def public_path(path: str) -> str:
    """Return the path without keys, sources and event ids, which may be personal data."""
    parts = path.split("/")[1:]
    known = [part if _PART.fullmatch(part) else "*" for part in parts[:_PARTS]]
    return "/" + "/".join([*known, "*"] if len(parts) > _PARTS else known)


class AccessLog:
    """Logs a share of the requests, and every request that failed (5xx).

    Parameters:
        share: Share of the requests, in (0, 1].
        write: Writes a line; None: write to the process's standard error.
    """

    def __init__(
        self,
        behind: Application,
        share: float,
        write: Callable[[str], None] | None = None,
        *,
        draw: Callable[[], float] = random.random,
        now_s: Callable[[], float] = time.time,
        timer_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._behind, self._share, self._draw = behind, share, draw
        self._write = _bare().info if write is None else write
        self._now_s, self._timer_s = now_s, timer_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event."""
        if scope["type"] != "http":
            await self._behind(scope, receive, send)
            return
        drawn, begun_s = self._draw() < self._share, self._timer_s()
        status, sent, name, trace = 0, 0, "", None

        async def noted(message: dict[str, Any]) -> None:
            nonlocal status, sent, name, trace
            if message["type"] == "http.response.start":
                status, trace = message["status"], current.get()
                name = dict(message["headers"]).get(b"x-request-id", b"").decode()
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._behind(scope, receive, noted)
        finally:
            if drawn or status >= 500 or status == 0:
                given = dict(scope["headers"])
                line = {
                    "time": datetime.fromtimestamp(self._now_s(), UTC).isoformat(),
                    "client": origin(scope.get("client"), given),
                    "method": scope["method"],
                    "path": public_path(scope["path"]),
                    "status": status or None,
                    "ms": round((self._timer_s() - begun_s) * 1e3, 3),
                    "sent_bytes": sent,
                    "request_id": name or None,
                    "trace_id": None if trace is None else trace.id,
                    "agent": plain(given.get(b"user-agent", b"").decode("latin-1"))[:_AGENT_MAX],
                }
                self._write(JSON.encode(line).decode())


def _bare() -> logging.Logger:
    """Return the logger of requests, whose lines contain the JSON only."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.__stderr__)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
        log.setLevel(logging.INFO)
    return log
