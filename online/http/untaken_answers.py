"""Connections of callers that do not take their answers have an end.

An answer that was sent waits in its transport, and the close that uvicorn asks for after a
connection's silence waits for it: whoever reads nothing would keep answer and connection for ever.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from online.messages.bodies import Receive

log = logging.getLogger(__name__)

_LOOK_S: Final = 2.0  # at the most between two looks at what is left


class Untaken:
    """Ends a connection on which an answer is left for too long.

    uvicorn's request is found behind ``receive``: others wrap ``send``.  Where another server asks,
    there is nothing to find, and nothing is done.

    Parameters:
        wait_s: How long a caller may take for an answer, in seconds, for each ``size`` of it.
        size: Bytes that a caller takes in that time.
        given_up: Is told the path of an answer that was given up after it was sent.
    """

    def __init__(self, wait_s: float, size: int, given_up: Callable[[str], None]) -> None:
        self._wait_s, self._size, self._given_up = wait_s, size, given_up
        self._every_s = min(wait_s / 8, _LOOK_S)
        self._left: dict[Any, tuple[float, str]] = {}  # transports: until when, and what for

    def begins(self, receive: Receive) -> None:
        """Forget what was left for a caller that has taken it before it asks again."""
        if self._left:
            transport: Any = getattr(getattr(receive, "__self__", None), "transport", None)
            if transport in self._left and not transport.get_write_buffer_size():
                del self._left[transport]

    def ends(self, receive: Receive, path: str) -> None:
        """Note what is left of an answer; one that was not even sent ends the connection."""
        cycle: Any = getattr(receive, "__self__", None)
        transport = getattr(cycle, "transport", None)
        if transport is None or not (left := transport.get_write_buffer_size()):
            return
        if not cycle.response_complete:
            cycle.disconnected = True  # else uvicorn answers that it failed, and waits to be read
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
