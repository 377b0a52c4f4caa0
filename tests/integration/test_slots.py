"""Several slots in one request over HTTP: no action twice, each with its own reward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chosen import choices_of, served

from online.service.embedded import Embedded

ACTIONS = [{"id": x} for x in "abc"]
SLOTS: list[dict[str, Any]] = [{"id": "top"}, {"id": "side", "features": {"wide": True}}]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with served(tmp_path_factory.mktemp("slots"), choose={"policy": "softmax"}) as service:
        yield service


def post(service: Embedded, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/models/shop/{path}", json=body, timeout=240)


def test_each_slot_has_an_action_an_id_and_a_reward_of_its_own(shop: Embedded) -> None:
    context = {"hour": 20}
    for _ in range(20):
        answer = post(shop, "choose", context=context, actions=ACTIONS, slots=SLOTS).json()
        assert [x["slot"] for x in answer["slots"]] == ["top", "side"]
        assert len({x["action"] for x in answer["slots"]}) == 2
        rewards = [{"id": x["id"], "reward": 0.5} for x in answer["slots"]]
        told = post(shop, "reward", rewards=rewards).json()["events"]
        assert [x["status"] for x in told] == ["learned", "learned"]
    logged = [choice for choice, _ in choices_of(shop.state_dir).values()]
    by_slot = {choice.context["slot"]: choice for choice in logged}
    assert by_slot["side"].context == {"hour": 20, "slot": "side", "slot.wide": True}
    assert len(by_slot["side"].excluded) == 1
    assert by_slot["top"].excluded == ()


def test_under_an_own_id_slots_are_chosen_once(shop: Embedded) -> None:
    asked = {"actions": ACTIONS, "slots": SLOTS, "id": "page-1"}
    first, again = [post(shop, "choose", **asked).json()["slots"] for _ in range(2)]
    assert [x["id"] for x in first] == ["page-1:top", "page-1:side"]
    assert [x["action"] for x in first] == [x["action"] for x in again]
    assert all(x["repeated"] for x in again)
    assert post(shop, "reward", id="page-1:side", reward=1).json()["status"] == "learned"


def test_the_client_asks_for_several_slots(shop: Embedded) -> None:
    slots: dict[str, dict[str, Any]] = {"top": {}, "side": {"wide": True}}
    found = shop.model.choose_slots(["a", "b", "c"], slots, {"hour": 20}, exclude=["c"])
    assert list(found) == ["top", "side"]
    assert {one.action for one in found.values()} == {"a", "b"}
    receipts = [shop.model.reward(one.id, 1.0) for one in found.values()]
    assert [x.status for x in receipts] == ["learned", "learned"]
    logged = choices_of(shop.state_dir)
    contexts = [logged[str(x.event_id)][0].context for x in receipts]
    assert contexts[1] == {"hour": 20, "slot": "side", "slot.wide": True}
    again = [
        shop.model.choose_slots({"a": {}, "b": {}}, ["x", "y"], id="page-2", baselines={"y": "b"})
        for _ in range(2)
    ]
    assert [one.id for one in again[0].values()] == ["page-2:x", "page-2:y"]
    assert [one.action for one in again[0].values()] == [one.action for one in again[1].values()]
    assert all(one.repeated for one in again[1].values())


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"slots": []}, "slots"),
        ({"slots": [{"id": str(i)} for i in range(4)]}, "slots"),
        ({"slots": SLOTS, "exclude": ["a", "b"]}, "slots"),
        ({"slots": SLOTS, "baseline": "a"}, "baseline"),
        ({"slots": SLOTS, "context": {"slot": 1}}, "context.slot"),
        ({"slots": SLOTS, "context": {"slot.x": 1}}, "context.slot.x"),
        ({"slots": [{"id": "a"}, {"id": "a"}]}, "slots[1].id"),
        ({"slots": [{"id": "a:b"}]}, "slots[0].id"),
        ({"slots": [{"id": "a", "exclude": ["z"]}]}, "slots[0].exclude"),
    ],
)
def test_slots_that_can_not_be_told_apart_or_filled_are_refused(
    shop: Embedded, body: dict[str, Any], field: str
) -> None:
    answer = post(shop, "choose", actions=ACTIONS, **body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
