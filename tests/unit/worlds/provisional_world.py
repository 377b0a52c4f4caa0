"""What tests of labels that change send, and what they look at."""

from __future__ import annotations

from typing import Any

import pytest
import replica_world as worlds
from river import linear_model, optim

from online.errors import RequestError
from online.messages.structs import FeedbackRequest
from online.models.adapters.linear import Linear
from online.serving.operating.status import Cluster
from replay.journal.base import NewRow, Verdict


def half() -> Linear:
    """Each row goes half of the way to its label, and no feature has a share in another's."""
    step = optim.SGD(0.25)
    return Linear(
        linear_model.LinearRegression(step, intercept_lr=0.0, loss=optim.losses.Squared())
    )


def event(name: str, label: float, source: str = "web", **more: Any) -> FeedbackRequest:
    return FeedbackRequest(features={name: 1.0}, label=label, event_id=name, source=source, **more)


async def sent(serving: Any, name: str, label: float, **more: Any) -> tuple[int, Any]:
    found: tuple[int, Any] = await serving.feedback(event(name, label, **more))
    return found


async def guess(serving: Any, name: str, label: float, **more: Any) -> tuple[int, Any]:
    """Send a provisional label."""
    return await sent(serving, name, label, provisional=True, **more)


def weight(replica: Any, name: str) -> float:
    """Half of the label that was learned, if it was learned once."""
    found = replica.learner.serving.predict({name: 1.0}).label
    assert isinstance(found, float)
    return found


async def provisional_row(replica: Any, name: str, verdict: Verdict) -> None:
    """A provisional label of 8 that was not learned."""
    example = worlds.Example({name: 1.0}, 8.0, provisional=True)
    key = worlds.KEYS.event("web", name)
    row = NewRow(key, name, "web", verdict, worlds.codec.encode(example), 1.0)
    await replica.writer.record([row], decided=True)


def asked_of(replica: Any) -> Cluster:
    """What operators ask of one replica."""
    control: Any = {"m": None}
    return Cluster({"m": replica}, control, {"m": replica.store.journal}, lambda name: {})


async def frozen(world: Any, on: bool, *replicas: Any) -> None:
    (world.server.freeze if on else world.server.unfreeze)()
    for replica in replicas:
        await worlds.until(lambda r=replica: r.learner.frozen is on and not r.learner.own, 240.0)


async def refused(serving: Any, request: FeedbackRequest) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await serving.feedback(request)
    return caught.value
