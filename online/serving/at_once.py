"""Requests that come at about the same time are worked out together, each with its own answer.

To ask a model of one choice alone is mostly the price of calling numpy: for eight choices in the
same arrays it is a third of that each.  So those that were read from their connections in one turn
of the event loop are put together here, and worked out before the loop turns on.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

MOST: Final = 8
"""Requests that are worked out in one turn of the loop."""

Asked = TypeVar("Asked")
Found = TypeVar("Found")
Said = TypeVar("Said")


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Asked, Said]):
    """A request, the context in which it is answered, and who waits for that."""

    asked: Asked
    within: contextvars.Context
    done: asyncio.Future[Said]


class AtOnce(Generic[Asked, Found, Said]):
    """Takes requests and answers them, several at once where there are several.

    Parameters:
        find: Works requests out together; if that raises, each is worked out by itself.
        answer: Answers one by what was found, in the context of who has asked.
    """

    def __init__(
        self,
        find: Callable[[Sequence[Asked]], Sequence[Found]],
        answer: Callable[[Asked, Found], Said],
    ) -> None:
        self._find, self._answer = find, answer
        self._waiting: list[_Waiting[Asked, Said]] = []

    async def ask(self, asked: Asked) -> Said:
        """Answer a request.  Raises what ``find`` and ``answer`` raise of it."""
        loop = asyncio.get_running_loop()
        one = _Waiting[Asked, Said](asked, contextvars.copy_context(), loop.create_future())
        self._waiting.append(one)
        if len(self._waiting) == 1:
            loop.call_soon(self._work)
        elif len(self._waiting) >= MOST:
            self._work()
        return await one.done

    def _work(self) -> None:
        some, self._waiting = self._waiting, []
        if not some:  # there were so many that they were not waited for
            return
        try:
            found = self._find([one.asked for one in some])
        except Exception as error:
            for one in some:
                self._alone(one, error if len(some) == 1 else None)
            return
        for one, result in zip(some, found, strict=True):
            self._tell(one, result)

    def _alone(self, one: _Waiting[Asked, Said], error: Exception | None) -> None:
        """Work one out by itself, unless it is known already why it can't be."""
        try:
            if error is not None:
                raise error
            (result,) = self._find([one.asked])
        except Exception as why:
            if not one.done.done():
                one.done.set_exception(why)
        else:
            self._tell(one, result)

    def _tell(self, one: _Waiting[Asked, Said], found: Found) -> None:
        if one.done.done():  # who asked has gone away
            return
        try:
            one.done.set_result(one.within.run(self._answer, one.asked, found))
        except Exception as error:
            one.done.set_exception(error)
