"""Choices as a replica makes them: the logged probability is the one that was drawn with."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds

import online.serving.choices.choosing
from online.decide.record import unpack
from online.errors import RequestError
from online.http.routes import decide
from online.messages.choices import Action, ChooseRequest, Reward, RewardRequest, Slot
from online.models.choices import interactions
from online.models.rewards import Rewards
from online.rows.validator import Validator
from online.serving.choices.batcher import Batcher
from online.serving.choices.choosing import Choosing
from online.serving.choices.slots import answer_choice
from replay import codec


async def chooser(world: Any, name: str = "r", **choose: Any) -> Choosing:
    replica = await world.replica(
        name, build=lambda: Rewards(bits=10).model_for("regression"), choose=choose
    )
    validator = Validator(replica.settings, replica.limits, numeric_only=False)
    return Choosing(world.serving(replica), validator, replica.limits, replica.settings.choose)


def logged(choosing: Choosing, token: str) -> Any:
    """The record that travels in a token."""
    packed = choosing.serving.answer_ids.tokens.read(token)[1].choice
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


def test_choices_that_come_together_are_each_answered_as_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of twelve, some are odd, one is refused, one is written first, and one caller goes away."""
    sizes: list[int] = []

    async def scene(world: Any) -> None:
        choosing = await chooser(world)
        score_many = online.serving.choices.choosing.score_many

        def scored(model: Any, asked: Any, *args: float) -> Any:
            sizes.append(len(asked))
            return score_many(model, asked, *args)

        monkeypatch.setattr(online.serving.choices.choosing, "score_many", scored)
        told = [[Action(x, {"y": float(t + i)}) for i, x in enumerate("abc")] for t in range(12)]
        asked = [ChooseRequest(told[t], {"x": float(t)}) for t in range(12)]
        asked[3].exclude = ["a", "b", "c"]
        asked[4].exclude = ["b"]
        asked[5].id = "own-5"
        asked[6].context = {}
        asked[7].actions = [Action("a", {"y": 1.0}), Action("b")]
        tasks = [asyncio.create_task(choosing.choose(one)) for one in asked]
        await asyncio.sleep(0)
        tasks[10].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[3], RequestError)
        assert isinstance(found[10], asyncio.CancelledError)
        for t, (one, answer) in enumerate(zip(asked, found, strict=True)):
            if isinstance(answer, BaseException):
                assert t in (3, 10), answer
                continue
            assert answer.id == "own-5" if t == 5 else len(answer.id) > 64
            if t != 5:
                choice = logged(choosing, answer.id)
                assert (choice.context, choice.propensity) == (one.context, answer.probability)
                assert [action for action, _ in choice.actions] == [x.id for x in one.actions]
            assert answer.action not in one.exclude
            assert sum(x.probability for x in answer.ranking) == pytest.approx(1.0)
        again = await choosing.choose(asked[5])
        assert again.repeated
        assert again.action == found[5].action  # type: ignore[union-attr]
        await choosing.serving.replica.stop(1)

    worlds.play(tmp_path, scene)
    assert max(sizes) > 1, sizes
    assert sum(sizes) == 12, sizes  # one is refused before, one is asked twice


def test_one_that_can_not_be_worked_out_fails_alone() -> None:
    async def scene() -> None:
        def find(several: Sequence[int]) -> list[float]:
            return [1.0 / one for one in several]

        def answer(asked: int, found: float) -> str:
            if asked == 4:
                raise ValueError("four")
            return f"{asked}: {found} for {who.get()}"

        async def ask(n: int) -> str:
            who.set(n)
            return await together.ask(n)

        who: ContextVar[int] = ContextVar("who")
        together = Batcher(find, answer)
        said = await asyncio.gather(*map(ask, [1, 0, 2, 4]), return_exceptions=True)
        assert said[0] == "1: 1.0 for 1"
        assert isinstance(said[1], ZeroDivisionError)
        assert said[2] == "2: 0.5 for 2"
        assert isinstance(said[3], ValueError)
        with pytest.raises(ZeroDivisionError):
            await ask(0)

    asyncio.run(scene())


