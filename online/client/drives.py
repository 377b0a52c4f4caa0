"""The two ways to carry out an operation's steps: waiting for each answer, or in an event loop.

What a client can do is written once, as steps (:mod:`online.client.calls`).  A :class:`verb` makes
of it a method that waits on an object that is :class:`Waiting`, and one to ``await`` on an object
that is :class:`Awaited`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial, update_wrapper
from types import MethodType
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

import httpx

from online.client.calls import Reply, Request, Steps, failure_of, reply_of

_JSON: Final = {"Content-Type": "application/json"}

P = ParamSpec("P")
T = TypeVar("T")


class Drive:
    """Connections of a client that waits.  Use from one thread.

    Parameters:
        sleep: Takes seconds; for tests.
        of_http: Arguments of ``httpx.Client``.
    """

    def __init__(
        self, of_http: Mapping[str, Any], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._http, self._sleep = httpx.Client(**of_http), sleep

    def run(self, steps: Steps[T]) -> T:
        """Outcome of an operation.  Raises ClientError."""
        reply: Reply | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                outcome: T = end.value
                return outcome
            reply = None
            if isinstance(step, float):
                self._sleep(step)
                continue
            try:
                reply = reply_of(self._http.request(**_request(step)))
            except httpx.TransportError as error:
                reply = failure_of(error)

    def close(self) -> None:
        """Close the connections to the service."""
        self._http.close()


class AsyncDrive:
    """The same in an event loop: see :class:`Drive`."""

    def __init__(
        self, of_http: Mapping[str, Any], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._http, self._sleep = httpx.AsyncClient(**of_http), sleep

    async def run(self, steps: Steps[T]) -> T:
        """Outcome of an operation.  Raises ClientError."""
        reply: Reply | None = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                outcome: T = end.value
                return outcome
            reply = None
            if isinstance(step, float):
                await self._sleep(step)
                continue
            try:
                reply = reply_of(await self._http.request(**_request(step)))
            except httpx.TransportError as error:
                reply = failure_of(error)

    async def close(self) -> None:
        """Close the connections to the service."""
        await self._http.aclose()


def _request(step: Request) -> dict[str, Any]:
    more: dict[str, Any] = {} if step.timeout_s is None else {"timeout": step.timeout_s}
    if step.body is not None:
        more |= {"content": step.body, "headers": _JSON}
    return {"method": step.method, "url": step.path, **more}


class Waiting:
    """An object whose verbs wait for their outcome."""

    drive: Drive


class Awaited:
    """An object whose verbs are awaited."""

    drive: AsyncDrive


class verb(Generic[P, T]):  # a decorator
    """A method that is written as the steps of an operation, for both kinds of client."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self._steps = steps
        update_wrapper(self, steps)  # type: ignore[arg-type]

    @overload
    def __get__(self, at: None, owner: type) -> Callable[Concatenate[Any, P], Steps[T]]: ...
    @overload
    def __get__(self, at: Waiting, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, at: Awaited, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, at: Any, owner: type) -> Any:
        """Bind it to a client; of the class it is the steps."""
        if at is None:
            return self._steps
        steps = MethodType(self._steps, at)
        return update_wrapper(partial(_run, at.drive.run, steps), steps)


def _run(drive: Callable[[Any], Any], steps: Callable[..., Any], /, *args: Any, **kw: Any) -> Any:
    return drive(steps(*args, **kw))


def of_model(
    steps: Callable[Concatenate[Any, P], Steps[T]],
) -> verb[Concatenate[str, P], T]:
    """Make of a model's verb one of the client, which takes the model's name first."""

    def named(self: Any, model: str, *args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        return steps(self.model(model), *args, **kwargs)

    named.__name__, named.__doc__ = steps.__name__, steps.__doc__
    return verb(named)  # type: ignore[arg-type]  # its name may be given by keyword, too
