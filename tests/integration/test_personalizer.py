"""Personalizer's clients ask a model that chooses: they change the address and the key alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest

from online.decide.record import Choice, unpack
from online.service.embedded import Embedded
from online.serving.choices.personalizer import own_id
from online.settings.config import load
from online.settings.places import open_journal
from online.settings.tokens import ROLES
from online.tables.nested import features_of
from replay import codec

KEY: Final = "key-0123456789abcdefghijkl"
ACTIONS: Final = [
    {"id": "news", "features": [{"kind": "text", "size": {"words": 300}}]},
    {"id": "film", "features": [{"kind": "video"}, {"tags": ["new", "long"]}]},
    {"id": "sport"},
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    data = {
        "cluster": "embedded", "port": 0, "state_dir": str(tmp_path_factory.mktemp("shop")),
        "tokens": dict.fromkeys(ROLES, KEY),
        "models": [{"name": "shop", "task": "choose", "choose": {"default_reward": 0}}],
    }  # fmt: skip
    with Embedded(load(None, data, {}), lambda _: None) as service:
        service.start()
        yield service


def endpoint(service: Embedded) -> str:
    return f"{service.url}/v1/models/shop"


def post(service: Embedded, path: str, body: Any = None, key: str = KEY) -> httpx.Response:
    headers = {"Ocp-Apim-Subscription-Key": key}
    return httpx.post(
        f"{endpoint(service)}/personalizer/{path}", json=body, headers=headers, timeout=120
    )


def choice_of(service: Embedded, event: str) -> tuple[Choice, float]:
    """The choice and the reward of an event's row."""
    with contextlib.closing(open_journal(service._parts.settings)) as journal:
        for row in journal.follow("shop", 0, 1000).rows:
            if row.event_id == event:
                example = codec.decode(row.payload)
                assert example.choice is not None
                assert isinstance(example.label, float)
                return unpack(example.choice), example.label
    raise AssertionError(f"no row of {event}")


def test_rank_and_reward(shop: Embedded) -> None:
    body = {
        "contextFeatures": [{"time": {"day": "monday", "hour": 9}}, {"device": "phone"}],
        "actions": ACTIONS, "excludedActions": ["sport"], "eventId": "visit-1",
        "deferActivation": False,
    }  # fmt: skip
    answer = post(shop, "v1.0/rank", body)
    assert answer.status_code == 201
    said = answer.json()
    assert said["eventId"] == "visit-1"
    assert said["ranking"][0]["id"] == said["rewardActionId"] != "sport"
    assert sum(x["probability"] for x in said["ranking"]) == pytest.approx(1.0)
    assert post(shop, "v1.0/rank", body).json() == said  # the event's answer stands
    again = post(shop, "v1.0/events/visit-1/reward", {"value": 1.0})
    assert (again.status_code, again.content) == (204, b"")
    assert post(shop, "v1.0/events/visit-1/reward", {"value": 0.0}).status_code == 204  # the first
    choice, reward = choice_of(shop, "visit-1")
    assert (choice.action, reward) == (said["rewardActionId"], 1.0)
    assert choice.context == {"time.day": "monday", "time.hour": 9, "device": "phone"}
    assert dict(choice.actions)["film"] == {"kind": "video", "tags.new": True, "tags.long": True}


@pytest.mark.parametrize("event", ["shop/17", "a b", "tür", "x/reward"])
def test_every_event_that_was_ranked_can_be_rewarded(shop: Embedded, event: str) -> None:
    body = {"actions": ACTIONS, "eventId": event, "deferActivation": True}
    action = post(shop, "v1.0/rank", body).json()["rewardActionId"]
    at = f"v1.0/events/{quote(event, safe='')}"
    assert post(shop, f"{at}/activate").status_code == 204
    assert post(shop, f"{at}/reward", {"value": 0.5}).status_code == 204
    choice, reward = choice_of(shop, own_id(event))
    assert (choice.action, reward) == (action, 0.5)


def test_wrong_requests_are_errors_with_a_code(shop: Embedded) -> None:
    for path, body, status in (
        ("v1.0/rank", {"actions": []}, 422),
        ("v1.0/rank", {"actions": ACTIONS, "contextFeatures": ["x"]}, 422),
        ("v1.0/rank", {"actions": ACTIONS, "eventId": "x" * 257}, 422),
        ("v1.0/rank", {}, 422),
        ("v1.0/events/visit-2/reward", {"value": 7}, 422),
        ("v1.0/events/visit-2/reward", {}, 422),
        ("v1.0/events/nothing/activate", None, 404),
        ("v1.0/evaluations", {}, 404),
    ):
        answer = post(shop, path, body)
        assert answer.status_code == status, (path, body)
        assert {"code", "message"} <= answer.json()["error"].keys()
    assert post(shop, "v1.0/rank", {"actions": ACTIONS}, key="nobody").status_code == 401


