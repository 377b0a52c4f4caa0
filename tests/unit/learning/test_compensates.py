"""What a learner's pushes tell of their curvature."""

from __future__ import annotations

from typing import Any

import pytest
from river import linear_model, optim

from online.learning.merged import Learner
from online.models.adapters.linear import Linear
from online.models.loading.from_settings import load_model, merge_rule
from online.settings.config import Settings
from online.settings.model import ModelSettings
from online.settings.sync import Sync
from paramserver.core import wire
from replay import codec
from replay.example import Example
from replay.journal.base import Row, Verdict


def _build() -> Linear:
    return Linear(linear_model.LogisticRegression(optim.SGD(0.5), intercept_lr=0.5))


def _learner(*, compensates: bool = True) -> Learner:
    learner = Learner(
        _build, task="binary", spec="s", retain_bytes=10**6, rows_max=8, compensates=compensates
    )
    learner.open_partition(1)
    _reply(learner, 0, {}, {})
    return learner


def _reply(learner: Learner, count: int, clock: dict[int, int], weights: Any) -> None:
    blocks = {"weights": wire.WireBlock("additive", weights)}
    learner.on_reply(
        wire.SyncReply(wire.FORMAT, "s", 1, count, [], "all", blocks, clock, [], {}, [], 0.0)
    )


def _learn(learner: Learner, offset: int) -> None:
    payload = codec.encode(Example({"x": 2.0}, True))
    key = str(offset)
    row = Row(0, 1, offset, bytes(16), key, "s", Verdict.ACCEPTED, 1.0, payload, 1.0)
    assert learner.learn(row) is None


def test_a_push_tells_where_it_started_and_what_it_used_up() -> None:
    learner = _learner()
    _reply(learner, 1, {}, {"x": 0.0})
    _learn(learner, 1)
    (push,) = learner.pushes(9)
    # the first answer is one half: gradient -1/2 by the output, -1 by the weight
    curved: Any = push.curved
    assert curved == {
        "weights": {"x": (0.0, pytest.approx(0.5))},
        "intercept": {"": (0.0, pytest.approx(0.125))},
    }
    _reply(learner, 2, {1: 1}, {"x": 3.0})
    _learn(learner, 2)
    (later,) = learner.pushes(9)
    assert later.curved["weights"]["x"][0] == 3.0
    assert later.base == (1, 2)
    assert learner.pushes(9) == [later], "sent again as it was first sent"


def test_the_message_survives_the_wire() -> None:
    learner = _learner()
    _learn(learner, 1)
    pushes = learner.pushes(9)
    request = wire.SyncRequest(wire.FORMAT, "r", 1, pushes, None, True, [])
    assert wire.decode_request(wire.encode(request)).pushes[0].curved == pushes[0].curved


def test_other_rules_are_told_nothing() -> None:
    learner = _learner(compensates=False)
    _learn(learner, 1)
    assert [push.curved for push in learner.pushes(9)] == [{}]


def test_auto_is_compensated() -> None:
    model = ModelSettings(name="m", task="binary", learner="logreg")
    built = load_model(model, Settings(models=[model]), b"k" * 32).model
    assert merge_rule(model, built) == "compensated"
    for name in ("sum", "average", "ordered"):
        assert merge_rule(model.model_copy(update={"sync": Sync(merge=name)}), built) == name
