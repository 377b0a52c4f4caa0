"""A challenger that diverges answers numbers whose squares no counter can hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from online.challenger.comparison import Challenger
from online.models.base import Prediction
from paramserver.core.blocks import Blocks, from_wire
from replay import codec
from replay.example import Example, Features, Label
from replay.journal.base import Row, Verdict


class Diverged:
    """It answers one number and learns nothing."""

    mergeable, learns, numeric_only, structure = False, True, True, "diverged"
    why_not_mergeable: str | None = "it learns nothing"

    def __init__(self, answer: float) -> None:
        self.answer = answer

    def predict(self, features: Features) -> Prediction:
        return Prediction(self.answer, None)

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        return [self.predict(x) for x in rows]

    def learn(self, features: Features, label: Label, weight: float) -> None:
        """Nothing."""

    def cut(self) -> Blocks:
        return {}

    def rebase(self, values: Blocks) -> None:
        """Nothing."""

    def reset(self, values: Blocks) -> None:
        """Nothing."""


@pytest.mark.parametrize("answer", [1e200, -1e200, 1e101, math.inf, math.nan])
def test_it_goes_on_and_the_server_takes_its_state(answer: float) -> None:
    """An answer of that kind counts as none, as one that the champion gives does."""
    learner = Challenger(
        lambda: Diverged(answer), task="regression", spec="s", rows_max=9, rival="r"
    )
    learner.ready, learner.want_all = True, False
    for seq in (1, 2, 3):
        example = Example({"a": 1.0}, 2.0, 1.0, {"": 2.5}, (1, 0, 0), 1.0)
        learner.ask(seq, example, compare=True)
        payload, key = codec.encode(example), bytes([seq]) * 16
        row = Row(seq, 1, seq, key, str(seq), "s", Verdict.ACCEPTED, 1.0, payload, 1.0)
        assert learner.learn(row) is None
    from_wire(learner.state().blocks)  # raises BlockError for a number that is not finite
    assert "squared_error" not in learner.tally.counters
