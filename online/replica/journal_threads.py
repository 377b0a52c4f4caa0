"""The journal's steps on threads: a commit, a page of rows and the event loop don't wait for each
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

from replay.errors import JournalUnavailable
from replay.journal.base import Journal

log = logging.getLogger(__name__)

_UNREAD_S: Final = 0.2  # between two attempts to read


_Work: TypeAlias = tuple[
    asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]
]


class OneThread:
    """Does one step after the other on a thread, and answers on the event loop that asks.

    An executor does the same; but handing a step to it, and its answer back, took a fifth of the
    time that an event needs.
    """

    def __init__(self, name: str) -> None:
        self._steps: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread = Thread(target=_work, args=(self._steps,), name=name, daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, self._steps.put, None)

    def do(self, step: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Have the step done; one that is cancelled before it begins is left out."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        self._steps.put((loop, done, step, args))
        return done

    def stop(self) -> None:
        """End the thread after the steps that are asked for."""
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
        except RuntimeError:  # whoever asked has ended
            log.debug("nobody waits for %s any more", step)
        del work, loop, done, step, args, result, error  # nothing lives on until the next one


def _answer(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


class JournalThreads:
    """One model's journal in one process: what writes has a thread, and what reads another."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._writing = OneThread("journal")
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="journal-read")

    @property
    def aside(self) -> Executor:
        """Where else something may be worked out that nobody waits for."""
        return self._reading

    async def write(self, step: Callable[..., Any], *args: Any) -> Any:
        """A step of the journal that writes."""
        return await self._writing.do(step, args)

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
        self._writing.stop()
        self._reading.shutdown(wait=True)
        self.journal.close()
