"""Every kind of model keeps the promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_recipes import (
    MERGEABLE,
    NETWORKS,
    OPAQUE,
    Rows,
    choices,
    mixed,
    rows_of,
    targets,
    words_rows,
)

from online.models.auto import Auto
from online.models.base import Model
from online.models.checks import check_model
from online.models.errors import LabelUnknown, LearnerUnusable
from online.models.fm import Fm
from online.models.ftrl import CLASSES_MAX, Ftrl
from online.models.linear import Linear, why_not_mergeable
from online.models.load import BUILT_IN, load
from online.models.opaque import Opaque
from online.models.selfrate import SelfRate

KEY = b"k" * 32
FEW = 42
"""Rows for models whose every row costs a millisecond: the checks take their square."""


@pytest.mark.parametrize("name", MERGEABLE)
def test_mergeable_models_keep_the_promises(name: str) -> None:
    build, rows = MERGEABLE[name]
    assert why_not_mergeable(build()) is None
    check_model(lambda: Linear(build()), rows())


@pytest.mark.parametrize(
    ("task", "rows"),
    [("binary", words_rows), ("multiclass", mixed), ("regression", targets)],
)
@pytest.mark.parametrize(
    "recipe",
    [Ftrl(text=["text"]), Ftrl(scale="limited"), Ftrl(l1=0.1, l2=0.1, bits=4, scale=False)],
)
def test_ftrl_keeps_the_promises(recipe: Ftrl, task: Any, rows: Callable[[], Rows]) -> None:
    check_model(lambda: recipe.model_for(task), rows())


@pytest.mark.parametrize(("task", "rows"), [("binary", words_rows), ("regression", targets)])
@pytest.mark.parametrize(
    "recipe",
    [
        Fm(text=["text"]),
        Fm(3, bits=4, start=0.5, beta_v=1.0),
        Fm(text=["text"], table=True),
        Fm(3, bits=4, start=0.5, beta_v=1.0, table=True),
    ],
)
def test_a_factorization_machine_keeps_the_promises(
    recipe: Fm, task: Any, rows: Callable[[], Rows]
) -> None:
    check_model(lambda: recipe.model_for(task), rows()[:FEW])


def test_ftrl_bounds_its_classes_and_its_settings() -> None:
    served = Ftrl().model_for("multiclass")
    for i in range(CLASSES_MAX):
        served.learn({"a": 1.0}, i, 1.0)
    served.cut()
    with pytest.raises(LabelUnknown):
        served.learn({"a": 1.0}, "one more", 1.0)
    assert served.cut() == {}
    for wrong in ({"text": "message"}, {"alpha": 0}, {"l1": -1}, {"bits": 40}):
        with pytest.raises(LearnerUnusable, match=next(iter(wrong))):
            Ftrl(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "rows"),
    [
        ("binary", words_rows),
        ("binary", lambda: rows_of("phishing")),
        ("multiclass", mixed),
        ("multiclass", lambda: rows_of("image_segments")),
        ("regression", targets),
    ],
)
@pytest.mark.parametrize(
    "recipe", [SelfRate(text=["text"]), SelfRate(bits=4), Auto(text=["text"], bits=6)]
)
def test_linear_experts_keep_the_promises(
    recipe: SelfRate | Auto, task: Any, rows: Callable[[], Rows]
) -> None:
    check_model(lambda: recipe.model_for(task), rows())


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_keep_the_promises(name: str) -> None:
    build, task, rows = NETWORKS[name]
    check_model(lambda: build().model_for(task), rows()[:FEW])


@pytest.mark.parametrize("name", OPAQUE)
def test_opaque_models_keep_the_promises(name: str) -> None:
    build, task, rows = OPAQUE[name]
    opaque: dict[str, Any] = {"task": task, "key": KEY, "why_not_mergeable": "tree"}
    check_model(lambda: Opaque(build(), **opaque), rows()[:FEW])


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in ("sealed", "anomaly")])
def test_built_in_models_keep_the_promises(name: str) -> None:
    task, rows = {
        "logreg": ("binary", lambda: rows_of("phishing")),
        "softmax": ("multiclass", mixed),
        "linreg": ("regression", targets),
        "ftrl": ("binary", words_rows),
        "fm": ("regression", targets),
        "linear": ("binary", words_rows),
        "rewards": ("regression", choices),
        "auto": ("multiclass", mixed),
        "mlp": ("binary", lambda: rows_of("bananas", FEW)),
    }[name]
    params = {"inputs": ["1", "2"]} if name == "mlp" else {}
    loaded = load(name, params, task=task, classes=None, key=KEY, base_dir=Path())  # type: ignore[arg-type]
    assert loaded.model.mergeable
    check_model(loaded.build, rows())


@pytest.mark.parametrize("threshold", [None, 0.99], ids=["binary", "anomaly"])
def test_the_built_in_detector_keeps_the_promises(threshold: float | None) -> None:
    loaded = load(
        "anomaly", {"window": 20, "trees": 5}, task="binary", classes=None, key=KEY,
        base_dir=Path(), threshold=threshold,
    )  # fmt: skip
    assert not loaded.model.mergeable
    check_model(loaded.build, rows_of("phishing")[:FEW])


@pytest.mark.parametrize("name", MERGEABLE)
def test_a_model_trained_before_is_the_base_of_its_values(name: str) -> None:
    build, rows = MERGEABLE[name]
    given = rows()

    def trained() -> Model:
        estimator = build()
        for features, label in given[:30]:
            estimator.learn_one(features, label)
        return Linear(estimator)

    assert trained().structure != Linear(build()).structure
    check_model(trained, given[30:])
