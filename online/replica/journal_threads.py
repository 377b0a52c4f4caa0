"""Runs journal operations on threads, so that commits, reads and the event loop never block each
other."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeAlias

from online.rows.prediction_ids import EventKeys
from replay.errors import JournalUnavailable
from replay.journal.base import Journal

log = logging.getLogger(__name__)

_UNREAD_S: Final = 0.2  # between two attempts to read


_Work: TypeAlias = tuple[
    asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]
]


class OneThread:
    """Runs operations one after another on a thread; results arrive on the calling event loop.

    It replaces a ThreadPoolExecutor, whose hand-over took a fifth of the time of an event.
    """

    def __init__(self, name: str) -> None:
        self._steps: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = Thread(target=_work, args=(self._steps,), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._steps.put, None)

    def do(self, step: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Queue an operation; one that is cancelled before it begins is skipped.

        Raises RuntimeError after :meth:`stop`: nobody would do it.
        """
        if not self._end.alive:
            raise RuntimeError("the journal is closed")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        self._steps.put((loop, done, step, args))
        return done

    def stop(self) -> None:
        """End the thread after the queued operations."""
        self._end()
        self._thread.join()


def _work(steps: SimpleQueue[_Work | None]) -> None:
    while (work := steps.get()) is not None:
        loop, done, step, args = work
        result, error = None, None
        if done.cancelled():
            continue
        try:
            result = step(*args)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(_answer, done, result, error)
        except RuntimeError:  # the calling event loop is closed
            log.debug("nobody waits for %s any more", step)
        del work, loop, done, step, args, result, error  # or they would live until the next one


def _answer(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


class JournalThreads:
    """One model's journal in one process, with one thread for writes and another for reads."""

    def __init__(self, journal: Journal) -> None:
        self.journal, self.keys = journal, EventKeys(journal.near_keys)
        self._writing = OneThread("journal")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="journal-read")

    @property
    def background(self) -> Executor:
        """Executor for background computations that no request waits for."""
        return self._reading

    async def write(self, step: Callable[..., Any], *args: Any) -> Any:
        """Run a journal operation that writes, on the writing thread."""
        return await self._writing.do(step, args)

    async def read(self, step: Callable[..., Any], *args: Any) -> Any:
        """Run a journal operation that reads; it does not wait for commits of this process."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, step, *args)

    async def read_retrying(self, step: Callable[..., Any], *args: Any) -> Any:
        """Run a reading operation, retrying until the journal answers."""
        while True:
            try:
                return await self.read(step, *args)
            except JournalUnavailable as error:
                log.warning("journal: %s", error)
                await asyncio.sleep(_UNREAD_S)

    def close(self) -> None:
        """End the threads and release the journal."""
        self._writing.stop()
        self._reading.shutdown(wait=True)
        self.journal.close()
