"""Runs an operation's steps, either blocking or in an event loop.

Each operation of the client is written once, as a generator of steps (:mod:`online.client.calls`).
The decorator :class:`verb` makes it a blocking method on a :class:`Waiting` object, and an
awaitable method on an :class:`Awaited` object.
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
    """HTTP connections of a blocking client.  Use it from one thread only.

    Parameters:
        of_http: Arguments of ``httpx.Client``.
        sleep: Waits for a number of seconds; replaced in tests.
    """

    def __init__(
        self, of_http: Mapping[str, Any], sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._http, self._sleep = httpx.Client(**of_http), sleep

    def run(self, steps: Steps[T]) -> T:
        """Run an operation and return its result.  Raises ClientError."""
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
    """HTTP connections of an async client: see :class:`Drive`."""

    def __init__(
        self, of_http: Mapping[str, Any], sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._http, self._sleep = httpx.AsyncClient(**of_http), sleep

    async def run(self, steps: Steps[T]) -> T:
        """Run an operation and return its result.  Raises ClientError."""
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
    """Base of objects whose operations block."""

    drive: Drive


class Awaited:
    """Base of objects whose operations are awaited."""

    drive: AsyncDrive


class verb(Generic[P, T]):  # a decorator
    """Decorator for methods that are written as steps, for both kinds of client."""

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
        """Bind the operation to a client; accessed on the class, return the generator function."""
        if at is None:
            return self._steps
        steps = MethodType(self._steps, at)
        return update_wrapper(partial(_run, at.drive.run, steps), steps)


def _run(drive: Callable[[Any], Any], steps: Callable[..., Any], /, *args: Any, **kw: Any) -> Any:
    return drive(steps(*args, **kw))


def of_model(steps: Callable[Concatenate[Any, P], Steps[T]]) -> verb[Concatenate[str, P], T]:
    """Turn a model's operation into one of the client, with the model's name first."""

    def named(self: Any, model: str, *args: P.args, **kwargs: P.kwargs) -> Steps[T]:
        return steps(self.model(model), *args, **kwargs)

    named.__name__, named.__doc__ = steps.__name__, steps.__doc__
    return verb(named)  # type: ignore[arg-type]  # its name may be given by keyword, too
