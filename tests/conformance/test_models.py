"""Every kind of model keeps the promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_recipes import (
    BUILT_INS,
    FEW,
    MODELS,
    OPAQUE,
    RIVER,
    Rows,
    keyed,
    mixed,
    rows_of,
    targets,
    words_rows,
)

from online.models.adapters.linear import Linear, why_not_mergeable
from online.models.adapters.opaque import Opaque
from online.models.auto import Auto
from online.models.base import Model
from online.models.entities import personal
from online.models.entities.personal import Personal
from online.models.errors import LabelUnknown, LearnerUnusable
from online.models.fm import Fm
from online.models.ftrl import CLASSES_MAX, Ftrl
from online.models.loading.checks import CheckFailed, check_model
from online.models.loading.load import BUILT_IN, load
from online.models.selfrate import SelfRate
from paramserver.core.blocks import Blocks
from replay.example import Features

KEY = b"k" * 32


@pytest.mark.parametrize("name", RIVER)
def test_mergeable_estimators_keep_the_promises(name: str) -> None:
    build, rows = RIVER[name]
    assert why_not_mergeable(build()) is None
    check_model(lambda: Linear(build()), rows())


@pytest.mark.parametrize(
    ("task", "rows"), [("binary", words_rows), ("multiclass", mixed), ("regression", targets)]
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


@pytest.mark.parametrize("name", MODELS)
def test_models_of_their_own_keep_the_promises(name: str) -> None:
    build, task, rows = MODELS[name]

    def make() -> Model:
        made = build()
        return made.model_for(task) if hasattr(made, "model_for") else made  # type: ignore[no-any-return]

    check_model(make, rows()[:FEW])


@pytest.mark.parametrize("name", OPAQUE)
def test_opaque_models_keep_the_promises(name: str) -> None:
    build, task, rows = OPAQUE[name]
    opaque: dict[str, Any] = {"task": task, "key": KEY, "why_not_mergeable": "tree"}
    check_model(lambda: Opaque(build(), **opaque), rows()[:FEW])


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in ("sealed", "anomaly")])
def test_built_in_models_keep_the_promises(name: str) -> None:
    assert name in BUILT_INS, "a built-in model needs its rows in model_recipes.py"
    task, params, rows = BUILT_INS[name]
    loaded = load(name, params, task=task, classes=None, key=KEY, base_dir=Path())
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


@pytest.mark.parametrize("name", RIVER)
def test_a_model_trained_before_is_the_base_of_its_values(name: str) -> None:
    build, rows = RIVER[name]
    given = rows()

    def trained() -> Model:
        estimator = build()
        for features, label in given[:30]:
            estimator.learn_one(features, label)
        return Linear(estimator)

    assert trained().structure != Linear(build()).structure
    check_model(trained, given[30:])


PERSONAL: list[tuple[str, Any, Callable[[], Rows]]] = [
    ("linear", "binary", words_rows),
    ("linear", "regression", targets),
    ("auto", "binary", words_rows),
    ("auto", "regression", targets),
    ("logreg", "binary", lambda: rows_of("phishing")),
    ("linreg", "regression", targets),
]


def shared_by(keys: type[Personal], learner: str, task: Any) -> Callable[[], Model]:
    """Offsets by two keys on top of a built-in, with weights of one key's own."""
    build = load(learner, {}, task=task, classes=None, key=KEY, base_dir=Path()).build
    entity = {"who": ["1", "size", "url_length"], "where": []}
    return lambda: keys(build(), task, entity, learner)


@pytest.mark.parametrize(("learner", "task", "rows"), PERSONAL)
def test_offsets_by_key_keep_the_promises(
    learner: str, task: Any, rows: Callable[[], Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personal, "ALONE", 10.0)
    make = shared_by(Personal, learner, task)
    check_model(make, keyed(rows()))
    trained = make()
    for features, label in keyed(rows()):
        trained.learn(features, label, 1.0)
    assert sum(name.startswith("entity/") for name in trained.cut()) >= 2, "offsets were learned"


class _AskedIsKnown(Personal):
    def predict(self, features: Features) -> Any:
        for offsets in self._offsets:
            offsets._now.setdefault(str(features.get("who")), (0.0, 0.0, 0.0))
        return super().predict(features)


class _BeliefStays(Personal):
    def rebase(self, values: Blocks) -> None:
        believed = list(self._believed)
        super().rebase(values)
        self._believed = believed


class _KeysStay(Personal):
    def reset(self, values: Blocks) -> None:
        held = [dict(offsets._now) for offsets in self._offsets]
        super().reset(values)
        for offsets, now in zip(self._offsets, held, strict=True):
            offsets._now = {**now, **offsets._now}


class _OpenIsLost(Personal):
    def rebase(self, values: Blocks) -> None:
        for offsets in self._offsets:
            if offsets.block in values:
                offsets._open = {}
        super().rebase(values)


class _CutAgain(Personal):
    def cut(self) -> Blocks:
        opened = [dict(offsets._open) for offsets in self._offsets]
        out = super().cut()
        for offsets, again in zip(self._offsets, opened, strict=True):
            offsets._open = again
        return out


class _NothingProved(Personal):
    def cut(self) -> Blocks:
        return {name: block for name, block in super().cut().items() if name != "entity.proved"}


class _ManyAsOne(Personal):
    def predict_many(self, rows: Any) -> list[Any]:
        return [self._shared.predict(self._without_keys(x)) for x in rows]


MUTANTS = {
    _AskedIsKnown: "predict changes nothing",
    _BeliefStays: "delta composes|replicas agree|rebase",
    _KeysStay: "reset",
    _OpenIsLost: "rebase keeps the open delta|replicas agree",
    _CutAgain: "delta composes|cut empties",
    _NothingProved: "delta composes",
    _ManyAsOne: "many is one by one",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_offsets_that_break_a_promise_are_found(
    mutant: type[Personal], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personal, "ALONE", 10.0)
    with pytest.raises(CheckFailed, match=MUTANTS[mutant]):
        check_model(shared_by(mutant, "linear", "regression"), keyed(targets()))
