"""Choices and rewards over HTTP, in one process: learned once, chosen once, logged as used."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from chosen import choices_of, quiet, served, settings
from rich.console import Console
from typer.testing import CliRunner

import online
from benchmarks.fixtures.service import launch, write_settings
from online.client import Chosen, Client, ServiceRefused
from online.commands.cli import application
from online.commands.operate import status as command
from online.models.errors import LearnerUnusable
from online.models.loading.model_file import settings_of
from online.service.embedded import Embedded
from online.settings.config import load

HERE = Path(__file__).parent
ACTIONS: dict[str, dict[str, Any]] = {"news": {}, "sport": {"length": 4.5}, "film": {}}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with served(tmp_path_factory.mktemp("shop")) as service:
        yield service


def post(service: Embedded, action: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{service.url}/v1/models/shop/{action}", json=body, timeout=120)


def asked(**more: Any) -> dict[str, Any]:
    actions = [{"id": action, "features": x} for action, x in ACTIONS.items()]
    return {"context": {"hour": 20, "evening": True}, "actions": actions, **more}


def test_what_is_rewarded_is_chosen_more_and_each_reward_is_learned_once(tmp_path: Path) -> None:
    rng = random.Random(5)
    answers: dict[str, Chosen] = {}
    with served(tmp_path) as service:
        shop = service.model
        for _ in range(120):
            seg = rng.choice("ab")
            answer = shop.choose(["left", "right"], {"seg": seg})
            reward = float((seg == "a") == (answer.action == "left"))
            receipt = shop.reward(answer.id, reward)
            assert receipt.status == "learned"
            assert isinstance(receipt.event_id, str)
            answers[receipt.event_id] = answer
        assert shop.status()["learned"] == 120
        for seg, best in (("a", "left"), ("b", "right")):
            ranked = {
                x.id: x.expected for x in shop.choose(["left", "right"], {"seg": seg}).ranking
            }
            assert max(ranked, key=ranked.__getitem__) == best
        twice = shop.reward(answer.id, reward)
        assert (twice.status, twice.duplicate) == ("duplicate", True)
        assert shop.reward(answer.id, 1.0 - reward).status == "conflict"
        assert shop.status()["learned"] == 120
    logged = choices_of(tmp_path / "state")
    assert logged.keys() == answers.keys()
    for event_id, answer in answers.items():  # what is logged is what was answered
        choice, _ = logged[event_id]
        assert (choice.action, choice.propensity) == (answer.action, answer.probability)
        told = [(x.id, x.probability, x.expected) for x in answer.ranking]
        kept = [
            (choice.actions[i][0], choice.probabilities[i], choice.estimates[i])
            for i in choice.ranking()
        ]
        assert kept == told
        assert sum(choice.probabilities) == pytest.approx(1.0)


def test_the_status_says_what_came_of_the_choices(tmp_path: Path) -> None:
    """From three lives of the service: the figures are sums over the journal's rows.

    In the third one only, a reward is not waited for long: there none comes.
    """
    choose = {"policy": "epsilon", "epsilon": 0.5, "default_reward": 0.0}
    taken, right, rng = Counter[str](), 0, random.Random(4)
    for life in range(3):
        wait_s = 0.5 if life == 2 else 3600.0
        with served(tmp_path, choose={**choose, "reward_wait": wait_s}) as service:
            shop = service.model
            for _ in range(60 if life < 2 else 0):
                answer = shop.choose(["left", "right"], baseline="left")
                reward = rng.random() < (0.9 if answer.action == "right" else 0.2)
                shop.reward(answer.id, float(reward))
                taken[answer.action] += 1
                right += reward
            if life == 2:
                taken[shop.choose(["left", "right"]).action] += 1  # gets the default
                while shop.status()["learned"] < 121:
                    time.sleep(0.02)
                status = shop.status()
                text = httpx.get(f"{service.url}/metrics", timeout=120).text
                shown = [name for name, _ in status.lines()]
    assert status["task"] == "choose"
    found = status["choices"]
    assert (found["n"], found["defaulted"]) == (121, 1)
    assert found["reward"] == pytest.approx(right / 121)
    assert {name: x["n"] for name, x in found["actions"].items()} == taken
    assert found["constant"]["action"] == "right"
    assert found["constant"]["reward"] > found["evenly"] > found["baseline"]["reward"]
    assert 0.05 < found["explored"] < 0.6
    assert found["baseline"]["n"] == 120
    assert found["apprentice"] is None
    quality = status["quality"]
    assert (quality["reward"], quality["evenly"]) == (found["reward"], found["evenly"])
    assert 'online_prequential{metric="constant",model="shop"}' in text
    assert {"reward", "best single action", "actions evenly"} <= set(shown)
    file = Console(file=io.StringIO(), width=200)
    command._show_model(file, status)
    assert isinstance(file.file, io.StringIO)
    lines = file.file.getvalue()
    for part in ("shop  choose, rewards", "over 121 choices, always right", "1 by default"):
        assert part in lines


def test_an_answer_says_what_it_is(shop: Embedded) -> None:
    answer = post(shop, "choose", **asked(exclude=["film"])).json()
    assert answer["action"] == answer["ranking"][0]["id"] != "film"
    assert {x["id"] for x in answer["ranking"]} == set(ACTIONS)
    by_id = {x["id"]: x["probability"] for x in answer["ranking"]}
    assert by_id["film"] == 0.0
    assert answer["probability"] == by_id[answer["action"]] > 0.0
    assert {"model", "version", "own", "age_ms", "updates_behind"} <= answer.keys()
    assert "repeated" not in answer
    other = post(shop, "choose", **asked(exclude=["film"])).json()
    assert other["id"] != answer["id"]  # without an id of one's own a repeat is another choice


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"actions": []}, 422, "actions"),
        ({"actions": [{"id": "a"}, {"id": "a"}]}, 422, "actions[1].id"),
        ({"actions": [{"id": "a"}], "exclude": ["a"]}, 422, "exclude"),
        ({"actions": [{"id": "a"}], "exclude": ["b"]}, 422, "exclude"),
        ({"actions": [{"id": "a"}], "baseline": "b"}, 422, "baseline"),
        ({"actions": [{"id": "a"}], "context": {"@x": 1}}, 422, "context.@x"),
        ({"actions": [{"id": "a"}], "context": {"x": [1]}}, 422, "context.x"),
        ({"actions": [{"id": "a", "features": {"x": {}}}]}, 422, "actions[0].features.x"),
        (
            {"actions": [{"id": x, "features": {"x": 1e101 if x == "b" else 0.0}} for x in "ab"]},
            422,
            "actions[1].features.x",
        ),
        (
            {"actions": [{"id": x, "features": {"x": 2**60, "y": 0.5}} for x in "ab"]},
            422,
            "actions[0].features.x",
        ),
        ({"actions": [{"id": "a", "features": {"x\n": 1.0}}]}, 422, "actions[0].features"),
        ({"actions": [{"id": "a\n"}]}, 422, "actions[0].id"),
        ({"actions": [{"id": "a" * 2000}]}, 422, "actions[0].id"),
        ({"actions": [{"id": str(i)} for i in range(257)]}, 422, "actions"),
        ({"actions": [{"id": "a"}], "id": "no id"}, 422, "id"),
        ({"actions": [{"id": "a"}], "contxt": {}}, 422, "contxt"),
        ({"context": {}}, 422, None),
    ],
)
def test_what_can_not_be_chosen_from_is_refused_with_its_field(
    shop: Embedded, body: dict[str, Any], status: int, field: str | None
) -> None:
    answer = post(shop, "choose", **body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)
    assert answer.json()["error"]["hint"]


def test_a_reward_is_within_its_range_and_for_a_choice(shop: Embedded) -> None:
    chosen = post(shop, "choose", **asked()).json()["id"]
    learned = shop.model.status()["learned"]
    for reward in (1.5, -0.1, "much", None):
        refused = post(shop, "reward", id=chosen, reward=reward)
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "reward")
        assert post(shop, "feedback", id=chosen, label=reward).status_code == 422
    assert post(shop, "reward", reward=1.0).json()["error"]["field"] == "id"
    forged = post(shop, "reward", id=chosen[:-4] + "AAAA", reward=1.0)
    assert (forged.status_code, forged.json()["error"]["code"]) == (404, "unknown_id")
    assert shop.model.status()["learned"] == learned
    many = post(
        shop, "reward", rewards=[{"id": chosen, "reward": True}, {"id": chosen, "reward": 3}]
    ).json()["events"]
    assert [x["status"] for x in many] == ["learned", "refused"]


def test_features_without_an_action_teach_nothing(shop: Embedded) -> None:
    named = post(shop, "feedback", features={"x": 1.0, "@": "a"}, label=1, event_id="one")
    assert named.json()["status"] == "learned"  # from here on the name is known
    learned = shop.model.status()["learned"]
    refused = post(shop, "feedback", features={"x": 1.0}, label=1, event_id="none")
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "features.@")
    several = [{"features": {"x": float(i)}, "label": 1, "event_id": f"n{i}"} for i in range(20)]
    receipts = post(shop, "feedback", events=several).json()["events"]  # numbers, read together
    assert {x["status"] for x in receipts} == {"refused"}
    assert shop.model.status()["learned"] == learned


def test_under_an_id_of_its_own_a_question_has_one_answer(shop: Embedded) -> None:
    first = post(shop, "choose", **asked(id="order-1")).json()
    assert first["id"] == "order-1"
    for _ in range(20):
        again = post(shop, "choose", **asked(id="order-1")).json()
        assert again.pop("repeated")
        assert [again[k] for k in ("action", "ranking", "version", "own")] == [
            first[k] for k in ("action", "ranking", "version", "own")
        ]
    other = post(shop, "choose", **{**asked(id="order-1"), "context": {"hour": 3}})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "id_in_use")
    assert post(shop, "reward", id="order-1", reward=1).json()["status"] == "learned"
    assert post(shop, "reward", id="order-1", reward=1).json()["status"] == "duplicate"
    assert post(shop, "reward", id="order-1", reward=0).status_code == 409
    after = post(shop, "choose", **asked(id="order-1")).json()
    assert (after["action"], after["ranking"]) == (first["action"], first["ranking"])
    assert post(shop, "predict", features={"x": 1.0}, id="asked-1").status_code == 200
    shop.model.feedback(1.0, id="asked-1")
    taken = post(shop, "choose", **asked(id="asked-1"))
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "id_in_use")


def test_a_reward_that_comes_before_its_choice_waits_for_it(shop: Embedded) -> None:
    early = post(shop, "reward", id="order-2", reward=1)
    assert (early.status_code, early.json()["status"]) == (202, "waiting")
    learned = shop.model.status()["learned"]
    answer = post(shop, "choose", **asked(id="order-2")).json()
    assert "repeated" not in answer
    assert shop.model.status()["learned"] == learned + 1
    assert post(shop, "choose", **asked(id="order-2")).json()["action"] == answer["action"]


def test_what_a_token_has_no_room_for_is_written_first(shop: Embedded) -> None:
    rng = random.Random(1)
    actions = [
        {"id": f"a{i}", "features": {f"f{i}.{k}": rng.random() for k in range(30)}}
        for i in range(40)
    ]
    answer = post(shop, "choose", actions=actions).json()
    assert answer["id"].startswith("choice-")
    assert post(shop, "reward", id=answer["id"], reward=0.5).json()["status"] == "learned"


def test_other_policies_are_judged_on_the_journal(tmp_path: Path) -> None:
    choose = {"policy": "epsilon", "epsilon": 0.5, "reward_range": [-1, 1]}
    given = settings(choose=choose)
    write_settings(tmp_path, given)
    with served(tmp_path, choose=choose) as service:
        shop = service.model
        for i in range(150):
            answer = shop.choose(["a", "b"], baseline="a" if i % 2 else None)
            shop.reward(answer.id, 1.0 if answer.action == "b" else -1.0)

    def evaluate(*words: str) -> Any:
        folder = ["--config", str(tmp_path / "online.yaml"), "--state-dir", str(tmp_path / "state")]
        return CliRunner().invoke(application("evaluate"), ["evaluate", *words, *folder])

    names = ("always:a", "always:b", "greedy", "uniform", "baseline", "always:never")
    found = json.loads(evaluate(*(f"--policy={name}" for name in names), "--json").stdout)
    judged = found["policies"]
    for name, worth in (
        ("always:a", -1.0),
        ("always:b", 1.0),
        ("uniform", 0.0),
        ("baseline", -1.0),
    ):
        one = judged[name]
        assert one["interval"][0] <= worth <= one["interval"][1]
        assert one["snips"] == pytest.approx(worth, abs=0.6)
    assert (judged["baseline"]["n"], judged["baseline"]["unanswered"]) == (75, 75)
    assert (judged["served"]["n"], judged["always:never"]["n"]) == (150, 0)
    assert judged["greedy"]["dr"] > judged["served"]["dr"] > judged["uniform"]["dr"]
    files = (f"--dsjson={tmp_path / 'log'}", f"--obp={tmp_path / 'log.npz'}")
    shown = evaluate("--policy=always:b", *files).stdout
    arrays = np.load(tmp_path / "log.npz")
    assert (len(arrays["action"]), set(arrays["reward"].tolist())) == (150, {-1.0, 1.0})
    costs = [json.loads(one)["_label_cost"] for one in (tmp_path / "log").read_text().splitlines()]
    assert (len(costs), set(costs)) == (150, {-1.0, 1.0})
    assert "served" in shown
    assert "always:b" in shown
    assert "no policy" in str(evaluate("--policy=best").exception)
    assert "no rewarded choice" in str(evaluate("--until=2020-01-01").exception)
    assert "does not choose" in str(evaluate("--model=other").exception)


def test_any_learner_of_a_number_that_reads_texts_can_choose(tmp_path: Path) -> None:
    with served(tmp_path, learner="linear") as service:
        for _ in range(3):
            answer = service.model.choose(ACTIONS, {"x": 1.0})
            assert service.model.reward(answer.id, 1.0).status == "learned"
    with pytest.raises(LearnerUnusable, match="takes numbers only"):
        online.serve("linreg", task="choose", name="n", state_dir=tmp_path / "n", say=quiet)


def test_a_file_of_a_model_that_chooses_is_served_from_the_shell(tmp_path: Path) -> None:
    file = tmp_path / "shop.py"
    file.write_text(
        "from online.models.rewards import Rewards\ntask = 'choose'\n"
        "def make():\n    return Rewards()\n"
    )
    (one,) = settings_of(file)["models"]
    assert (one["name"], one["task"], one["learner"]) == ("shop", "choose", "shop.py:make")
    running = launch(tmp_path, "--port=0", f"--state-dir={tmp_path / 'state'}", file=file)
    try:
        with Client(running.url) as client:
            answer = client.model("shop").choose(ACTIONS)
            assert client.model("shop").reward(answer.id, 1).status == "learned"
    finally:
        running.process.kill()


def test_a_deferred_choice_is_activated(shop: Embedded) -> None:
    answer = shop.model.choose(ACTIONS, defer=True)
    assert answer.id.startswith("choice-")
    shop.model.activate(answer.id)
    shop.model.activate(answer.id)
    assert shop.model.reward(answer.id, 1.0).status == "learned"
    with pytest.raises(ServiceRefused, match="no choice has this id"):
        shop.model.activate("nothing")


def test_a_model_that_does_not_choose_says_so(tmp_path: Path) -> None:
    with online.serve("linear", task="regression", name="shop", state_dir=tmp_path, say=quiet) as x:
        for action in ("choose", "reward"):
            answer = post(x, action, **asked())
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_choices")
        with pytest.raises(ServiceRefused, match="does not choose"):
            x.model.choose(["a", "b"])


def test_sources_that_reward_one_action_only_are_taken_like_others(tmp_path: Path) -> None:
    rng = random.Random(3)
    with served(tmp_path) as service:
        shop = service.model
        for i in range(240):
            answer = shop.choose(["a", "b", "c"], {"x": rng.random()})
            source = f"s{i % 12}"
            reward = 1.0 if i % 4 == 0 and answer.action == "c" else float(rng.random() < 0.5)
            status = shop.reward(answer.id, reward, source=source).status
            assert status in ("learned", "clipped", "quarantined")
        assert shop.status()["incident"] is None


def test_the_lines_of_the_page_run(tmp_path: Path) -> None:
    page = (HERE.parents[1] / "docs" / "decide.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    ended = subprocess.run(
        [sys.executable, "-c", lines], capture_output=True, text=True, timeout=240,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(HERE.parents[1])}, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
    told = [line for line in ended.stdout.splitlines() if line.startswith(("morning", "evening"))]
    assert len(told) == 2


def test_a_killed_process_loses_no_reward_and_counts_none_twice(tmp_path: Path) -> None:
    write_settings(tmp_path, settings())
    rewards: dict[str, float] = {}
    chosen: dict[str, Chosen] = {}
    late: list[str] = []
    for life in range(3):
        running = launch(tmp_path)
        with Client(running.url) as client:
            shop = client.model("shop")
            for own, first in chosen.items():  # chosen once, whoever is asked
                again = shop.choose(ACTIONS, {"x": 1.0}, id=own)
                assert (again.action, again.ranking) == (first.action, first.ranking)
            for id_, reward in rewards.items():
                assert shop.reward(id_, reward).status == "duplicate"
            for i in range(12):
                named = f"own-{life}-{i}" if i % 3 == 0 else None
                answer = shop.choose(ACTIONS, {"x": 1.0}, id=named)
                if named is not None:
                    chosen[named] = answer
                reward = float(i % 2)
                if i != 6:  # of one the reward comes in the next life
                    assert shop.reward(answer.id, reward).status == "learned"
                    rewards[answer.id] = reward
                else:
                    late.append(answer.id)
            if life == 2:
                for id_ in late:
                    assert shop.reward(id_, 1.0).status == "learned"
                while shop.status()["learned"] != len(rewards) + len(late):
                    assert running.process.poll() is None
                    time.sleep(0.02)
        running.process.kill()
        running.process.wait(240)
    logged = choices_of(tmp_path / "state")
    assert len(logged) == len(rewards) + len(late)
    assert sum(reward for _, reward in logged.values()) == sum(rewards.values()) + len(late)


def test_after_a_kill_each_choice_has_its_reward_or_the_default(tmp_path: Path) -> None:
    write_settings(tmp_path, settings(choose={"default_reward": 0.25, "reward_wait": 0.5}))
    names = [f"order-{i}" for i in range(6)]
    for life in range(2):
        running = launch(tmp_path)
        with Client(running.url) as client:
            shop = client.model("shop")
            assert shop.reward(names[life * 3], 1.0).status == "waiting"
            for name in names[life * 3 : life * 3 + 3]:
                shop.choose(ACTIONS, id=name)
            while life and shop.status()["learned"] < len(names):
                assert running.process.poll() is None
                time.sleep(0.02)
        running.process.kill()
        running.process.wait(240)
    logged = choices_of(tmp_path / "state")
    assert {name: logged[name][1] for name in names} == {
        name: 1.0 if i % 3 == 0 else 0.25 for i, name in enumerate(names)
    }


def test_the_example_learns_what_its_visitors_like(tmp_path: Path) -> None:
    folder = HERE.parents[1] / "examples" / "choose"
    data = {"state_dir": str(tmp_path / "state"), "port": 0}
    spec = importlib.util.spec_from_file_location("visitors", folder / "visitors.py")
    assert spec is not None
    assert spec.loader is not None
    visitors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(visitors)
    with Embedded(load(folder / "online.yaml", data, {}), quiet) as service:
        service.start()
        shares = visitors.main(service.url, 180)
    assert sum(shares[-3:]) / 3 > 0.55  # a third would be of chance
