"""Requests beside predictions and feedback are worked out a few at a time.

A status, metrics or a document take some milliseconds each of the loop that everybody shares.
Hundreds that are begun at once would all be worked out before whoever waits for the loop has a
turn again, and an event that is recorded needs several.

Some wait for the parameter server or the journal, which takes nothing of the loop: a turn ends
after a second, so that a server that stands still keeps nobody from the metrics that tell of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from online.messages.bodies import Receive, Scope, Send

Inner = Callable[[Scope, Receive, Send], Awaitable[Any]]

AT_ONCE: Final = 4
"""So many are worked out at once; the others wait in line."""
TURN_S: Final = 1.0
"""For a request that has no answer yet; the next one begins beside it then."""

_AT_ANY_TIME: Final = re.compile(r"/livez|/readyz|/v2/health/(live|ready)|/v1/models/[^/]+/report")
"""Paths that say nothing but that somebody is there, and one whose work is done on a thread."""


class Turns:
    """Turns of requests that read; whoever takes an answer slowly holds up nobody."""

    def __init__(self, inner: Inner, at_once: int = AT_ONCE, turn_s: float = TURN_S) -> None:
        self._inner, self._places = inner, asyncio.Semaphore(at_once)
        self._turn_s = turn_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request once it has a turn, which ends when its answer is there, or late."""
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
