"""Rewards that teach nothing say nothing of how good the choices are."""

from __future__ import annotations

import contextlib
from math import inf
from pathlib import Path
from typing import Any

import replica_world as worlds
from test_default_rewards import ACTIONS, shop

from online.commands.inspect.evaluate import logged
from online.decide.choice_metrics import Choices
from online.messages.choices import ChooseRequest
from online.messages.structs import FeedbackRequest


def test_rewards_without_weight_move_neither_the_shown_reward_nor_an_evaluation(
    tmp_path: Path,
) -> None:
    """A sender chooses the weight of a label, and a reward may be sent as one."""

    async def scene(world: Any) -> None:
        one = await shop(world, choose={"default_reward": None})
        for i in range(40):
            lies = i >= 20
            answer = await one.choosing.choose(ChooseRequest(ACTIONS, {"x": 1.0}))
            label = FeedbackRequest(
                label=float(lies), id=answer.id, weight=1e-9 if lies else 1.0, source=f"s{i % 4}"
            )
            _, receipt = await one.choosing.serving.feedback(label)
            assert receipt.status == "learned"  # type: ignore[union-attr]
        (shown,) = (x for x in one.replica.learner.tally.views if isinstance(x, Choices))
        assert (shown.summary()["n"], shown.summary()["reward"]) == (20, 0.0)
        assert shown.summary()["constant"]["reward"] < 0.3
        with contextlib.closing(world.journal()) as journal:
            assert [x.reward for x in logged(journal, "m", 0.0, inf)] == [0.0] * 20
        await one.replica.stop(1)

    worlds.play(tmp_path, scene)
