"""Batches requests that arrive in the same turn of the event loop, each with its own answer.

Most of the time of a single model call is numpy's overhead: of eight choices in one batch each
takes a third of the time.  So requests read in one turn of the loop are collected here, and
computed before the next turn.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

MOST: Final = 8
"""Largest number of requests in one batch."""

Request = TypeVar("Request")
Result = TypeVar("Result")
Answer = TypeVar("Answer")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Request, Answer]):
    """A request, the context in which it is answered, and the future of its answer."""

    asked: Request
    within: contextvars.Context
    done: asyncio.Future[Answer]


class Batcher(Generic[Request, Result, Answer]):
    """Collects requests and answers them, in batches where there are several.

    Parameters:
        find: Computes results for several requests; if it raises, each is computed by itself.
        answer: Makes the answer to one request from its result, in the request's context.
    """

    def __init__(
        self,
        find: Callable[[Sequence[Request]], Sequence[Result]],
        answer: Callable[[Request, Result], Answer],
    ) -> None:
        self._find, self._answer = find, answer
        self._waiting: list[_Waiting[Request, Answer]] = []

    async def ask(self, asked: Request) -> Answer:
        """Answer a request.  Raises what ``find`` and ``answer`` raise for it."""
        loop = asyncio.get_running_loop()
        one = _Waiting[Request, Answer](asked, contextvars.copy_context(), loop.create_future())
        self._waiting.append(one)
        if len(self._waiting) == 1:
            loop.call_soon(self._work)
        elif len(self._waiting) >= MOST:
            self._work()
        return await one.done

    def _work(self) -> None:
        some, self._waiting = self._waiting, []
        if not some:  # a full batch was computed before this call
            return
        try:
            results = self._find([one.asked for one in some])
        except Exception as error:
            for one in some:
                self._alone(one, error if len(some) == 1 else None)
            return
        for one, result in zip(some, results, strict=True):
            self._tell(one, result)

    def _alone(self, one: _Waiting[Request, Answer], error: Exception | None) -> None:
        """Compute one request by itself, unless its error is already known."""
        try:
            if error is not None:
                raise error
            (result,) = self._find([one.asked])
        except Exception as why:
            if not one.done.done():
                one.done.set_exception(why)
        else:
            self._tell(one, result)

    def _tell(self, one: _Waiting[Request, Answer], result: Result) -> None:
        if one.done.done():  # the request was cancelled
            return
        try:
            one.done.set_result(one.within.run(self._answer, one.asked, result))
        except Exception as error:
            one.done.set_exception(error)
