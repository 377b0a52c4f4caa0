"""A replica may hold some rows of a table only where missing ones can be fetched."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from online.learning.cached_rows import cache_for
from online.models.errors import LearnerUnusable
from online.models.loading.from_settings import load_model
from online.service.parts.composition import _learner
from online.settings.config import Settings
from online.settings.model import ModelSettings


def model(rows: int | None = 500, **given: Any) -> ModelSettings:
    told = {"name": "m", "task": "binary", "learner": "fm", "params": {"table": True}}
    return ModelSettings.model_validate({**told, "cache": {"rows": rows}, **given})


def loaded(made: ModelSettings) -> Any:
    return load_model(made, Settings(models=(made,)), b"\0" * 32)


@pytest.mark.parametrize(
    "given",
    [
        {"shards": 2},
        {"sync": {"share_tables": True}},
        {"learn": "background"},
        {"sync": {"merge": "ordered"}},
        {"replay": {"policy": "recent"}},
    ],
)
def test_what_needs_all_rows_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="needs all of them"):
        model(**given)
    model(None, **given)


def test_a_model_without_a_table_is_refused() -> None:
    with pytest.raises(LearnerUnusable, match="it has no table"):
        loaded(model(learner="linear", params={}))


@pytest.mark.parametrize("rows", [None, 500])
def test_all_rows_are_held_unless_a_number_is_set(rows: int | None) -> None:
    made = model(rows)
    learner = _learner(made, Settings(models=(made,)), loaded(made), for_others=False)
    cache = cache_for(made.cache.rows, lambda: learner.serving)
    assert (None if cache is None else cache.most) == rows
