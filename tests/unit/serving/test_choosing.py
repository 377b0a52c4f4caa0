"""Choices as a replica makes them: the logged probability is the one that was drawn with."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

from online.decide.record import unpack
from online.messages.choices import Action, ChooseRequest, RewardRequest
from online.models.rewards import Rewards
from online.rows.door import Door
from online.serving.choosing import Choosing
from replay import codec


async def chooser(world: Any, name: str = "r", **choose: Any) -> Choosing:
    replica = await world.replica(
        name, build=lambda: Rewards(bits=10).model_for("regression"), choose=choose
    )
    door = Door(replica.settings, replica.limits, numeric_only=False)
    return Choosing(world.serving(replica), door, replica.limits, replica.settings.choose)


def logged(choosing: Choosing, token: str) -> Any:
    """The record that travels in a token."""
    packed = choosing.serving.issued.tokens.read(token)[1].choice
    assert packed is not None
    return unpack(packed)


@pytest.mark.parametrize("policy", ["softmax", "epsilon", "auto"])
def test_each_action_is_chosen_as_often_as_its_logged_probability_says(
    tmp_path: Path, policy: str
) -> None:
    """Σ (chosen − p) over choices, beside its standard deviation: 4 of them, or a wrong draw."""

    async def scene(world: Any) -> None:
        choosing, rng = await chooser(world, policy=policy, floor=0.05), random.Random(2)
        off, variance = dict.fromkeys("abcd", 0.0), dict.fromkeys("abcd", 0.0)
        for i in range(1500):
            exclude = [rng.choice("abcd")] if i % 3 == 0 else []
            asked = ChooseRequest([Action(x) for x in "abcd"], {"x": float(i % 2)}, exclude=exclude)
            answer = await choosing.choose(asked)
            if i < 60:  # some are learned, so that not all are worth the same
                reward = float(answer.action == "b")
                await choosing.rewards.take(RewardRequest(answer.id, reward))
            choice = logged(choosing, answer.id)
            assert choice.propensity == answer.probability
            shares = dict(zip("abcd", choice.probabilities, strict=True))
            assert sum(shares.values()) == pytest.approx(1.0)
            for action, p in shares.items():
                assert (p == 0.0) if action in exclude else (p >= 0.05 - 1e-12)
                off[action] += float(answer.action == action) - p
                variance[action] += p * (1.0 - p)
        assert max(abs(off[x]) / math.sqrt(variance[x]) for x in "abcd") < 4.0
        await choosing.serving.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_another_replica_learns_what_was_chosen_and_chooses_nothing_again(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one, two = await chooser(world, "one"), await chooser(world, "two")
        asked, told = ChooseRequest([Action("a"), Action("b")], {"x": 1.0}), {}
        for i in range(30):
            answer = await one.choose(asked)
            _, receipt = await two.rewards.take(RewardRequest(answer.id, float(i % 2)))
            assert receipt.status == "learned"  # type: ignore[union-attr]
            told[receipt.event_id] = answer.action, answer.probability  # type: ignore[union-attr]
        rows = two.serving.replica.store.journal.follow("m", 0, 100).rows
        logged = {row.event_id: unpack(codec.decode(row.payload).choice or b"") for row in rows}
        assert {k: (x.action, x.propensity) for k, x in logged.items()} == told
        replicas = one.serving.replica, two.serving.replica
        await worlds.until(lambda: all(r.learner.tally.digest[0] == 30 for r in replicas))
        assert [r.counts["choices"] for r in replicas] == [30, 0]
        for replica in replicas:
            await replica.stop(1)

    worlds.play(tmp_path, scene)


def test_numbers_far_beyond_all_before_are_bounded_in_questions_too(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        choosing = await chooser(world, policy="greedy")
        for i in range(120):
            x = float(i % 5)
            answer = await choosing.choose(ChooseRequest([Action("a", {"y": x})], {"x": x}))
            await choosing.rewards.take(RewardRequest(answer.id, 0.5))
        near = await choosing.choose(ChooseRequest([Action("a", {"y": 4.0})], {"x": 4.0}))
        far = await choosing.choose(ChooseRequest([Action("a", {"y": 1e90})], {"x": -1e90}))
        assert 0.0 <= far.ranking[0].expected <= 1.0
        assert far.ranking[0].expected == pytest.approx(near.ranking[0].expected, abs=0.3)
        assert logged(choosing, far.id).context == {"x": -1e90}  # what was sent is what is kept
        await choosing.serving.replica.stop(1)

    worlds.play(tmp_path, scene)
