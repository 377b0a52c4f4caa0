"""A model of rewards has no file, for it weighs all actions at once; what to take instead has."""

from __future__ import annotations

import pytest

from online.edge.errors import ExportRefused
from online.edge.ir import EdgeModel
from online.edge.lower import lower
from online.models.rewards import Rewards
from online.models.selfrate import SelfRate


def test_rewards_are_refused_with_what_has_a_file() -> None:
    with pytest.raises(ExportRefused, match="`learner: linear` in its place has a file"):
        lower(Rewards(bits=8).model_for("regression"), "regression")
    linear = SelfRate().model_for("regression")
    for i in range(20):
        linear.learn({"@": "ab"[i % 2], "hour": float(i % 3)}, float(i % 2), 1.0)
    assert isinstance(lower(linear, "regression"), EdgeModel)
