"""A model stands still while one of its answers is explained, and goes on answering meanwhile.

To explain an answer some models are asked many times.  In one turn of the loop that would hold up
every other request; spread over many turns, a row that is learned between two of them would make
another model.  So learning waits, predictions do not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Standstill:
    """Whoever holds it has a model that does not change; whoever changes the model asks first.

    Those that hold it come one after the other.  If somebody has waited to change the model, the
    next one begins only after as much time as the last one took: learning has its half.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._over = asyncio.Event()
        self._over.set()
        self._waited = False
        self._due_s = 0.0

    @property
    def held(self) -> bool:
        """Whether the model is not to be changed now."""
        return not self._over.is_set()

    async def moves(self) -> None:
        """Wait until the model may be changed, in the same turn of the loop."""
        while self.held:
            self._waited = True
            await self._over.wait()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Hold it, once those before have let go and learning has had its time."""
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
