"""Choices that are killed, measured and filtered: short forms of long runs."""

from __future__ import annotations

from pathlib import Path

import online
from benchmarks.faults import choices_killed
from benchmarks.speed import choice_cost


def quiet(_: str) -> None:
    """Say nothing."""


def test_that_an_action_is_rewarded_again_is_no_copy(tmp_path: Path) -> None:
    """Without a context rewards of an action are rows alike: nine of ten were clipped as copies.

    The control is feedback with the same features, of no choice: that is a copy.
    """
    statuses: dict[str, list[str]] = {"reward": [], "feedback": []}
    with online.serve(
        "rewards", task="choose", name="shop", state_dir=tmp_path, say=quiet
    ) as service:
        shop = service.model
        for i in range(160):
            answer = shop.choose(["a", "b"])
            reward = float(answer.action == "a")
            told = shop.reward(answer.id, reward, source=f"s{i % 8}")
            statuses["reward"].append(told.status)
        for i in range(16):
            same = shop.feedback(1.0, features={"@": "a"}, source=f"s{i % 8}")
            statuses["feedback"].append(same.status)
    assert set(statuses["reward"]) == {"learned"}
    assert statuses["feedback"][8:] == ["clipped"] * 8


def test_what_choices_cost_is_measured_beside_predictions_and_feedback() -> None:
    costs = choice_cost.run(turns=1, requests=32, callers=2)
    assert [(cost.what, cost.requests) for cost in costs] == [
        (what, 32) for what, _, _ in choice_cost.ASKED
    ]
    assert all(cost.us > 0.0 and cost.ratio > 0.0 for cost in costs)


def test_kills_lose_no_reward_count_none_twice_and_draw_nothing_again() -> None:
    """Two kills with choices and rewards in flight; `python -m benchmarks choices-killed`: 200."""
    found = choices_killed.run(2, callers=4, progress=lambda _: None)
    assert (found.lost, found.twice, found.changed, found.redrawn) == ([], [], [], [])
    assert (found.stray, found.wrong) == ([], [])
    assert found.rows == found.learned
    assert found.good
    assert found.rewarded > 0
    assert found.choices == found.rewarded + found.late + found.defaulted + found.lost_halves
