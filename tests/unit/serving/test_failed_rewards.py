"""A reward that the model can't learn is answered so, and nothing else ever is of its choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from test_collecting import SUM, give
from test_default_rewards import ACTIONS, WAIT_S, Shop, rewards, shop

from online.messages.choices import ChooseRequest, RewardRequest
from online.messages.structs import Receipt
from online.models.rewards import RewardModel
from replay.example import Example

WRONG = 0.75


@pytest.fixture(autouse=True)
def _raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model raises on one reward."""
    learn = RewardModel.learn_noted

    def learned(self: RewardModel, example: Example, weight: float) -> None:
        learn(self, example, weight)
        if example.label == WRONG:
            raise FloatingPointError("this reward")

    monkeypatch.setattr(RewardModel, "learn_noted", learned)


async def reward(one: Shop, id_: str, value: float) -> tuple[int, Receipt]:
    code, receipt = await one.choosing.rewards.take(RewardRequest(id_, value))
    assert isinstance(receipt, Receipt)
    return code, receipt


@pytest.mark.parametrize("own", [None, "order-1"])
def test_a_reward_that_fails_is_failed_for_every_repeat_and_replica(
    tmp_path: Path, own: str | None
) -> None:
    async def scene(world: Any) -> None:
        one, two = await shop(world), await shop(world, "two")
        good, id_ = await one.choose(), await one.choose(own)
        assert (await reward(one, good, 1.0))[1].status == "learned"
        code, first = await reward(one, id_, WRONG)
        assert (code, first.status) == (422, "failed"), first
        for other in (one, two, one):
            code, again = await reward(other, id_, WRONG)
            assert (code, again.status, again.first_outcome) == (422, "duplicate", "failed"), again
        assert (await reward(two, id_, 0.5))[1].status == "conflict"
        assert await one.give(WAIT_S + 60) == 0  # no default beside it
        assert sorted(rewards(world).values()) == [WRONG, 1.0]
        if own is not None:
            assert (await two.choosing.choose(ChooseRequest(ACTIONS, {"x": 1.0}, id=own))).repeated
        await worlds.until(lambda: one.replica.learner.tally.digest[0] == 1)
        assert one.replica.counts["failed"] == 1
        assert one.replica.learner.tally.views[0].summary()["n"] == 1  # type: ignore[attr-defined]
        for each in (one, two):
            await each.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_rewards_whose_sum_fails_are_told_so_when_they_come_again(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        id_ = await one.choose()
        assert (await give(one, id_, 0.5, "r-1")).status == "waiting"
        assert (await give(one, id_, 0.25, "r-2")).status == "waiting"
        await one.give(WAIT_S + 60)
        assert list(rewards(world).values()) == [WRONG]
        again = await give(one, id_, 0.25, "r-2")
        assert (again.status, again.first_outcome) == ("duplicate", "failed"), again
        assert (await give(one, id_, 1.0, "r-3")).status == "expired"
        assert one.replica.learner.tally.digest[0] == 0
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_default_that_fails_takes_the_place_of_a_reward(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose={"default_reward": WRONG})
        id_ = await one.choose()
        await one.give(WAIT_S + 60)
        assert (await reward(one, id_, 1.0))[1].status == "conflict"
        again = (await reward(one, id_, WRONG))[1]
        assert (again.status, again.first_outcome) == ("duplicate", "failed"), again
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)
