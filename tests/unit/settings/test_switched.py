"""Settings that do nothing without another one are refused with it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from online.settings.model import ModelSettings


def model(**given: Any) -> ModelSettings:
    return ModelSettings.model_validate(
        {"name": "m", "task": "binary", "learner": "linear", **given}
    )


@pytest.mark.parametrize(
    ("given", "switch"),
    [
        ({"replay": {"capacity": 500}}, "capacity does nothing without policy"),
        ({"triggers": {"pause": 500, "rows": 500}}, "pause does nothing without every"),
        ({"cache": {"wait_ms": 5}}, "wait_ms does nothing without rows"),
    ],
)
def test_a_part_that_is_not_switched_on_is_refused(given: dict[str, Any], switch: str) -> None:
    with pytest.raises(ValidationError, match=switch):
        model(**given)


def test_a_part_that_is_switched_off_may_say_more() -> None:
    made = model(replay={"policy": "none", "capacity": 500}, triggers={"rows": 500})
    assert not made.replay.on
    assert made.made_as({"learner": "auto"}).replay == made.replay