def test_rewards_that_fall_are_an_alarm_of_the_model_that_chooses(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        choosing, draw = await chooser(world, policy="epsilon"), random.Random(5)
        judge = choosing.serving.replica.judge
        assert judge is not None
        asked = ChooseRequest([Action("a"), Action("b")], {"x": 1.0})
        for share, state in ((0.9, "ok"), (0.2, "act")):  # of all actions: nothing can be learned
            for _ in range(300):
                answer = await choosing.choose(asked)
                reward = float(draw.random() < share)
                await choosing.rewards.take(RewardRequest(answer.id, reward))
            assert judge.summary()["state"] == state, judge.summary()["why"]
        await choosing.serving.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_ids_that_take_much_are_not_kept_for_the_next_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(world: Any) -> None:
        choosing = await chooser(world)
        interactions._hashes.cache_clear()

        async def kept(size: int) -> tuple[int, int]:
            actions = [Action(f"{i:0{size}}", {"y": float(i)}) for i in range(20)]
            answer = await choosing.choose(ChooseRequest(actions, {"x": 1.0}))
            assert len(answer.action) == size
            return (
                choosing._reader._named.cache_info().currsize,
                interactions._hashes.cache_info().currsize,
            )

        assert await kept(10) == (1, 1)
        assert await kept(1000) == (1, 1)
        monkeypatch.setattr(interactions, "_BRIEF", 20_000)  # the control
        assert await kept(1000) == (2, 2)
        await choosing.serving.replica.stop(5)

    worlds.play(tmp_path, scene)


def test_actions_count_as_names_of_which_a_model_keeps_no_more_than_the_setting_says(
    tmp_path: Path,
) -> None:
    """Else whoever makes up ids of actions would fill the memory of all replicas."""

    async def scene(world: Any) -> None:
        choosing = await chooser(world)
        learner = choosing.serving.replica.learner
        names, told = learner.vocabulary, Counter[str]()
        names.most, names.share = 10, 1.0
        for i in [*range(30), 0]:  # the first one again: it is known
            asked = ChooseRequest([Action(f"a{i}", {"y": 1.0})], {"x": 1.0})
            answer = await choosing.choose(asked)
            _, receipt = await choosing.rewards.take(RewardRequest(answer.id, 1.0))
            status, reason = receipt.status, receipt.reason  # type: ignore[union-attr]
            assert status == "learned" or "names_full" in str(reason)
            told[status] += 1
        assert told == {"learned": 9, "clipped": 22}  # "x", "@y" and eight actions
        model: Any = learner.serving
        assert (len(names), len(model._arms._each)) == (10, 9)  # one without an id
        assert learner.tally.digest[0] == 31
        await choosing.serving.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_reward_before_its_choice_waits_for_it_and_is_learned_then(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        choosing = await chooser(world)
        status, receipt = await choosing.rewards.take(RewardRequest("own-7", 0.5))
        assert (status, receipt.status) == (202, "waiting")  # type: ignore[union-attr]
        assert receipt.reason == (  # type: ignore[union-attr]
            "no choice with this id has been recorded yet; the reward is kept for it"
        )
        replica = choosing.serving.replica
        assert replica.learner.tally.digest[0] == 0
        await choosing.choose(ChooseRequest([Action("a"), Action("b")], {"x": 1.0}, id="own-7"))
        await worlds.until(lambda: replica.learner.tally.digest[0] == 1)
        _, again = await choosing.rewards.take(RewardRequest("own-7", 0.5))
        assert again.status == "duplicate"  # type: ignore[union-attr]
        await replica.stop(1)

    worlds.play(tmp_path, scene)


def test_answers_about_rewards_speak_of_rewards(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        choosing = await chooser(world)
        answer = await choosing.choose(ChooseRequest([Action("a"), Action("b")]))
        sent = [Reward(answer.id, 1.0), Reward("bad id!", 1.0), Reward(answer.id, 7.0)]
        _, receipts = await choosing.rewards.take(RewardRequest(rewards=sent))
        told = [(x.status, x.error and x.error["field"]) for x in receipts.events]  # type: ignore[union-attr]
        assert told[0][0] == "learned"
        assert told[1:] == [("refused", "rewards[1].id"), ("refused", "rewards[2].reward")]
        _, other = await choosing.rewards.take(RewardRequest(answer.id, 0.0))
        assert other.reason == "the reward recorded first is 1.0"  # type: ignore[union-attr]
        with pytest.raises(RequestError, match="2 slots, and 1 actions that may be chosen"):
            await answer_choice(
                choosing, ChooseRequest([Action("a")], slots=[Slot("top"), Slot("side")])
            )
        await choosing.serving.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_the_demo_begins_with_a_model_that_learns_its_clicks(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        made = {
            "a": await chooser(world, "a", apprentice=True),
            "b": await chooser(world, "b", aggregate="sum", rewards={"click": 1.0}),
            "c": await chooser(world, "c", reward_range=(2.0, 5.0)),
            "d": await chooser(world, "d", reward_range=(-1.0, 1.0)),
        }
        assert {name: one.plain for name, one in made.items()} == {
            "a": False, "b": False, "c": False, "d": True,
        }  # fmt: skip
        demo = next(r for r in decide.routes(made).routes if r.path == "/demo/choose")  # type: ignore[attr-defined]
        assert b'data-models="d,a,b,c"' in demo.endpoint().body  # type: ignore[attr-defined]
        for one in made.values():
            await one.serving.replica.stop(1)

    worlds.play(tmp_path, scene)
