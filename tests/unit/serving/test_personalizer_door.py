"""What Personalizer's door makes of requests, without HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from test_default_rewards import WAIT_S, rewards, shop

from online.errors import RequestError
from online.serving.choices import personalizer
from online.serving.choices.personalizer import (
    Personalizer,
    RankableAction,
    RankRequest,
    Slot,
    SlotReward,
    SlotRewards,
    SlotsRequest,
)
from online.settings.limits import Limits

ACTIONS = [RankableAction(x) for x in "abc"]


def test_an_apprentice_takes_the_first_action_that_is_not_excluded(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose={"default_reward": None, "apprentice": True})
        door = Personalizer(one.choosing)
        for excluded, first in (([], "a"), (["a"], "b"), (["b", "a"], "c")):
            asked = RankRequest(ACTIONS, excluded_actions=excluded)
            assert (await door.rank(asked))["rewardActionId"] == first
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_rewards_of_slots_of_which_one_is_wrong_count_none(tmp_path: Path) -> None:
    """Otherwise the corrected request would count the others twice."""

    async def scene(world: Any) -> None:
        choose = {"aggregate": "sum", "default_reward": None, "reward_range": [0, 10]}
        one = await shop(world, choose=choose)
        door = Personalizer(one.choosing)
        slots = [Slot("top"), Slot("side")]
        await door.rank_slots(SlotsRequest(ACTIONS[:2], slots, event_id="page"))
        for value in (99.0, 2.0):
            sent = SlotRewards([SlotReward("top", 1.0), SlotReward("side", value)])
            if value == 99.0:
                with pytest.raises(RequestError) as caught:
                    await door.reward_slots("page", sent)
                assert (caught.value.status, caught.value.field) == (422, "reward[1].value")
            else:
                await door.reward_slots("page", sent)
        await one.give(WAIT_S + 60)
        assert sorted(rewards(world).values()) == [1.0, 2.0]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_actions_are_counted_before_their_features_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: Any) -> None:
        limits = Limits(feedback_wait_s=60, actions_max=3)
        one = await shop(world, choose={"default_reward": None}, limits=limits)
        door, read = Personalizer(one.choosing), list[Any]()
        features_of = personalizer.features_of

        def noted(given: Any, *rest: Any) -> Any:
            read.append(given)
            return features_of(given, *rest)

        monkeypatch.setattr(personalizer, "features_of", noted)
        many = [RankableAction(f"{i}", [{"x": 1.0}]) for i in range(4)]
        with pytest.raises(RequestError, match="4 actions") as caught:
            await door.rank(RankRequest(many))
        assert (caught.value.status, read) == (422, [])
        assert "limits.actions_max" in str(caught.value.hint)
        await door.rank(RankRequest(many[:3]))
        assert len(read) == 4
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)
