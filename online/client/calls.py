"""Protocol logic of the client: which requests are sent and retried, and what the result is.

An operation is a generator: it yields requests and receives replies until it returns a result, or
raises an exception that says whether something may have been recorded.  It does no I/O; time comes
from a clock that is passed in.  Retries are safe: predictions change no state, and feedback always
has an id by which repeats are counted once.
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec
from msgspec.structs import replace

from online.errors import ClientError
from online.messages.structs import ErrorAnswer, ErrorBody, Event, Prediction, Receipt, Receipts

Label = str | bool | int | float
T = TypeVar("T")

_RECEIPTS: Final = (409, 410, 422)  # either a receipt or an error: the body tells
_AGAIN: Final = (408, 429, 500, 502, 503, 504)
_MAYBE_RECORDED: Final = frozenset(
    {"internal", "journal_unavailable", "replica_ended"}
)  # errors.md
_IN_VAIN: Final = frozenset(  # not retried: for operators, or (too_old) for the caller to decide
    {"not_finite", "journal_full", "journal_refused", "too_old", "unjudged"}
)
_ROW_AGAIN: Final = frozenset(
    {
        "busy",
        "queue_full",
        "joins_full",
        "journal_held",
        "journal_unavailable",
        "stopping",
        "internal",
    }
)
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)

_json: Final = msgspec.json.Encoder().encode


class ServiceRefused(ClientError):
    """The service refused the request, and would refuse it again.

    ``code``, ``field`` and ``hint`` are those of the response; see docs/errors.md.  ``definite`` is
    false if an earlier attempt, or another program that answered, may have recorded something.
    """

    status: int
    code: str
    message: str
    field: str | None
    hint: str | None
    definite: bool = True

    def __str__(self) -> str:
        at = f" (field {self.field})" if self.field else ""
        hint = f". {self.hint}" if self.hint else ""
        return f"{self.status} {self.code}: {self.message}{at}{hint}"


class ServiceUnavailable(ClientError):
    """No result within the attempts and the time of the retry policy.

    ``definite`` is false if an attempt may have been recorded: send ``events`` later
    (``feedback_many``), which have the ids that were sent; each counts once.
    """

    attempts: int
    seconds: float
    last: str
    definite: bool
    events: tuple[Event, ...] = ()

    def __str__(self) -> str:
        remedy = (
            "Nothing was recorded"
            if self.definite
            else "It may have been recorded: send it again with the same id (this error's events)"
        )
        return f"gave up after {self.attempts} tries, {self.seconds:.1f} s: {self.last}. {remedy}"


class OutcomeUnknown(ServiceUnavailable):
    """No response to an operator's request, which may have been carried out."""

    def __str__(self) -> str:
        return f"{self.last}. It may have been done: look at the status before you ask again"


class NotIncluded(ClientError):
    """No replica that answered had learned the row of ``after`` within the policy's time."""

    after: str
    attempts: int
    text = "row {after} is in no model that answered, {attempts} tries"


@dataclass(frozen=True, slots=True)
class Retry:
    """The retry policy of a call.

    Attributes:
        attempts: Most attempts of one request, the first one included (≥ 1).
        give_up_s: No attempt begins later than this after the first one, in seconds.
        base_s, cap_s: The pause before the n-th repeat is drawn uniformly from 0 to
            ``base_s`` · 2ⁿ⁻¹, at most ``cap_s``, so that callers which failed together do not retry
            together.  It is never shorter than the response's ``Retry-After``.
    """

    attempts: int = 8
    give_up_s: float = 30.0
    base_s: float = 0.1
    cap_s: float = 5.0

    def pause_s(self, repeat: int, share: float, retry_after_s: float) -> float:
        """Seconds before the ``repeat``-th repeat (from 1); ``share`` is drawn from [0, 1)."""
        return max(share * min(self.cap_s, self.base_s * 2.0 ** (repeat - 1)), retry_after_s)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Sources of randomness, time and ids of a client; replaced in tests.

    Attributes:
        rng: Draws the pauses before repeats.
        monotonic_s: A monotonic clock, in seconds.
        new_id: Makes ids for events without one.
    """

    rng: random.Random = field(default_factory=random.Random)
    monotonic_s: Callable[[], float] = time.monotonic
    new_id: Callable[[], str] = lambda: uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; ``timeout_s``: of one attempt, None: the client's."""

    method: str
    path: str
    body: bytes | None
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """The response, or a ``failure``; ``sent`` is false if the request was never sent."""

    status: int = 0
    body: bytes = b""
    retry_after_s: float = 0.0
    failure: str | None = None
    sent: bool = True


