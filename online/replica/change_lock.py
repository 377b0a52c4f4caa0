"""A lock that keeps a model unchanged while one of its answers is explained.

Explaining an answer takes many predictions.  In one turn of the event loop they would delay every
other request; spread over many turns, a row learned in between would change the model.  So learning
waits for the lock, and predictions do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ChangeLock:
    """Blocks changes of the model while it is held; whoever changes the model awaits `unlocked`.

    Holders take turns.  If a change has waited, the next holder begins only after a pause as long
    as the last hold, so learning gets half of the time.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._over = asyncio.Event()
        self._over.set()
        self._waited = False
        self._due_s = 0.0

    @property
    def held(self) -> bool:
        """Whether the model must not be changed now."""
        return not self._over.is_set()

    async def unlocked(self) -> None:
        """Wait until the model may be changed, within the same turn of the loop."""
        while self.held:
            self._waited = True
            await self._over.wait()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold the model unchanged, after earlier holders and learning have had their time."""
        now_s = asyncio.get_running_loop().time
        async with self._turn:
            if (rest_s := self._due_s - now_s()) > 0.0:
                await asyncio.sleep(rest_s)
            begun_s = now_s()
            self._over.clear()
            try:
                yield
            finally:
                ended_s = now_s()
                self._due_s = ended_s + (ended_s - begun_s) * self._waited
                self._waited = False
                self._over.set()
