"""The client repeats what is safe to repeat, says what is definite, and loses no event."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from online.client import (
    AsyncClient,
    Client,
    Event,
    NotANumber,
    NotIncluded,
    Receipt,
    Retry,
    ServiceRefused,
    ServiceUnavailable,
)
from online.client.calls import Calls, Surroundings

Answer = tuple[int, Any, dict[str, str]] | type[httpx.TransportError]
LEARNED = {"status": "learned", "seen": "1:1"}
PREDICTED = {"id": "t", "prediction": True, "model": "m", "version": "1.2", "own": 0,
             "age_ms": 3.0, "updates_behind": 0}  # fmt: skip


def error(status: int, code: str, **headers: str) -> Answer:
    return status, {"error": {"code": code, "message": "why", "hint": "do"}}, headers


class Service:
    """Answers as it is told to, and counts an event once, as the service does."""

    def __init__(self, *answers: Answer, then: Answer = (200, LEARNED, {})) -> None:
        self.answers, self.then = list(answers), then
        self.bodies: list[Any] = []
        self.learned: Counter[str] = Counter()
        self.paused: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        self.bodies.append(body)
        answer = self.answers.pop(0) if self.answers else self.then
        if isinstance(answer, type):
            if answer is httpx.ReadError:  # the answer is what was lost
                self._learn(body)
            raise answer("lost", request=request)
        status, said, headers = answer
        if status == 200:
            self._learn(body)
        if callable(said):
            said = said(body)
        return httpx.Response(status, headers=headers, content=json.dumps(said).encode())

    def _learn(self, body: Any) -> None:
        for event in (body or {}).get("events", [body or {}]):
            if "label" in event:
                self.learned[event.get("event_id") or event["id"]] = 1

    def sleep(self, seconds: float) -> None:
        self.paused.append(seconds)

    def clock(self) -> float:
        return sum(self.paused)

    def given(self, retry: Retry) -> dict[str, Any]:
        ids = iter(range(1000))
        return {
            "retry": retry, "transport": httpx.MockTransport(self),
            "surroundings": Surroundings(random.Random(1), self.clock, lambda: f"made-{next(ids)}"),
        }  # fmt: skip


def client(service: Service, **retry: Any) -> Client:
    return Client("http://s", sleep=service.sleep, **service.given(Retry(**retry)))


Call = Callable[[Service, str, tuple[Any, ...], dict[str, Any]], Any]


def plain(service: Service, verb: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with client(service) as c:
        return getattr(c, verb)(*args, **kwargs)


def in_a_loop(service: Service, verb: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    async def pause(seconds: float) -> None:
        service.sleep(seconds)

    async def run() -> Any:
        async with AsyncClient("http://s", sleep=pause, **service.given(Retry())) as c:
            return await getattr(c, verb)(*args, **kwargs)

    return asyncio.run(run())


@pytest.fixture(params=[plain, in_a_loop], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_lost_answer_is_asked_for_again_with_the_same_id(call: Call) -> None:
    service = Service(httpx.ReadError, error(503, "journal_unavailable"), (502, "proxy", {}))
    receipt = call(service, "feedback", ("m", True), {"features": {"a": 1.0}})
    assert receipt.status == "learned"
    assert [b["event_id"] for b in service.bodies] == ["made-0"] * 4
    assert service.learned == {"made-0": 1}
    assert len(service.paused) == 3


def test_a_client_that_renames_a_repeat_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the fake does count twice what comes under two names."""

    def nameless(self: Calls, request: Any, receipts: bool = False, **_: Any) -> Any:
        for _ in range(2):
            body = {"label": True, "event_id": self.new_id()}
            reply = yield type(request)(request.method, request.path, json.dumps(body).encode())
            if reply.failure is None:
                return reply
        return None

    monkeypatch.setattr(Calls, "send", nameless)
    service = Service(httpx.ReadError)
    plain(service, "feedback", ("m", True), {"features": {"a": 1.0}})
    assert sum(service.learned.values()) == 2


def test_ids_of_the_caller_and_tokens_stay(call: Call) -> None:
    service = Service()
    call(service, "feedback", ("m", True), {"id": "token"})
    call(service, "feedback", ("m", 0), {"features": {}, "event_id": "e", "weight": 2.0})
    assert service.bodies[0] == {"label": True, "id": "token", "source": "default", "weight": 1.0}
    assert service.bodies[1]["event_id"] == "e"
    assert service.bodies[1]["label"] == 0, "0 is a label"