Steps = Generator[Request | float, Reply | None, T]  # a float is a pause in seconds


def reply_of(response: httpx.Response) -> Reply:
    try:
        after = max(float(response.headers.get("retry-after", 0)), 0.0)
    except ValueError:  # a date, as a proxy may send
        after = 0.0
    return Reply(response.status_code, response.content, after)


def failure_of(error: httpx.TransportError) -> Reply:
    return Reply(failure=repr(error), sent=not isinstance(error, _NOT_SENT))


def _error(reply: Reply) -> ErrorBody | None:
    """The service's own error; None if a proxy in front of it answered."""
    try:
        return msgspec.json.decode(reply.body, type=ErrorAnswer).error
    except msgspec.DecodeError:
        return None


class Calls:
    """Makes the operations as generators of steps."""

    def __init__(self, retry: Retry, surroundings: Surroundings) -> None:
        self._retry, self._rng = retry, surroundings.rng
        self._monotonic_s, self.new_id = surroundings.monotonic_s, surroundings.new_id

    def send(self, request: Request, receipts: bool = False, *, twice: bool = True) -> Steps[Reply]:
        """Send a request until there is a final reply, and return it.

        Parameters:
            receipts: Receipts with an error status are final replies, too.
            twice: False: do not repeat unless it is certain that nothing was done.
        """
        begun = self._monotonic_s()
        definite = True
        for attempt in range(1, self._retry.attempts + 1):
            reply = yield request
            assert reply is not None
            error = None if reply.failure else _error(reply)
            if reply.failure is None:
                if reply.status // 100 == 2 or (receipts and error is None and _is_receipt(reply)):
                    return reply
                if not _again(reply, error):
                    raise _refused(reply, error, definite)
            definite &= _not_recorded(reply, error)
            reason = reply.failure or f"{reply.status} {error.code if error else 'no error body'}"
            if not twice and reply.sent and reply.status != 429:
                raise OutcomeUnknown(attempt, self._monotonic_s() - begun, reason, definite=False)
            pause = self._retry.pause_s(attempt, self._rng.random(), reply.retry_after_s)
            elapsed = self._monotonic_s() - begun
            if attempt == self._retry.attempts or elapsed + pause > self._retry.give_up_s:
                raise ServiceUnavailable(attempt, elapsed, reason, definite)
            yield pause
        raise AssertionError("attempts is below 1")

    def ask(
        self, request: Request, kind: type[T], receipts: bool = False, *, twice: bool = True
    ) -> Steps[T]:
        """Send a request as :meth:`send` does, and return the reply's body."""
        reply = yield from self.send(request, receipts, twice=twice)
        try:
            return msgspec.json.decode(reply.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError):  # such as a page to log in to a network
            raise _refused(reply, None, request.method == "GET") from None

    def predict(self, model: str, body: dict[str, Any], kind: type[T]) -> Steps[T]:
        request = Request("POST", f"/v1/models/{quote(model, '')}/predict", _json(body))
        return (yield from self.ask(request, kind))

    def included(self, model: str, body: dict[str, Any]) -> Steps[Prediction]:
        """Repeat a prediction until the replica that answers has learned the row."""
        begun = self._monotonic_s()
        for attempt in range(1, self._retry.attempts + 1):
            answer = yield from self.predict(model, body, Prediction)
            if answer.includes is True:
                return answer
            pause = self._retry.pause_s(attempt, self._rng.random(), 0.0)
            if self._monotonic_s() - begun + pause > self._retry.give_up_s:
                break
            yield pause
        raise NotIncluded(body["after"], attempt)

    def named(self, event: Event) -> Event:
        """Add an id to an event without one, so that repeats are safe."""
        if event.id is not None or event.event_id is not None:
            return event
        return replace(event, event_id=self.new_id())

    def feedback(self, model: str, event: Event) -> Steps[Receipt]:
        named = self.named(event)
        request = Request("POST", _feedback(model), _json(_body(named)))
        with _keeping((named,)):
            return (yield from self.ask(request, Receipt, receipts=True))

    def many(self, model: str, events: Sequence[Event]) -> Steps[list[Receipt]]:
        """Send events; returns receipts in order.  Events refused for lack of room are repeated."""
        named = [self.named(event) for event in events]
        answered: list[Receipt | None] = [None] * len(named)
        left = list(range(len(named)))
        begun = self._monotonic_s()
        for attempt in range(1, self._retry.attempts + 1):
            body = _json({"events": [_body(named[i]) for i in left]})
            try:
                with _keeping(named):
                    answer = yield from self.ask(Request("POST", _feedback(model), body), Receipts)
            except (ServiceRefused, ServiceUnavailable) as error:
                if attempt == 1 or not error.definite:
                    raise
                break  # of these nothing was recorded, as their receipts say; of the others it was
            receipts = answer.events
            for i, receipt in zip(left, receipts, strict=True):
                answered[i] = receipt
            left = [i for i, r in zip(left, receipts, strict=True) if waits(r)]
            pause = self._retry.pause_s(attempt, self._rng.random(), 0.0)
            if not left or self._monotonic_s() - begun + pause > self._retry.give_up_s:
                break
            if attempt < self._retry.attempts:
                yield pause
        return [receipt for receipt in answered if receipt is not None]


