"""Serves single predictions and feedback events from the connection's callback, without a task.

Handing a request to an ASGI application (a task and several layers of coroutines) costs about as
much as learning from an event.  A request head that was served once in the normal way is cached,
together with its caller, permission, model and format.  So a body behind the same head bytes
(:mod:`online.service.parts.head_cache`) is decoded at once.  A prediction of one row is answered
immediately; an event is batched with the others of the same loop turn, and the answers of one
commit are written in one turn.  Every other request takes the normal way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Final, Protocol

from online.errors import RequestError
from online.http.access import RequestIds
from online.http.refusing import answer_of
from online.http.ring import Ring
from online.http.unread_answers import UnreadAnswers
from online.http.whole_answers import written
from online.messages.bodies import Format, Send
from online.messages.structs import FeedbackRequest, PredictRequest, Receipt
from online.replica.pending import Recorded
from online.serving.event_batcher import Place
from online.serving.ordinary import EventRow
from online.serving.serving import Serving

_AT_ONCE: Final = 16
"""Answers sent in one turn of the event loop: a third of a millisecond."""

_FEEDBACK: Final = "feedback"
_ID: Final = b"x-request-id"
_PARENT: Final = b"traceparent"


class Sending(Protocol):
    """Sends any answer, as :meth:`online.http.app.App._send` does."""

    async def __call__(
        self, send: Send, status: int, kind: bytes, body: bytes,
        headers: list[tuple[bytes, bytes]], model: str,
    ) -> None: ...  # fmt: skip


@dataclass(frozen=True, slots=True)
class Around:
    """The parts of the application that direct requests need.

    Attributes:
        servings, live: Handlers and live buffers by model, which may be replaced at any time.
        free: Returns whether there is room for another request beside that many direct ones.
        drawn: Decides at random whether a request is traced; None: tracing is off.
        body_bytes_max: Largest size of a body in bytes.
    """

    servings: Mapping[str, Serving]
    live: Mapping[str, Ring]
    ids: RequestIds
    untaken: UnreadAnswers
    send: Sending
    free: Callable[[int], bool]
    drawn: Callable[[], bool] | None
    body_bytes_max: int


_Body = PredictRequest | FeedbackRequest


def _is_short(asked: _Body) -> bool:
    """Whether the request is about one row, and quick to answer."""
    if isinstance(asked, FeedbackRequest):
        return asked.events is None
    return not (asked.explain or asked.nearest) and asked.instances is None


class Direct:
    """Attaches direct ways to request heads, and sends the answers of events.

    Attributes:
        under_way: Number of direct requests without an answer yet.
    """

    def __init__(self, around: Around) -> None:
        self.around, self.under_way = around, 0
        self._told: list[_One] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(
        self, send: Send, asked: _Body, model: str, form: Format, given: Mapping[bytes, bytes]
    ) -> None:
        """Attach a way to the head of this admitted request, for later bodies with that head."""
        head: Any = getattr(getattr(send, "__self__", None), "head", None)
        if head is not None and head.way is None and _is_short(asked):
            kind = Questions if isinstance(asked, PredictRequest) else Events
            head.way = kind(self, model, form, given, copy_context())

    def told(self, one: _One) -> None:
        """Send the event's answer in the next turn, together with others."""
        self._told.append(one)
        if len(self._told) == 1:
            asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        some, self._told = self._told[:_AT_ONCE], self._told[_AT_ONCE:]
        if self._told:
            asyncio.get_running_loop().call_soon(self._answer)
        for one in some:
            try:
                one.answer()
            except Exception as error:  # fail this answer only, not the others
                one.error = error
                self.later(one.tell(None), one.way.context)

    def later(self, answering: Coroutine[Any, Any, None], context: Context) -> None:
        """Answer by a task, in the context of the request."""
        task = context.run(asyncio.get_running_loop().create_task, answering)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Way:
    """Handles the bodies that follow one cached head.

    Parameters:
        given: The headers of the head.
        context: The context in which the request was admitted, including its sender.
    """

    __slots__ = ("context", "direct", "form", "given", "model")

    def __init__(
        self, direct: Direct, model: str, form: Format, given: Mapping[bytes, bytes],
        context: Context,
    ) -> None:  # fmt: skip
        self.direct, self.model, self.form = direct, model, form
        self.given, self.context = given, context

    def takes(self, cycle: Any, body: bytes) -> bool:
        """Take a body, if it can be handled directly; return whether it was.

        ``cycle`` is uvicorn's request, without body or scope of its own.
        """
        around = self.direct.around
        serving = around.servings.get(self.model)
        if serving is None or len(body) > around.body_bytes_max:
            return False
        if not around.free(self.direct.under_way) or self._traced(cycle):
            return False
        return self.goes(serving, cycle, body)

    def _traced(self, cycle: Any) -> bool:
        """Whether the request is traced, or may be; then it takes the normal way."""
        if (drawn := self.direct.around.drawn) is None:
            return False
        if _PARENT in self.given:  # the caller decides
            return True
        traced: bool = drawn()
        cycle.traced = traced  # the normal way does not draw again
        return traced

    def goes(self, serving: Serving, cycle: Any, body: bytes) -> bool:
        """Handle the body by this kind of request; return whether it could be."""
        raise NotImplementedError

    def refused(
        self, serving: Serving, action: str, error: Exception, request_id: bytes
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        """Count an error; return the status, body and headers of its answer."""
        if isinstance(error, RequestError):
            serving.replica.counts[f"{action}_refused_{error.code}"] += 1
        return answer_of(error, f"{action} {self.model}, request {request_id.decode()}", self.form)

    def leaves(
        self, cycle: Any, status: int, body: bytes, request_id: bytes,
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:  # fmt: skip
        """Send an answer, by a task if uvicorn would not write it at once."""
        if not more and written(cycle.send, status, self.form.content_type, body, request_id):
            self._ends(cycle)
        else:
            headers = [(_ID, request_id), *more]
            self.direct.later(self._send(cycle, status, body, headers), self.context)

    async def _send(
        self, cycle: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        kind, send = self.form.content_type, self.direct.around.send
        try:
            await send(cycle.send, status, kind, body, headers, self.model)
        finally:
            self._ends(cycle)

    def _ends(self, cycle: Any) -> None:
        self.direct.under_way -= 1
        self.direct.around.untaken.ends(cycle.receive, cycle.scope["path"])


class Questions(Way):
    """Handles predictions, which are answered at once."""

    __slots__ = ()

    def goes(self, serving: Serving, cycle: Any, body: bytes) -> bool:
        """Answer a prediction for one row, if it needs nothing beyond the model."""
        begun_s, around = perf_counter(), self.direct.around
        try:
            asked = self.form.predict(body)
        except Exception:  # the usual way reports the error
            return False
        if not _is_short(asked):
            return False
        around.untaken.begins(cycle.receive)
        self.direct.under_way += 1
        request_id = around.ids.of(self.given)
        more: Sequence[tuple[bytes, bytes]] = ()
        try:
            said = self.context.run(serving.predict, asked)
            status, answer = 200, self.form.encode(said)
            if (live := around.live[self.model]).watched:
                live.take(asked, said, len(body))
        except Exception as error:
            status, answer, more = self.refused(serving, "predict", error, request_id)
        serving.replica.answered("predict", perf_counter() - begun_s)
        self.leaves(cycle, status, answer, request_id, more)
        return True


class Events(Way):
    """Handles feedback of single events."""

    __slots__ = ()

    def goes(self, serving: Serving, cycle: Any, body: bytes) -> bool:
        """Batch an event with others of the same turn; a label by id is recorded in a task."""
        direct, begun_s = self.direct, perf_counter()
        try:
            event = self.form.feedback(body)
        except Exception:  # the usual way reports the error
            return False
        if not _is_short(event):
            return False
        direct.around.untaken.begins(cycle.receive)
        direct.under_way += 1
        if event.id is not None:
            direct.later(self.by_itself(serving, cycle, event, len(body), begun_s), self.context)
            return True
        one = _One(self, serving, cycle, event, len(body))
        one.place = self.context.run(serving.alone.take, event, one)
        return True

    async def by_itself(
        self, serving: Serving, cycle: Any, event: FeedbackRequest, size: int, begun_s: float
    ) -> None:
        """Record an event that is read by itself, as a label by id is, and answer."""
        request_id = self.direct.around.ids.of(self.given)
        more: Sequence[tuple[bytes, bytes]] = ()
        try:
            status, receipt = await serving.alone.feedback(event)
            body = self.encoded(event, receipt, size)
        except Exception as error:
            status, body, more = self.refused(serving, _FEEDBACK, error, request_id)
        serving.replica.answered(_FEEDBACK, perf_counter() - begun_s)
        self.leaves(cycle, status, body, request_id, more)

    def encoded(self, event: FeedbackRequest, receipt: Receipt, size: int) -> bytes:
        """Encode the receipt, and record the event for live viewers."""
        if (live := self.direct.around.live[self.model]).watched:
            live.take(event, receipt, size)
        return self.form.encode(receipt)


class _One:
    """One direct event; it has the methods of a future that the writer uses."""

    __slots__ = (
        "begun_s", "cycle", "ended", "error", "event", "place", "recorded", "serving", "size",
        "way",
    )  # fmt: skip

    def __init__(
        self, way: Events, serving: Serving, cycle: Any, event: FeedbackRequest, size: int
    ) -> None:  # fmt: skip
        self.way, self.serving, self.cycle, self.event = way, serving, cycle, event
        self.size, self.begun_s = size, perf_counter()
        self.ended = False
        self.recorded: Recorded | None = None
        self.error: Exception | None = None
        self.place: Place | None = None

    def done(self) -> bool:
        """Whether the outcome or an error is set."""
        return self.ended

    def set_result(self, result: Recorded | None, /) -> None:
        """Set the outcome; None: the event has to be read by itself."""
        self.ended, self.recorded = True, result
        self.way.direct.told(self)

    def set_exception(self, exception: RequestError, /) -> None:
        """Set the error of the event."""
        self.ended, self.error = True, exception
        self.way.direct.told(self)

    def exception(self) -> BaseException | None:
        """Return the error, if it is set."""
        return self.error

    def answer(self) -> None:
        """Answer a learned event at once, and any other by a task."""
        way, recorded, asked = self.way, self.recorded, None
        if recorded is None and self.error is None:
            # Not in the normal way, which reads no body once the caller has gone.
            alone = way.by_itself(self.serving, self.cycle, self.event, self.size, self.begun_s)
            way.direct.later(alone, way.context)
            return
        if recorded is not None and self.place is not None:
            asked = self.place.asked
        if asked is None or recorded is None:
            way.direct.later(self.tell(asked), way.context)
            return
        if (receipt := self.serving.alone.told_at_once(asked, recorded)) is None:
            way.direct.later(self.tell(asked), way.context)
            return
        self._leaves(
            200, way.encoded(self.event, receipt, self.size), way.direct.around.ids.of(way.given)
        )

    async def tell(self, asked: EventRow | None) -> None:
        """Answer an event whose receipt needs more than its outcome."""
        way = self.way
        request_id = way.direct.around.ids.of(way.given)
        more: Sequence[tuple[bytes, bytes]] = ()
        try:
            if self.error is not None:
                raise self.error
            assert asked is not None
            assert self.recorded is not None
            status, receipt = await self.serving.alone.told(asked, self.recorded)
            body = way.encoded(self.event, receipt, self.size)
        except Exception as error:
            status, body, more = way.refused(self.serving, _FEEDBACK, error, request_id)
        self._leaves(status, body, request_id, more)

    def _leaves(
        self, status: int, body: bytes, request_id: bytes,
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:  # fmt: skip
        self.serving.replica.answered(_FEEDBACK, perf_counter() - self.begun_s)
        self.way.leaves(self.cycle, status, body, request_id, more)
