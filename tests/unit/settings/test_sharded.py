"""The settings refuse some of a model with several parameter servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from online.models.errors import LearnerUnusable
from online.models.loading.from_settings import load_model
from online.settings.config import Settings
from online.settings.model import ModelSettings


def model(**given: Any) -> ModelSettings:
    told = {"name": "m", "task": "binary", "learner": "ftrl", "shards": 2, **given}
    return ModelSettings.model_validate(told)


@pytest.mark.parametrize(
    "given",
    [
        {"learn": "background"},
        {"sync": {"merge": "ordered"}},
        {"challenger": {"learner": "linear"}},
        {"drift": {"on_rise": "relearn"}},
        {"triggers": {"every": 500, "on_trigger": "forget"}},
    ],
)
def test_what_needs_all_values_in_one_server_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="2 servers hold a part of the model each"):
        model(**given)
    model(**given, shards=1)


@pytest.mark.parametrize("shards", [0, 65])
def test_the_number_of_shards_has_bounds(shards: int) -> None:
    with pytest.raises(ValidationError, match="shards"):
        model(shards=shards)


def loaded(shards: int, tmp_path: Path, **given: Any) -> Any:
    made = model(shards=shards, **given)
    return load_model(made, Settings(models=(made,), state_dir=tmp_path), b"\0" * 32)


def test_another_number_of_shards_is_another_model(tmp_path: Path) -> None:
    one, two, three = (loaded(n, tmp_path) for n in (1, 2, 3))
    assert len({one.spec_hash, two.spec_hash, three.spec_hash}) == 3
    assert len({one.alike, two.alike, three.alike}) == 3
    assert "shards" not in one.spec_text


def test_what_can_not_be_merged_has_one_server(tmp_path: Path) -> None:
    with pytest.raises(LearnerUnusable, match="can't be merged"):
        loaded(2, tmp_path, learner="river.tree:HoeffdingTreeClassifier")