def test_what_was_deferred_gets_no_default_before_it_is_activated(shop: Embedded) -> None:
    body = {"actions": ACTIONS, "eventId": "later", "deferActivation": True}
    said = post(shop, "v1.0/rank", body).json()

    assert deferred(shop, "later")
    for _ in range(2):
        assert post(shop, "v1.0/events/later/activate").status_code == 204
        assert not deferred(shop, "later")
    assert post(shop, "v1.0/rank", body).json() == said
    assert post(shop, "v1.0/events/later/reward", {"value": 0.5}).status_code == 204
    assert choice_of(shop, "later")[0].action == said["rewardActionId"]
    assert post(shop, "v1.0/events/later/activate").status_code == 204


def deferred(service: Embedded, event: str) -> bool:
    """Whether the choice that waits under the id was not activated yet."""
    with contextlib.closing(open_journal(service._parts.settings)) as journal:
        for _, half in journal.predicted("shop", 0.0, 1e12, 1000).waiting:
            if half.event_id == event:
                kept = codec.decode_prediction(half.payload).choice
                assert kept is not None
                return unpack(kept).deferred
    raise AssertionError("it does not wait")


def test_slots_get_different_actions_and_rewards_of_their_own(shop: Embedded) -> None:
    body = {
        "contextFeatures": [{"device": "phone"}], "actions": ACTIONS, "eventId": "page 1",
        "slots": [
            {"id": "top", "baselineAction": "news", "features": [{"size": "large"}]},
            {"id": "side", "baselineAction": "film", "excludedActions": ["sport"]},
        ],
    }  # fmt: skip
    answer = post(shop, "multislot/rank?api-version=2022-09-01-preview", body)
    assert answer.status_code == 201
    said = answer.json()
    top, side = said["slots"]
    assert (top["id"], side["id"], said["eventId"]) == ("top", "side", "page 1")
    assert top["rewardActionId"] != side["rewardActionId"] != "sport"
    assert post(shop, "multislot/rank", body).json() == said
    rewards = {"reward": [{"slotId": "top", "value": 1.0}, {"slotId": "side", "value": 0.25}]}
    assert post(shop, "multislot/events/page%201/reward", rewards).status_code == 204
    choice, reward = choice_of(shop, own_id("page 1", "top"))
    assert (choice.action, reward) == (top["rewardActionId"], 1.0)
    assert choice.context == {"device": "phone", "slot.size": "large"}
    assert choice_of(shop, own_id("page 1", "side"))[1] == 0.25


def test_one_activation_reaches_all_slots_of_a_deferred_event(shop: Embedded) -> None:
    body = {
        "actions": ACTIONS, "eventId": "page/2", "slots": [{"id": "top"}, {"id": "side"}],
        "deferActivation": True,
    }  # fmt: skip
    said = post(shop, "multislot/rank", body).json()
    each = [own_id("page/2", slot) for slot in ("top", "side")]
    assert [deferred(shop, id_) for id_ in each] == [True, True]
    assert post(shop, "multislot/events/page%2F3/activate").status_code == 404
    for _ in range(2):
        assert post(shop, "multislot/events/page%2F2/activate").status_code == 204
        assert [deferred(shop, id_) for id_ in each] == [False, False]
    assert post(shop, "multislot/rank", body).json() == said
    before = halves(shop)
    for others in (["top"], ["top", "another"]):
        other = {**body, "slots": [{"id": slot} for slot in others]}
        assert post(shop, "multislot/rank", other).status_code == 409
    assert halves(shop) == before, "what is refused chooses nothing"
    rewards = {"reward": [{"slotId": "top", "value": 1.0}]}
    assert post(shop, "multislot/events/page%2F2/reward", rewards).status_code == 204
    assert choice_of(shop, each[0])[1] == 1.0
    assert post(shop, "multislot/events/page%2F2/activate").status_code == 204


def halves(service: Embedded) -> int:
    """Predictions that wait in the journal, lists of deferred slots among them."""
    with contextlib.closing(open_journal(service._parts.settings)) as journal:
        return journal.usage("shop").halves


def test_a_deferred_event_whose_slots_have_rewards_leaves_nothing(shop: Embedded) -> None:
    before = halves(shop)
    body = {
        "actions": ACTIONS, "eventId": "page 4", "slots": [{"id": "top"}, {"id": "side"}],
        "deferActivation": True,
    }  # fmt: skip
    assert post(shop, "multislot/rank", body).status_code == 201
    assert post(shop, "multislot/events/page%204/activate").status_code == 204
    assert halves(shop) == before + 3  # two choices, and the list of both
    rewards = {"reward": [{"slotId": slot, "value": 1.0} for slot in ("top", "side")]}
    assert post(shop, "multislot/events/page%204/reward", rewards).status_code == 204
    assert halves(shop) == before


def test_a_refused_rank_of_deferred_slots_stores_nothing(shop: Embedded) -> None:
    none_left = {"id": "top", "excludedActions": [action["id"] for action in ACTIONS]}
    body = {
        "actions": ACTIONS, "eventId": "page 5", "slots": [none_left], "deferActivation": True,
    }  # fmt: skip
    assert post(shop, "multislot/rank", body).status_code >= 400
    body["slots"] = [{"id": "top"}, {"id": "side"}]
    assert post(shop, "multislot/rank", body).status_code == 201


