"""Any model can score actions, and what it answers makes a distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from online.decide import Policy
from online.decide.scoring import by_predictions
from online.models.base import Prediction
from replay.example import Features

ANSWERS = {
    "good": 8.0, "bad": 2.0, "none": None, "nan": math.nan, "inf": math.inf, "-inf": -math.inf,
}  # fmt: skip
EXPECTED = {"good": 8.0, "bad": 2.0, "none": 5.0, "nan": 5.0, "inf": 10.0, "-inf": 0.0}


class Odd:
    """A model that answers by the action's id."""

    def predict_many(self, rows: Sequence[Features]) -> list[Prediction]:
        return [Prediction(ANSWERS[str(row["@"])], None) for row in rows]


@pytest.mark.parametrize("kind", ["greedy", "epsilon", "softmax", "squarecb", "thompson"])
def test_an_answer_that_is_no_number_leaves_a_distribution(kind: Any) -> None:
    """Otherwise all probabilities were NaN, and so were all sums over the rewards, for good."""
    scores = by_predictions(Odd(), {"x": 1.0}, [(name, {}) for name in ANSWERS], 0.0, 10.0)  # type: ignore[arg-type]
    assert dict(zip(ANSWERS, scores.means.tolist(), strict=True)) == EXPECTED
    decision = Policy(kind=kind, floor=0.01).decide(scores)
    assert decision.probabilities.sum() == pytest.approx(1.0)
    assert decision.probabilities.argmax() == list(ANSWERS).index("inf")