def test_retry_after_is_respected_and_pauses_have_jitter_and_a_bound() -> None:
    service = Service(error(429, "busy", **{"retry-after": "3"}), *[error(503, "stopping")] * 6)
    with client(service) as c:
        c.feedback("m", True, id="t")
    assert service.paused[0] == 3.0
    assert len({round(p, 9) for p in service.paused[1:]}) == 6, "drawn anew each time"
    assert all(p <= min(5.0, 0.1 * 2 ** (i + 1)) for i, p in enumerate(service.paused[1:]))
    late = Service(error(429, "busy", **{"retry-after": "60"}))
    with client(late) as c, pytest.raises(ServiceUnavailable, match="Nothing was recorded"):
        c.feedback("m", True, id="t")
    assert late.paused == [], "there is no point in waiting for what comes too late"


@pytest.mark.parametrize(
    ("answer", "definite"),
    [
        (httpx.ConnectError, True),
        (error(429, "busy"), True),
        (error(503, "stopping"), True),
        (httpx.ReadError, False),
        (httpx.ReadTimeout, False),
        (error(500, "internal"), False),
        (error(503, "journal_unavailable"), False),
        (error(503, "replica_ended"), False),
        ((503, "a proxy's page", {}), False),
    ],
)
def test_giving_up_says_whether_it_may_be_recorded(answer: Answer, definite: bool) -> None:
    service = Service(answer, then=httpx.ConnectError)
    with client(service, attempts=3) as c, pytest.raises(ServiceUnavailable) as caught:
        c.feedback("m", True, id="t")
    assert caught.value.definite is definite
    assert caught.value.attempts == len(service.bodies) == 3
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    "answer", [error(422, "invalid_value"), error(401, "no_token"), error(404, "unknown_id"),
               error(503, "not_finite"), error(503, "journal_full"), error(503, "too_old")],
)  # fmt: skip
def test_what_would_be_refused_again_is_not_sent_again(call: Call, answer: Answer) -> None:
    service = Service(answer)
    with pytest.raises(ServiceRefused, match="why") as caught:
        call(service, "feedback", ("m", True), {"id": "t"})
    assert caught.value.definite
    assert len(service.bodies) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_named_and_not_sent(call: Call, value: float) -> None:
    """JSON would say null, which is another thing: a value that is missing."""
    service = Service()
    features = {"a": 1.0, "v": [0.0, value]}
    for verb, args, kwargs in (
        ("predict", ("m", features), {}),
        ("predict_many", ("m", [{"a": 1.0}, {"a": value}]), {}),
        ("feedback", ("m", True), {"features": features}),
    ):
        with pytest.raises(NotANumber, match="leave it out") as caught:
            call(service, verb, args, kwargs)
        assert caught.value.definite
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert service.bodies == []


@pytest.mark.parametrize("status", [200, 302, 308])
def test_what_is_not_the_services_is_refused_as_such(call: Call, status: int) -> None:
    page = (status, "<html>log in</html>", {"location": "https://elsewhere/"})
    for verb, args in (
        ("predict", ("m", {"a": 1.0})), ("status", ("m",)), ("feedback", ("m", True)),
        ("feedback_many", ("m", [Event(True, features={"a": 1.0})])),
    ):  # fmt: skip
        service = Service(then=page)
        with pytest.raises(ServiceRefused, match="not_ours") as refused:
            call(service, verb, args, {"features": {"a": 1.0}} if verb == "feedback" else {})
        assert "log in" in refused.value.message
        assert refused.value.definite == (status != 200 or verb == "status")
        assert len(service.bodies) == 1


def test_events_whose_outcome_is_unknown_are_sent_again_with_their_ids(call: Call) -> None:
    service = Service(*[httpx.ReadError] * 8)
    with pytest.raises(ServiceUnavailable, match="this error's events") as lost:
        call(service, "feedback", ("m", True), {"features": {"a": 1.0}})
    said = (200, lambda body: {"events": [LEARNED] * len(body["events"]), "model": "m"}, {})
    service.answers, service.then = [httpx.ReadError] * 8, said
    with pytest.raises(ServiceUnavailable) as many:
        call(service, "feedback_many", ("m", [Event(True, id="t"), *lost.value.events]), {})
    assert [event.event_id for event in many.value.events] == [None, "made-0"]
    assert len(call(service, "feedback_many", ("m", many.value.events), {})) == 2
    assert service.learned == {"t": 1, "made-0": 1}


def test_a_refusal_after_a_lost_answer_is_not_definite(call: Call) -> None:
    service = Service(httpx.ReadError, error(403, "forbidden"))
    with pytest.raises(ServiceRefused) as refused:
        call(service, "feedback", ("m", True), {"features": {"a": 1.0}})
    assert service.learned == {"made-0": 1}
    assert not refused.value.definite
    assert not pickle.loads(pickle.dumps(refused.value)).definite


@pytest.mark.parametrize(("status", "said"), [(409, "conflict"), (410, "expired"), (422, "failed")])
def test_a_receipt_is_no_error(status: int, said: str) -> None:
    with client(Service((status, {"status": said}, {}))) as c:
        assert c.feedback("m", True, id="t").status == said


