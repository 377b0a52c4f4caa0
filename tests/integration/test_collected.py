"""Rewards that are summed, over HTTP: counted once and learned once, whatever is killed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chosen import choices_of, served, settings

from benchmarks.fixtures.service import launch, write_settings
from online.client import Client
from online.service.embedded import Embedded

NAMED = {"click": 1.0, "seconds": 0.1}
SUM: dict[str, Any] = {"aggregate": "sum", "reward_range": [0, 10], "reward_wait": 2.0}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    choose = {**SUM, "reward_wait": 86_400, "rewards": NAMED, "rewards_max": 3}
    with served(tmp_path_factory.mktemp("sums"), choose=choose) as service:
        yield service


def post(service: Embedded, path: str, head: dict[str, str] | None = None, **body: Any) -> Any:
    url = f"{service.url}/v1/models/shop/{path}"
    return httpx.post(url, json=body, headers=head, timeout=240)


def test_each_reward_is_answered_with_what_becomes_of_it(shop: Embedded) -> None:
    id_ = post(shop, "choose", actions=[{"id": "a"}, {"id": "b"}]).json()["id"]
    first = post(shop, "reward", id=id_, reward={"click": 1}, reward_id="r-1")
    assert (first.status_code, first.json()["status"]) == (202, "waiting")
    again = post(shop, "reward", id=id_, reward={"click": 1}, reward_id="r-1")
    assert (again.status_code, again.json()["status"]) == (202, "duplicate")
    other = post(shop, "reward", id=id_, reward={"click": 0}, reward_id="r-1")
    assert (other.status_code, other.json()["status"]) == (409, "conflict")
    bare = post(shop, "reward", id=id_, reward={"seconds": 3}).json()
    assert (bare["status"], bare["idempotent"]) == ("waiting", False)
    for body, status, code in (
        ({"reward": 1}, 422, "invalid_value"),
        ({"reward": {"buy": 1}}, 422, "invalid_value"),
        ({"reward": {"click": 1}, "source": "other"}, 409, "another_source"),
    ):
        refused = post(shop, "reward", id=id_, **body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)
    assert post(shop, "reward", id=id_, reward={"click": 1}).status_code == 202
    full = post(shop, "reward", id=id_, reward={"click": 1})
    assert (full.status_code, full.json()["error"]["code"]) == (422, "rewards_full")
    many = [{"id": id_, "reward": {"click": 1}, "reward_id": "r-1"}, {"id": "x", "reward": 1}]
    assert post(shop, "reward", rewards=many).status_code == 422
    many[1]["reward"] = {"click": 1}
    told = post(shop, "reward", rewards=many).json()["events"]
    assert [x["status"] for x in told] == ["duplicate", "refused"]
    assert shop.model.status()["learned"] == 0


def test_personalizers_clients_are_known_by_the_ids_of_their_requests(tmp_path: Path) -> None:
    with served(tmp_path, choose={**SUM, "reward_wait": 3600}) as service:
        asked = {"eventId": "e-1", "actions": [{"id": "a", "features": [{"x": 1}]}]}
        post(service, "personalizer/v1.0/rank", **asked)
        for request in ("one", "one", "two"):
            head = {"x-ms-client-request-id": request}
            path = "personalizer/v1.0/events/e-1/reward"
            assert post(service, path, head, value=2.0).status_code == 204
        counts = service.model.status()["replicas"].popitem()[1]
        assert (counts["rewards_waiting"], counts["rewards_duplicate"]) == (2, 1)


def test_sums_outlive_kills_and_are_learned_once(tmp_path: Path) -> None:
    write_settings(tmp_path, settings(choose={**SUM, "default_reward": 0.0}))
    own, taken = [f"order-{i}" for i in range(4)], 0
    for life in range(3):
        running = launch(tmp_path)
        with Client(running.url) as client:
            shop = client.model("shop")
            if life == 0:
                for name in own:
                    shop.choose(["a", "b"], id=name)
            told = [shop.reward(name, 1.5, reward_id=f"{life}") for name in own]
            again = [shop.reward(name, 1.5, reward_id=f"{life}").status for name in own]
            assert set(again) <= {"duplicate", "expired"}  # on a slow machine its wait has ended
            taken += [one.status for one in told].count("waiting")
            while life == 2 and shop.status()["learned"] < len(own):
                assert running.process.poll() is None
                time.sleep(0.02)
        running.process.kill()
        running.process.wait(240)
    logged = choices_of(tmp_path / "state")
    assert logged.keys() == set(own)
    for choice, reward in logged.values():
        assert reward == 1.5 * len(choice.rewards)
        assert choice.defaulted is not bool(choice.rewards)
        assert len({x.named for x in choice.rewards}) == len(choice.rewards)
    assert sum(len(choice.rewards) for choice, _ in logged.values()) == taken > 0
