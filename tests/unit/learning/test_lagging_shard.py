"""A learner whose model has two servers, of which one lacks rows that the other has."""

from __future__ import annotations

from typing import Any

import pytest
from river import linear_model, optim

from online.learning.local_model import LocalModel
from online.learning.merged import Learner
from online.models.adapters.linear import Linear
from paramserver.clients.sharded_client import ShardedReply
from paramserver.core import wire
from paramserver.core.blocks import Block, Blocks, to_wire
from paramserver.core.shards import Cut
from replay import codec
from replay.example import Example
from replay.journal.base import Row, Verdict

STEP = 2.0**-10
ADOPTED = 5
CUT = Cut(2)
ZERO, ONE = ([n for n in (f"n{i}" for i in range(40)) if CUT.of_name(n) == s] for s in (0, 1))


def build() -> Linear:
    """Each row adds a step to the weight of each of its names, exactly."""
    return Linear(
        linear_model.LinearRegression(
            optimizer=optim.SGD(STEP), intercept_lr=0.0, loss=optim.losses.Absolute()
        )
    )


def row(offset: int) -> Row:
    """The row has one name of each shard."""
    features = {ZERO[offset]: 1.0, ONE[offset]: 1.0}
    payload = codec.encode(Example(features, 1e9, 1.0))
    key = offset.to_bytes(16, "big")
    return Row(
        seq=offset, partition=ADOPTED, offset=offset, key=key, event_id=str(offset), source="",
        verdict=Verdict.ACCEPTED, payload=payload, at=1.0, factor=1.0,
    )  # fmt: skip


def reply(kind: str, values: Blocks, *clocks: dict[int, int], count: int) -> ShardedReply:
    low = {ADOPTED: min(clock[ADOPTED] for clock in clocks)}
    return ShardedReply(
        wire.FORMAT, "s", 2, count, [], kind, to_wire(values), low, [], {}, [], 0.0,
        since=(2, 6) if kind == "changes" else None, clocks=clocks, first=(1, count),
    )  # fmt: skip


def weights(*names: str) -> Blocks:
    return {"weights": Block("additive", dict.fromkeys(names, STEP))}


def begun() -> Learner:
    """One that has adopted four rows, all of which shard 0 has, and shard 1 two."""
    learner = Learner(build, task="regression", spec="s", retain_bytes=1 << 20, rows_max=64)
    held = weights(*ZERO[1:5], *ONE[1:3])
    learner.on_reply(reply("all", held, {ADOPTED: 0}, {ADOPTED: 0}, count=5))
    learner.adopt(ADOPTED, 4)
    learner.on_reply(reply("all", held, {ADOPTED: 4}, {ADOPTED: 2}, count=6))
    return learner


def steps(learner: Learner, names: list[str]) -> list[float]:
    return [float(learner.predict({name: 1.0}).label) / STEP for name in names]


def test_learning_again_begins_at_the_lowest_clock_and_counts_nothing_twice() -> None:
    learner = begun()
    assert learner.wanted() == [(ADOPTED, 3)]
    assert not learner.includes(ADOPTED, 3)
    learner.learn(row(3))
    assert steps(learner, ZERO[1:5]) == [1.0] * 4
    learner.learn(row(4))
    assert steps(learner, ZERO[1:5]) == [1.0] * 4
    assert steps(learner, ONE[1:5]) == [1.0] * 4
    assert learner.includes(ADOPTED, 4)


def test_what_was_learned_again_is_pushed_to_all_and_then_in_the_values() -> None:
    learner = begun()
    learner.learn(row(3))
    learner.learn(row(4))
    pushes = learner.pushes(64)
    assert [(push.first, push.last) for push in pushes] == [(3, 4)]
    rest = weights(*ONE[3:5])
    learner.on_reply(reply("changes", rest, {ADOPTED: 4}, {ADOPTED: 4}, count=7))
    assert steps(learner, [*ZERO[1:5], *ONE[1:5]]) == [1.0] * 8
    assert (learner.own, learner.pushes(64)) == (0, [])
    assert learner.stamp == "1.7+0", "what is told is shard 0's version"


def test_a_delta_ends_where_a_shard_stands() -> None:
    learner = Learner(build, task="regression", spec="s", retain_bytes=1 << 20, rows_max=64)
    learner.adopt(ADOPTED, 4)
    held = weights(*ZERO[1:4], *ONE[1:2])
    learner.on_reply(reply("all", held, {ADOPTED: 3}, {ADOPTED: 1}, count=6))
    for offset in (2, 3, 4):
        learner.learn(row(offset))
    assert [(push.first, push.last) for push in learner.pushes(64)] == [(2, 3), (4, 4)]
    assert steps(learner, [*ZERO[1:5], *ONE[1:5]]) == [1.0] * 8


def test_without_the_copy_from_before_answers_would_count_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing(_: Any) -> None:
        """Let the copy that learns answer."""

    monkeypatch.setattr(LocalModel, "_keep_old_copy", nothing)
    learner = begun()
    learner.learn(row(3))
    assert steps(learner, ZERO[3:4]) == [2.0]
