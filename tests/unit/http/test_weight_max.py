"""No event moves the model further than a row may: `limits.weight_max`, by every way in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from replica_world import World, play

from online.errors import RequestError
from online.http.openinference.protocol import feedback as tensors
from online.http.routes.upload import Uploads, upload
from online.messages.bodies import JSON, MSGPACK, decode
from online.messages.sender import sender
from online.messages.structs import Event, FeedbackRequest, PredictRequest
from online.messages.tensors import InferRequest
from online.models.adapters.linear import Linear
from online.models.loading.load import logreg
from online.rows.validator import Validator
from online.settings.limits import Limits
from online.settings.tokens import WEIGHT_MAX, Grant
from online.trust.filtering import Filtering
from paramserver.filters.base import PASS, Source
from paramserver.filters.base import Event as Judged
from paramserver.filters.rate import Rate
from replay import codec
from replay.example import Example
from replay.journal.base import NewRow, Verdict

MOST = 10.0
LIMITS = Limits(feedback_wait_s=60, weight_max=MOST)
OVER = MOST + 0.5


async def _features(serving: Any, weight: Any, n: int = 0) -> str:
    event = FeedbackRequest(features={"a": 1.0}, label=1e9, event_id=f"e{n}", weight=weight)
    return str((await serving.feedback(event))[1].status)


async def _token(serving: Any, weight: Any, n: int = 0) -> str:
    given = serving.predict(PredictRequest(features={"a": 1.0})).id
    return str(
        (await serving.feedback(FeedbackRequest(id=given, label=1e9, weight=weight)))[1].status
    )


async def _join(serving: Any, weight: Any, n: int = 0) -> str:
    serving.predict(PredictRequest(features={"a": 1.0}, id=f"visit-{n}-{weight}"))
    event = FeedbackRequest(id=f"visit-{n}-{weight}", label=1e9, weight=weight)
    return str((await serving.feedback(event))[1].status)


async def _many(serving: Any, weight: Any, n: int = 0) -> str:
    event = Event(features={"a": 1.0}, label=1e9, event_id=f"m{n}", weight=weight)
    _, answer = await serving.feedback(FeedbackRequest(events=[event]))
    return _of(answer.events[0].status, answer.events[0].error)


async def _body(form: Any, serving: Any, weight: Any, n: int) -> str:
    event = {"features": {"a": 1.0}, "label": 1e9, "event_id": f"b{n}", "weight": weight}
    request = decode(form.feedback, form.encode(event))
    return str((await serving.feedback(request))[1].status)


async def _json(serving: Any, weight: Any, n: int = 0) -> str:
    return await _body(JSON, serving, weight, n)


async def _msgpack(serving: Any, weight: Any, n: int = 1) -> str:
    return await _body(MSGPACK, serving, weight, n + 1_000)


async def _upload(serving: Any, weight: Any, n: int = 0) -> str:
    line = {"features": {"a": 1.0}, "label": 1e9, "event_id": f"u{n}", "weight": weight}
    sent: list[bytes] = []

    async def receive() -> dict[str, Any]:
        body = json.dumps(line).encode() + b"\n"
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    with Uploads(1, 1.0, 5.0).slot(None) as slot:
        await upload(serving, receive, send, LIMITS, slot)
    answer = json.loads(b"".join(sent).splitlines()[0])
    return _of(answer["status"], answer.get("error"))


async def _open_inference(serving: Any, weight: Any, n: int = 0) -> str:
    def tensor(name: str, kind: str, value: Any) -> dict[str, Any]:
        return {"name": name, "shape": [1], "datatype": kind, "data": [value]}

    inputs = [
        tensor("a", "FP64", 1.0), tensor("label", "FP64", 1e9), tensor("weight", "FP64", weight),
        tensor("event_id", "BYTES", f"t{n}"),
    ]  # fmt: skip
    answer = await tensors(serving, msgspec.convert({"inputs": inputs}, InferRequest))
    said = {out.name: out.data[0] for out in answer.outputs}
    return _of(str(said["status"]), {"code": str(said["reason"]).partition(":")[0]})


def _of(status: str, error: Any) -> str:
    if status != "refused":
        return status
    raise RequestError(422, error["code"], "", None)


WAYS: dict[str, Callable[..., Any]] = {
    "features": _features, "token": _token, "stored join": _join, "one of many": _many,
    "json": _json, "msgpack": _msgpack, "upload": _upload, "open inference": _open_inference,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_weight_above_the_bound_is_refused_by_every_way(tmp_path: Path, way: str) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(limits=LIMITS)
        serving = world.serving(replica)
        assert await WAYS[way](serving, MOST, 1) == "learned"
        assert world.weight(replica, "a") == MOST
        with pytest.raises(RequestError) as caught:
            await WAYS[way](serving, OVER, 2)
        assert caught.value.status == 422
        assert world.weight(replica, "a") == MOST, "nothing was learned"
        await replica.stop(2)

    play(tmp_path, scene)


def test_the_refusal_names_the_value_the_bound_and_the_remedy(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(limits=LIMITS)
        with pytest.raises(RequestError) as caught:
            await _features(world.serving(replica), OVER)
        error = caught.value
        assert (error.code, error.field) == ("weight_over", "weight")
        assert "10.5" in error.message
        assert "at most 10 " in error.message
        assert "limits.weight_max" in str(error.hint)
        await replica.stop(2)

    play(tmp_path, scene)


@pytest.mark.parametrize("way", ["features", "one of many", "json", "upload"])
def test_a_repeat_of_a_heavier_row_of_before_is_answered(tmp_path: Path, way: str) -> None:
    """The bound was lowered since; the row keeps the weight that it was learned with."""

    async def scene(world: World) -> None:
        before = await world.replica("before", limits=Limits(feedback_wait_s=60, weight_max=50))
        assert await WAYS[way](world.serving(before), 50.0, 1) == "learned"
        await before.stop(2)
        replica = await world.replica("after", limits=LIMITS)
        serving = world.serving(replica)
        assert await WAYS[way](serving, 50.0, 1) == "duplicate"
        with pytest.raises(RequestError):
            await WAYS[way](serving, 50.0, 2)
        assert world.weight(replica, "a") == 50
        await replica.stop(2)

    play(tmp_path, scene)


def test_a_token_s_own_bound_and_none_without_filters(tmp_path: Path) -> None:
    async def scene(world: World) -> None:
        replica = await world.replica(limits=LIMITS)
        serving = world.serving(replica)
        sender.set(Grant("trusted", weight_max=100.0))
        assert await _features(serving, 100.0, 1) == "learned"
        with pytest.raises(RequestError):
            await _features(serving, 101.0, 2)
        sender.set(Grant("careful", weight_max=2.0))
        with pytest.raises(RequestError):
            await _features(serving, 3.0, 3)
        sender.set(Grant())
        plain = replica.settings.model_copy(update={"filters": "none"})
        serving._reader._validator = Validator(plain, LIMITS, numeric_only=True)
        assert await _features(serving, WEIGHT_MAX, 4) == "learned"
        with pytest.raises(RequestError):
            await _features(serving, WEIGHT_MAX * 2, 5)
        await replica.stop(2)

    play(tmp_path, scene)


def asked(rate: Rate, event: Judged, source: Source) -> float:
    """By how much an event is weighed down; it has arrived when this returns."""
    factor = rate.judge(event, source).factor
    rate.arrivals.add(source.name, new=False, weight=event.weight)
    return factor


def test_a_budget_counts_weight() -> None:
    """Sources that send as often, one with ten times the weight: that one is over its budget."""
    rate = Rate(refuse_at=float("inf"))
    sources = [Source(f"s{i}", taken=20) for i in range(12)]
    factors = {}
    for n in range(240):
        source = sources[n % 12]
        weight = 10.0 if source.name == "s0" else 1.0
        factors[source.name] = asked(rate, Judged(source.name, bytes([n]), weight=weight), source)
        if n % 24 == 23:
            rate.arrivals.refresh(sources)
    assert factors.pop("s0") < 0.5
    assert set(factors.values()) == {PASS.factor}


def test_small_weights_buy_nothing() -> None:
    """A row takes a place in the window, however little it weighs."""
    rate = Rate(refuse_at=float("inf"))
    sources = [Source(f"s{i}", taken=20) for i in range(9)]
    factor = 1.0
    for n in range(600):
        source = sources[0] if n % 2 else sources[1 + n // 2 % 8]
        event = Judged(source.name, bytes([n % 256]), weight=0.1 if n % 2 else 1.1)
        found = asked(rate, event, source)
        factor = found if n % 2 else factor
        if n % 24 == 23:
            rate.arrivals.refresh(sources)
    assert factor < 0.6


def test_what_filters_see_is_the_gradient_times_the_weight() -> None:
    model = Linear(logreg())
    for n in range(4):
        model.learn({"a": float(n), "b": -2.0 * n}, n % 2 == 0, 1.0)
    losses = SimpleNamespace(sums=SimpleNamespace(numbers=False))
    chain = SimpleNamespace(reference=object(), losses=losses, sources={}, filters=())
    filters = Filtering(
        chain, model=lambda: model, clock=dict, count=lambda: 0  # type: ignore[arg-type]
    )  # fmt: skip
    events = []
    for weight in (1.0, 4.0):
        example = Example({"a": 1.0, "b": 3.0}, True, weight, {"true": 0.4, "false": 0.6})
        row = NewRow(bytes(16), "e", "s", Verdict.ACCEPTED, codec.encode(example), 1.0)
        events.append(filters._event(row, example))
    assert events[0].gradient is not None
    assert np.any(events[0].gradient)
    np.testing.assert_allclose(events[1].gradient, 4.0 * events[0].gradient)
    assert [event.weight for event in events] == [1.0, 4.0]
