"""Others have turns of the event loop while one body has many slots, rewards or waiting choices."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from test_default_rewards import WAIT_S, shop
from test_ordinary import event, taught

from online.errors import RequestError
from online.messages.choices import Action, ChooseRequest, Reward, RewardRequest, Slot
from online.serving.choices import collecting, personalizer
from online.serving.choices.slots import choose_slots
from online.settings.limits import Limits

MANY = 20
SUM = {"aggregate": "sum", "default_reward": None, "reward_range": [0, 10]}


@contextlib.asynccontextmanager
async def turns() -> AsyncIterator[list[int]]:
    """How often another task was given the loop so far."""
    count = [0]

    async def other() -> None:
        while True:
            await asyncio.sleep(0)
            count[0] += 1

    task = asyncio.create_task(other())
    await asyncio.sleep(0)
    yield count
    task.cancel()


def test_others_have_a_turn_between_two_slots(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose={"default_reward": None})
        actions = [Action(f"a-{i}") for i in range(MANY)]
        slots = [Slot(f"s-{i}") for i in range(MANY)]
        async with turns() as count:
            told = await choose_slots(one.choosing, ChooseRequest(actions, slots=slots))
            assert count[0] >= MANY - 1
        assert len({x.action for x in told.slots}) == MANY
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_no_more_slots_are_taken_than_the_setting_says(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        limits = Limits(feedback_wait_s=60, slots_max=2)
        one = await shop(world, choose={"default_reward": None}, limits=limits)
        actions = [Action(x) for x in "abc"]
        asked = ChooseRequest(actions, slots=[Slot("s"), Slot("t")])
        assert len((await choose_slots(one.choosing, asked)).slots) == 2
        asked = ChooseRequest(actions, slots=[Slot("s"), Slot("t"), Slot("u")])
        with pytest.raises(RequestError, match="3 slots") as caught:
            await choose_slots(one.choosing, asked)
        assert caught.value.status == 422
        assert "limits.slots_max" in str(caught.value.hint)
        theirs = personalizer.SlotsRequest(
            [personalizer.RankableAction(x) for x in "abc"], [personalizer.Slot(x) for x in "stu"]
        )
        with pytest.raises(RequestError, match="3 slots") as caught:
            await personalizer.Personalizer(one.choosing).rank_slots(theirs)
        assert "limits.slots_max" in str(caught.value.hint)
        rewards = personalizer.SlotRewards([personalizer.SlotReward(x, 1.0) for x in "stu"])
        written = one.replica.counts["feedback_waiting"], one.replica.writer.known
        with pytest.raises(RequestError, match="3 slots") as caught:
            await personalizer.Personalizer(one.choosing).reward_slots("event", rewards)
        assert "limits.slots_max" in str(caught.value.hint)
        assert written == (one.replica.counts["feedback_waiting"], one.replica.writer.known)
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_no_choice_crosses_more_features_than_the_setting_says(tmp_path: Path) -> None:
    """A kilobyte of names would hold the loop for seconds, and fill the memory."""

    async def scene(world: Any) -> None:
        limits = Limits(feedback_wait_s=60, products_max=5_000)
        one = await shop(world, choose={"default_reward": None}, limits=limits)
        moment = {f"c-{i}": "x" for i in range(20)}
        wide = Action("wide", {f"f-{i}": "y" for i in range(100)})
        few = [Action("a"), Action("b")]
        assert (await one.choosing.choose(ChooseRequest(few, moment))).action in ("a", "b")
        with pytest.raises(RequestError, match="products") as caught:
            await one.choosing.choose(ChooseRequest([*few, wide], moment))
        assert (caught.value.status, caught.value.field) == (422, "actions")
        assert "limits.products_max" in str(caught.value.hint)
        assert not one.replica.writer.halves
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_others_have_turns_while_rewards_are_taken_and_choices_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        ids = [await one.choose() for _ in range(MANY)]
        steps = dict[str, list[int]]()

        def counted(owner: Any, name: str) -> None:
            """Note at each call how many turns others have had."""
            done, seen = getattr(owner, name), steps.setdefault(name, [])

            def step(*given: Any) -> Any:
                seen.append(count[0])
                return done(*given)

            monkeypatch.setattr(owner, name, step)

        async with turns() as count:
            counted(collecting, "_one")
            counted(one.choosing.rewards._collecting, "_row")
            counted(one.choosing.rewards._collecting, "_took")
            counted(one.choosing.defaults, "_settled")
            rewards = [Reward(id_, 1.0) for id_ in ids]
            _, told = await one.choosing.rewards.take(RewardRequest(rewards=rewards))
            assert {x.status for x in told.events} == {"waiting"}  # type: ignore[union-attr]
            assert await one.give(WAIT_S + 60) == MANY
        for name, seen in steps.items():
            assert len(seen) >= MANY, name
            assert seen[MANY - 1] > seen[0], name
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_body_of_many_events_is_read_in_turns_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding has taken most of the turn in which it arrived; each part has one of its own."""

    async def scene(world: Any) -> None:
        serving, rng = await taught(world), random.Random(1)
        ordinary, seen = serving._reader.ordinary, list[int]()
        read, size = ordinary.read, ordinary.together

        def noted(events: Any) -> Any:
            seen.append(count[0])
            return read(events)

        monkeypatch.setattr(ordinary, "read", noted)
        async with turns() as count:
            for parts in (1, 3):  # one part alone waits for nothing: it is what a group has
                seen.clear()
                begun = count[0]
                many = [event(rng, 1000 * parts + i) for i in range(parts * size)]
                await serving.record(many)
                assert len(seen) == parts, seen
                assert (seen[0] > begun) is (parts > 1), (begun, seen)
                assert len(set(seen)) == parts, seen
        await serving.replica.stop(1)

    worlds.play(tmp_path, scene)
