"""Streams the models' status to open pages (server-sent events), which saves them polling.

One status query serves all listeners, so twenty open pages cost little more than one.  Streams have
a limited life: a page that stays opens another one, perhaps at another replica.  They do not count
as requests, but their number is bounded.  When the HTTP server shuts down, which waits for all open
requests, streams end first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvicorn

from online.errors import RequestError
from online.messages.bodies import JSON, Receive, Send

log = logging.getLogger(__name__)

EVERY_S: Final = 2.0
"""Seconds between two status queries."""
LIFE_S: Final = 60.0
_ENDING_S: Final = 0.1  # between two checks whether the server is shutting down
_STUCK_S: Final = 10.0  # a listener that takes nothing for this long is dropped
_HEAD: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # keeps proxies from buffering the stream
]


class Streams:
    """The streams of one replica.

    Parameters:
        look: Returns the status of all models, as plain data.
        most: Largest number of concurrent streams.
    """

    def __init__(
        self,
        look: Callable[[], Awaitable[Any]],
        most: int,
        *,
        every_s: float = EVERY_S,
        life_s: float = LIFE_S,
    ) -> None:
        self._look, self._most, self._every_s, self._life_s = look, most, every_s, life_s
        self._listeners: set[asyncio.Queue[bytes | None]] = set()
        self._newest: bytes | None = None
        self._looking: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._listeners)

    async def __call__(self, receive: Receive, send: Send) -> None:
        """Serve one listener until it leaves or its time ends.  Raises RequestError if full."""
        if len(self._listeners) >= self._most:
            hint = "Ask GET /v1/models now and then, or raise limits.listeners_max"
            message = f"{self._most} pages already receive changes here"
            raise RequestError(429, "busy", message, None, hint, 5)
        mine: asyncio.Queue[bytes | None] = asyncio.Queue(1)  # slow listeners skip states
        self._listeners.add(mine)
        gone = asyncio.ensure_future(_gone(receive))
        try:
            if self._looking is None:
                self._looking = asyncio.create_task(self._watch())
            elif self._newest is not None:
                mine.put_nowait(self._newest)
            async with asyncio.timeout(self._life_s):
                await send({"type": "http.response.start", "status": 200, "headers": _HEAD})
                await self._tell(mine, gone, send)
        except TimeoutError:  # its life is over, or it takes nothing
            pass
        finally:
            gone.cancel()
            self._listeners.discard(mine)
            if not self._listeners and self._looking is not None:
                self._looking.cancel()
                self._looking = self._newest = None
        if not gone.done() or gone.cancelled():
            end = {"type": "http.response.body", "body": b""}
            with contextlib.suppress(TimeoutError):  # one that reads nothing does not take this
                await asyncio.wait_for(send(end), _STUCK_S)

    async def _tell(
        self, mine: asyncio.Queue[bytes | None], gone: asyncio.Future[None], send: Send
    ) -> None:
        while True:
            next_ = asyncio.ensure_future(mine.get())
            try:
                await asyncio.wait((next_, gone), return_when=asyncio.FIRST_COMPLETED)
                if gone.done() or (event := await next_) is None:
                    return
            finally:
                next_.cancel()
            body = {"type": "http.response.body", "body": event, "more_body": True}
            await asyncio.wait_for(send(body), _STUCK_S)

    async def _watch(self) -> None:
        """Query the status for all listeners, until none is left or the server shuts down."""
        server = server_here()
        try:
            while server is None or not server.should_exit:
                data = JSON.encode(await self._look())
                self._newest = b"event: models\ndata: " + data + b"\n\n"
                self._hand_out(self._newest)
                left_s = self._every_s
                while left_s >= 0.0 and not (server is not None and server.should_exit):
                    await asyncio.sleep(min(left_s, _ENDING_S))
                    left_s -= _ENDING_S
        except Exception:  # the pages then poll, and are told the error
            log.exception("the status of the models can't be read")
        self._looking = self._newest = None
        self._hand_out(None)

    def _hand_out(self, event: bytes | None) -> None:
        for listener in self._listeners:
            if listener.full():
                listener.get_nowait()
            listener.put_nowait(event)


def server_here() -> uvicorn.Server | None:
    """Return the uvicorn server that runs on this event loop; None: another kind of server does.

    Ray Serve provides no access to the server that it starts for a replica.
    """
    for task in asyncio.all_tasks():
        frame = getattr(task.get_coro(), "cr_frame", None)
        server = None if frame is None else frame.f_locals.get("self")
        if isinstance(server, uvicorn.Server):
            return server
    return None


async def _gone(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
        pass
