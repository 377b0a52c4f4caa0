"""Answers 503 with the reason from Ray Serve's proxy while no replica can answer.

If every replica has died, HAProxy forwards requests to Serve's proxy, which waits for a replica
without a bound.  If none can start, for example because the model's code is broken, clients would
wait for ever, and only a log of Ray's would contain the reason.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

Application = Callable[[Any, Any, Any], Awaitable[None]]

_LOOK_S: Final = 1.0  # between two queries of Serve's state
_WAIT_S: Final = 3.0  # how long to wait for replicas that are starting
_RETRY_S: Final = 5


@dataclass(frozen=True, slots=True)
class Replicas:
    """The number of running replicas, and why another one does not start (None: no problem)."""

    running: int
    reason: str | None


class NoReplicaGuard:
    """Forwards requests, and answers 503 itself if no replica is running.

    ``look`` queries Ray Serve for its replicas; it is called on a thread.
    """

    def __init__(
        self,
        behind: Application,
        look: Callable[[], Replicas],
        *,
        look_s: float = _LOOK_S,
        wait_s: float = _WAIT_S,
    ) -> None:
        self._behind, self._look = behind, look
        self._look_s, self._wait_s = look_s, wait_s

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forward one request, or answer it with 503 if no replica can."""
        answered = refused = False

        async def noting(message: Any) -> None:
            nonlocal answered
            if not refused:
                answered = True
                await send(message)

        work = asyncio.ensure_future(self._behind(scope, receive, noting))
        try:
            looks = 0
            while not (await asyncio.wait({work}, timeout=self._look_s))[0] and not answered:
                looks += 1
                reason = await self._absence(looks * self._look_s)
                if reason is not None and not (answered or work.done()):
                    refused = True
                    work.cancel()
                    await asyncio.wait({work})
                    await _refuse(scope["path"], reason, send)
                    return
            await work
        finally:
            work.cancel()

    async def _absence(self, waited_s: float) -> str | None:
        """Return why no replica will answer; None: one still may."""
        try:
            replicas = await asyncio.to_thread(self._look)
        except Exception as error:  # Ray may raise anything: its controller may be down, too
            replicas = Replicas(0, None)
            if waited_s >= self._wait_s:
                return f"Ray Serve does not say why: {error!r}"
        if replicas.running:
            return None
        if replicas.reason is not None:
            return replicas.reason
        return "they are being started" if waited_s >= self._wait_s else None


async def _refuse(path: str, reason: str, send: Any) -> None:
    from online.errors import RequestError
    from online.http.openinference import protocol
    from online.messages import bodies

    message = f"no replica answers: {reason}"
    hint = "Send it again; if this persists, remove the cause: replicas are restarted repeatedly"
    error = RequestError(503, "no_replica", message, None, hint, _RETRY_S)
    if path.startswith("/v2/"):
        data = protocol.error_body(error)
    else:
        data = json.dumps(bodies.error_body(error)).encode()
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    head += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": 503, "headers": head})
    await send({"type": "http.response.body", "body": data})
