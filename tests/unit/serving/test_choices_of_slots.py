"""Slots of one request: all are checked before one is chosen, and each gets an action."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import replica_world as worlds
from test_default_rewards import Shop, shop

from online.errors import RequestError
from online.messages.choices import Action, ChooseRequest, Slot
from online.serving.choices import personalizer
from online.serving.choices.personalizer import Personalizer, RankableAction, SlotsRequest
from online.serving.choices.reserved_actions import ReservedActions
from online.serving.choices.slots import choose_slots
from replay.journal.base import NewRow

NO_DEFAULT = {"default_reward": None, "policy": "epsilon", "epsilon": 1.0}
ACTIONS = [Action(x) for x in "abc"]


def halves(one: Shop) -> int:
    """Choices that wait in the journal."""
    return len(one.replica.store.journal.predicted("m", 0.0, 1e12, 1000).waiting)


def test_a_refused_slot_leaves_no_choice_of_an_earlier_one(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=NO_DEFAULT)
        for wrong, field in (
            (Slot("side", exclude=["nobody"]), "slots[1].exclude"),
            (Slot("side", exclude=["a", "b", "c"]), "slots[1].exclude"),
            (Slot("side", baseline="nobody"), "slots[1].baseline"),
            (Slot("side", features={"x": [1]}), "context.slot.x"),
            (Slot("not an id"), "id"),
        ):
            asked = ChooseRequest(ACTIONS, {"x": 1.0}, id="page", slots=[Slot("top"), wrong])
            with pytest.raises(RequestError) as caught:
                await choose_slots(one.choosing, asked)
            assert (caught.value.status, caught.value.field) == (422, field)
            assert halves(one) == 0
        right = ChooseRequest(ACTIONS, {"x": 2.0}, id="page", slots=[Slot("top"), Slot("side")])
        assert [x.repeated for x in (await choose_slots(one.choosing, right)).slots] == [False] * 2
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_a_refused_slot_of_personalizers_leaves_no_choice_either(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose=NO_DEFAULT)
        door, actions = Personalizer(one.choosing), [RankableAction(x) for x in "abc"]

        def asked(**second: Any) -> SlotsRequest:
            slots = [personalizer.Slot("top"), personalizer.Slot("side", **second)]
            return SlotsRequest(actions, slots, event_id="page")

        for wrong in ({"features": [{"x": "y" * 5000}]}, {"excluded_actions": list("abc")}):
            with pytest.raises(RequestError):
                await door.rank_slots(asked(**wrong))
            assert halves(one) == 0
        assert len((await door.rank_slots(asked()))["slots"]) == 2
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_slots_without_room_for_all_leave_no_choice_behind(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world)
        writer, calls = one.replica.writer, list[int]()
        keep = writer.keep

        def room_once(*rows: NewRow) -> bool:
            calls.append(len(rows))
            return len(calls) == 1 and keep(*rows)

        writer.keep = room_once  # type: ignore[method-assign]
        asked = ChooseRequest(ACTIONS, {"x": 1.0}, slots=[Slot("top"), Slot("side")])
        assert len((await choose_slots(one.choosing, asked)).slots) == 2
        with pytest.raises(RequestError, match="be written"):
            await choose_slots(one.choosing, asked)
        await worlds.until(lambda: writer.idle)
        assert halves(one) == 2
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_no_slot_gets_the_only_action_that_a_later_one_may_have(tmp_path: Path) -> None:
    """Otherwise whether a request is refused would depend on the draw."""

    async def scene(world: Any) -> None:
        one = await shop(world, choose=NO_DEFAULT)
        seen = set[str]()
        slots = [Slot("top"), Slot("side", exclude=["b", "c"])]
        for i in range(30):
            asked = ChooseRequest(ACTIONS, {"x": 1.0}, id=f"page-{i}", slots=slots)
            top, side = (await choose_slots(one.choosing, asked)).slots
            assert side.action == "a"
            assert {x.id: x.probability for x in top.ranking}["a"] == 0.0
            seen.add(top.action)
            again = (await choose_slots(one.choosing, asked)).slots
            assert [x.action for x in again] == [top.action, "a"]
        assert seen == {"b", "c"}
        both = [Slot("top", exclude=["b", "c"]), Slot("side", exclude=["b", "c"])]
        before = halves(one)
        with pytest.raises(RequestError, match="no action is left") as caught:
            await choose_slots(one.choosing, ChooseRequest(ACTIONS, id="page", slots=both))
        assert (caught.value.status, caught.value.field) == (422, "slots[1].exclude")
        assert halves(one) == before
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_two_slots_of_an_apprentice_have_no_baseline_in_common(tmp_path: Path) -> None:
    async def scene(world: Any) -> None:
        one = await shop(world, choose={**NO_DEFAULT, "apprentice": True})

        def asked(*baselines: str) -> ChooseRequest:
            slots = [Slot(f"s{i}", baseline=x) for i, x in enumerate(baselines)]
            return ChooseRequest(ACTIONS, id="page", slots=slots)

        with pytest.raises(RequestError, match="an earlier slot") as caught:
            await choose_slots(one.choosing, asked("b", "c", "b"))
        assert (caught.value.field, halves(one)) == ("slots[2].baseline", 0)
        told = await choose_slots(one.choosing, asked("b", "c", "a"))
        assert [x.action for x in told.slots] == ["b", "c", "a"]
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)


def test_actions_are_kept_exactly_where_later_slots_need_them() -> None:
    """Beside all assignments, tried one by one."""
    rng = random.Random(5)
    for _ in range(400):
        slots, actions = rng.randint(1, 4), rng.randint(1, 5)
        allowed = [
            {a for a in range(actions) if rng.random() < 0.5} or {rng.randrange(actions)}
            for _ in range(slots)
        ]
        few = {i: found for i, found in enumerate(allowed) if len(found) < slots}
        kept = ReservedActions(few)
        assert (kept.short is None) == can_fill(allowed)
        if kept.short is not None:
            continue
        taken = set[int]()
        for i in range(slots):
            left = allowed[i] - taken
            right = {a for a in left if can_fill([x - taken - {a} for x in allowed[i + 1 :]])}
            assert left - set(kept.needed_after(i)) == right
            action = rng.choice(sorted(right))
            taken.add(action)
            kept.take(action)


def can_fill(allowed: list[set[int]]) -> bool:
    """Whether each slot can have an action of its own."""
    return any(len(set(one)) == len(one) for one in itertools.product(*allowed))
