"""Serves single requests from the connection's callback, without the ASGI application.

Handing a request to an ASGI application (a task and several layers of coroutines) costs about as
much as learning from an event.  A request head that the application served once is cached,
together with its caller, permission, model and format.  So a body behind the same head bytes
(:mod:`online.service.parts.head_cache`) is decoded at once.  A prediction of one row is answered
immediately; an event is batched with the others of the same loop turn, and the answers of one
commit are written in one turn.  Choices, rewards and labels by id take one task each.  Every other
request goes to the application.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar, Final, Protocol

from online.errors import RequestError
from online.http.connection.unread_answers import UnreadAnswers
from online.http.connection.whole_answers import written
from online.http.middleware.access import Access, RequestIds, admitted_by
from online.http.middleware.refusing import answer_of
from online.http.ring import Ring
from online.messages.bodies import Format, Send
from online.messages.choices import ChooseRequest, RewardRequest
from online.messages.structs import FeedbackRequest, PredictRequest, Receipt
from online.replica.pending import Recorded
from online.serving.choices.choosing import Choosing
from online.serving.choices.slots import answer_choice
from online.serving.feedback.event_batcher import BatchPosition
from online.serving.feedback.ordinary import EventRow
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
class AppParts:
    """The parts of the application that direct requests use.

    Attributes:
        servings, live: Handlers and live buffers by model, which may be replaced at any time.
        choosing: Handlers of choices, for the models that choose.
        has_room: Returns whether one more request is admitted beside that many direct ones.
        draws_trace: Decides at random whether a request is traced; None: tracing is off.
        body_bytes_max: Largest size of a body in bytes.
        access: Access control; None: everybody may do everything.
    """

    servings: Mapping[str, Serving]
    live: Mapping[str, Ring]
    choosing: Mapping[str, Choosing]
    ids: RequestIds
    untaken: UnreadAnswers
    send: Sending
    has_room: Callable[[int], bool]
    draws_trace: Callable[[], bool] | None
    body_bytes_max: int
    access: Access | None


_Body = PredictRequest | FeedbackRequest | ChooseRequest | RewardRequest


def _is_short(request: _Body) -> bool:
    """Whether the request is about one row, and quick to answer."""
    if isinstance(request, FeedbackRequest):
        return request.events is None
    if isinstance(request, RewardRequest):
        return request.rewards is None
    if isinstance(request, ChooseRequest):
        return request.slots is None
    return not (request.explain or request.nearest) and request.instances is None


class Direct:
    """Attaches handlers to cached request heads, and sends the answers of events.

    Attributes:
        under_way: Number of direct requests without an answer yet.
    """

    def __init__(self, app: AppParts) -> None:
        self.app, self.under_way = app, 0
        self._to_answer: list[_DirectEvent] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(
        self, send: Send, request: _Body, model: str, form: Format, headers: Mapping[bytes, bytes]
    ) -> None:
        """Attach a handler to the head of this admitted request, for later bodies behind it."""
        head: Any = getattr(getattr(send, "__self__", None), "head", None)
        if head is not None and head.handler is None and _is_short(request):
            kind = _HANDLERS[type(request)]
            head.handler = kind(self, model, form, headers, copy_context())

    def queue_answer(self, event: _DirectEvent) -> None:
        """Send the event's answer in the next turn, together with others."""
        self._to_answer.append(event)
        if len(self._to_answer) == 1:
            asyncio.get_running_loop().call_soon(self._answer)

    def _answer(self) -> None:
        some, self._to_answer = self._to_answer[:_AT_ONCE], self._to_answer[_AT_ONCE:]
        if self._to_answer:
            asyncio.get_running_loop().call_soon(self._answer)
        for event in some:
            try:
                event.answer()
            except Exception as error:  # fail this answer only, not the others
                event.error = error
                self.answer_by_task(event.answer_later(None), event.handler.context)

    def answer_by_task(self, answering: Coroutine[Any, Any, None], context: Context) -> None:
        """Answer by a task, in the context of the request."""
        task = context.run(asyncio.get_running_loop().create_task, answering)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class HeadHandler(ABC):
    """Handles the bodies that follow one cached head.

    Parameters:
        headers: The headers of the head.
        context: The context in which the request was admitted, including its sender.
    """

    __slots__ = ("admitted_by", "context", "direct", "form", "headers", "model")

    def __init__(
        self, direct: Direct, model: str, form: Format, headers: Mapping[bytes, bytes],
        context: Context,
    ) -> None:  # fmt: skip
        self.direct, self.model, self.form = direct, model, form
        self.headers, self.context = headers, context
        self.admitted_by = admitted_by.get()

    def accept(self, cycle: Any, body: bytes) -> bool:
        """Take a body, if it can be handled directly; return whether it was.

        ``cycle`` is uvicorn's request, without body or scope of its own.
        """
        app = self.direct.app
        serving = app.servings.get(self.model)
        if serving is None or len(body) > app.body_bytes_max:
            return False
        if app.access is not None and app.access.roles is not self.admitted_by:
            return False  # the tokens were renewed since
        if not app.has_room(self.direct.under_way) or self._traced(cycle):
            return False
        return self.handle(serving, cycle, body)

    def _traced(self, cycle: Any) -> bool:
        """Whether the request is traced, or may be; then the application handles it."""
        if (draws_trace := self.direct.app.draws_trace) is None:
            return False
        if _PARENT in self.headers:  # the caller decides
            return True
        traced: bool = draws_trace()
        cycle.traced = traced  # the application does not draw again
        return traced

    @abstractmethod
    def handle(self, serving: Serving, cycle: Any, body: bytes) -> bool:
        """Handle the body of this kind of request; return whether that was possible."""

    def refused(
        self, serving: Serving, action: str, error: Exception, request_id: bytes
    ) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        """Count an error; return the status, body and headers of its answer."""
        if isinstance(error, RequestError):
            serving.replica.counts[f"{action}_refused_{error.code}"] += 1
        return answer_of(error, f"{action} {self.model}, request {request_id.decode()}", self.form)

    def send_answer(
        self, cycle: Any, status: int, body: bytes, request_id: bytes,
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:  # fmt: skip
        """Send an answer, by a task if uvicorn would not write it at once."""
        if not more and written(cycle.send, status, self.form.content_type, body, request_id):
            self._end(cycle)
        else:
            headers = [(_ID, request_id), *more]
            self.direct.answer_by_task(self._send(cycle, status, body, headers), self.context)

    async def _send(
        self, cycle: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        kind, send = self.form.content_type, self.direct.app.send
        try:
            await send(cycle.send, status, kind, body, headers, self.model)
        finally:
            self._end(cycle)

    def _end(self, cycle: Any) -> None:
        self.direct.under_way -= 1
        self.direct.app.untaken.ends(cycle.receive, cycle.scope["path"])


class DirectPredictions(HeadHandler):
    """Handles predictions, which are answered at once."""

    __slots__ = ()

    def handle(self, serving: Serving, cycle: Any, body: bytes) -> bool:
        """Answer a prediction for one row, if it needs nothing beyond the model."""
        begun_s, app = perf_counter(), self.direct.app
        try:
            request = self.form.predict(body)
        except Exception:  # the application reports the error
            return False
        if not _is_short(request) or serving.waits:
            return False
        app.untaken.begins(cycle.receive)
        self.direct.under_way += 1
        request_id = app.ids.of(self.headers)
        more: Sequence[tuple[bytes, bytes]] = ()
        try:
            prediction = self.context.run(serving.predict, request)
            status, answer = 200, self.form.encode(prediction)
            if (live := app.live[self.model]).watched:
                live.take(request, prediction, len(body))
        except Exception as error:
            status, answer, more = self.refused(serving, "predict", error, request_id)
        serving.replica.answered("predict", perf_counter() - begun_s)
        self.send_answer(cycle, status, answer, request_id, more)
        return True


class DirectFeedback(HeadHandler):
    """Handles feedback of single events."""

    __slots__ = ()

    def handle(self, serving: Serving, cycle: Any, body: bytes) -> bool:
        """Batch an event with others of the same turn; a label by id is recorded in a task."""
        direct, begun_s = self.direct, perf_counter()
        try:
            event = self.form.feedback(body)
        except Exception:  # the application reports the error
            return False
        if not _is_short(event):
            return False
        direct.app.untaken.begins(cycle.receive)
        direct.under_way += 1
        if event.id is not None:
            direct.answer_by_task(
                self.by_itself(serving, cycle, event, len(body), begun_s), self.context
            )
            return True
        waiting = _DirectEvent(self, serving, cycle, event, len(body))
        waiting.place = self.context.run(serving.single_events.take, event, waiting)
        return True

    async def by_itself(
        self, serving: Serving, cycle: Any, event: FeedbackRequest, size: int, begun_s: float
    ) -> None:
        """Record an event that is read by itself, as a label by id is, and answer."""
        request_id = self.direct.app.ids.of(self.headers)
        more: Sequence[tuple[bytes, bytes]] = ()
        try:
            status, receipt = await serving.single_events.feedback(event)
            body = self.encoded(event, receipt, size)
        except Exception as error:
            status, body, more = self.refused(serving, _FEEDBACK, error, request_id)
        serving.replica.answered(_FEEDBACK, perf_counter() - begun_s)
        self.send_answer(cycle, status, body, request_id, more)

    def encoded(self, event: FeedbackRequest, receipt: Receipt, size: int) -> bytes:
        """Encode the receipt, and record the event for live viewers."""
        if (live := self.direct.app.live[self.model]).watched:
            live.take(event, receipt, size)
        return self.form.encode(receipt)


class DirectChoices(HeadHandler):
    """Handles choices of one action."""

    __slots__ = ()
    action: ClassVar[str] = "choose"

    def decoded(self, body: bytes) -> ChooseRequest | RewardRequest:
        """Return the decoded request of a body."""
        return self.form.choose(body)

    def handle(self, serving: Serving, cycle: Any, body: bytes) -> bool:
        """Answer in a task, if the model chooses and the request is a single one."""
        begun_s, app = perf_counter(), self.direct.app
        if (choosing := app.choosing.get(self.model)) is None:
            return False
        try:
            request = self.decoded(body)
        except Exception:  # the application reports the error
            return False
        if not _is_short(request):
            return False
        app.untaken.begins(cycle.receive)
        self.direct.under_way += 1
        answering = self._answer(serving, choosing, cycle, request, len(body), begun_s)
        self.direct.answer_by_task(answering, self.context)
        return True

    async def _answer(
        self, serving: Serving, choosing: Choosing, cycle: Any,
        request: ChooseRequest | RewardRequest, size: int, begun_s: float,
    ) -> None:  # fmt: skip
        request_id = self.direct.app.ids.of(self.headers)
        more: Sequence[tuple[bytes, bytes]] = ()
        try:
            answer: Any
            status, answer = await answer_choice(choosing, request)
            body = self.form.encode(answer)
            if (live := self.direct.app.live[self.model]).watched:
                live.take(request, answer, size)
        except Exception as error:
            status, body, more = self.refused(serving, self.action, error, request_id)
        serving.replica.answered(self.action, perf_counter() - begun_s)
        self.send_answer(cycle, status, body, request_id, more)


class DirectRewards(DirectChoices):
    """Handles single rewards without the application."""

    __slots__ = ()
    action = "reward"

    def decoded(self, body: bytes) -> RewardRequest:
        return self.form.reward(body)


class _DirectEvent:
    """A direct feedback event that waits for its outcome, which the writer sets as on a future."""

    __slots__ = (
        "begun_s", "cycle", "ended", "error", "event", "handler", "place", "recorded", "serving",
        "size",
    )  # fmt: skip

    def __init__(
        self, handler: DirectFeedback, serving: Serving, cycle: Any, event: FeedbackRequest,
        size: int,
    ) -> None:  # fmt: skip
        self.handler, self.serving, self.cycle, self.event = handler, serving, cycle, event
        self.size, self.begun_s = size, perf_counter()
        self.ended = False
        self.recorded: Recorded | None = None
        self.error: Exception | None = None
        self.place: BatchPosition | None = None

    def done(self) -> bool:
        """Whether the outcome or an error is set."""
        return self.ended

    def set_result(self, result: Recorded | None, /) -> None:
        """Set the outcome; None: the event has to be read by itself."""
        self.ended, self.recorded = True, result
        self.handler.direct.queue_answer(self)

    def set_exception(self, exception: RequestError, /) -> None:
        """Set the error of the event."""
        self.ended, self.error = True, exception
        self.handler.direct.queue_answer(self)

    def exception(self) -> BaseException | None:
        """Return the error, if it is set."""
        return self.error

    def answer(self) -> None:
        """Answer a learned event at once, and any other by a task."""
        handler, recorded, row = self.handler, self.recorded, None
        if recorded is None and self.error is None:
            # Not by the application, which reads no body once the caller has gone.
            alone = handler.by_itself(self.serving, self.cycle, self.event, self.size, self.begun_s)
            handler.direct.answer_by_task(alone, handler.context)
            return
        if recorded is not None and self.place is not None:
            row = self.place.row
        if row is None or recorded is None:
            handler.direct.answer_by_task(self.answer_later(row), handler.context)
            return
        if (receipt := self.serving.single_events.plain_receipt(row, recorded)) is None:
            handler.direct.answer_by_task(self.answer_later(row), handler.context)
            return
        self._send_answer(
            200,
            handler.encoded(self.event, receipt, self.size),
            handler.direct.app.ids.of(handler.headers),
        )

    async def answer_later(self, row: EventRow | None) -> None:
        """Answer an event whose receipt needs more than its outcome."""
        handler = self.handler
        request_id = handler.direct.app.ids.of(handler.headers)
        more: Sequence[tuple[bytes, bytes]] = ()
        try:
            if self.error is not None:
                raise self.error
            assert row is not None
            assert self.recorded is not None
            status, receipt = await self.serving.single_events.receipt(row, self.recorded)
            body = handler.encoded(self.event, receipt, self.size)
        except Exception as error:
            status, body, more = handler.refused(self.serving, _FEEDBACK, error, request_id)
        self._send_answer(status, body, request_id, more)

    def _send_answer(
        self, status: int, body: bytes, request_id: bytes,
        more: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:  # fmt: skip
        self.serving.replica.answered(_FEEDBACK, perf_counter() - self.begun_s)
        self.handler.send_answer(self.cycle, status, body, request_id, more)


_HANDLERS: Final[Mapping[type[_Body], type[HeadHandler]]] = {
    PredictRequest: DirectPredictions,
    FeedbackRequest: DirectFeedback,
    ChooseRequest: DirectChoices,
    RewardRequest: DirectRewards,
}
