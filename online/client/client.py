"""A client of the service for programs: typed answers, safe repeats, feedback in batches.

One call is one operation that ends with an outcome: what was answered, or an exception that says
whether something may have been recorded.  Between them a call is sent again where that is safe:
predictions change nothing, and feedback always goes with an id that makes a repeat count once.

>>> from online.client import Client
>>> with Client("http://127.0.0.1:8000") as client:                           # doctest: +SKIP
...     asked = client.predict("phishing", {"a": 1.0})
...     receipt = client.feedback("phishing", True, id=asked.id)
...     client.predict("phishing", {"a": 1.0}, after=receipt.seen).includes
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx

from online.client.calls import (
    Calls,
    ClientError,
    Label,
    NotANumber,
    NotIncluded,
    Reply,
    Retry,
    ServiceRefused,
    ServiceUnavailable,
    Steps,
    event_of,
    failure_of,
    reply_of,
    row,
    rows_of,
    waits,
)
from online.messages.bearer import bearer
from online.messages.structs import Event, Prediction, Predictions, Receipt

__all__ = [
    "AsyncClient", "Client", "ClientError", "Event", "NotANumber", "NotIncluded", "Prediction",
    "Predictions", "Receipt", "Retry", "ServiceRefused", "ServiceUnavailable",
]  # fmt: skip

T = TypeVar("T")


class Client:
    """A client that waits for each answer.  Use from one thread, or one a thread.

    Parameters
    ----------
    url
        Of the service, as ``http://host:port``.
    token
        Sent with each request; predict, feedback and reading the state have roles of their own.
    timeout_s
        Of one attempt, in seconds.
    retry
        How often and how long a call is repeated.
    rng, sleep, monotonic_s, new_id
        Randomness, waiting, time and ids, for tests; ``new_id`` names events that have no id.
    transport
        Of httpx, for tests or a proxy.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 20.0,
        retry: Retry = Retry(),  # noqa: B008  # frozen
        rng: random.Random | None = None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic_s: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._calls = Calls(retry, rng or random.Random(), monotonic_s, new_id)
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=url, headers=bearer(token), timeout=timeout_s, transport=transport
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the client's connections to the service."""
        self._http.close()

    def predict(
        self,
        model: str,
        features: Mapping[str, Any],
        *,
        id: str | None = None,
        max_age_ms: float | None = None,
        after: str | None = None,
        until_included: bool = False,
    ) -> Prediction:
        """The answer to one row.

        ``after`` is ``seen`` of a receipt: the answer's ``includes`` says whether the model has
        learned that row.  With ``until_included`` the question is repeated until one has, else
        NotIncluded is raised.  Raises ClientError.
        """
        body = row(features, id, max_age_ms, after)
        if until_included and after is not None:
            return self._run(self._calls.included(model, body))
        return self._run(self._calls.predict(model, body, Prediction))

    def predict_many(
        self,
        model: str,
        instances: Sequence[Mapping[str, Any]],
        *,
        ids: bool = False,
        max_age_ms: float | None = None,
    ) -> Predictions:
        """Answers to many rows by one model; with ``ids`` each has an id for its label."""
        body = rows_of(instances, ids, max_age_ms)
        return self._run(self._calls.predict(model, body, Predictions))

    def feedback(
        self,
        model: str,
        label: Label,
        *,
        id: str | None = None,
        features: Mapping[str, Any] | None = None,
        event_id: str | None = None,
        **more: Any,
    ) -> Receipt:
        """Send the label of a prediction (``id``) or of features; what became of it.

        Without an id of either kind one is made up, so that a repeat counts once.  ``more`` is
        ``source``, ``weight`` and ``event_time``.  A ``conflict``, ``expired`` or ``failed`` is a
        receipt, too: read ``status``.  Raises ClientError.
        """
        return self._run(self._calls.feedback(model, event_of(label, id, features, event_id, more)))

    def feedback_many(self, model: str, events: Sequence[Event]) -> list[Receipt]:
        """Send many events in one body, at most ``limits.rows_max``; a receipt each, in order.

        A ``refused`` receipt has the reason in ``error``.  Raises ClientError.
        """
        return self._run(self._calls.many(model, events))

    def status(self, model: str) -> dict[str, Any]:
        """Return what the service says of the model (docs/monitoring.md).  Raises ClientError."""
        found: dict[str, Any] = self._run(self._calls.get(f"/v1/models/{quote(model, '')}"))
        return found

    def batch(self, model: str, *, rows: int = 100, kept_max: int = 10_000) -> Batch:
        """A place to put events, which are sent ``rows`` at a time."""
        return Batch(self, model, Pending(self._calls, rows, kept_max))

    def _run(self, steps: Steps[T]) -> T:
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
                response = self._http.request(step.method, step.path, content=step.body)
                reply = reply_of(response)
            except httpx.TransportError as error:
                reply = failure_of(error)