def test_an_endpoint_without_a_model_is_told_the_models(shop: Embedded) -> None:
    headers = {"Ocp-Apim-Subscription-Key": KEY}
    body = {"actions": ACTIONS}
    answer = httpx.post(f"{shop.url}/personalizer/v1.0/rank", json=body, headers=headers)
    assert answer.status_code == 404
    assert "/v1/models/shop" in answer.json()["error"]["message"]


def test_clients_read_the_configuration(shop: Embedded) -> None:
    headers = {"Ocp-Apim-Subscription-Key": KEY}
    for version in ("", "v1.0/", "v1.1/"):
        at = f"{endpoint(shop)}/personalizer/{version}configurations"
        answer = httpx.get(f"{at}/service", headers=headers)
        assert answer.status_code == 200
        assert answer.json() == {
            "defaultReward": 0.0, "rewardWaitTime": "PT600S", "rewardAggregation": "earliest",
            "explorationPercentage": 1.0, "learningMode": "Online", "modelExportFrequency": "PT0S",
            "isAutoOptimizationEnabled": False,
        }  # fmt: skip
        assert httpx.get(f"{at}/policy", headers=headers).json()["name"] == "auto"
        assert httpx.get(f"{at}/service").status_code == 401
        assert httpx.put(f"{at}/service", json={}, headers=headers).status_code in (404, 405)


def test_an_events_id_may_have_a_slash(shop: Embedded) -> None:
    said = post(shop, "v1.0/rank", {"actions": ACTIONS, "eventId": "a/b c"}).json()
    assert post(shop, "v1.0/events/a%2Fb%20c/activate").status_code == 204
    assert post(shop, "v1.0/events/a%2Fb%20c/reward", {"value": 1.0}).status_code == 204
    choice, reward = choice_of(shop, own_id("a/b c"))
    assert (choice.action, reward) == (said["rewardActionId"], 1.0)


def test_the_client_of_v1_ranks_and_rewards(shop: Embedded) -> None:
    pytest.importorskip("msrest", reason="needs azure-cognitiveservices-personalizer")
    clients = pytest.importorskip("azure.cognitiveservices.personalizer")
    from msrest.authentication import CognitiveServicesCredentials

    models = clients.models
    given: Any = ACTIONS
    client = clients.PersonalizerClient(endpoint(shop), CognitiveServicesCredentials(KEY))
    for i in range(3):
        request = models.RankRequest(
            actions=[models.RankableAction(id=x["id"], features=x.get("features", []))
                     for x in given],
            context_features=[{"time": "morning"}], excluded_actions=["news"],
            event_id=f"v1-{i}", defer_activation=i == 2,
        )  # fmt: skip
        answer = client.rank(request)
        assert (answer.event_id, len(answer.ranking)) == (f"v1-{i}", 3)
        assert answer.reward_action_id == answer.ranking[0].id != "news"
        if i == 2:
            client.events.activate(event_id=answer.event_id)
        client.events.reward(event_id=answer.event_id, value=0.5)
        assert choice_of(shop, f"v1-{i}")[1] == 0.5
    with pytest.raises(models.ErrorResponseException) as refused:
        client.rank(models.RankRequest(actions=[]))
    assert "actions" in refused.value.error.error.message


def test_the_client_of_the_preview_ranks_slots(shop: Embedded) -> None:
    clients = pytest.importorskip("azure.ai.personalizer", reason="needs azure-ai-personalizer")
    from azure.core.credentials import AzureKeyCredential

    with clients.PersonalizerClient(endpoint(shop), AzureKeyCredential(KEY)) as client:
        one = client.rank({"actions": ACTIONS, "eventId": "ai-1", "deferActivation": True})
        client.activate("ai-1")
        client.reward("ai-1", {"value": 1.0})
        assert choice_of(shop, "ai-1")[0].action == one["rewardActionId"]
        many = client.rank_multi_slot(
            {"actions": ACTIONS, "slots": [{"id": "a"}, {"id": "b"}], "eventId": "ai-2"}
        )
        assert len({slot["rewardActionId"] for slot in many["slots"]}) == 2
        client.reward_multi_slot("ai-2", {"reward": [{"slotId": "b", "value": 1.0}]})
        choice, _ = choice_of(shop, own_id("ai-2", "b"))
        assert choice.action == many["slots"][1]["rewardActionId"]
    administers = clients.PersonalizerAdministrationClient
    with administers(endpoint(shop), AzureKeyCredential(KEY)) as client:
        assert client.get_service_configuration()["learningMode"] == "Online"
        assert client.get_policy()["name"] == "auto"


def test_features_are_named_by_where_they_stand() -> None:
    given = [
        {"a": {"b": 1, "c": {"d": "x"}}, "l": [0.5, 1.5], "n": None},
        {"@id": True, "w": ["p"]},
    ]
    assert features_of(given, 4_096, 1_024) == {
        "a.b": 1, "a.c.d": "x", "l.0": 0.5, "l.1": 1.5, "at_id": True, "w.p": True,
    }  # fmt: skip
    assert features_of(None, 4_096, 1_024) == {}
    assert own_id("order-1") == "order-1"
    assert own_id("order 1") == own_id("order 1") != own_id("order", "1")
