"""A choice whose reward does not come gets the default, once, and never beside a reward."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from pydantic import ValidationError

from online.decide.record import unpack
from online.errors import RequestError
from online.messages.choices import Action, ChooseRequest, RewardRequest
from online.models.rewards import RewardModel, Rewards
from online.rows.validator import Validator
from online.serving.choices.activation import activate
from online.serving.choices.choosing import Choosing
from online.serving.choices.default_rewards import DefaultRewards
from online.serving.defaults import PAGE, Defaults
from online.settings.limits import Limits
from online.settings.model import ModelSettings
from replay import codec
from replay.example import WaitingLabel
from replay.journal.base import Half, NewRow, Verdict

WAIT_S = 600.0
ACTIONS = [Action("a"), Action("b")]


def build() -> RewardModel:
    return Rewards(bits=8).model_for("regression")


class Shop:
    """A replica that chooses, on a clock of its own."""

    def __init__(self, world: Any, replica: Any, clock: worlds.Clock, wall: worlds.Clock) -> None:
        self.replica, self.clock, self.wall = replica, clock, wall
        validator = Validator(replica.settings, replica.limits, numeric_only=False)
        settings = replica.settings.choose
        self.choosing = Choosing(world.serving(replica), validator, replica.limits, settings)
        self.choosing.serving._reader._validator = validator
        self.choosing.defaults = Defaults(replica, DefaultRewards(settings), wall, clock)

    async def choose(self, own: str | None = None, *, defer: bool = False) -> str:
        self.wall.s += 0.001  # no two are chosen at the same instant
        asked = ChooseRequest(ACTIONS, {"x": 1.0}, id=own, defer=defer)
        answer = await self.choosing.choose(asked)
        await worlds.until(lambda: self.replica.writer.idle)
        return answer.id

    async def reward(self, id_: str, reward: float) -> str:
        _, receipt = await self.choosing.rewards.take(RewardRequest(id=id_, reward=reward))
        status: str = receipt.status  # type: ignore[union-attr]
        return status

    async def give(self, after_s: float) -> int:
        self.clock.s += after_s
        return await self.choosing.defaults.give()


async def shop(world: Any, name: str = "r", wall: worlds.Clock | None = None, **more: Any) -> Shop:
    wall, settings = wall or worlds.Clock(), more.pop("choose", {})
    choose = {"default_reward": 0.25, "reward_wait": WAIT_S, **settings}
    replica = await world.replica(name, build=build, now_s=wall, choose=choose, **more)
    return Shop(world, replica, worlds.Clock(), wall)


def rewards(world: Any) -> dict[str, float]:
    """Reward of each row of the journal, by event id."""
    with contextlib.closing(world.journal()) as journal:
        rows = journal.follow("m", 0, 1000).rows
    found = {row.event_id: codec.decode(row.payload) for row in rows}
    assert len(found) == len(rows)
    assert all(unpack(x.choice).action in ("a", "b") for x in found.values() if x.choice)
    return {event: example.label for event, example in found.items()}  # type: ignore[misc]


def test_a_choice_without_a_reward_gets_the_default_once(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world)
        early, late, own = [await one.choose(name) for name in (None, None, "order-1")]
        assert await one.reward(early, 1.0) == "learned"
        assert await one.give(WAIT_S - 1) == 0
        assert list(rewards(world).values()) == [1.0]
        assert await one.give(60.0) == 2
        assert await one.give(WAIT_S) == 0
        assert sorted(rewards(world).values()) == [0.25, 0.25, 1.0]
        assert await one.reward(late, 1.0) == "conflict"
        assert await one.reward(own, 0.25) == "duplicate"
        assert one.replica.counts["rewards_defaulted"] == 2
        assert one.replica.learner.tally.digest[0] == 3
        again = await one.choosing.choose(ChooseRequest(ACTIONS, {"x": 1.0}, id="order-1"))
        assert again.repeated
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_deferred_choice_gets_its_default_only_once_it_is_activated(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world)
        used, rewarded, unused = [await one.choose(x, defer=True) for x in ("u", None, "never")]
        assert rewarded.startswith("choice-")
        assert await one.give(WAIT_S + 60) == 0
        one.wall.s += WAIT_S + 60
        await activate(one.choosing.serving, used)
        assert await one.give(WAIT_S - 1) == 0
        assert await one.give(60.0) == 1
        for _ in range(2):
            await activate(one.choosing.serving, used)
        assert await one.reward(rewarded, 1.0) == "learned"
        await activate(one.choosing.serving, rewarded)
        assert await one.give(WAIT_S) == 0
        assert rewards(world) == {used: 0.25, rewarded: 1.0}
        assert await one.reward(unused, 0.5) == "learned"
        with pytest.raises(RequestError, match="no choice has this id"):
            await activate(one.choosing.serving, "nothing")
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_half_that_nobody_can_read_keeps_no_other_from_its_default(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world)
        for name, payload in (("odd", b"\x01no half"), ("far", b"\x09")):
            key = one.replica.store.keys.join(None, name)
            half = NewRow(
                key, name, "", Verdict.ACCEPTED, payload, 1000.0,
                half=Half.PREDICTION,
            )  # fmt: skip
            await one.replica.writer.record([half])
            with pytest.raises(RequestError) as caught:
                await one.choose(name)
            assert caught.value.code == "journal_damaged"
        chosen = await one.choose("good")
        assert await one.give(WAIT_S + 60) == 1
        assert rewards(world) == {chosen: 0.25}
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_labels_that_wait_keep_no_choice_behind_them_from_its_default(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world)
        for name in (f"label-{i}" for i in range(PAGE)):
            one.wall.s += 0.001
            key, at = one.replica.store.keys.join(None, name), one.wall.s
            label = codec.encode_labels([WaitingLabel(1.0, 1.0, None, "", name, at, (key,))])
            half = NewRow(key, name, "", Verdict.ACCEPTED, label, at, half=Half.LABEL)
            assert one.replica.writer.keep(half)
        await one.choose()
        assert await one.give(WAIT_S + 60) == 1
        assert list(rewards(world).values()) == [0.25]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_two_replicas_and_a_reward_settle_each_choice_once(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        wall = worlds.Clock()
        one, two = await shop(world, "one", wall), await shop(world, "two", wall)
        chosen = [await one.choose() for _ in range(PAGE + 30)]
        for clock in (one.clock, two.clock):
            clock.s += WAIT_S + 60
        given = asyncio.gather(one.choosing.defaults.give(), two.choosing.defaults.give())
        told = [await two.reward(id_, 1.0) for id_ in chosen[:20]]
        n = sum(await given)
        assert set(told) <= {"learned", "conflict"}
        found = rewards(world)
        assert len(found) == len(chosen)
        assert sum(x == 1.0 for x in found.values()) == told.count("learned")
        assert n == len(chosen) - told.count("learned")
        for each in (one, two):
            await each.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_what_was_chosen_before_a_start_waits_anew_whatever_the_clock_says(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, "one")
        chosen = await one.choose()
        ahead = worlds.Clock()
        ahead.s = 1e9
        two = await shop(world, "two", ahead)
        assert await two.give(WAIT_S - 1) == 0
        assert await one.reward(chosen, 1.0) == "learned"
        other = await one.choose()
        one.wall.s += 1e6  # a clock that jumps gives nothing either
        assert await one.give(1.0) == 0
        assert await two.give(60.0) == 0, "by the row of the other it was asked just now"
        assert await two.give(WAIT_S + 1) == 1
        assert await one.reward(other, 1.0) == "conflict"
        for each in (one, two):
            await each.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_start_does_not_begin_a_wait_again_that_both_clocks_of_the_store_say_is_over(
    tmp_path: Path,
) -> None:
    """Otherwise a service that starts more often than the wait is long would give no default."""

    async def scene(world: Any) -> None:
        one = await shop(world, "one")
        chosen = await one.choose()
        await one.replica.stop(1)
        for i, (ran_s, later_s, given) in enumerate(
            ((WAIT_S, WAIT_S + 60, 0), (59.0, WAIT_S + 60, 0), (1.0, 0.0, 0), (0.0, WAIT_S + 1, 1))
        ):
            with contextlib.closing(world.journal()) as journal:
                epoch = journal.head("m", worlds.SPEC).epoch
                journal.run("m", worlds.SPEC, epoch, int(1000 * ran_s))
            wall = worlds.Clock()
            wall.s = one.wall.s + later_s
            two = await shop(world, f"two-{i}", wall)
            assert await two.give(1.0) == given, (ran_s, later_s)
            if given:
                assert await two.reward(chosen, 1.0) == "conflict"
            await two.replica.stop(1)
        assert list(rewards(world).values()) == [0.25]

    worlds.play(tmp_path, scene)


def test_at_the_bound_a_choice_that_may_need_a_default_is_refused(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, limits=Limits(feedback_wait_s=60, joins_queue_max=2))
        asked = [one.choosing.choose(ChooseRequest(ACTIONS)) for _ in range(3)]  # in one turn
        told = await asyncio.gather(*asked, return_exceptions=True)
        refused = [x for x in told if isinstance(x, RequestError)]
        assert [(x.status, x.code) for x in refused] == [(429, "joins_full")], told
        await worlds.until(lambda: one.replica.writer.idle)
        assert (await one.choosing.choose(ChooseRequest(ACTIONS))).action in ("a", "b")
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("record", ["behind", "before"])
def test_a_choice_may_be_written_before_its_answer(tmp_path: Path, record: str) -> None:
    """Then none that was answered is lost in a kill."""

    async def scene(world: Any) -> None:
        one = await shop(world, choose={"record": record})
        answer = await one.choosing.choose(ChooseRequest(ACTIONS, {"x": 1.0}))
        with contextlib.closing(world.journal()) as journal:
            assert journal.usage("m").halves >= (record == "before")
        await worlds.until(lambda: one.replica.writer.idle)
        assert await one.reward(answer.id, 1.0) == "learned"
        late = await one.choose()
        assert await one.give(WAIT_S + 60) == 1
        assert await one.reward(late, 1.0) == "conflict"
        assert sorted(rewards(world).values()) == [0.25, 1.0]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_without_a_default_nothing_is_written_and_nothing_given(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose={"default_reward": None})
        await one.choose()
        assert await one.give(10 * WAIT_S) == 0
        assert rewards(world) == {}
        with contextlib.closing(world.journal()) as journal:
            assert journal.usage("m").halves == 0
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize(
    ("choose", "more", "said"),
    [
        ({"default_reward": 2}, {}, "not in reward_range"),
        ({"reward_wait": "4d"}, {}, "longer than half of token_lifetime"),
        ({"reward_range": [1, 1]}, {}, "no range"),
        ({"record": "before"}, {}, "no choice is written"),
        ({}, {"features": {"x": "number"}}, "leave `features` out"),
    ],
)
def test_settings_that_can_not_be_kept_are_refused(
    choose: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelSettings.model_validate({"name": "m", "task": "choose", "choose": choose, **more})
