"""A client of the service for programs: typed answers, safe repeats, feedback in batches.

One call is one operation that ends with an outcome: what was answered, or an exception that says
whether something may have been recorded.  Between them a call is sent again where that is safe:
predictions change nothing, and feedback always goes with an id that makes a repeat count once.

>>> from online.client import Client
>>> with Client("http://127.0.0.1:8000") as client:                           # doctest: +SKIP
...     phishing = client.model("phishing")
...     asked = phishing.predict({"a": 1.0})
...     receipt = phishing.feedback(True, id=asked.id)
...     phishing.predict({"a": 1.0}, after=receipt.seen).includes
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Self

import httpx

from online.client.calls import Calls, Retry, Surroundings
from online.client.drives import AsyncDrive, Awaited, Drive, Waiting, of_model
from online.client.verbs import BatchVerbs, ModelVerbs, Pending
from online.messages.bearer import bearer


class Model(ModelVerbs, Waiting):
    """One model of a service.  Use from one thread."""

    def __init__(self, calls: Calls, drive: Drive, name: str) -> None:
        super().__init__(calls, name)
        self.drive = drive

    def batch(self, *, rows: int = 100, kept_max: int = 10_000) -> Batch:
        """A place to put events, which are sent ``rows`` at a time."""
        return Batch(self, Pending(self._calls, rows, kept_max))

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the model's status."""
        return self.status()._repr_html_()


class AsyncModel(ModelVerbs, Awaited):
    """One model of a service, for asyncio: see :class:`Model`."""

    def __init__(self, calls: Calls, drive: AsyncDrive, name: str) -> None:
        super().__init__(calls, name)
        self.drive = drive

    def batch(self, *, rows: int = 100, kept_max: int = 10_000) -> AsyncBatch:
        """A place to put events, which are sent ``rows`` at a time."""
        return AsyncBatch(self, Pending(self._calls, rows, kept_max))


class Batch(BatchVerbs, Waiting):
    """Events of a client that waits: they are sent at the end of the ``with``, at the latest."""

    def __init__(self, model: Model, pending: Pending) -> None:
        super().__init__(model, pending)
        self.drive = model.drive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()


class AsyncBatch(BatchVerbs, Awaited):
    """Events of a client for asyncio; use from one task."""

    def __init__(self, model: AsyncModel, pending: Pending) -> None:
        super().__init__(model, pending)
        self.drive = model.drive

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.flush()


class _OfModels:
    """The verbs of a model that a client has itself; the model's name comes first."""

    predict = of_model(ModelVerbs.predict)
    predict_many = of_model(ModelVerbs.predict_many)
    feedback = of_model(ModelVerbs.feedback)
    feedback_many = of_model(ModelVerbs.feedback_many)
    status = of_model(ModelVerbs.status)


class Client(_OfModels, Waiting):
    """A client that waits for each answer.  Use from one thread, or one a thread.

    Parameters:
        url: Of the service, as ``http://host:port``.
        token: Sent with each request; predict, feedback and reading the state have roles of their
            own.
        timeout_s: Of one attempt, in seconds.
        retry: How often and how long a call is repeated.
        connections: Most that are open at the same time.
        sleep: Waits so many seconds; another one for tests.
        surroundings: Randomness, time and ids, for tests.
        transport: Of httpx, for tests or a proxy.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 20.0,
        retry: Retry = Retry(),  # noqa: B008  # frozen
        connections: int = 10,
        sleep: Callable[[float], None] = time.sleep,
        surroundings: Surroundings | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url, self._calls = url, Calls(retry, surroundings or Surroundings())
        self.drive = Drive(_of_http(url, token, timeout_s, connections, transport), sleep)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<client of {self._url}>"

    def close(self) -> None:
        """Close the client's connections to the service."""
        self.drive.close()

    def model(self, name: str) -> Model:
        """One model of the service; nothing is asked."""
        return Model(self._calls, self.drive, name)

    def batch(self, model: str, *, rows: int = 100, kept_max: int = 10_000) -> Batch:
        """A place to put events, which are sent ``rows`` at a time."""
        return self.model(model).batch(rows=rows, kept_max=kept_max)


class AsyncClient(_OfModels, Awaited):
    """The same client for asyncio: see :class:`Client`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 20.0,
        retry: Retry = Retry(),  # noqa: B008  # frozen
        connections: int = 10,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        surroundings: Surroundings | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, self._calls = url, Calls(retry, surroundings or Surroundings())
        self.drive = AsyncDrive(_of_http(url, token, timeout_s, connections, transport), sleep)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<client of {self._url} for asyncio>"

    async def close(self) -> None:
        """Close the client's connections to the service."""
        await self.drive.close()

    def model(self, name: str) -> AsyncModel:
        """One model of the service; nothing is asked."""
        return AsyncModel(self._calls, self.drive, name)

    def batch(self, model: str, *, rows: int = 100, kept_max: int = 10_000) -> AsyncBatch:
        """A place to put events, which are sent ``rows`` at a time."""
        return self.model(model).batch(rows=rows, kept_max=kept_max)


def _of_http(
    url: str, token: str | None, timeout_s: float, connections: int, transport: Any
) -> dict[str, Any]:
    return {
        "base_url": url,
        "headers": bearer(token),
        "timeout": timeout_s,
        "limits": httpx.Limits(max_connections=connections),
        "transport": transport,
    }
