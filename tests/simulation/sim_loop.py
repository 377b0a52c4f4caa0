"""Simulated time: an event loop that never waits, and processes that can be killed on it.

Every task, timer and answer belongs to the process in whose context it was made.  Those of a
killed process never run again; those of a paused one wait.  Steps given to a thread are run in
the loop's own thread, each at one instant after a delay by the dice, in order of each thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

_owner: contextvars.ContextVar[Process | None] = contextvars.ContextVar("owner", default=None)


class Stuck(AssertionError):
    """Nothing will ever happen again, or far too much does."""


class Process:
    """What is killed, paused and billed together."""

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.loop, self.name = loop, name
        self.alive, self.paused = True, False
        self.parked: list[asyncio.Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.context = contextvars.copy_context()
        self.context.run(_owner.set, self)

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Start a task of this process."""
        return self.loop.create_task(coroutine, context=self.context)

    def kill(self) -> None:
        """No line of it runs any more."""
        self.alive = False
        self.parked.clear()

    def pause(self) -> None:
        """It stands still, as with SIGSTOP."""
        self.paused = True

    def resume(self) -> None:
        """It goes on where it stood."""
        self.paused = False
        parked, self.parked = self.parked, []
        for handle in parked:
            self.loop.again(handle)


class _Handle(asyncio.Handle):
    __slots__ = ()

    def _run(self) -> None:
        if _runs(self):
            super()._run()


class _Timer(asyncio.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        if _runs(self):
            super()._run()


def _runs(handle: Any) -> bool:
    owner = handle._context.get(_owner)
    if owner is None:
        return True
    if owner.paused and owner.alive:
        owner.parked.append(handle)
        return False
    return bool(owner.alive)


class _Jump:
    """A selector without files: waiting is a jump of the clock."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing will ever happen again")
        self._loop.now += timeout
        return []


class _Thread:
    """The steps that wait for one thread."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self.busy = False


class SimThread:
    """Stands for :class:`online.replica.journal_threads.OneThread`: the loop has its steps done."""

    def __init__(self, name: str) -> None:
        self.name = name

    def do(self, step: Callable[..., Any], args: tuple[Any, ...]) -> asyncio.Future[Any]:
        """The step, in simulated time."""
        return asyncio.get_running_loop().run_in_executor(self, step, *args)  # type: ignore[arg-type]

    def stop(self) -> None:
        """No thread is there to be ended."""


class SimLoop(asyncio.BaseEventLoop):
    """One seed's time.

    Attributes:
        step_s: Seconds that a step on a thread takes: drawn at each.
        at_work: Runs a step of a process and gives its result: where the disk's mood comes in.
    """

    _ready: deque[asyncio.Handle]  # of the loop that asyncio has in Python
    _scheduled: list[asyncio.TimerHandle]

    def __init__(self, r: random.Random) -> None:
        super().__init__()
        self.now = 1_000.0
        self.turns = 0
        self._r = r
        self._clock_resolution = 1e-6
        self._selector = _Jump(self)
        self._threads: dict[tuple[Process | None, int], _Thread] = {}
        self.step_s: Callable[[], float] = lambda: 0.0
        self.at_work: Callable[[Process | None, Callable[[], Any]], Any] = lambda _, step: step()
        self.set_task_factory(self._task)

    def time(self) -> float:
        return self.now

    def _process_events(self, events: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        self.turns += 1
        if self.turns > 2_000_000:
            raise Stuck("2,000,000 turns of the loop")
        super()._run_once()  # type: ignore[misc]

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def again(self, handle: asyncio.Handle) -> None:
        """Run a handle that was put aside."""
        self._ready.append(handle)

    @staticmethod
    def _task(loop: Any, coroutine: Any, context: Any = None) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context)
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        owner = (context.get(_owner) if context is not None else None) or _owner.get()
        if owner is not None:
            owner.tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        future: asyncio.Future[Any] = self.create_future()
        thread = self._threads.setdefault((_owner.get(), id(executor)), _Thread())
        thread.waiting.append((future, lambda: func(*args)))
        if not thread.busy:
            self._next(thread)
        return future

    def _next(self, thread: _Thread) -> None:
        while thread.waiting:
            future, step = thread.waiting.popleft()
            if not future.cancelled():  # what has not begun can still be called off
                thread.busy = True
                self.call_later(self.step_s(), self._work, thread, future, step)
                return
        thread.busy = False

    def _work(self, thread: _Thread, future: asyncio.Future[Any], step: Any) -> None:
        owner = _owner.get()
        try:
            result, error = self.at_work(owner, step), None
        except Exception as raised:
            result, error = None, raised
        if owner is not None and not owner.alive:
            return
        self.call_later(self.step_s() * self._r.random(), self._tell, future, result, error)
        self._next(thread)

    def _tell(self, future: asyncio.Future[Any], result: Any, error: Any) -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def owner() -> Process | None:
    """The process at work."""
    return _owner.get()