def test_reading_own_writes(call: Call) -> None:
    wanted = (200, {**PREDICTED, "includes": True}, {})
    behind = (200, {**PREDICTED, "includes": False}, {})
    service = Service(behind, behind, wanted)
    answer = call(service, "predict", ("m", {"a": 1.0}), {"after": "1:7", "until_included": True})
    assert answer.includes
    assert [b["after"] for b in service.bodies] == ["1:7"] * 3
    with pytest.raises(NotIncluded, match="1:7"):
        call(Service(then=behind), "predict", ("m", {}), {"after": "1:7", "until_included": True})


def _full_for(*ids: str) -> Callable[[Any], Any]:
    def said(body: Any) -> Any:
        full = {"status": "refused", "error": {"code": "joins_full", "message": "no room"}}
        return {
            "model": "m",
            "events": [full if e.get("event_id") in ids else LEARNED for e in body["events"]],
        }

    return said


def test_only_those_of_many_that_found_no_room_are_sent_again(call: Call) -> None:
    service = Service((200, _full_for("e1"), {}), then=(200, _full_for(), {}))
    events = [Event(label=True, features={}, event_id=f"e{i}") for i in range(3)]
    receipts = call(service, "feedback_many", ("m", events), {})
    assert [r.status for r in receipts] == ["learned"] * 3
    assert [len(b["events"]) for b in service.bodies] == [3, 1]


@pytest.mark.parametrize("then", [error(503, "stopping"), error(401, "no_token")])
def test_what_was_recorded_of_many_is_told_whatever_becomes_of_the_rest(
    call: Call, then: Answer
) -> None:
    service = Service((200, _full_for("e1"), {}), then=then)
    events = [Event(label=True, features={}, event_id=f"e{i}") for i in range(3)]
    receipts = call(service, "feedback_many", ("m", events), {})
    assert [r.status for r in receipts] == ["learned", "refused", "learned"]
    with pytest.raises((ServiceRefused, ServiceUnavailable)):
        call(Service(then=then), "feedback_many", ("m", events), {})
    unknown = Service((200, _full_for("e1"), {}), then=httpx.ReadError)
    with pytest.raises(ServiceUnavailable, match="may have been recorded"):
        call(unknown, "feedback_many", ("m", events), {})


def test_receipts_of_a_batch_are_not_lost_with_its_rest() -> None:
    service = Service((200, _full_for(), {}), then=error(401, "no_token"))
    with client(service) as c:
        batch = c.batch("m", rows=2)
        for i in range(3):
            batch.pending.put(Event(label=True, features={}, event_id=f"e{i}"))
        with pytest.raises(ServiceRefused):
            batch.flush()
        assert len(batch.pending) == 1
        service.then = (200, _full_for("e2"), {})
        assert [r.status for r in batch.flush()] == ["learned", "learned", "refused"]
        service.then = (200, _full_for(), {})
        assert [r.status for r in batch.flush()] == ["learned"]
        batch = c.batch("m", rows=9, kept_max=1)
        assert batch.add(Event(label=True, features={})) == []
        assert [r.status for r in batch.add(Event(label=True, features={}))] == ["learned"]


def test_a_batch_keeps_what_has_no_outcome() -> None:
    service = Service(*[httpx.ReadError] * 2, then=(200, _full_for(), {}))
    with client(service, attempts=2) as c:
        batch = c.batch("m", rows=2, kept_max=3)
        assert batch.add(Event(label=True, features={})) == []
        with pytest.raises(ServiceUnavailable):
            batch.add(Event(label=False, features={}))
        assert len(batch.pending) == 2
        with batch:
            sent = batch.add(Event(label=True, features={}))
            assert [r.status for r in sent] == ["learned"] * 3
        assert len(batch.pending) == 0
    assert service.learned == {"made-0": 1, "made-1": 1, "made-2": 1}, "under their first names"


def test_a_batch_is_bounded() -> None:
    service = Service(then=httpx.ConnectError)
    with client(service, attempts=1) as c:
        batch = c.batch("m", rows=2, kept_max=3)
        for _ in range(9):
            try:
                batch.add(Event(label=True, features={}))
            except ServiceUnavailable:
                continue
        assert len(batch.pending) == 3


def test_a_batch_in_a_loop_is_sent_at_its_end() -> None:
    service = Service(then=(200, _full_for(), {}))

    async def run() -> list[Receipt]:
        async with AsyncClient("http://s", **service.given(Retry())) as c, c.batch("m") as batch:
            return await batch.add(Event(label=True, features={}))

    assert asyncio.run(run()) == []
    assert service.learned == {"made-0": 1}


def test_status_is_what_the_service_says(call: Call) -> None:
    assert call(Service((200, {"version": "1.2"}, {})), "status", ("m",), {}) == {"version": "1.2"}
