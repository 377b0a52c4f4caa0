"""Several rewards of a choice are learned once, as their sum or the last, when its wait ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from test_default_rewards import WAIT_S, Shop, rewards, shop

from online.decide.record import unpack
from online.errors import RequestError
from online.messages.choices import Reward, RewardRequest
from online.messages.sender import sender
from online.messages.structs import Prediction, PredictRequest, Receipt, Receipts
from online.rows.joins import ROUNDS_MAX
from online.serving import defaults
from online.serving.choices import collecting
from online.settings.choose import Choose
from online.settings.tokens import Grant
from replay import codec
from replay.journal.base import Predicted

SUM = {"aggregate": "sum", "default_reward": None, "reward_range": [0, 10]}


async def give(one: Shop, id_: str, reward: Any, named: str | None = None, **more: Any) -> Receipt:
    _, receipt = await one.choosing.rewards.take(
        RewardRequest(id_, reward, reward_id=named, **more)
    )
    assert isinstance(receipt, Receipt)
    return receipt


async def refused(one: Shop, *args: Any, **more: Any) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        await give(one, *args, **more)
    return caught.value.status, caught.value.code


@pytest.mark.parametrize(("aggregate", "worth"), [("sum", 6.0), ("last", 4.0)])
def test_rewards_are_learned_once_when_the_wait_ends(
    tmp_path: Path, aggregate: str, worth: float
) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose={**SUM, "aggregate": aggregate})
        token, own, silent = [await one.choose(name) for name in (None, "order-1", None)]
        for id_ in (token, own):
            first = await give(one, id_, 2.0)
            assert (first.status, first.idempotent, first.duplicate) == ("waiting", False, False)
            assert (await give(one, id_, 4.0, "r-2")).idempotent
        assert one.replica.learner.tally.digest[0] == 0
        assert await one.give(WAIT_S - 1) == 0
        assert await one.give(60.0) == 2
        assert await one.give(WAIT_S) == 0
        assert sorted(rewards(world).values()) == [worth, worth]
        assert one.replica.learner.tally.digest[0] == 2
        late = await give(one, token, 1.0, "r-3")
        assert late.status == "expired"
        assert (await give(one, own, 4.0, "r-2")).first_outcome == "learned"
        assert (await give(one, silent, 1.0)).status == "waiting"  # nobody had sent one
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_repeat_is_known_by_its_own_id_and_without_one_is_another_reward(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        id_ = await one.choose()
        assert (await give(one, id_, 1.0, "r")).status == "waiting"
        again = await give(one, id_, 1.0, "r")
        assert (again.status, again.duplicate, again.first_outcome) == (
            "duplicate", True, "waiting",
        )  # fmt: skip
        other = await give(one, id_, 3.0, "r")
        assert (other.status, other.duplicate) == ("conflict", True)
        both = await asyncio.gather(*(give(one, id_, 1.0) for _ in range(2)))
        assert [(x.status, x.idempotent) for x in both] == [("waiting", False)] * 2
        await one.give(WAIT_S + 60)
        assert list(rewards(world).values()) == [3.0]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("default", [0.25, None])
def test_of_rewards_kept_for_their_sum_the_first_counts_once_the_earliest_is_asked_for(
    tmp_path: Path, default: float | None
) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        id_ = await one.choose()
        for reward in (2.0, 4.0, 3.0):
            assert (await give(one, id_, reward)).status == "waiting"
        await one.replica.stop(1)
        after = {"aggregate": "earliest", "reward_range": [0, 10], "default_reward": default}
        two = await shop(world, "two", choose=after)
        await two.give(0.0)  # it waits anew after a start
        assert await two.give(WAIT_S + 60) == 1
        assert list(rewards(world).values()) == [2.0]
        await two.replica.stop(1)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("aggregate", ["sum", "last"])
def test_rewards_are_of_the_source_that_their_token_stands_for(
    tmp_path: Path, aggregate: str
) -> None:
    """Else a ban, a forget and the filters would never meet who has sent them."""

    async def scene(world: Any) -> None:
        one = await shop(world, choose={**SUM, "aggregate": aggregate})
        id_ = await one.choose()
        sender.set(Grant("bob"))
        assert (await give(one, id_, 3.0, "r")).status == "waiting"
        sender.set(Grant("alice"))
        assert await refused(one, id_, 9.0) == (409, "another_source")
        assert await refused(one, id_, 9.0, source="bob") == (403, "source_fixed")
        sender.set(Grant())
        await one.give(WAIT_S + 60)
        with contextlib.closing(world.journal()) as journal:
            assert [row.source for row in journal.follow("m", 0, 1000).rows] == ["bob"]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_sums_are_cut_to_the_range_and_single_rewards_are_within_it(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        id_ = await one.choose()
        assert await refused(one, id_, 11.0) == (422, "invalid_value")
        for _ in range(3):
            await give(one, id_, 9.0)
        await one.give(WAIT_S + 60)
        assert list(rewards(world).values()) == [10.0]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_named_rewards_are_weighed(tmp_path: Path) -> None:
    named = {"click": 1.0, "seconds": 0.1}

    async def scene(world: Any) -> None:
        one = await shop(world, choose={**SUM, "aggregate": "last", "rewards": named})
        id_, few = await one.choose(), await one.choose()
        assert (await give(one, id_, {"click": True, "seconds": 5})).status == "waiting"
        await give(one, id_, {"seconds": 30})
        await give(one, few, {"seconds": -50})
        assert await refused(one, id_, 1.0) == (422, "invalid_value")
        assert await refused(one, id_, {"buy": 1}) == (422, "invalid_value")
        assert await refused(one, id_, {"click": "x"}) == (422, "invalid_value")
        assert await refused(one, id_, {}) == (422, "invalid_value")
        await one.give(WAIT_S + 60)
        assert sorted(rewards(world).values()) == [0.0, 4.0]
        for name in (1, None, b"click", ("click",)):  # msgpack has such names
            with pytest.raises(RequestError, match="no reward of this name"):
                await give(one, "c-3", {name: 2})
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_named_rewards_of_one_body_are_learned_at_once_where_the_first_counts(
    tmp_path: Path,
) -> None:
    async def scene(world: Any) -> None:
        choose = {"default_reward": None, "rewards": {"click": 0.25, "buy": 1.0}}
        one = await shop(world, choose=choose)
        id_ = await one.choose()
        assert (await give(one, id_, {"click": 1})).status == "learned"
        assert (await give(one, id_, {"click": 1})).status == "duplicate"
        assert (await give(one, id_, {"buy": 1})).status == "conflict"
        assert list(rewards(world).values()) == [0.25]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_choice_has_rewards_of_one_source_and_so_many(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose={**SUM, "rewards_max": 2})
        id_ = await one.choose()
        await give(one, id_, 1.0, source="till")
        assert await refused(one, id_, 1.0, source="shop") == (409, "another_source")
        await give(one, id_, 1.0, source="till")
        assert await refused(one, id_, 1.0, source="till") == (422, "rewards_full")
        assert await refused(one, "nobody", 1.0) == (404, "unknown_id")
        await one.give(WAIT_S + 60)
        (row,) = world.journal().follow("m", 0, 10).rows
        assert row.source == "till"
        choice = codec.decode(row.payload).choice
        assert choice is not None
        assert [x.values for x in unpack(choice).rewards] == [{"": 1.0}, {"": 1.0}]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_many_rewards_are_written_together_and_each_is_told_what_became_of_it(
    tmp_path: Path,
) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        ids = [await one.choose() for _ in range(3)]
        sent = [Reward(ids[i % 3], 1.0, reward_id=f"r-{i}") for i in range(6)]
        sent += [Reward(ids[0], 1.0, reward_id="r-0"), Reward("nobody", 1.0), Reward(ids[1], 99.0)]
        status, told = await one.choosing.rewards.take(RewardRequest(rewards=sent))
        assert isinstance(told, Receipts)
        assert status == 200
        assert [x.status for x in told.events] == (
            ["waiting"] * 6 + ["duplicate", "refused", "refused"]
        )
        await one.give(WAIT_S + 60)
        assert list(rewards(world).values()) == [2.0] * 3
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_prediction_that_is_no_choice_costs_other_rewards_of_the_body_nothing(
    tmp_path: Path,
) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        asked = one.choosing.serving.predict(PredictRequest(features={"a": 1.0}))
        assert isinstance(asked, Prediction)
        given = [Reward(asked.id, 1.0), Reward(await one.choose(), 2.0)]
        _, receipts = await one.choosing.rewards.take(RewardRequest(rewards=given))
        assert isinstance(receipts, Receipts)
        assert [receipt.status for receipt in receipts.events] == ["refused", "waiting"]
        assert await refused(one, asked.id, 1.0) == (404, "unknown_id")
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_two_replicas_at_once_count_each_reward_once(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one, two = await shop(world, "one", choose=SUM), await shop(world, "two", choose=SUM)
        ids, rng = [await one.choose() for _ in range(4)], random.Random(5)
        asked = [(id_, f"r-{i}") for id_ in ids for i in range(5)] * 2
        rng.shuffle(asked)
        receipts = await asyncio.gather(
            *(give(rng.choice((one, two)), id_, 1.0, named) for id_, named in asked)
        )
        assert sorted(x.status for x in receipts) == ["duplicate"] * 20 + ["waiting"] * 20
        for each in (one, two):
            each.clock.s += WAIT_S + 60
        await asyncio.gather(one.choosing.defaults.give(), two.choosing.defaults.give())
        assert list(rewards(world).values()) == [5.0] * 4
        for each in (one, two):
            await each.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_what_its_token_has_is_removed_if_nothing_becomes_of_it(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        silent, late = await one.choose(), await one.choose()
        own, used = await one.choose("order-1"), await one.choose()
        await one.choose("later", defer=True)
        await give(one, used, 2.0)

        def kept() -> int:
            return one.replica.store.journal.usage("m").halves

        assert kept() == 5
        assert await one.give(WAIT_S - 1) == 0
        assert kept() == 5
        assert await one.give(60.0) == 1
        assert kept() == 2, "those that only their halves have"
        one.wall.s += WAIT_S + 60
        for id_ in (late, own):
            assert (await give(one, id_, 3.0, "r")).status == "waiting"
            assert (await give(one, id_, 3.0, "r")).status == "duplicate"
        assert await one.give(WAIT_S + 60) == 2
        assert sorted(rewards(world).values()) == [2.0, 3.0, 3.0]
        assert (await give(one, silent, 1.0)).status == "waiting"
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_what_stays_is_read_again_only_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: Any) -> None:
        monkeypatch.setattr(defaults, "PAGE", 2)
        one = await shop(world, choose=SUM)
        for i in range(6):
            await one.choose(f"order-{i}")
        journal, looks = one.replica.store.journal, list[int]()
        read = journal.predicted

        def counted(*asked: Any) -> Predicted:
            page: Predicted = read(*asked)
            looks.append(len(page.waiting))
            return page

        monkeypatch.setattr(journal, "predicted", counted)
        assert await one.give(WAIT_S + 60) == 0
        assert looks == [2, 2, 2, 0, 0], "the last one is at stamps from the future"
        assert await one.give(1.0) == 0
        assert looks[5:] == [0], "the next look begins where that one ended"
        await give(one, "order-3", 1.0)
        assert await one.give(defaults.WHOLE_S) == 1
        assert looks[6:] == [2, 2, 2, 0, 0]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_half_that_is_written_behind_a_look_is_found_by_the_next(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        one.wall.s += 58.0
        await one.choose("before")
        assert await one.give(WAIT_S + 60) == 0
        one.wall.s -= 5.0
        await give(one, await one.choose("behind"), 1.0)
        assert await one.give(1.0) == 1
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("named", [None, "r"])
@pytest.mark.parametrize("meanwhile", ["another reward", "the end of the wait"])
def test_a_reward_whose_write_is_repeated_counts_once(
    tmp_path: Path, named: str | None, meanwhile: str
) -> None:
    async def scene(world: Any) -> None:
        one, two = await shop(world, "one", choose=SUM), await shop(world, "two", choose=SUM)
        id_, record, worth = await one.choose(), one.replica.writer.record, 3.0

        async def twice(rows: Any) -> Any:
            """The store has written it, its answer is lost, and others are faster than the next."""
            nonlocal worth
            wrote = await record(rows)
            if wrote[0].met is not None:
                return wrote
            one.replica.writer.record = record
            if meanwhile == "another reward":
                assert (await give(two, id_, 4.0)).status == "waiting"
                worth = 7.0
            else:
                assert await two.give(WAIT_S + 60) == 1
            return await record(rows)

        one.replica.writer.record = twice
        assert (await give(one, id_, 3.0, named)).status == "waiting"
        assert one.replica.writer.record == record, "it was written twice"
        for each in (one, two):
            await each.give(WAIT_S + 60)
        assert list(rewards(world).values()) == [worth]
        for each in (one, two):
            await each.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_half_that_a_kill_has_lost_is_made_again_of_the_token(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        one.replica.writer.keep, keep = lambda half: True, one.replica.writer.keep
        id_ = await one.choose()
        one.replica.writer.keep = keep
        assert (await give(one, id_, 3.0, "r")).status == "waiting"
        assert (await give(one, id_, 3.0, "r")).status == "duplicate"
        await one.give(WAIT_S + 60)
        assert list(rewards(world).values()) == [3.0]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_whoever_is_always_slower_is_told_to_send_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        id_ = await one.choose()
        monkeypatch.setattr(collecting, "ROUNDS_MAX", 1)
        assert await refused(one, id_, 1.0) == (503, "journal_unavailable")
        monkeypatch.setattr(collecting, "ROUNDS_MAX", ROUNDS_MAX)
        assert (await give(one, id_, 1.0)).status == "waiting"
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_label_settles_a_choice_at_once(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=SUM)
        id_ = await one.choose()
        await give(one, id_, 3.0)
        from online.messages.structs import FeedbackRequest

        _, receipt = await one.choosing.serving.feedback(FeedbackRequest(7.0, id_))
        assert receipt.status == "learned"  # type: ignore[union-attr]
        assert (await give(one, id_, 1.0)).status == "expired"
        assert await one.give(WAIT_S + 60) == 0
        assert list(rewards(world).values()) == [7.0]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


@pytest.mark.parametrize("rewards_", [{"": 1.0}, {"a\n": 1.0}, {"a": 1e10}, {"a": float("nan")}])
def test_weights_are_numbers_by_name(rewards_: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"no name with a weight|a finite number"):
        Choose(rewards=rewards_)
