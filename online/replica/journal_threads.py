"""The journal's steps on threads: a commit, a page of rows and the event loop don't wait for each
other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Final

from replay.errors import JournalUnavailable
from replay.journal.base import Journal

log = logging.getLogger("online.journal_threads")

_UNREAD_S: Final = 0.2  # between two attempts to read


class JournalThreads:
    """One model's journal in one process: what writes has a thread, and what reads another."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="journal-read")

    @property
    def aside(self) -> Executor:
        """Where else something may be worked out that nobody waits for."""
        return self._reading

    async def write(self, step: Callable[..., Any], *args: Any) -> Any:
        """A step of the journal that writes."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, step, *args)

    async def read(self, step: Callable[..., Any], *args: Any) -> Any:
        """A step that reads; it waits for no commit of ours."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, step, *args)

    async def surely(self, step: Callable[..., Any], *args: Any) -> Any:
        """A step that reads, as often as it takes to get its answer."""
        while True:
            try:
                return await self.read(step, *args)
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(_UNREAD_S)

    def close(self) -> None:
        """End the threads and release the journal."""
        self._writing.shutdown(wait=True)
        self._reading.shutdown(wait=True)
        self.journal.close()
