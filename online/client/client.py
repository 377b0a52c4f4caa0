"""A client of the service for programs: typed answers, safe retries, batches of feedback.

Each call is one operation that ends with a result or with an exception that says whether something
may have been recorded.  Meanwhile requests are retried where that is safe: predictions change no
state, and feedback always has an id by which repeats are counted once.

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
from online.client.simple_client import bearer
from online.client.verbs import BatchVerbs, ModelVerbs, Pending


class Model(ModelVerbs, Waiting):
    """One model of a service.  Use it from one thread only."""

    def __init__(self, calls: Calls, drive: Drive, name: str) -> None:
        super().__init__(calls, name)
        self.drive = drive

    def batch(self, *, rows: int = 100, kept_max: int = 10_000) -> Batch:
        """Make a batch of events, which are sent ``rows`` at a time."""
        return Batch(self, Pending(self._calls, rows, kept_max))

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows: the model's status."""
        return self.status()._repr_html_()


class AsyncModel(ModelVerbs, Awaited):
    """One model of a service, for asyncio: see :class:`Model`."""

    def __init__(self, calls: Calls, drive: AsyncDrive, name: str) -> None:
        super().__init__(calls, name)
        self.drive = drive

    def batch(self, *, rows: int = 100, kept_max: int = 10_000) -> AsyncBatch:
        """Make a batch of events, which are sent ``rows`` at a time."""
        return AsyncBatch(self, Pending(self._calls, rows, kept_max))


class Batch(BatchVerbs, Waiting):
    """A batch of events for the sync client; the end of the ``with`` block sends the rest."""

    def __init__(self, model: Model, pending: Pending) -> None:
        super().__init__(model, pending)
        self.drive = model.drive

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()


class AsyncBatch(BatchVerbs, Awaited):
    """A batch of events for the async client; use it from one task only."""

    def __init__(self, model: AsyncModel, pending: Pending) -> None:
        super().__init__(model, pending)
        self.drive = model.drive

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.flush()


class _OfModels:
    """Methods of a model on the client itself, with the model's name as first argument."""

    predict = of_model(ModelVerbs.predict)
    predict_many = of_model(ModelVerbs.predict_many)
    feedback = of_model(ModelVerbs.feedback)
    feedback_many = of_model(ModelVerbs.feedback_many)
    status = of_model(ModelVerbs.status)


class Client(_OfModels, Waiting):
    """A client that blocks until each answer.  Use it from one thread, or make one per thread.

    Parameters:
        url: URL of the service, as ``http://host:port``.
        token: Sent with each request; predictions, feedback and reading the state need different
            roles.
        timeout_s: Timeout of one attempt, in seconds.
        retry: How often and how long a request is retried.
        connections: Most open connections.
        sleep: Waits for a number of seconds; replaced in tests.
        surroundings: Randomness, time and ids; replaced in tests.
        transport: Transport of httpx, for tests or a proxy.
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
        """One model of the service; sends no request."""
        return Model(self._calls, self.drive, name)

    def batch(self, model: str, *, rows: int = 100, kept_max: int = 10_000) -> Batch:
        """Make a batch of events, which are sent ``rows`` at a time."""
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
        """One model of the service; sends no request."""
        return AsyncModel(self._calls, self.drive, name)

    def batch(self, model: str, *, rows: int = 100, kept_max: int = 10_000) -> AsyncBatch:
        """Make a batch of events, which are sent ``rows`` at a time."""
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
