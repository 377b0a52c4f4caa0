"""The setting of rounded pushes reaches copies that push, and is refused where there are none."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from online.models.errors import LearnerUnusable
from online.models.fm import FmTable
from online.models.loading.from_settings import built_for_pushes, load_model
from online.service.parts.composition import _learner
from online.settings.config import Settings
from online.settings.model import ModelSettings

TABLE = {"learner": "fm", "params": {"table": True}}


def model(vectors: str = "float16", **given: Any) -> ModelSettings:
    told = {"name": "m", "task": "binary", "sync": {"vectors": vectors}, **TABLE, **given}
    return ModelSettings.model_validate(told)


def loaded(made: ModelSettings) -> Any:
    return load_model(made, Settings(models=(made,)), b"\0" * 32)


def sent(built: Any) -> int:
    """Columns that are rounded in a delta."""
    assert isinstance(built, FmTable)
    built.learn({"user": "a"}, True, 1.0)
    rounded: int = built.cut()["table"].data.rounded
    return rounded


def test_only_copies_that_push_round() -> None:
    made = model()
    assert sent(built_for_pushes(made, loaded(made).build)()) == 8
    assert sent(loaded(made).build()) == 0, "what is rebuilt is not rounded"
    plain = model("float32")
    assert sent(built_for_pushes(plain, loaded(plain).build)()) == 0
    assert loaded(plain).spec_hash == loaded(made).spec_hash, "the state is the same"


@pytest.mark.parametrize("vectors", ["float32", "float16"])
def test_the_learner_of_a_service_rounds_what_it_pushes(vectors: str) -> None:
    made = model(vectors)
    learner = _learner(made, Settings(models=(made,)), loaded(made), for_others=False)
    assert sent(learner.serving) == (8 if vectors == "float16" else 0)


@pytest.mark.parametrize(
    "given", [{"learner": "fm", "params": {}}, {"learner": "linear", "params": {}}]
)
def test_a_model_without_a_table_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(LearnerUnusable, match="no table whose vectors are pushed"):
        loaded(model(**given))
    loaded(model("float32", **given))


@pytest.mark.parametrize("merge", ["ordered", "overlay", "lagging"])
def test_a_rule_without_pushes_is_refused(merge: str) -> None:
    with pytest.raises(ValidationError, match="there are none"):
        model(sync={"vectors": "float16", "merge": merge})