class AsyncClient:
    """The same client for asyncio: see :class:`Client`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 20.0,
        retry: Retry = Retry(),  # noqa: B008  # frozen
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        monotonic_s: Callable[[], float] = time.monotonic,
        new_id: Callable[[], str] = lambda: uuid.uuid4().hex,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._calls = Calls(retry, rng or random.Random(), monotonic_s, new_id)
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            base_url=url, headers=bearer(token), timeout=timeout_s, transport=transport
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the client's connections to the service."""
        await self._http.aclose()

    async def predict(
        self,
        model: str,
        features: Mapping[str, Any],
        *,
        id: str | None = None,
        max_age_ms: float | None = None,
        after: str | None = None,
        until_included: bool = False,
    ) -> Prediction:
        """Return the answer to one row, as :meth:`Client.predict` does."""
        body = row(features, id, max_age_ms, after)
        if until_included and after is not None:
            return await self._run(self._calls.included(model, body))
        return await self._run(self._calls.predict(model, body, Prediction))

    async def predict_many(
        self,
        model: str,
        instances: Sequence[Mapping[str, Any]],
        *,
        ids: bool = False,
        max_age_ms: float | None = None,
    ) -> Predictions:
        """Return the answers to many rows, as :meth:`Client.predict_many` does."""
        body = rows_of(instances, ids, max_age_ms)
        return await self._run(self._calls.predict(model, body, Predictions))

    async def feedback(
        self,
        model: str,
        label: Label,
        *,
        id: str | None = None,
        features: Mapping[str, Any] | None = None,
        event_id: str | None = None,
        **more: Any,
    ) -> Receipt:
        """Send the label of a prediction or of features, as :meth:`Client.feedback` does."""
        event = event_of(label, id, features, event_id, more)
        return await self._run(self._calls.feedback(model, event))

    async def feedback_many(self, model: str, events: Sequence[Event]) -> list[Receipt]:
        """Send many events in one body, as :meth:`Client.feedback_many` does."""
        return await self._run(self._calls.many(model, events))

    async def status(self, model: str) -> dict[str, Any]:
        """Return what the service says of the model, as :meth:`Client.status` does."""
        found: dict[str, Any] = await self._run(self._calls.get(f"/v1/models/{quote(model, '')}"))
        return found

    def batch(self, model: str, *, rows: int = 100, kept_max: int = 10_000) -> AsyncBatch:
        """Return a place to put events, as :meth:`Client.batch` does."""
        return AsyncBatch(self, model, Pending(self._calls, rows, kept_max))

    async def _run(self, steps: Steps[T]) -> T:
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
                response = await self._http.request(step.method, step.path, content=step.body)
                reply = reply_of(response)
            except httpx.TransportError as error:
                reply = failure_of(error)


class Pending:
    """Events that wait to be sent, in their order, each with an id that makes a repeat safe.

    An event leaves when it has a receipt that says what became of it.  What could not be sent, or
    was refused for want of room, stays.
    """

    def __init__(self, calls: Calls, rows: int, kept_max: int) -> None:
        self._calls, self._rows, self.kept_max = calls, rows, kept_max
        self._events: list[Event] = []

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> bool:
        """Whether there are enough to be sent."""
        self._events.append(self._calls.named(event))
        return len(self._events) >= self._rows

    def next(self) -> list[Event]:
        """Those to be sent in the next body."""
        return self._events[: self._rows]

    def sent(self, events: Sequence[Event], receipts: Sequence[Receipt]) -> bool:
        """Take out what has an outcome; whether there was any."""
        done = [not waits(receipt) for receipt in receipts]
        kept = [event for event, over in zip(events, done, strict=True) if not over]
        self._events[: len(events)] = kept
        return any(done)


class Batch:
    """Events that go out ``rows`` at a time, and all of them at the end of a ``with``.

    An exception of :meth:`add` or :meth:`flush` leaves the events in it: flush again, with the
    same ids.  ``add`` does not take an event above ``kept_max``.
    """

    def __init__(self, client: Client, model: str, pending: Pending) -> None:
        self._client, self._model, self.pending = client, model, pending

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()

    def add(self, event: Event) -> list[Receipt]:
        """Take an event; receipts of what was sent, which is mostly nothing."""
        if len(self.pending) >= self.pending.kept_max:
            self.flush()
        return self.flush() if self.pending.put(event) else []

    def flush(self) -> list[Receipt]:
        """Send all of them; a receipt each, in order.  Raises ClientError."""
        found: list[Receipt] = []
        while events := self.pending.next():
            receipts = self._client.feedback_many(self._model, events)
            found += receipts
            if not self.pending.sent(events, receipts):
                break
        return found


class AsyncBatch:
    """The same for asyncio: see :class:`Batch`.  Use from one task."""

    def __init__(self, client: AsyncClient, model: str, pending: Pending) -> None:
        self._client, self._model, self.pending = client, model, pending

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.flush()

    async def add(self, event: Event) -> list[Receipt]:
        """Take an event and return receipts, as :meth:`Batch.add` does."""
        if len(self.pending) >= self.pending.kept_max:
            await self.flush()
        return await self.flush() if self.pending.put(event) else []

    async def flush(self) -> list[Receipt]:
        """Send all events and return their receipts, as :meth:`Batch.flush` does."""
        found: list[Receipt] = []
        while events := self.pending.next():
            receipts = await self._client.feedback_many(self._model, events)
            found += receipts
            if not self.pending.sent(events, receipts):
                break
        return found
