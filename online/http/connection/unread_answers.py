"""Closes connections of clients that do not read their answers.

A sent answer waits in its transport's buffer, and uvicorn's keep-alive close waits for the buffer:
a client that reads nothing would keep answer and connection for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from online.messages.bodies import Receive

log = logging.getLogger(__name__)

_LOOK_S: Final = 2.0  # longest time between two checks of unread answers


class UnreadAnswers:
    """Aborts a connection on which an answer stays unread for too long.

    uvicorn's request object is found through ``receive``, because others wrap ``send``.  With
    another server nothing is found, and nothing is done.

    Parameters:
        wait_s: How long a client may take for each ``size`` bytes of an answer, in seconds.
        size: Bytes that a client has to read in that time.
        given_up: Called with the path of a sent answer whose connection was aborted.
    """

    def __init__(self, wait_s: float, size: int, given_up: Callable[[str], None]) -> None:
        self._wait_s, self._size, self._given_up = wait_s, size, given_up
        self._every_s = min(wait_s / 8, _LOOK_S)
        self._left: dict[Any, tuple[float, str]] = {}  # transports: deadline and path

    def begins(self, receive: Receive) -> None:
        """Stop watching the connection if its previous answer has been read."""
        if self._left:
            transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
            if transport in self._left and not transport.get_write_buffer_size():
                del self._left[transport]

    def ends(self, receive: Receive, path: str) -> None:
        """Watch the unread rest of an answer; abort at once if it was not even sent fully."""
        cycle: Any = getattr(receive, "__self__", None)
        transport = getattr(cycle, "transport", None)
        if transport is None or not (left := transport.get_write_buffer_size()):
            return
        if not cycle.response_complete:
            cycle.disconnected = True  # keeps uvicorn from sending an error, and waiting again
            self._left.pop(transport, None)
            transport.abort()
        elif transport not in self._left:
            loop = asyncio.get_running_loop()
            if not self._left:
                loop.call_later(self._every_s, self._look, loop)
            until = loop.time() + self._wait_s * (1 + left // self._size)
            self._left[transport] = until, path

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for transport, (until, path) in list(self._left.items()):
            if not transport.get_write_buffer_size():
                del self._left[transport]
            elif now >= until:
                del self._left[transport]
                transport.abort()
                self._given_up(path)
        if self._left:
            loop.call_later(self._every_s, self._look, loop)
