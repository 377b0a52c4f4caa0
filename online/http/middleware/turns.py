"""Bounds how many requests beside predictions and feedback are processed at a time.

A status, metrics or a document each take some milliseconds of the shared event loop.  If hundreds
started at once, all of them would be processed before other tasks get a turn, and recording an
event needs several turns.

Some of these requests wait for the parameter server or the journal, which does not use the loop.
So a turn ends after a second, and a hanging server cannot block the metrics that reveal it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from online.messages.bodies import Receive, Scope, Send

Inner = Callable[[Scope, Receive, Send], Awaitable[Any]]

AT_ONCE: Final = 4
"""Requests that are processed at a time; the others queue."""
TURN_S: Final = 1.0
"""Longest turn of a request without an answer; then the next one begins beside it."""

_AT_ANY_TIME: Final = re.compile(r"/livez|/readyz|/v2/health/(live|ready)|/v1/models/[^/]+/report")
"""Health probes, which are cheap, and reports, which are made in another process."""


class Turns:
    """Takes turns among GET requests; a slow reader of an answer holds up no other request."""

    def __init__(self, inner: Inner, at_once: int = AT_ONCE, turn_s: float = TURN_S) -> None:
        self._inner, self._places = inner, asyncio.Semaphore(at_once)
        self._turn_s = turn_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request in its turn, which ends with its answer or after the time limit."""
        if scope["method"] not in ("GET", "HEAD") or _AT_ANY_TIME.fullmatch(scope["path"]):
            await self._inner(scope, receive, send)
            return
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                self._places.release()

        async def sent(message: dict[str, Any]) -> None:
            leave()
            await send(message)

        await self._places.acquire()
        late = asyncio.get_running_loop().call_later(self._turn_s, leave)
        try:
            await self._inner(scope, receive, sent)
        finally:
            late.cancel()
            leave()