@contextlib.contextmanager
def _keeping(events: Sequence[Event]) -> Iterator[None]:
    """Give an error without a final reply the events with their ids, which may be made here."""
    try:
        yield
    except ServiceUnavailable as error:
        error.events = tuple(events)
        raise


def _feedback(model: str) -> str:
    return f"/v1/models/{quote(model, '')}/feedback"


def _body(event: Event) -> dict[str, Any]:
    """Return the event as plain data, without default values."""
    data = {name: getattr(event, name) for name in event.__struct_fields__}
    if not event.provisional:  # older services do not know this field
        del data["provisional"]
    return {k: v for k, v in data.items() if v is not None and v is not msgspec.UNSET}


def _is_receipt(reply: Reply) -> bool:
    if reply.status not in _RECEIPTS:
        return False
    try:
        msgspec.json.decode(reply.body, type=Receipt)
    except msgspec.DecodeError:
        return False
    return True


def waits(receipt: Receipt) -> bool:
    """Whether the event was refused for lack of room, so it should be sent again."""
    return isinstance(receipt.error, dict) and receipt.error.get("code") in _ROW_AGAIN


def _again(reply: Reply, error: ErrorBody | None) -> bool:
    if error is None:  # of a proxy, which answers 404 until the application is up
        return reply.status in (*_AGAIN, 404)
    return reply.status in _AGAIN and error.code not in _IN_VAIN


def _not_recorded(reply: Reply, error: ErrorBody | None) -> bool:
    """Whether it is certain that nothing was recorded, by docs/errors.md."""
    if reply.failure is not None:
        return not reply.sent
    return error is not None and error.code not in _MAYBE_RECORDED


def _refused(reply: Reply, error: ErrorBody | None, definite: bool) -> ServiceRefused:
    if error is None:
        text = reply.body[:200].decode("latin-1")
        hint = "Another program answers there: check the URL, and proxies in front of the service"
        error = ErrorBody("not_ours", text, None, hint)
    return ServiceRefused(
        reply.status, error.code, error.message, error.field, error.hint, definite
    )


def row(
    features: Mapping[str, Any],
    id: str | None,
    max_age_ms: float | None,
    after: str | None,
    details: bool | None = None,
    explain: bool | None = None,
    nearest: int | None = None,
) -> dict[str, Any]:
    given = {
        "features": features, "id": id, "max_age_ms": max_age_ms, "after": after,
        "details": details, "explain": explain, "nearest": nearest,
    }  # fmt: skip
    return {name: value for name, value in given.items() if value is not None}
